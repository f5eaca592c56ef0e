//! One turn of the loop: images are answered, sites learn from the verdicts, what they learned is merged, tried and let out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures::future::try_join_all;
use runtime::Shutdown;
use schemas::{Reason, ReleaseDecision, ReleaseId, ReleaseStage, Route, SiteName};
use tokio::sync::Mutex;
use vision::OnnxRuntime;

use super::flow::{FlowAnswer, SiteFlow};
use super::label_accuracy::Right;
use super::model_standing::{ModelStanding, RoundOutcome, wait_for_decision};
use super::pictures::LoopPicture;
use crate::settings::Settings;
use crate::{format, stdout};

/// What is needed in every turn.
pub struct LoopContext {
    /// How rounds and releases stand.
    pub stands: ModelStanding,
    /// The settings that everything runs with.
    pub settings: Settings,
    /// The ONNX Runtime.
    pub onnx: OnnxRuntime,
    /// Pictures that nobody learns from.
    pub test: Arc<Vec<LoopPicture>>,
    /// Labels that the start model has never seen.
    pub unseen: BTreeSet<String>,
    /// New pictures of a site in each turn.
    pub of_site: usize,
    /// How right releases are on the test pictures.
    pub tested: Mutex<BTreeMap<ReleaseId, Right>>,
}

/// What was measured of the release that answered, on pictures that were new to it.
pub struct LoopTurn {
    /// Its number, from 1.
    pub number: u32,
    /// What answered.
    pub release: ReleaseId,
    /// What the sites' model said of them.
    pub site: Right,
    /// Final answers.
    pub together: Right,
    /// Pictures.
    pub images: usize,
    /// Sent up because the gate was in doubt, or the site had too much to do.
    pub in_doubt: usize,
    /// Sent up by lot, though the site was sure.
    pub sampled: usize,
    /// The same release on pictures that nobody learns from.
    pub test: Right,
    /// What came of the round; absent in the last turn, which only measures.
    pub made: Option<LoopRound>,
    /// How long the turn took, seconds.
    pub took_s: f64,
}

/// What came of a round.
pub struct LoopRound {
    /// The release with the updates in it, if there is one.
    pub sealed: Option<LoopRelease>,
    /// Why there is none, or why it was not tried.
    pub why_not: Option<String>,
}

/// A release.
pub struct LoopRelease {
    /// Which.
    pub release: ReleaseId,
    /// Updates in it.
    pub updates: u32,
    /// How right it is on pictures that nobody learns from.
    pub test: Right,
    /// What was decided about it.
    pub decision: Option<ReleaseDecision>,
}

impl LoopTurn {
    /// Share of the pictures that was sent up, 0 to 1.
    pub fn up_ratio(&self) -> f64 {
        (self.in_doubt + self.sampled) as f64 / self.images.max(1) as f64
    }
}

impl LoopContext {
    /// One turn. `last`: it only measures.
    pub async fn run_turn(&self, flows: &mut [SiteFlow], number: u32, last: bool) -> anyhow::Result<LoopTurn> {
        let begun = Instant::now();
        let release = self.stands.all_run_stable().await?;
        stdout::print_line(match last {
            true => format!("\nafter the last round: release {} answers", release.short()),
            false => format!("\nround {number}: release {} answers", release.short()),
        })?;
        let answered = try_join_all(flows.iter_mut().map(|flow| flow.publish_new(self.of_site))).await?;
        let mut turn = measured(number, release, answered.into_iter().flatten());
        stdout::print_line(format_args!(
            "  {} new pictures: {} right by the sites alone, {} with the cloud; sent up {} in doubt, {} sampled",
            turn.images,
            format::percent(turn.site.ratio()),
            format::percent(turn.together.ratio()),
            format::percent(turn.in_doubt as f64 / turn.images.max(1) as f64),
            format::percent(turn.sampled as f64 / turn.images.max(1) as f64)
        ))?;
        if last {
            turn.test = self.tested(&turn.release).await?;
            self.say_tested(&turn.test)?;
        } else {
            // Cameras do not stand still while something is learned and tried.
            let enough = Shutdown::default();
            let flowing = try_join_all(flows.iter_mut().map(|flow| flow.publish_repeatedly(&enough)));
            let working = async {
                let made = self.learn(&mut turn).await;
                enough.request();
                made
            };
            let (flowed, made) = tokio::join!(flowing, working);
            let (flowed, made) = (flowed?, made?);
            stdout::print_line(format_args!(
                "  {} pictures came again meanwhile; every one has its final answer",
                flowed.iter().map(Vec::len).sum::<usize>()
            ))?;
            turn.made = Some(made);
        }
        turn.took_s = begun.elapsed().as_secs_f64();
        Ok(turn)
    }

    /// A round, from its opening until every site runs what is stable after it.
    async fn learn(&self, turn: &mut LoopTurn) -> anyhow::Result<LoopRound> {
        turn.test = self.tested(&turn.release).await?;
        self.say_tested(&turn.test)?;
        let round = &self.settings.aggregator.round;
        let number = self.stands.open_round(round).await?;
        stdout::print_line("  sites learn from the verdicts ...")?;
        let (release, updates) = match self.stands.ended(number, round.deadline_s).await? {
            RoundOutcome::Sealed(release, updates) => (release, updates),
            RoundOutcome::Failed(why) => {
                stdout::print_line(format_args!("  no release: {why}"))?;
                return Ok(LoopRound { sealed: None, why_not: Some(why) });
            }
        };
        let test = self.tested(&release).await?;
        stdout::print_line(format_args!(
            "  release {} of {}: {} right of the test pictures{}",
            release.short(),
            format::count(updates.into(), "update"),
            format::percent(test.ratio()),
            test.said_of(&self.unseen)
        ))?;
        let mut sealed = LoopRelease { release, updates, test, decision: None };
        if !self.stands.is_offered(&sealed.release).await? {
            let why = "it does not run when it is tried".to_owned();
            stdout::print_line(format_args!("  not offered to sites: {why}"))?;
            return Ok(LoopRound { sealed: Some(sealed), why_not: Some(why) });
        }
        let decision = self.stands.decided(&sealed.release, self.settings.releaser.canary.max_duration_s).await?;
        let tried_by = self.stands.tried_by(&sealed.release).await?;
        self.say_decided(&decision, &tried_by)?;
        sealed.decision = Some(decision);
        self.stands.all_run_stable().await?;
        Ok(LoopRound { sealed: Some(sealed), why_not: None })
    }

    fn say_tested(&self, test: &Right) -> anyhow::Result<()> {
        stdout::print_line(format_args!(
            "  {} test pictures: {} right by the sites' model{}",
            self.test.len(),
            format::percent(test.ratio()),
            test.said_of(&self.unseen)
        ))
    }

    fn say_decided(&self, decision: &ReleaseDecision, tried_by: &[SiteName]) -> anyhow::Result<()> {
        let at = if tried_by.is_empty() { "no site".to_owned() } else { format::list(tried_by) };
        stdout::print_line(format_args!("  tried at {at}: {}, {}", decision.stage.as_str(), decision.why))?;
        if decision.stage == ReleaseStage::Stable
            && let Some(finding) = wait_for_decision(decision)
        {
            stdout::print_line(format_args!(
                "    {} {:+.3} ± {:.3} better than stable in the same time, by {} images; {:.2} worse would be too bad",
                finding.measure, finding.better, finding.error, finding.count, finding.margin
            ))?;
        }
        Ok(())
    }

    /// A release on the pictures that nobody learns from; tried once, for its folder makes way for later ones.
    async fn tested(&self, release: &ReleaseId) -> anyhow::Result<Right> {
        if let Some(known) = self.tested.lock().await.get(release) {
            return Ok(known.clone());
        }
        let folder = self.folder(release);
        let (onnx, test) = (self.onnx.clone(), self.test.clone());
        let right = tokio::task::spawn_blocking(move || Right::of(&onnx, &folder, &test)).await??;
        self.tested.lock().await.insert(release.clone(), right.clone());
        Ok(right)
    }

    /// Where a release lies: what sites were set up with where it was made, everything else where it was merged.
    fn folder(&self, release: &ReleaseId) -> PathBuf {
        match *release == self.stands.first {
            true => self.settings.recognizer.model.clone(),
            false => self.settings.up.store.join("aggregator").join("releases").join(release.as_str()),
        }
    }
}

fn measured(number: u32, release: ReleaseId, answered: impl Iterator<Item = FlowAnswer>) -> LoopTurn {
    let mut turn = LoopTurn {
        number,
        release,
        site: Right::default(),
        together: Right::default(),
        images: 0,
        in_doubt: 0,
        sampled: 0,
        test: Right::default(),
        made: None,
        took_s: 0.0,
    };
    for FlowAnswer { label, answer } in answered {
        turn.images += 1;
        turn.together.see(&label, answer.label.as_deref());
        // What the site said, whoever had the last word.
        let own = answer.edge.clone().or_else(|| answer.prediction());
        turn.site.see(&label, own.as_ref().map(|own| own.label.as_str()));
        if matches!(answer.route, Route::Verified | Route::Redirected) {
            let sampled = answer.reason == Reason::Sampled;
            turn.sampled += usize::from(sampled);
            turn.in_doubt += usize::from(!sampled);
        }
    }
    turn
}

//! One turn of the loop: images are answered, sites learn from the verdicts, the updates are merged, canaried and
//! released.

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
use super::model_standing::{ModelStanding, RoundOutcome, deciding_finding};
use super::pictures::LoopPicture;
use tributary::settings::Settings;
use tributary::{format, stdout};

/// What every turn needs.
pub(super) struct LoopContext {
    /// The state of rounds and releases.
    pub stands: ModelStanding,
    /// The settings of all roles.
    pub settings: Settings,
    /// The ONNX Runtime.
    pub onnx: OnnxRuntime,
    /// The test set.
    pub test: Arc<Vec<LoopPicture>>,
    /// Labels that the start model has never seen.
    pub unseen: BTreeSet<String>,
    /// New images per site and turn.
    pub of_site: usize,
    /// Accuracy of releases on the test set.
    pub tested: Mutex<BTreeMap<ReleaseId, Right>>,
}

/// What was measured of the serving release, on images that were new to it.
pub(super) struct LoopTurn {
    /// Number, from 1.
    pub number: u32,
    /// The serving release.
    pub release: ReleaseId,
    /// Accuracy of the sites' own answers.
    pub site: Right,
    /// Accuracy of the final answers.
    pub together: Right,
    /// New images.
    pub images: usize,
    /// Images sent up because the gate was in doubt, or the site was overloaded.
    pub in_doubt: usize,
    /// Images sent up as a random sample of confident answers.
    pub sampled: usize,
    /// Accuracy of the serving release on the test set.
    pub test: Right,
    /// Result of the round; absent in the last turn, which only measures.
    pub made: Option<LoopRound>,
    /// Duration of the turn, seconds.
    pub took_s: f64,
}

/// What came of a round.
pub(super) struct LoopRound {
    /// The release with the updates in it, if there is one.
    pub sealed: Option<LoopRelease>,
    /// Why there is none, or why it was not canaried.
    pub why_not: Option<String>,
}

/// A release.
pub(super) struct LoopRelease {
    /// Id of the release.
    pub release: ReleaseId,
    /// Number of its updates.
    pub updates: u32,
    /// Accuracy on the test set.
    pub test: Right,
    /// The rollout decision; absent if it was not canaried.
    pub decision: Option<ReleaseDecision>,
}

impl LoopTurn {
    /// Share of the images that was sent up, 0 to 1.
    pub(super) fn up_ratio(&self) -> f64 {
        (self.in_doubt + self.sampled) as f64 / self.images.max(1) as f64
    }
}

impl LoopContext {
    /// Runs one turn. `last`: only measure.
    pub(super) async fn run_turn(&self, flows: &mut [SiteFlow], number: u32, last: bool) -> anyhow::Result<LoopTurn> {
        let begun = Instant::now();
        let release = self.stands.all_run_stable().await?;
        stdout::print_line(match last {
            true => format!("\nafter the last round: release {} is serving", release.short()),
            false => format!("\nround {number}: release {} is serving", release.short()),
        })?;
        let answered = try_join_all(flows.iter_mut().map(|flow| flow.publish_new(self.of_site))).await?;
        let mut turn = measured(number, release, answered.into_iter().flatten());
        stdout::print_line(format_args!(
            "  {} new images: accuracy {} by the sites alone, {} with the cloud; sent up {} doubtful, {} sampled",
            turn.images,
            format::percent(turn.site.ratio()),
            format::percent(turn.together.ratio()),
            format::percent(turn.in_doubt as f64 / turn.images.max(1) as f64),
            format::percent(turn.sampled as f64 / turn.images.max(1) as f64)
        ))?;
        if last {
            turn.test = self.tested(&turn.release).await?;
            self.print_tested(&turn.test)?;
        } else {
            // Cameras go on while sites learn and a release is canaried.
            let stop = Shutdown::default();
            let flowing = try_join_all(flows.iter_mut().map(|flow| flow.publish_repeatedly(&stop)));
            let working = async {
                let made = self.learn(&mut turn).await;
                stop.request();
                made
            };
            let (flowed, made) = tokio::join!(flowing, working);
            let (flowed, made) = (flowed?, made?);
            stdout::print_line(format_args!(
                "  {} earlier images came again meanwhile; each has its final answer",
                flowed.iter().map(Vec::len).sum::<usize>()
            ))?;
            turn.made = Some(made);
        }
        turn.took_s = begun.elapsed().as_secs_f64();
        Ok(turn)
    }

    /// Runs a round, from its opening until every site runs the resulting stable release.
    async fn learn(&self, turn: &mut LoopTurn) -> anyhow::Result<LoopRound> {
        turn.test = self.tested(&turn.release).await?;
        self.print_tested(&turn.test)?;
        let round = &self.settings.aggregator.round;
        let number = self.stands.open_round(round).await?;
        stdout::print_line("  sites learn from the verdicts …")?;
        let (release, updates) = match self.stands.ended(number, round.deadline_s).await? {
            RoundOutcome::Sealed(release, updates) => (release, updates),
            RoundOutcome::Failed(why) => {
                stdout::print_line(format_args!("  no release: {why}"))?;
                return Ok(LoopRound { sealed: None, why_not: Some(why) });
            }
        };
        let test = self.tested(&release).await?;
        stdout::print_line(format_args!(
            "  release {} of {}: accuracy {} on test images{}",
            release.short(),
            format::count(updates.into(), "update"),
            format::percent(test.ratio()),
            test.sentence_of(&self.unseen)
        ))?;
        let mut sealed = LoopRelease { release, updates, test, decision: None };
        if !self.stands.is_offered(&sealed.release).await? {
            let why = "its trial failed".to_owned();
            stdout::print_line(format_args!("  not offered to sites: {why}"))?;
            return Ok(LoopRound { sealed: Some(sealed), why_not: Some(why) });
        }
        let decision = self.stands.decided(&sealed.release, self.settings.releaser.canary.max_duration_s).await?;
        let tried_by = self.stands.tried_by(&sealed.release).await?;
        self.print_decision(&decision, &tried_by)?;
        sealed.decision = Some(decision);
        self.stands.all_run_stable().await?;
        Ok(LoopRound { sealed: Some(sealed), why_not: None })
    }

    fn print_tested(&self, test: &Right) -> anyhow::Result<()> {
        stdout::print_line(format_args!(
            "  {} test images: accuracy {} by the sites' model{}",
            self.test.len(),
            format::percent(test.ratio()),
            test.sentence_of(&self.unseen)
        ))
    }

    fn print_decision(&self, decision: &ReleaseDecision, tried_by: &[SiteName]) -> anyhow::Result<()> {
        let at = if tried_by.is_empty() { "no site".to_owned() } else { format::list(tried_by) };
        stdout::print_line(format_args!("  canary at {at}: {}, {}", decision.stage.as_str(), decision.why))?;
        if decision.stage == ReleaseStage::Stable
            && let Some(finding) = deciding_finding(decision)
        {
            stdout::print_line(format_args!(
                "    {} {:+.3} ± {:.3} against stable in the same time, on {} images; the limit is -{:.2}",
                finding.measure, finding.better, finding.error, finding.count, finding.margin
            ))?;
        }
        Ok(())
    }

    /// Accuracy of a release on the test set; cached, because its folder is deleted later.
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

    /// Folder of a release: the baseline's own, or the aggregator's work folder.
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
        turn.together.count_answer(&label, answer.label.as_deref());
        // The site's own answer, whether or not it became final.
        let own = answer.edge.clone().or_else(|| answer.prediction());
        turn.site.count_answer(&label, own.as_ref().map(|own| own.label.as_str()));
        if matches!(answer.route, Route::Verified | Route::Redirected) {
            let sampled = answer.reason == Reason::Sampled;
            turn.sampled += usize::from(sampled);
            turn.in_doubt += usize::from(!sampled);
        }
    }
    turn
}

//! One turn of the loop: sites answer images and learn from the verdicts; the updates are merged into a release, which is
//! canaried.

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
use super::label_accuracy::LabelAccuracy;
use super::model_standing::{ModelStanding, RoundOutcome, deciding_finding};
use super::pictures::LoopPicture;
use tributary::settings::Settings;
use tributary::{format, stdout};

/// Context of every turn.
pub(super) struct LoopContext {
    /// State of rounds and releases.
    pub standing: ModelStanding,
    /// Settings of all roles.
    pub settings: Settings,
    /// The ONNX Runtime.
    pub onnx: OnnxRuntime,
    /// The test set.
    pub test: Arc<Vec<LoopPicture>>,
    /// Labels that the start model has never seen.
    pub unseen: BTreeSet<String>,
    /// Number of new images per site and turn.
    pub images_per_site: usize,
    /// Accuracy of evaluated releases on the test set.
    pub known_accuracy: Mutex<BTreeMap<ReleaseId, LabelAccuracy>>,
}

/// Measurements of the serving release on new images, and the round that follows.
pub(super) struct LoopTurn {
    /// Number, from 1.
    pub number: u32,
    /// Release that all sites run at the start of the turn.
    pub release: ReleaseId,
    /// Accuracy of the sites' own answers.
    pub site_accuracy: LabelAccuracy,
    /// Accuracy of the final answers.
    pub final_accuracy: LabelAccuracy,
    /// Number of new images.
    pub images: usize,
    /// Images sent up because the gate was in doubt, or the site was overloaded.
    pub doubtful: usize,
    /// Images sent up as a random sample of confident answers.
    pub sampled: usize,
    /// Accuracy of the serving release on the test set.
    pub test_accuracy: LabelAccuracy,
    /// Result of the round; absent in the last turn, which only measures.
    pub round: Option<LoopRound>,
    /// Duration of the turn, seconds.
    pub duration_s: f64,
}

/// Result of a round.
pub(super) struct LoopRound {
    /// The merged release; absent if the round failed.
    pub release: Option<LoopRelease>,
    /// Why there is no release, or why it was not canaried.
    pub reason: Option<String>,
}

/// A merged release.
pub(super) struct LoopRelease {
    /// Id of the release.
    pub id: ReleaseId,
    /// Number of merged updates.
    pub updates: u32,
    /// Accuracy on the test set.
    pub test_accuracy: LabelAccuracy,
    /// The rollout decision; absent if it was not canaried.
    pub decision: Option<ReleaseDecision>,
}

impl LoopTurn {
    /// Share of new images that were sent up, 0 to 1.
    pub(super) fn up_ratio(&self) -> f64 {
        (self.doubtful + self.sampled) as f64 / self.images.max(1) as f64
    }
}

impl LoopContext {
    /// Runs one turn. `is_last`: measure only, without a round.
    pub(super) async fn run_turn(
        &self,
        flows: &mut [SiteFlow],
        number: u32,
        is_last: bool,
    ) -> anyhow::Result<LoopTurn> {
        let started = Instant::now();
        let release = self.standing.wait_for_stable_release().await?;
        stdout::print_line(match is_last {
            true => format!("\nafter the last round: release {} is serving", release.short()),
            false => format!("\nround {number}: release {} is serving", release.short()),
        })?;
        let answers = try_join_all(flows.iter_mut().map(|flow| flow.publish_new(self.images_per_site))).await?;
        let mut turn = measure_turn(number, release, answers.into_iter().flatten());
        stdout::print_line(format_args!(
            "  {} new images: accuracy {} by the sites alone, {} with the cloud; sent up {} doubtful, {} sampled",
            turn.images,
            format::percent(turn.site_accuracy.ratio()),
            format::percent(turn.final_accuracy.ratio()),
            format::percent(turn.doubtful as f64 / turn.images.max(1) as f64),
            format::percent(turn.sampled as f64 / turn.images.max(1) as f64)
        ))?;
        if is_last {
            turn.test_accuracy = self.evaluate_release(&turn.release).await?;
            self.print_test_accuracy(&turn.test_accuracy)?;
        } else {
            // Cameras keep sending while sites train and a release is canaried.
            let stop = Shutdown::default();
            let publishing = try_join_all(flows.iter_mut().map(|flow| flow.publish_repeatedly(&stop)));
            let learning = async {
                let round = self.run_round(&mut turn).await;
                stop.request();
                round
            };
            let (repeated, round) = tokio::join!(publishing, learning);
            let (repeated, round) = (repeated?, round?);
            stdout::print_line(format_args!(
                "  meanwhile, {} earlier images were sent again; each has a final answer",
                repeated.iter().map(Vec::len).sum::<usize>()
            ))?;
            turn.round = Some(round);
        }
        turn.duration_s = started.elapsed().as_secs_f64();
        Ok(turn)
    }

    /// Runs a round, from opening it until every site runs the stable release that results.
    async fn run_round(&self, turn: &mut LoopTurn) -> anyhow::Result<LoopRound> {
        turn.test_accuracy = self.evaluate_release(&turn.release).await?;
        self.print_test_accuracy(&turn.test_accuracy)?;
        let settings = &self.settings.aggregator.round;
        let number = self.standing.open_round(settings).await?;
        stdout::print_line("  sites learn from the verdicts …")?;
        let (id, updates) = match self.standing.wait_for_round_end(number, settings.deadline_s).await? {
            RoundOutcome::Sealed(release, updates) => (release, updates),
            RoundOutcome::Failed(reason) => {
                stdout::print_line(format_args!("  no release: {reason}"))?;
                return Ok(LoopRound { release: None, reason: Some(reason) });
            }
        };
        let test_accuracy = self.evaluate_release(&id).await?;
        stdout::print_line(format_args!(
            "  release {} of {}: accuracy {} on test images{}",
            id.short(),
            format::count(updates.into(), "update"),
            format::percent(test_accuracy.ratio()),
            test_accuracy.unseen_clause(&self.unseen)
        ))?;
        let mut release = LoopRelease { id, updates, test_accuracy, decision: None };
        if !self.standing.is_offered(&release.id).await? {
            let reason = "its trial failed".to_owned();
            stdout::print_line(format_args!("  not offered to sites: {reason}"))?;
            return Ok(LoopRound { release: Some(release), reason: Some(reason) });
        }
        let max_duration_s = self.settings.releaser.canary.max_duration_s;
        let decision = self.standing.wait_for_decision(&release.id, max_duration_s).await?;
        let canary_sites = self.standing.canary_sites(&release.id).await?;
        self.print_decision(&decision, &canary_sites)?;
        release.decision = Some(decision);
        self.standing.wait_for_stable_release().await?;
        Ok(LoopRound { release: Some(release), reason: None })
    }

    fn print_test_accuracy(&self, accuracy: &LabelAccuracy) -> anyhow::Result<()> {
        stdout::print_line(format_args!(
            "  {} test images: accuracy {} by the sites' model{}",
            self.test.len(),
            format::percent(accuracy.ratio()),
            accuracy.unseen_clause(&self.unseen)
        ))
    }

    fn print_decision(&self, decision: &ReleaseDecision, sites: &[SiteName]) -> anyhow::Result<()> {
        let sites = if sites.is_empty() { "no site".to_owned() } else { format::list(sites) };
        stdout::print_line(format_args!("  canary at {sites}: {}, {}", decision.stage.as_str(), decision.why))?;
        if decision.stage == ReleaseStage::Stable
            && let Some(finding) = deciding_finding(decision)
        {
            stdout::print_line(format_args!(
                "    {} {:+.3} ± {:.3} against the stable release at the same time, on {} images; limit -{:.2}",
                finding.measure, finding.better, finding.error, finding.count, finding.margin
            ))?;
        }
        Ok(())
    }

    /// Evaluates a release on the test set; cached, because its folder is deleted later.
    async fn evaluate_release(&self, release: &ReleaseId) -> anyhow::Result<LabelAccuracy> {
        if let Some(accuracy) = self.known_accuracy.lock().await.get(release) {
            return Ok(accuracy.clone());
        }
        let folder = self.release_folder(release);
        let (onnx, test) = (self.onnx.clone(), self.test.clone());
        let evaluation = move || LabelAccuracy::evaluate(&onnx, &folder, &test);
        let accuracy = tokio::task::spawn_blocking(evaluation).await??;
        self.known_accuracy.lock().await.insert(release.clone(), accuracy.clone());
        Ok(accuracy)
    }

    /// Folder of a release: the start model, or a folder of the aggregator.
    fn release_folder(&self, release: &ReleaseId) -> PathBuf {
        match *release == self.standing.baseline {
            true => self.settings.recognizer.model.clone(),
            false => self.settings.up.store.join("aggregator").join("releases").join(release.as_str()),
        }
    }
}

/// Computes accuracies and counts of a turn from its answers.
fn measure_turn(number: u32, release: ReleaseId, answers: impl Iterator<Item = FlowAnswer>) -> LoopTurn {
    let mut turn = LoopTurn {
        number,
        release,
        site_accuracy: LabelAccuracy::default(),
        final_accuracy: LabelAccuracy::default(),
        images: 0,
        doubtful: 0,
        sampled: 0,
        test_accuracy: LabelAccuracy::default(),
        round: None,
        duration_s: 0.0,
    };
    for FlowAnswer { label, answer } in answers {
        turn.images += 1;
        turn.final_accuracy.count_answer(&label, answer.label.as_deref());
        // The site's own answer, whether or not it became final.
        let own = answer.edge.clone().or_else(|| answer.prediction());
        turn.site_accuracy.count_answer(&label, own.as_ref().map(|own| own.label.as_str()));
        if matches!(answer.route, Route::Verified | Route::Redirected) {
            let sampled = answer.reason == Reason::Sampled;
            turn.sampled += usize::from(sampled);
            turn.doubtful += usize::from(!sampled);
        }
    }
    turn
}

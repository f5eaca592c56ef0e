//! A worker's heartbeat, kept for a few seconds in the bucket `fleet`. Version history: 1, first; later with the
//! optional reports of link, load, decision, training, rounds, releases, canaries, scale, drift, failures of a role, a
//! trainer's last hour, the count of late answers, the cameras of a grabber, and reused answers.

use serde::{Deserialize, Serialize};

use crate::answer_totals::AnswerTotals;
use crate::camera_health::CameraHealth;
use crate::codec::Message;
use crate::decision_trace::{CloudGain, RoutingMode};
use crate::drift::DriftReport;
use crate::fault::FaultNote;
use crate::id::{CameraName, ReleaseId, SiteName};
use crate::release::CanaryReport;
use crate::role::Role;
use crate::swap::{AgreementCount, RefusedRelease};
use crate::update::ModelAccuracy;
use crate::vocabulary::WireWord;

/// A worker's report about itself, sent every few seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Role of the worker, such as `recognizer` or `courier`.
    pub role: WireWord<Role>,
    /// The process: name and number.
    pub worker: String,
    /// Site it works at; absent in the cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<SiteName>,
    /// When it was sent, milliseconds since the epoch.
    pub sent_at_ms: u64,
    /// Messages finished since the worker started.
    pub finished: u64,
    /// Messages in flight.
    pub holding: u64,
    /// Final answers it stored after the publishers' deadlines, since the worker started.
    #[serde(default, skip_serializing_if = "is_none_counted")]
    pub late: u64,
    /// Replicas of the model; 0 for a role without a model.
    #[serde(default)]
    pub replicas: u32,
    /// Why it runs this number of replicas, in words for people; absent unless somebody asked or a queue is followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<String>,
    /// How far its machine's clock is ahead of the server's, milliseconds, negative if behind; absent until the server
    /// reported its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ahead_ms: Option<i64>,
    /// The role failed and is started again by the process that runs it; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing: Option<RoleFailure>,
    /// Faults it found in what it works on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultNote>,
    /// Janitors: images and their outcomes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcomes: Option<OutcomeReport>,
    /// Measured cost of one image on one replica, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_ms: Option<f64>,
    /// Name of the model it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Release it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// Since when it runs that release, milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_since_ms: Option<u64>,
    /// The current step of a swap, or the release it refused and why, in words for people: [`Heartbeat::swap_step`]
    /// and [`Heartbeat::release_refusal`] tell which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<String>,
    /// Round trip to the cloud in milliseconds; absent when the cloud does not respond or is not probed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_rtt_ms: Option<f64>,
    /// Couriers: state of the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkReport>,
    /// Recognizers: decisions and their inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<DecisionReport>,
    /// Trainers: progress of the training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingReport>,
    /// Aggregators: state of a model's rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<RoundReport>,
    /// Releasers: one line for each model, in words for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub releases: Vec<String>,
    /// Releasers: the canary of each model that has one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub canaries: Vec<CanaryReport>,
    /// Grabbers: each camera, at most [`MAX_CAMERAS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cameras: Vec<CameraHealth>,
    /// Recognizers and couriers: how recent answers differ from the first ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftReport>,
}

impl Heartbeat {
    /// A heartbeat with nothing but its sender.
    pub fn for_worker(role: Role, worker: String, site: Option<SiteName>, sent_at_ms: u64) -> Self {
        Self {
            role: role.into(),
            worker,
            site,
            sent_at_ms,
            finished: 0,
            holding: 0,
            late: 0,
            replicas: 0,
            scale: None,
            clock_ahead_ms: None,
            failing: None,
            outcomes: None,
            faults: Vec::new(),
            cost_ms: None,
            model: None,
            release: None,
            release_since_ms: None,
            swap: None,
            link_rtt_ms: None,
            link: None,
            decision: None,
            training: None,
            rounds: None,
            releases: Vec::new(),
            canaries: Vec::new(),
            cameras: Vec::new(),
            drift: None,
        }
    }
}

/// Most cameras in a heartbeat.
pub const MAX_CAMERAS: usize = 256;

/// Longest name and longest sentence in a heartbeat, in characters.
const NAME_CHARS: usize = 200;
const SENTENCE_CHARS: usize = 4000;
/// Largest plausible count, time or rate.
const MAX_NUMBER: f64 = 1e15;
/// More models than are tried at the same time.
const MAX_CANARIES: usize = 64;
/// More replicas than any machine runs.
const MAX_REPLICAS: u32 = 10_000;

/// Begins the sentence about a release that is not run; older workers write it, too.
const NOT_RUN: &str = "does not run ";

impl Heartbeat {
    /// Says which release is not run, and why.
    pub fn set_release_refusal(&mut self, refused: &RefusedRelease) {
        let RefusedRelease { release, fault } = refused;
        self.swap = Some(format!("{NOT_RUN}{}: {} ({})", release.short(), fault.reason, fault.kind));
    }

    /// Why a release is not run, in words for people; absent where none is refused or a swap goes on.
    pub fn release_refusal(&self) -> Option<&str> {
        self.swap.as_deref().filter(|swap| swap.starts_with(NOT_RUN))
    }

    /// The step of a swap it is at, in words for people.
    pub fn swap_step(&self) -> Option<&str> {
        self.swap.as_deref().filter(|swap| !swap.starts_with(NOT_RUN))
    }

    /// Checks numbers and texts for plausibility: whoever may write to the bucket `fleet` can write anything.
    ///
    /// # Errors
    /// Name of the implausible field.
    pub fn check(&self) -> Result<(), &'static str> {
        let numbers = [
            ("cost_ms", self.cost_ms),
            ("link_rtt_ms", self.link_rtt_ms),
            ("link.rtt_min_ms", self.link.map(|link| link.rtt_min_ms)),
            ("link.rate_max_bytes_per_s", self.link.and_then(|link| link.rate_max_bytes_per_s)),
            ("link.slowdown_ratio", self.link.map(|link| link.slowdown_ratio)),
            ("link.cloud.cost_ms", self.link.and_then(|link| link.cloud).map(|cloud| cloud.cost_ms)),
            ("link.cloud.still_s", self.link.and_then(|link| link.cloud).map(|cloud| cloud.still_s)),
            ("decision.cpu_ratio", self.decision.as_ref().and_then(|decision| decision.cpu_ratio)),
            ("decision.memory_ratio", self.decision.as_ref().and_then(|decision| decision.memory_ratio)),
            ("training.hour.used_s", self.training.as_ref().and_then(|training| training.hour).map(|hour| hour.used_s)),
            ("decision.queue_s", self.decision.as_ref().map(|decision| decision.queue_s)),
            ("decision.stall_ratio", self.decision.as_ref().and_then(|decision| decision.stall_ratio)),
            ("decision.contention_ratio", self.decision.as_ref().and_then(|decision| decision.contention_ratio)),
            ("decision.inference_j", self.decision.as_ref().and_then(|decision| decision.inference_j)),
            ("decision.uplink_j", self.decision.as_ref().and_then(|decision| decision.uplink_j)),
            ("link.probe_delay_ms", self.link.and_then(|link| link.probe_delay_ms)),
        ];
        let reuse = self.decision.iter().filter_map(|decision| decision.reuse.as_ref());
        let is_plausible = |camera: &CameraReuse| (0.0..=255.0).contains(&camera.max_difference);
        if reuse.clone().any(|reuse| reuse.cameras.len() > MAX_REUSE_CAMERAS || !reuse.cameras.iter().all(is_plausible))
        {
            return Err("decision.reuse");
        }
        let wrong =
            numbers.into_iter().find(|(_, number)| number.is_some_and(|number| !(0.0..=MAX_NUMBER).contains(&number)));
        if let Some((name, _)) = wrong {
            return Err(name);
        }
        let replicas = [Some(self.replicas), self.link.and_then(|link| link.cloud).map(|cloud| cloud.replicas)];
        if replicas.into_iter().flatten().any(|replicas| replicas > MAX_REPLICAS) {
            return Err("replicas");
        }
        let name = |text: &str| !text.is_empty() && text.chars().count() <= NAME_CHARS;
        if !name(self.role.as_str()) || !name(&self.worker) || self.model.as_deref().is_some_and(|model| !name(model)) {
            return Err("role, worker or model");
        }
        let findings = || self.canaries.iter().flat_map(|canary| &canary.findings);
        let measured = findings().flat_map(|finding| {
            [finding.canary, finding.stable.unwrap_or_default(), finding.better, finding.error, finding.margin]
        });
        if self.canaries.len() > MAX_CANARIES
            || findings().any(|finding| !name(finding.measure.as_str()))
            || self.canaries.iter().flat_map(|canary| &canary.missing).any(|missing| !name(&missing.why))
            || measured.into_iter().any(|number| !(-MAX_NUMBER..=MAX_NUMBER).contains(&number))
        {
            return Err("canaries");
        }
        if self.cameras.len() > MAX_CAMERAS
            || self.cameras.iter().any(|camera| camera.picture.as_ref().is_some_and(|picture| !picture.is_plausible()))
        {
            return Err("cameras");
        }
        let sentences = self.scale.iter().chain(&self.swap).chain(&self.releases).map(String::as_str);
        let sentences =
            sentences.chain(self.faults.iter().flat_map(|fault| [fault.kind.as_str(), &fault.reason, &fault.remedy]));
        let cameras = self.cameras.iter().flat_map(|camera| {
            let fault = camera.fault.iter().flat_map(|fault| [fault.kind.as_str(), &fault.reason, &fault.remedy]);
            fault.chain([camera.state.as_str()]).chain(camera.codec.as_deref())
        });
        let sentences = sentences.chain(cameras);
        let sentences = sentences.chain(self.failing.iter().map(|failure| failure.why.as_str()));
        let decision =
            self.decision.iter().flat_map(|decision| [&decision.policy, decision.state.as_str(), &decision.why]);
        let training = self.training.iter().flat_map(|training| [training.state.as_str(), &training.why]);
        let rounds = self.rounds.iter().flat_map(|rounds| [rounds.state.as_str(), &rounds.why]);
        let mut all = sentences.chain(decision).chain(training).chain(rounds);
        if all.any(|text| text.chars().count() > SENTENCE_CHARS) {
            return Err("a sentence");
        }
        Ok(())
    }
}

/// How a role failed, reported in its place by the process that starts it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleFailure {
    /// Why it ended, with what to do where that is known, in words for people.
    pub why: String,
    /// Failures in a row.
    pub failures: u32,
    /// When it is started again, milliseconds since the epoch by the server's clock.
    pub next_try_at_ms: u64,
}

/// A janitor's count of a site's images and their outcomes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OutcomeReport {
    /// Stored images without a final answer.
    pub open: u64,
    /// How many of those have a provisional answer.
    pub provisional: u64,
    /// Sequence of the oldest image without a final answer; absent when every image has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_sequence: Option<u64>,
    /// When that image was stored, milliseconds since the epoch by the server's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_at_ms: Option<u64>,
    /// When images were last audited for outcomes, milliseconds since the epoch by the server's clock; absent before
    /// the first audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_at_ms: Option<u64>,
    /// Images requeued since the janitor started, because they were acknowledged without an outcome.
    pub redone: u64,
    /// Images published twice (same camera, message id and content) since the janitor started.
    pub duplicates: u64,
    /// Images missing from the middle of the archive that the janitor did not remove.
    pub gaps: u64,
    /// Free bytes on the server's disk; absent where the janitor does not see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_free_bytes: Option<u64>,
    /// Why images are refused at present, in words; absent while they are accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusing: Option<String>,
    /// Images refused near the stream's limit whose publishers were not told, since the janitor started; each
    /// has a dead letter.
    #[serde(default)]
    pub refused: u64,
    /// Connections among the last 2,000 that the server closed for a message over its limit; absent where the
    /// janitor does not see its monitoring pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub too_large: Option<u64>,
    /// The site's final answers, counted over restarts; absent until the first were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub totals: Option<AnswerTotals>,
}

/// A courier's view of the link and the cloud behind it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinkReport {
    /// Whether the cloud responds.
    pub up: bool,
    /// Whether the link is fast enough, compared with its best, for work that could stay at the site.
    pub available: bool,
    /// Shortest recent round trip, milliseconds.
    pub rtt_min_ms: f64,
    /// Highest recent rate, bytes per second; absent before anything was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_max_bytes_per_s: Option<f64>,
    /// Smoothed ratio of the time of a transmission to the shortest possible one, at least 1.
    pub slowdown_ratio: f64,
    /// Messages that wait for the link or are on their way.
    pub waiting: u64,
    /// Bytes of those messages.
    pub waiting_bytes: u64,
    /// Bytes left in today's budget; absent without a budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_left_bytes: Option<u64>,
    /// Load of the verifiers; absent while none sends heartbeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud: Option<CloudReport>,
    /// Time that the site's own machine and server added to recent probes, milliseconds, smoothed: it is taken out of
    /// `slowdown_ratio`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_delay_ms: Option<f64>,
    /// What recent verdicts said of the site's own answers; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdicts: Option<RecentVerdicts>,
}

/// Verdicts of late on a site's own answers. A new release begins with a quarter of its predecessor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RecentVerdicts {
    /// On doubtful answers, except those that were doubtful for their novelty.
    pub doubtful: AgreementCount,
    /// On confident answers that were sampled.
    pub sampled: AgreementCount,
}

/// Load of the verifiers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CloudReport {
    /// Requests that wait or are worked on.
    pub waiting: u64,
    /// Replicas of all verifiers.
    pub replicas: u32,
    /// Cost of one image on one replica, milliseconds.
    pub cost_ms: f64,
    /// Time since any waiting request was finished, seconds; 0 while nothing waits.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub still_s: f64,
}

fn is_none_counted(count: &u64) -> bool {
    *count == 0
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// A recognizer's decisions since it started, and their current inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionReport {
    /// Name of the policy.
    pub policy: String,
    /// Where tasks go at present.
    pub state: WireWord<RoutingMode>,
    /// Why, in words for people.
    pub why: String,
    /// CPU usage, 0 to 1; absent where the system does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ratio: Option<f64>,
    /// Memory usage, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_ratio: Option<f64>,
    /// Queued work at the site, seconds.
    pub queue_s: f64,
    /// Tasks recognized here.
    pub local: u64,
    /// Tasks offloaded to the cloud and answered there.
    pub redirected: u64,
    /// Tasks offloaded and reclaimed.
    pub taken_back: u64,
    /// Tasks held before they were recognized or offloaded.
    pub held: u64,
    /// Doubtful answers sent up.
    pub verified: u64,
    /// Doubtful answers kept at the site for lack of link, time or budget.
    pub kept: u64,
    /// Fraction of the last ten seconds in which some task stalled on memory, 0 to 1; absent where the kernel does not
    /// report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_ratio: Option<f64>,
    /// How many times longer an image takes at present than on a free processor, at least 1; absent where the kernel
    /// does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contention_ratio: Option<f64>,
    /// What asking the cloud gains, learned from verdicts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gain: Option<CloudGain>,
    /// Energy of recognizing here since the start, joules; an estimate unless the machine has a counter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference_j: Option<f64>,
    /// Energy of sending images and features up since the start, joules; an estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink_j: Option<f64>,
    /// What calibration learned from verdicts, in words for people; absent without a target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub belief: Option<String>,
    /// Answers that were reused for pictures like the one before; absent where no camera's are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse: Option<ReuseReport>,
}

/// Most cameras in a report on reused answers.
pub const MAX_REUSE_CAMERAS: usize = 16;

/// A recognizer's reused answers since it started.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ReuseReport {
    /// Answers given to pictures that were not recognized.
    pub reused: u64,
    /// Pictures that were recognized all the same, to check what reuse would have said.
    pub checked: u64,
    /// Checked pictures to which the model gave another label.
    pub wrong: u64,
    /// Cameras, those whose threshold was tightened most first, at most [`MAX_REUSE_CAMERAS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cameras: Vec<CameraReuse>,
}

/// Reused answers of one camera, since the serving release began to serve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CameraReuse {
    /// Name of the camera.
    pub camera: CameraName,
    /// Answers given to pictures that were not recognized.
    pub reused: u64,
    /// Pictures that were recognized to check.
    pub checked: u64,
    /// Checked pictures to which the model gave another label.
    pub wrong: u64,
    /// Difference below which pictures count as equal at present, levels of 255 of the block that differs most; 0 after
    /// too many wrong ones: nothing is reused.
    pub max_difference: f32,
    /// Whether that is less than the setting.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_tightened: bool,
}

crate::vocabulary! {
    /// What an aggregator does about its model's rounds.
    #[derive(Default)]
    pub enum RoundState {
        /// It has begun and did not look yet.
        #[default]
        Starting = "",
        /// It waits for a reason to open a round.
        Waiting = "waiting",
        /// A round takes updates.
        Open = "open",
        /// Updates are merged and the result is measured.
        Merging = "merging",
        /// It opens no rounds by itself any more.
        Stopped = "stopped",
        /// Something failed and is tried again.
        Failed = "failed",
    }
}

/// State of a model's rounds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RoundReport {
    /// What the aggregator does about them.
    pub state: WireWord<RoundState>,
    /// Why, in words for people.
    pub why: String,
    /// Number of the last round, 0 before the first.
    pub round: u64,
    /// Updates accepted in it.
    pub updates: u32,
    /// Updates needed to close it.
    pub quorum: u32,
    /// Updates refused since the aggregator started.
    pub refused: u64,
    /// Outcome of the last round, in words for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
}

crate::vocabulary! {
    /// What a trainer does.
    #[derive(Default)]
    pub enum TrainerState {
        /// It has begun and did not look yet.
        #[default]
        Starting = "",
        /// It waits until it knows enough labelled images.
        Collecting = "collecting",
        /// It copies the images to train on.
        Copying = "copying",
        /// It trains.
        Training = "training",
        /// It trains and waits, because recognizers need the machine.
        Yielding = "yielding",
        /// Something failed and is tried again.
        Failed = "failed",
    }
}

/// A trainer's progress, and the outcome of the last training.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TrainingReport {
    /// Current activity.
    pub state: WireWord<TrainerState>,
    /// Why, or what is missing, in words for people.
    pub why: String,
    /// Labelled images it knows.
    pub labelled: u64,
    /// How many of those were labelled since the last training.
    pub fresh: u64,
    /// Epochs finished; 0 before the first.
    pub epoch: u32,
    /// Epochs planned.
    pub epochs: u32,
    /// Accuracy of the base on the holdout; absent before it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<ModelAccuracy>,
    /// Accuracy of the last epoch's weights on the holdout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ModelAccuracy>,
    /// Outcome of the last training, in words for people; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// Updates sent since the trainer started.
    pub sent: u64,
    /// What training took of the processors in the last hour; absent before the first training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hour: Option<TrainingHour>,
}

/// Processor time of training in the last hour.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct TrainingHour {
    /// Processor time used, seconds.
    pub used_s: f64,
    /// Share of one processor that training gets however busy the site is; 0: only what nobody else wants.
    pub least_ratio: f64,
    /// Longest piece that was taken from a busy site, milliseconds; 0 without any.
    pub longest_piece_ms: f64,
}

impl Message for Heartbeat {
    const KIND: &'static str = "beat";
    const VERSION: u16 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_a_swap_is_told_from_a_refused_release() {
        let mut beat = Heartbeat::for_worker(Role::Recognizer, "host-1".into(), None, 0);
        assert_eq!((beat.swap_step(), beat.release_refusal()), (None, None));
        beat.swap = Some("trying 010101010101".into());
        assert_eq!((beat.swap_step(), beat.release_refusal()), (Some("trying 010101010101"), None));
        let fault = FaultNote::new("runtime_too_old", "it needs 9.9.9", "");
        beat.set_release_refusal(&RefusedRelease { release: ReleaseId::from_sha256([1; 32]), fault });
        let sentence = "does not run 010101010101: it needs 9.9.9 (runtime_too_old)";
        assert_eq!((beat.swap_step(), beat.release_refusal()), (None, Some(sentence)));
    }
}

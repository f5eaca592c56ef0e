//! A worker's sign of life, kept for a few seconds in the bucket `fleet`. Version history: 1, first; later with the
//! optional reports of link, load, decision, training, rounds, releases, scale and drift.

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::decision_trace::RoutingMode;
use crate::drift::DriftReport;
use crate::fault::FaultNote;
use crate::id::{ReleaseId, SiteName};
use crate::role::Role;
use crate::swap::RefusedRelease;
use crate::update::ModelAccuracy;
use crate::vocabulary::WireWord;

/// A worker's sign of life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Its role, such as `recognizer` or `courier`.
    pub role: WireWord<Role>,
    /// The process: name and number.
    pub worker: String,
    /// The site it works at; absent in the cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<SiteName>,
    /// When it was sent, milliseconds since the epoch.
    pub sent_at_ms: u64,
    /// Messages it finished since it started.
    pub finished: u64,
    /// Messages it holds now.
    pub holding: u64,
    /// Owner threads with a session each; 0 for a role without a model.
    #[serde(default)]
    pub replicas: u32,
    /// Why there are as many replicas as there are, in words for people; absent where nobody asked and no queue is followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<String>,
    /// How far its machine's clock is ahead of its server's, milliseconds, negative where it is behind; absent before the
    /// server said what time it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ahead_ms: Option<i64>,
    /// What it found wrong with what it works on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultNote>,
    /// Of a janitor: images and their outcomes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcomes: Option<OutcomeReport>,
    /// Learned cost of one image on one replica, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_ms: Option<f64>,
    /// Name of the model it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Release it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// Since when it runs it, milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_since_ms: Option<u64>,
    /// The step of a swap it is at, or the release it does not run and why, in words for people: [`Heartbeat::swap_step`]
    /// and [`Heartbeat::release_refusal`] tell which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<String>,
    /// Round trip to the cloud in milliseconds; absent when the cloud does not answer or is not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_rtt_ms: Option<f64>,
    /// What the courier knows of the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkReport>,
    /// What the recognizer decides by, and what it decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<DecisionReport>,
    /// What the trainer does and did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingReport>,
    /// What a model's rounds have come to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<RoundReport>,
    /// What the releaser does, of each model, in words for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub releases: Vec<String>,
    /// Of a recognizer or a courier: what answers are like, compared with what they used to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftReport>,
}

impl Heartbeat {
    /// A sign of life of which only the sender is known.
    pub fn for_worker(role: Role, worker: String, site: Option<SiteName>, sent_at_ms: u64) -> Self {
        Self {
            role: role.into(),
            worker,
            site,
            sent_at_ms,
            finished: 0,
            holding: 0,
            replicas: 0,
            scale: None,
            clock_ahead_ms: None,
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
            drift: None,
        }
    }
}

/// Letters of a name, and of a sentence, in a beat.
const NAME_CHARS: usize = 200;
const SENTENCE_CHARS: usize = 4000;
/// Above this no count, time or rate of a worker's is meant.
const MOST: f64 = 1e15;
/// More owner threads than a machine has.
const MOST_REPLICAS: u32 = 10_000;

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

    /// Whether its numbers and texts are such as a worker says: whoever may write to the bucket of beats can write anything.
    ///
    /// # Errors
    /// Which field is not.
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
            ("decision.queue_s", self.decision.as_ref().map(|decision| decision.queue_s)),
        ];
        let wrong =
            numbers.into_iter().find(|(_, number)| number.is_some_and(|number| !(0.0..=MOST).contains(&number)));
        if let Some((name, _)) = wrong {
            return Err(name);
        }
        let replicas = [Some(self.replicas), self.link.and_then(|link| link.cloud).map(|cloud| cloud.replicas)];
        if replicas.into_iter().flatten().any(|replicas| replicas > MOST_REPLICAS) {
            return Err("replicas");
        }
        let name = |text: &str| !text.is_empty() && text.chars().count() <= NAME_CHARS;
        if !name(self.role.as_str()) || !name(&self.worker) || self.model.as_deref().is_some_and(|model| !name(model)) {
            return Err("role, worker or model");
        }
        let sentences = self.scale.iter().chain(&self.swap).chain(&self.releases).map(String::as_str);
        let sentences =
            sentences.chain(self.faults.iter().flat_map(|fault| [fault.kind.as_str(), &fault.reason, &fault.remedy]));
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

/// What a janitor knows of a site's images and their outcomes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OutcomeReport {
    /// Stored images without a final answer.
    pub open: u64,
    /// Those of them that have a provisional one.
    pub provisional: u64,
    /// Sequence of the oldest image without a final answer; absent when all have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_sequence: Option<u64>,
    /// When that image was stored, milliseconds since the epoch by the server's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_at_ms: Option<u64>,
    /// When outcomes were held against images, milliseconds since the epoch by the server's clock; absent before the
    /// first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_at_ms: Option<u64>,
    /// Images that were acknowledged without an outcome and are recognized again, since the janitor started.
    pub redone: u64,
    /// Images published twice, known by camera, message id and content, since the janitor started.
    pub duplicates: u64,
    /// Images that are gone from the middle of the archive and that nobody here removed.
    pub gaps: u64,
    /// Bytes that are free on the server's disk; absent where the janitor does not see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_free_bytes: Option<u64>,
    /// Why images are refused at the moment, in words; absent when they are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusing: Option<String>,
    /// Images that were refused near the stream's limit and whose publishers were not told, since the janitor started; each
    /// has a dead letter.
    #[serde(default)]
    pub refused: u64,
    /// Connections that the server closed lately for a message above its limit, of the last 2,000; absent where the
    /// janitor does not see its monitoring pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub too_large: Option<u64>,
}

/// What the courier knows of the link and of what lies behind it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinkReport {
    /// Whether the cloud answers.
    pub up: bool,
    /// Whether it is fast enough, compared with what it can do, for work that need not go there.
    pub available: bool,
    /// Shortest round trip lately, milliseconds.
    pub rtt_min_ms: f64,
    /// Highest rate lately, bytes a second; absent before anything went up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_max_bytes_per_s: Option<f64>,
    /// Smoothed time of a transmission over the shortest possible one, 1 or more.
    pub slowdown_ratio: f64,
    /// Messages that wait for the link or are on their way.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// What may still go up today, bytes; absent without a budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_left_bytes: Option<u64>,
    /// The verifiers; absent while nothing is heard of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud: Option<CloudReport>,
}

/// How busy the verifiers are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CloudReport {
    /// Requests that wait for them or are worked on.
    pub waiting: u64,
    /// Owner threads with a session each, of all verifiers.
    pub replicas: u32,
    /// Cost of one image on one of them, milliseconds.
    pub cost_ms: f64,
    /// For how long none of what waits was finished, seconds; 0 while nothing waits.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub still_s: f64,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// What a recognizer decides by, and what it decided since it started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionReport {
    /// Name of the policy.
    pub policy: String,
    /// Where tasks go at this moment.
    pub state: WireWord<RoutingMode>,
    /// Why, in words for people.
    pub why: String,
    /// Share of the processors in use, 0 to 1; absent where the system does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ratio: Option<f64>,
    /// Share of the memory in use, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_ratio: Option<f64>,
    /// Seconds of work that wait at the site.
    pub queue_s: f64,
    /// Tasks recognized here.
    pub local: u64,
    /// Tasks redirected to the cloud and answered there.
    pub redirected: u64,
    /// Tasks redirected and taken back.
    pub taken_back: u64,
    /// Tasks that had to be held at first.
    pub held: u64,
    /// Doubtful answers sent up.
    pub verified: u64,
    /// Doubtful answers that stayed, for want of link, time or budget.
    pub kept: u64,
    /// What was learned about the gate, in words for people; absent without a target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub belief: Option<String>,
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

/// What a model's rounds have come to.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RoundReport {
    /// What the aggregator does about them.
    pub state: WireWord<RoundState>,
    /// Why, in words for people.
    pub why: String,
    /// Number of the last round, 0 before the first.
    pub round: u64,
    /// Updates that count in it.
    pub updates: u32,
    /// Updates that are enough.
    pub quorum: u32,
    /// Updates refused since it started.
    pub refused: u64,
    /// What came of the last round, in words for people.
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

/// What a trainer does, and what came of the last training.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TrainingReport {
    /// What it does.
    pub state: WireWord<TrainerState>,
    /// Why, or what is missing, in words for people.
    pub why: String,
    /// Labelled images it knows.
    pub labelled: u64,
    /// Of those, labelled since the last training.
    pub fresh: u64,
    /// Epochs done; 0 before the first.
    pub epoch: u32,
    /// Epochs to do.
    pub epochs: u32,
    /// The base on the images held out; absent before it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<ModelAccuracy>,
    /// The weights of the last epoch on the same images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ModelAccuracy>,
    /// What became of the last training, in words for people; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// Updates sent since it started.
    pub sent: u64,
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

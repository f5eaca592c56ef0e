//! The figures behind a routing decision: enough to make the same decision again. Part of an answer, not a message of
//! its own. Times are seconds on the recognizer's own clock, which starts with it.

use serde::{Deserialize, Serialize};

/// The routing decision about a task, and its inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionTrace {
    /// The recognizer that decided; it has a state of its own.
    pub worker: String,
    /// Effective settings: the last token of the name of the ledger note that holds them.
    pub settings: String,
    /// Size of the encoded image.
    pub bytes: u64,
    /// Time to the task's deadline, seconds, negative once it passed; absent without a deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_s: Option<f64>,
    /// Time the task was held, seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub held_s: f64,
    /// Priority, 0 (bulk) to 9 (first).
    pub priority: u8,
    /// When the decision was made, seconds.
    pub at_s: f64,
    /// Routing mode before the decision.
    pub mode: RoutingMode,
    /// Whether the site counted as overloaded before the decision.
    #[serde(default, skip_serializing_if = "is_false")]
    pub overloaded: bool,
    /// When `overloaded` last changed, seconds; absent if it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_at_s: Option<f64>,
    /// Load of the machine and the queue.
    pub load: SiteLoad,
    /// State of the link and the cloud.
    pub network: Network,
    /// Whether the task was offloaded: sent to the cloud without being recognized here.
    #[serde(default, skip_serializing_if = "is_false")]
    pub redirected: bool,
    /// The second decision, made after recognition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<EscalationTrace>,
}

/// The decision about a recognized task, and its inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EscalationTrace {
    /// When the decision was made, seconds.
    pub at_s: f64,
    /// Probability of the best class, 0 to 1, as the gate tested it.
    pub best: f32,
    /// Probability of the second best class, 0 to 1.
    pub second: f32,
    /// Entropy of the scores as a fraction of the entropy of a uniform guess, 0 to 1.
    pub entropy_ratio: f32,
    /// Novelty of the image, 0 to 1; absent without a novelty score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub novelty: Option<f32>,
    /// Time until a verdict is of no use, seconds.
    pub left_s: f64,
    /// Bytes of the request, if sent up.
    pub bytes: u64,
    /// Whether confident answers are sampled for verification.
    #[serde(default, skip_serializing_if = "is_false")]
    pub sampling: bool,
    /// State of the link and the cloud at that time; absent if unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Credit, in images, under the cap on the share sent up; absent without a cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earned: Option<f64>,
    /// Outcome of the escalation.
    pub fate: EscalationOutcome,
}

/// What happens to an answer after the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EscalationOutcome {
    /// It is final.
    Stands,
    /// It is final because the deadline passed.
    Expired,
    /// It is provisional, and a request goes up.
    Goes,
    /// It is confident, and sampled for verification.
    Sampled,
    /// It is provisional until its deadline; nothing goes up.
    Waits,
    /// Nothing was published before the verdict; no current version decides so.
    Blocks,
}

crate::vocabulary! {
    /// Where tasks are recognized at a given time.
    #[derive(Default, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum RoutingMode {
        /// At the site.
        #[default]
        Local = "local",
        /// The excess is offloaded to the cloud.
        Redirect = "redirect",
        /// The excess is held; only the policies `paper` and `cloud-only` hold.
        Listen = "listen",
    }
}

/// Load of the machine and the queue at a given time.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct SiteLoad {
    /// CPU usage, 0 to 1; absent where the system does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ratio: Option<f64>,
    /// Memory usage, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_ratio: Option<f64>,
    /// Fraction of the last ten seconds in which some task stalled on memory (PSI), 0 to 1; absent where the kernel
    /// does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_ratio: Option<f64>,
    /// Images that wait at the site, including this one and those in flight.
    pub waiting: u64,
    /// Whether a replica is idle, or takes the task right after its current batch.
    pub free: bool,
    /// Replicas at the site.
    pub replicas: u32,
    /// Cost of one image on one replica, seconds: the mean of the last images.
    pub cost_s: f64,
    /// Time of the latest images, divided by their time without waits for a processor, at least 1; absent where the
    /// kernel does not tell, and in traces of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contention_ratio: Option<f64>,
    /// The same of the images that `cost_s` is the mean of, so that waits are not counted twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_contention_ratio: Option<f64>,
    /// Mean of `stall_ratio` over the images that `cost_s` is the mean of, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_stall_ratio: Option<f64>,
    /// Power of a busy core, watts, where the machine has an energy counter; otherwise that of the settings counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watts_per_core: Option<f64>,
}

/// State of the link and the cloud at a given time.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Whether the cloud responds.
    #[serde(skip_serializing_if = "is_false")]
    pub up: bool,
    /// Whether the link is fast enough compared with its best.
    #[serde(skip_serializing_if = "is_false")]
    pub available: bool,
    /// Shortest recent round trip, seconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub round_trip_s: f64,
    /// Highest recent rate, bytes per second; absent before anything was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_bytes_per_s: Option<f64>,
    /// Smoothed ratio of the time of a transmission to the shortest possible one.
    #[serde(skip_serializing_if = "is_zero")]
    pub slowdown_ratio: f64,
    /// Bytes that wait for the link.
    #[serde(skip_serializing_if = "is_zero_count")]
    pub waiting_bytes: u64,
    /// Bytes left in today's budget; absent without a budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_left_bytes: Option<u64>,
    /// Load of the verifiers; absent while none sends heartbeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloud: Option<CloudLoad>,
    /// Offloaded tasks of this worker without an answer.
    #[serde(skip_serializing_if = "is_zero_count")]
    pub away: u64,
    /// Limit on `away`.
    pub most_away: u64,
    /// What asking the cloud gains; absent before verdicts taught it, and in traces of earlier versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gain: Option<CloudGain>,
}

/// How many points of accuracy asking the cloud gains, with its verdicts taken as right: the share of recent verdicts
/// that differed from the site's own answer.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct CloudGain {
    /// On doubtful answers, 0 to 100; absent before enough verdicts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubtful_points: Option<f64>,
    /// On confident answers that were sampled, 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confident_points: Option<f64>,
}

/// Load of the verifiers.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct CloudLoad {
    /// Requests that wait for a verifier.
    pub waiting: u64,
    /// Replicas of all verifiers, at least 1.
    pub replicas: u32,
    /// Cost of one image on one replica, seconds.
    pub cost_s: f64,
    /// Time since the verifiers last finished a request although some wait, seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub still_s: f64,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

fn is_zero_count(count: &u64) -> bool {
    *count == 0
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

//! What was decided about a task, and by what: enough to ask the same question again. Part of an answer, not a message of its
//! own. Times are seconds on the recognizer's own clock, which begins with it.

use serde::{Deserialize, Serialize};

/// What was decided about a task, and by what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionTrace {
    /// The recognizer: its state belongs to it.
    pub worker: String,
    /// The settings in force: the end of the name of the site's note that holds them.
    pub settings: String,
    /// Bytes of the image.
    pub bytes: u64,
    /// Until its deadline, seconds, below 0 if that is past; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_s: Option<f64>,
    /// How long it was held, seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub held_s: f64,
    /// 0 (bulk) to 9 (first).
    pub priority: u8,
    /// When it was decided where it goes, seconds.
    pub at_s: f64,
    /// Where tasks went before.
    pub mode: RoutingMode,
    /// Whether the site counted as overloaded before.
    #[serde(default, skip_serializing_if = "is_false")]
    pub overloaded: bool,
    /// When that had changed last, seconds; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_at_s: Option<f64>,
    /// What the machine and the queue were like.
    pub load: SiteLoad,
    /// What the link and the cloud were like.
    pub network: Network,
    /// Whether it went to the cloud without having been recognized.
    #[serde(default, skip_serializing_if = "is_false")]
    pub redirected: bool,
    /// The second decision, after it was recognized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<EscalationTrace>,
}

/// What was decided after a task was recognized, and by what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EscalationTrace {
    /// When, seconds.
    pub at_s: f64,
    /// Probability of the best class as it was tested, 0 to 1.
    pub best: f32,
    /// Probability of the second best class, 0 to 1.
    pub second: f32,
    /// Entropy as a share of a uniform guess's, 0 to 1.
    pub entropy_ratio: f32,
    /// How unlike the pictures of its calibration the model found it, 0 to 1; absent without a novelty score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub novelty: Option<f32>,
    /// Until a verdict is of no use any more, seconds.
    pub left_s: f64,
    /// Bytes that would go up.
    pub bytes: u64,
    /// Whether sure answers were drawn to be verified.
    #[serde(default, skip_serializing_if = "is_false")]
    pub sampling: bool,
    /// What the link and the cloud were like then, if that had changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Images that might go up before the cap on their share, saved up; absent without a cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earned: Option<f64>,
    /// What became of it.
    pub fate: EscalationOutcome,
}

/// What became of what the site's model said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EscalationOutcome {
    /// It was final.
    Stands,
    /// It was final because its time was up.
    Expired,
    /// It was provisional and went up.
    Goes,
    /// It was sure, and went up all the same.
    Sampled,
    /// It was provisional and stayed.
    Waits,
    /// It was held until the verdict was there.
    Blocks,
}

crate::vocabulary! {
    /// Where tasks go at a moment.
    #[derive(Default, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum RoutingMode {
        /// They are recognized at the site.
        #[default]
        Local = "local",
        /// The excess goes to the cloud.
        Redirect = "redirect",
        /// The excess is held.
        Listen = "listen",
    }
}

/// What the machine and the queue are like at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct SiteLoad {
    /// Share of the processors in use, 0 to 1; absent where the system does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ratio: Option<f64>,
    /// Share of the memory in use, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_ratio: Option<f64>,
    /// Share of the last ten seconds in which something waited for memory, 0 to 1; absent where the kernel
    /// does not count it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_ratio: Option<f64>,
    /// Images that wait at the site, this one and those in hand counted.
    pub waiting: u64,
    /// Whether a replica would take the task at once, or right after the one it works on.
    pub free: bool,
    /// Replicas here.
    pub replicas: u32,
    /// What an image costs one of them, seconds.
    pub cost_s: f64,
}

/// What the link and the cloud are like at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Whether the cloud answers.
    #[serde(skip_serializing_if = "is_false")]
    pub up: bool,
    /// Whether the link is fast enough compared with what it can do.
    #[serde(skip_serializing_if = "is_false")]
    pub available: bool,
    /// Shortest round trip lately, seconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub round_trip_s: f64,
    /// Highest rate lately, bytes a second; absent before anything went up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_bytes_per_s: Option<f64>,
    /// Smoothed time of a transmission over the shortest possible one.
    #[serde(skip_serializing_if = "is_zero")]
    pub slowdown_ratio: f64,
    /// Bytes that wait for the link.
    #[serde(skip_serializing_if = "is_none")]
    pub waiting_bytes: u64,
    /// What may still go up today, bytes; absent without a budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_left_bytes: Option<u64>,
    /// The verifiers; absent while none gives a sign of life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloud: Option<CloudLoad>,
    /// Tasks of ours that were redirected and have no answer yet.
    #[serde(skip_serializing_if = "is_none")]
    pub away: u64,
    /// How many of those there may be.
    pub most_away: u64,
}

/// How busy the verifiers are.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct CloudLoad {
    /// Requests that wait for them.
    pub waiting: u64,
    /// Their replicas, at least 1.
    pub replicas: u32,
    /// What an image costs one of them, seconds.
    pub cost_s: f64,
    /// For how long they finished nothing although something waits, seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub still_s: f64,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

//! Scenarios: link conditions and arrival patterns.

use serde::Serialize;

use super::measured::MeasuredPolicy;
use super::measured::names::{CLOUD_ONLY, EARLIEST_FINISH, EDGE_ONLY, HARD_EXAMPLE, ORACLE, PAPER, RANDOM};
use crate::link_shaper::{LinkShape, LinkState};

/// Part of the policy bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PolicyQuestion {
    /// Doubtful images are verified.
    Verification,
    /// No image is doubtful; policies decide only where the work is done.
    Offloading,
    /// Like offloading, with deadlines.
    Deadlines,
}

impl PolicyQuestion {
    /// Name in tables and progress lines.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            PolicyQuestion::Verification => "verification",
            PolicyQuestion::Offloading => "offloading",
            PolicyQuestion::Deadlines => "deadlines",
        }
    }
}

/// When images arrive.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ArrivalPattern {
    /// All images are queued at the start.
    Batch,
    /// Equally spaced, at a share of the site's capacity.
    Steady {
        /// Arrival rate as a multiple of the site's own throughput.
        of_capacity: f64,
    },
    /// Equally spaced for a short time, above the site's capacity.
    Burst {
        /// Arrival rate as a multiple of the site's own throughput.
        of_capacity: f64,
    },
}

/// A scenario: link conditions and arrival pattern.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Scenario {
    /// Name in tables.
    pub name: &'static str,
    /// When images arrive.
    pub arrivals: ArrivalPattern,
    /// Link properties.
    pub shape: LinkShape,
    /// Alternating seconds up and down; absent if the link is stable.
    pub flaps_s: Option<(f64, f64)>,
    /// Whether verifiers accept requests but never answer.
    pub stalled: bool,
    /// Deadline of an image, milliseconds; none if absent.
    pub deadline_ms: Option<u64>,
    /// Rounds of a full run; the bench's own number if absent.
    pub rounds: Option<usize>,
    /// Seconds of steady arrivals in a full run; the bench's own number if absent.
    pub steady_s: Option<f64>,
    /// Whether a quick run includes it.
    #[serde(skip)]
    pub quick: bool,
}

/// Rounds where what is compared differs more from round to round than the goal allows.
const UNSTEADY_ROUNDS: usize = 9;
/// Rounds where 99th percentiles are compared.
const TAIL_ROUNDS: usize = 12;
/// Seconds of steady arrivals where 99th percentiles are compared: long enough for ten answers beyond the percentile.
const TAIL_S: f64 = 8.0;

/// 20 Mbit/s and 20 ms round trip, with some jitter: a good uplink.
const UPLINK: LinkShape =
    LinkShape { rate_bytes_per_s: Some(2.5e6), delay_ms: 10.0, jitter_ms: 2.0, state: LinkState::Open };
/// 1 Mbit/s and 200 ms round trip.
const SLOW: LinkShape =
    LinkShape { rate_bytes_per_s: Some(125e3), delay_ms: 100.0, jitter_ms: 20.0, state: LinkState::Open };
const DOWN: LinkShape = LinkShape { state: LinkState::Broken, ..UPLINK };
/// 100 Mbit/s and 10 ms round trip.
const WIDE: LinkShape =
    LinkShape { rate_bytes_per_s: Some(12.5e6), delay_ms: 5.0, jitter_ms: 1.0, state: LinkState::Open };
/// 2 Mbit/s and 100 ms round trip: seven pictures per second.
const NARROW: LinkShape =
    LinkShape { rate_bytes_per_s: Some(250e3), delay_ms: 50.0, jitter_ms: 5.0, state: LinkState::Open };

const BATCH: Scenario = Scenario {
    name: "batch",
    arrivals: ArrivalPattern::Batch,
    shape: UPLINK,
    flaps_s: None,
    stalled: false,
    deadline_ms: None,
    rounds: None,
    steady_s: None,
    quick: false,
};
const HALF: ArrivalPattern = ArrivalPattern::Steady { of_capacity: 0.5 };

/// Scenarios of the verification part.
pub(super) const VERIFICATION: [Scenario; 7] = [
    Scenario { quick: true, ..BATCH },
    Scenario { name: "steady", arrivals: HALF, ..BATCH },
    Scenario { name: "burst", arrivals: ArrivalPattern::Burst { of_capacity: 3.0 }, ..BATCH },
    Scenario { name: "link slow", shape: SLOW, ..BATCH },
    Scenario { name: "link flapping", flaps_s: Some((0.8, 0.6)), ..BATCH },
    Scenario {
        name: "cloud down",
        arrivals: HALF,
        shape: DOWN,
        deadline_ms: Some(5000),
        rounds: Some(TAIL_ROUNDS),
        steady_s: Some(TAIL_S),
        quick: true,
        ..BATCH
    },
    Scenario {
        name: "cloud stalled",
        arrivals: HALF,
        stalled: true,
        deadline_ms: Some(5000),
        rounds: Some(TAIL_ROUNDS),
        steady_s: Some(TAIL_S),
        ..BATCH
    },
];

/// Scenarios of the offloading part.
pub(super) const OFFLOADING: [Scenario; 5] = [
    Scenario { name: "both work", shape: WIDE, quick: true, ..BATCH },
    Scenario { name: "link slow", shape: NARROW, rounds: Some(UNSTEADY_ROUNDS), ..BATCH },
    Scenario { name: "link flapping", shape: WIDE, flaps_s: Some((0.8, 0.6)), rounds: Some(UNSTEADY_ROUNDS), ..BATCH },
    Scenario { name: "cloud down", shape: DOWN, rounds: Some(UNSTEADY_ROUNDS), ..BATCH },
    Scenario { name: "cloud stalled", shape: WIDE, stalled: true, rounds: Some(UNSTEADY_ROUNDS), ..BATCH },
];

/// Scenarios of the part with deadlines. In the first, the cloud must take what the site cannot; in the second, the site
/// has a little more than it can do, sends some of it to a cloud that answers nothing, and must take that back in time.
pub(super) const DEADLINES: [Scenario; 2] = [
    Scenario {
        name: "burst with deadlines",
        arrivals: ArrivalPattern::Burst { of_capacity: 3.0 },
        shape: WIDE,
        deadline_ms: Some(400),
        rounds: Some(UNSTEADY_ROUNDS),
        quick: true,
        ..BATCH
    },
    Scenario {
        name: "cloud stalled with deadlines",
        arrivals: ArrivalPattern::Burst { of_capacity: 1.1 },
        shape: WIDE,
        stalled: true,
        deadline_ms: Some(400),
        quick: true,
        ..BATCH
    },
];

impl Scenario {
    /// Whether the cloud never answers.
    pub(super) fn is_cloud_unreachable(&self) -> bool {
        self.stalled || self.shape.state != LinkState::Open
    }

    /// Policies to measure. Policies that only a verdict completes are left out where the cloud never answers.
    pub(super) fn policies(&self, part: PolicyQuestion, quick: bool) -> Vec<MeasuredPolicy> {
        let all = match (part, quick) {
            (PolicyQuestion::Verification, false) => {
                vec![HARD_EXAMPLE, EDGE_ONLY, EARLIEST_FINISH, PAPER, CLOUD_ONLY, RANDOM, ORACLE]
            }
            (PolicyQuestion::Verification, true) => vec![HARD_EXAMPLE, EDGE_ONLY, EARLIEST_FINISH, PAPER],
            (PolicyQuestion::Offloading | PolicyQuestion::Deadlines, _) => vec![EDGE_ONLY, EARLIEST_FINISH, CLOUD_ONLY],
        };
        let can_finish =
            |policy: &MeasuredPolicy| !(self.is_cloud_unreachable() && [CLOUD_ONLY, RANDOM].contains(policy));
        all.into_iter().filter(can_finish).collect()
    }
}

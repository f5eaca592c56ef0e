//! What the link and the arrivals are like.

use serde::Serialize;

use super::measured::MeasuredPolicy;
use super::measured::names::{CLOUD_ONLY, EARLIEST_FINISH, EDGE_ONLY, HARD_EXAMPLE, ORACLE, PAPER, RANDOM};
use crate::link_shaper::{LinkShape, LinkState};

/// Which question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PolicyQuestion {
    /// Doubtful images are verified.
    Verification,
    /// Nothing is in doubt; only where the work is done.
    Offloading,
}

impl PolicyQuestion {
    /// For people.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            PolicyQuestion::Verification => "verification",
            PolicyQuestion::Offloading => "offloading",
        }
    }
}

/// When images arrive.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ArrivalPattern {
    /// All wait at the start.
    Batch,
    /// Equally spaced, at this share of what the site can do.
    Steady {
        /// Of images a second that the site alone recognizes.
        of_capacity: f64,
    },
    /// The same, for a short while, at more than it can do.
    Burst {
        /// Of images a second that the site alone recognizes.
        of_capacity: f64,
    },
}

/// What the link and the arrivals are like.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// When images arrive.
    pub arrivals: ArrivalPattern,
    /// The link.
    pub shape: LinkShape,
    /// Seconds whole and seconds cut, by turns; absent: it stays as it is.
    pub flaps_s: Option<(f64, f64)>,
    /// Whether the verifiers take requests and never answer.
    pub stalled: bool,
    /// After how many milliseconds an answer is of no more use; absent: never.
    pub deadline_ms: Option<u64>,
    /// Whether a quick run has it.
    #[serde(skip)]
    pub quick: bool,
}

/// 20 Mbit/s and 20 ms there and back, with some jitter: a site's uplink on a good day.
const UPLINK: LinkShape =
    LinkShape { rate_bytes_per_s: Some(2.5e6), delay_ms: 10.0, jitter_ms: 2.0, state: LinkState::Open };
/// 1 Mbit/s and 200 ms there and back.
const SLOW: LinkShape =
    LinkShape { rate_bytes_per_s: Some(125e3), delay_ms: 100.0, jitter_ms: 20.0, state: LinkState::Open };
const DOWN: LinkShape = LinkShape { state: LinkState::Broken, ..UPLINK };
/// 100 Mbit/s and 10 ms there and back.
const WIDE: LinkShape =
    LinkShape { rate_bytes_per_s: Some(12.5e6), delay_ms: 5.0, jitter_ms: 1.0, state: LinkState::Open };
/// 2 Mbit/s and 100 ms there and back: seven pictures a second.
const NARROW: LinkShape =
    LinkShape { rate_bytes_per_s: Some(250e3), delay_ms: 50.0, jitter_ms: 5.0, state: LinkState::Open };

const BATCH: Scenario = Scenario {
    name: "batch",
    arrivals: ArrivalPattern::Batch,
    shape: UPLINK,
    flaps_s: None,
    stalled: false,
    deadline_ms: None,
    quick: false,
};
const HALF: ArrivalPattern = ArrivalPattern::Steady { of_capacity: 0.5 };

/// Of the part with verification.
pub(super) const VERIFICATION: [Scenario; 7] = [
    Scenario { quick: true, ..BATCH },
    Scenario { name: "steady", arrivals: HALF, ..BATCH },
    Scenario { name: "burst", arrivals: ArrivalPattern::Burst { of_capacity: 3.0 }, ..BATCH },
    Scenario { name: "link slow", shape: SLOW, ..BATCH },
    Scenario { name: "link flapping", flaps_s: Some((0.8, 0.6)), ..BATCH },
    Scenario { name: "cloud down", arrivals: HALF, shape: DOWN, deadline_ms: Some(5000), quick: true, ..BATCH },
    Scenario { name: "cloud stalled", arrivals: HALF, stalled: true, deadline_ms: Some(5000), ..BATCH },
];

/// Of the part without.
pub(super) const OFFLOADING: [Scenario; 5] = [
    Scenario { name: "both work", shape: WIDE, quick: true, ..BATCH },
    Scenario { name: "link slow", shape: NARROW, ..BATCH },
    Scenario { name: "link flapping", shape: WIDE, flaps_s: Some((0.8, 0.6)), ..BATCH },
    Scenario { name: "cloud down", shape: DOWN, ..BATCH },
    Scenario { name: "cloud stalled", shape: WIDE, stalled: true, ..BATCH },
];

impl Scenario {
    /// Whether the cloud gives no answer at all.
    pub(super) fn hopeless(&self) -> bool {
        self.stalled || self.shape.state != LinkState::Open
    }

    /// Which policies are measured. Those that send everything up cannot end where nobody answers.
    pub(super) fn policies(&self, part: PolicyQuestion, quick: bool) -> Vec<MeasuredPolicy> {
        let all = match (part, quick) {
            (PolicyQuestion::Verification, false) => {
                vec![HARD_EXAMPLE, EDGE_ONLY, EARLIEST_FINISH, PAPER, CLOUD_ONLY, RANDOM, ORACLE]
            }
            (PolicyQuestion::Verification, true) => vec![HARD_EXAMPLE, EDGE_ONLY, EARLIEST_FINISH, PAPER],
            (PolicyQuestion::Offloading, _) => vec![EDGE_ONLY, EARLIEST_FINISH, CLOUD_ONLY],
        };
        let may = |policy: &MeasuredPolicy| !(self.hopeless() && [CLOUD_ONLY, RANDOM].contains(policy));
        all.into_iter().filter(may).collect()
    }
}

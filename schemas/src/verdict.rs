//! What the cloud says about a task sent up; final. Version history: 1, first; later with
//! the ticket.

use serde::{Deserialize, Serialize};

use crate::answer::{Answer, Prediction, Timings};
use crate::codec::Message;
use crate::fault::FaultNote;

/// What the cloud says about a task sent up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// What the verifier found; absent when it could not judge.
    pub opinion: Option<Prediction>,
    /// Why it could not judge; the edge's answer stands then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<FaultNote>,
    /// When it was made, milliseconds since the epoch.
    pub judged_at_ms: u64,
    /// How long the verifier's steps took.
    pub timings: Timings,
    /// The provisional answer it is about.
    pub provisional: Answer,
    /// The ticket of the request, as it came.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "serde_bytes")]
    pub ticket: Option<Vec<u8>>,
}

impl Message for Verdict {
    const KIND: &'static str = "verdict";
    const VERSION: u16 = 1;
}

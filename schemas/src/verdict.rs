//! The cloud's verdict on a task sent up; final. Version history: 1, first; later with
//! the ticket.

use serde::{Deserialize, Serialize};

use crate::answer::{Answer, Prediction, Timings};
use crate::codec::Message;
use crate::fault::FaultNote;

/// The cloud's verdict on a task sent up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The verifier's prediction; absent when it could not judge the image.
    pub opinion: Option<Prediction>,
    /// Why it could not judge; the site's answer then stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<FaultNote>,
    /// When it was made, milliseconds since the epoch.
    pub judged_at_ms: u64,
    /// Duration of the verifier's steps.
    pub timings: Timings,
    /// The provisional answer it is about.
    pub provisional: Answer,
    /// Ticket of the request, unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "serde_bytes")]
    pub ticket: Option<Vec<u8>>,
}

impl Message for Verdict {
    const KIND: &'static str = "verdict";
    const VERSION: u16 = 1;
}

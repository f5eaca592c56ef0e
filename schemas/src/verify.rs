//! A task sent up, with the reason and the edge's answer. Version history: 1, first.

use serde::{Deserialize, Serialize};

use crate::answer::Answer;
use crate::blob::BlobRef;
use crate::codec::Message;

/// A task sent up for a verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verify {
    /// Why it is sent.
    pub reason: VerifyReason,
    /// What is sent.
    pub payload: Payload,
    /// The provisional answer of the edge, which names the task and all that is known about it.
    pub provisional: Answer,
}

impl Message for Verify {
    const KIND: &'static str = "verify";
    const VERSION: u16 = 1;
}

/// Why a task is sent up; a token of its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyReason {
    /// The edge's answer did not pass the gate.
    Doubtful,
}

impl VerifyReason {
    /// The token in the subject.
    pub fn as_str(self) -> &'static str {
        match self {
            VerifyReason::Doubtful => "doubtful",
        }
    }
}

/// What is sent up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// The encoded image as it was published.
    Image(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Where the encoded image is.
    Blob(BlobRef),
}

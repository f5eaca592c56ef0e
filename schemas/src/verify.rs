//! A task sent up, with the reason and the edge's answer. Version history: 1, first; later with the
//! reasons `overload` and `sampled` and the payload `features`.

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
    /// It did, and was drawn to be checked, so that the gate learns how right the site is.
    Sampled,
    /// The edge had too much to do: there is no answer of its own yet.
    Overload,
}

impl VerifyReason {
    /// The token in the subject.
    pub fn as_str(self) -> &'static str {
        match self {
            VerifyReason::Doubtful => "doubtful",
            VerifyReason::Sampled => "sampled",
            VerifyReason::Overload => "overload",
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
    /// What the edge's model gives before its last layer; the image stays at the site.
    Features(Vec<f32>),
}

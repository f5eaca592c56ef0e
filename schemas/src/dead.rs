//! A message that was given up, with its payload, its fault and a remedy. Version history: 1, first.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::fault::FaultNote;
use crate::id::{SiteName, TaskId};
use crate::role::Role;
use crate::vocabulary::WireWord;

/// Size and digest of a payload that is too large for its dead letter to keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TruncatedPayload {
    /// Size of the whole payload, bytes.
    pub size_bytes: u64,
    /// SHA-256 of the whole payload, 64 hexadecimal digits.
    pub sha256: String,
}

/// A message that was given up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Id of the dead letter, derived from the message: the last token of its subject.
    pub id: TaskId,
    /// Task of the message; absent if its id could not be read.
    pub task: Option<TaskId>,
    /// Site the message belongs to.
    pub site: SiteName,
    /// Role that gave the message up.
    pub role: WireWord<Role>,
    /// Stream the message was taken from.
    pub stream: String,
    /// Subject of the message in that stream.
    pub subject: String,
    /// Sequence of the message in that stream.
    pub sequence: u64,
    /// Deliveries before it was given up.
    pub attempts: u64,
    /// When it was given up, milliseconds since the epoch.
    pub died_at_ms: u64,
    /// Why it was given up.
    pub fault: FaultNote,
    /// Headers of the message, the first value of each.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Payload of the message, whole so that it can be redriven; only the beginning of one over
    /// [`MAX_LETTER_BYTES`](crate::limits::MAX_LETTER_BYTES).
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
    /// Size and digest of a payload that was cut. Redriving takes the whole message from its stream, while it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<TruncatedPayload>,
}

impl Message for DeadLetter {
    const KIND: &'static str = "dead";
    const VERSION: u16 = 1;
}

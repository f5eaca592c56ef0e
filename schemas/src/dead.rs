//! A message given up, with its payload, its fault and what to do about it. Version history: 1, first.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::fault::FaultNote;
use crate::id::{SiteName, TaskId};
use crate::role::Role;
use crate::vocabulary::WireWord;

/// What a dead letter leaves out of a message that is too large to be kept twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TruncatedPayload {
    /// Size of the whole payload, bytes.
    pub size_bytes: u64,
    /// SHA-256 of the whole payload, 64 hexadecimal digits.
    pub sha256: String,
}

/// A message given up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Its own id, derived from the message: the last token of its subject.
    pub id: TaskId,
    /// The task it was about, if it got that far.
    pub task: Option<TaskId>,
    /// The site it concerned.
    pub site: SiteName,
    /// The role that gave it up.
    pub role: WireWord<Role>,
    /// The stream it was taken from.
    pub stream: String,
    /// Its subject there.
    pub subject: String,
    /// Its sequence there.
    pub sequence: u64,
    /// How often it was delivered.
    pub attempts: u64,
    /// When it was given up, milliseconds since the epoch.
    pub died_at_ms: u64,
    /// What went wrong.
    pub fault: FaultNote,
    /// The message's headers, first value of each.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The message's payload, whole, so that it can be redriven; of a large one only the beginning.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
    /// What was left out of the payload. Redriving takes the whole message from its stream, as long as it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<TruncatedPayload>,
}

impl Message for DeadLetter {
    const KIND: &'static str = "dead";
    const VERSION: u16 = 1;
}

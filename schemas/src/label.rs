//! What a person says a task shows. Version history: 1, first; later with the optional source, for labels that are
//! replayed.

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::id::TaskId;
use crate::update::LabelSource;

/// What a person says a task shows; the latest about a task counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// The task.
    pub task: TaskId,
    /// What it shows, at most [`crate::limits::MAX_LABEL_BYTES`] long.
    pub label: String,
    /// Who says so, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When it was said, milliseconds since the epoch.
    pub labelled_at_ms: u64,
    /// Who said so, when it was replayed for a trainer to learn again; absent: a person, just now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<LabelSource>,
}

impl Message for Label {
    const KIND: &'static str = "label";
    const VERSION: u16 = 1;
}

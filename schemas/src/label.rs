//! What a person says a task shows, or that what was said of it is taken back. Version history: 1, first; later with the
//! optional source, for labels that are replayed, and the optional reason of a retraction.

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::id::TaskId;
use crate::update::LabelSource;

/// What a person says a task shows, or that nothing said of it before counts any more; the latest about a task counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// The task.
    pub task: TaskId,
    /// What it shows, at most [`crate::limits::MAX_LABEL_BYTES`] long; empty in a retraction.
    pub label: String,
    /// Who says so, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When it was said, milliseconds since the epoch.
    pub labelled_at_ms: u64,
    /// Who said so, when it was replayed for a trainer to learn again; absent: a person, just now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<LabelSource>,
    /// Why everything said of the task so far is taken back, verdicts included, at most
    /// [`crate::limits::MAX_NOTE_BYTES`] long; absent in a label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retracted: Option<String>,
}

impl Label {
    /// Takes back everything said of a task before. A trainer of an older version reads it as a label that its model does
    /// not know, and leaves the image out as well.
    pub fn retraction(task: TaskId, by: Option<String>, why: &str, at_ms: u64) -> Self {
        let retracted = Some(why.to_owned());
        Self { task, label: String::new(), by, labelled_at_ms: at_ms, source: None, retracted }
    }
}

impl Message for Label {
    const KIND: &'static str = "label";
    const VERSION: u16 = 1;
}

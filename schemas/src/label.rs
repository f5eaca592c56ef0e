//! A person's label for a task, or its retraction. Version history: 1, first; later with the
//! optional source, for labels that are replayed, and the optional reason of a retraction.

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::id::TaskId;
use crate::update::LabelSource;

/// The true class of a task as a person gives it, or a retraction of every earlier label. The latest message counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// Task that is labelled.
    pub task: TaskId,
    /// The true class, at most [`crate::limits::MAX_LABEL_BYTES`] long; empty in a retraction.
    pub label: String,
    /// Who gave the label, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When it was given, milliseconds since the epoch.
    pub labelled_at_ms: u64,
    /// Source of a label that is replayed for a trainer; absent: a person, just now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<LabelSource>,
    /// Why every label of the task so far is retracted, verdicts included, at most
    /// [`crate::limits::MAX_NOTE_BYTES`] long; absent in a label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retracted: Option<String>,
}

impl Label {
    /// Retracts every earlier label of a task. A trainer of an older version reads it as a label that its model does
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

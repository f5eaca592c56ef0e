//! Which images an update learned from. Kept at its site and never sent: who takes a label back can name the updates that
//! learned from it. Version history: 1, first.

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::id::{ModelName, ReleaseId, TaskId};

/// The images of one training, or a part of them, at most [`crate::limits::MAX_LEARNED_IMAGES`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LearnedImages {
    /// Id of the update ([`crate::Update::id`]), as it stands in the manifest of a release.
    pub update: TaskId,
    /// The model.
    pub model: ModelName,
    /// The round that the update answers; 0 when no round asked for it.
    pub round: u64,
    /// The release that training started from.
    pub base: ReleaseId,
    /// When training ended, milliseconds since the epoch.
    pub trained_at_ms: u64,
    /// Tasks of the images, those held out to choose the best epoch included.
    pub images: Vec<TaskId>,
}

impl Message for LearnedImages {
    const KIND: &'static str = "learned";
    const VERSION: u16 = 1;
}

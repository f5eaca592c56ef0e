//! Which images an update learned from. Stays at its site: when a label is retracted, it names the updates that
//! learned from it. Version history: 1, first.

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::id::{ModelName, ReleaseId, TaskId};

/// The images of one training, or part of them, at most [`crate::limits::MAX_LEARNED_IMAGES`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LearnedImages {
    /// Id of the update ([`crate::Update::id`]), as in the manifest of a release.
    pub update: TaskId,
    /// Model that was trained.
    pub model: ModelName,
    /// Round that the update answers; 0 when no round asked for it.
    pub round: u64,
    /// Release that training started from.
    pub base: ReleaseId,
    /// When training ended, milliseconds since the epoch.
    pub trained_at_ms: u64,
    /// Tasks of the images, including the holdout that chose the best epoch.
    pub images: Vec<TaskId>,
}

impl Message for LearnedImages {
    const KIND: &'static str = "learned";
    const VERSION: u16 = 1;
}

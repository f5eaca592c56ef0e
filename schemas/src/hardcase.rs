//! What a site found hard: features, scores and circumstances of a doubtful task, never its pixels. A
//! round may be opened by them, and ask sites to see pictures like them oftener. Version history: 1, first.

use serde::{Deserialize, Serialize};

use crate::answer::{RankedClass, Reason};
use crate::codec::Message;
use crate::id::{CameraName, ReleaseId, SiteName, TaskId};

/// A doubtful task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HardCase {
    /// The task.
    pub task: TaskId,
    /// The site.
    pub site: SiteName,
    /// The camera.
    pub camera: CameraName,
    /// The release that was in doubt.
    pub release: ReleaseId,
    /// Which test of the gate was not passed.
    pub reason: Reason,
    /// The best classes, best first.
    pub top: Vec<RankedClass>,
    /// Entropy of the scores as a share of a uniform guess's, 0 to 1.
    pub entropy_ratio: f32,
    /// What the model gives before its last layer; absent for a model that does not give it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<f32>>,
    /// Sequence of the image in the site's stream IMAGES, where it stays.
    pub image_sequence: u64,
    /// When the image was stored at the site, milliseconds since the epoch.
    pub published_at_ms: u64,
    /// The true label, if the publisher knew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truth: Option<String>,
}

impl HardCase {
    /// Under which it is published, whoever does it and however often.
    pub fn message_id(&self) -> TaskId {
        self.task.child(&format!("hardcase-{}", self.image_sequence))
    }
}

impl Message for HardCase {
    const KIND: &'static str = "hardcase";
    const VERSION: u16 = 1;
}

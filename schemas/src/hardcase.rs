//! What a site found hard: features, scores and circumstances of a doubtful task, never its pixels. Hard cases may open
//! a round and have sites see such pictures more often. Version history: 1, first.

use serde::{Deserialize, Serialize};

use crate::answer::{RankedClass, Reason};
use crate::codec::Message;
use crate::id::{CameraName, ReleaseId, SiteName, TaskId};

/// A doubtful task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HardCase {
    /// Task of the image.
    pub task: TaskId,
    /// Site that recognized it.
    pub site: SiteName,
    /// Camera that the image came from.
    pub camera: CameraName,
    /// Release whose answer was doubtful.
    pub release: ReleaseId,
    /// The gate's test that the answer failed.
    pub reason: Reason,
    /// The best classes, best first.
    pub top: Vec<RankedClass>,
    /// Entropy of the scores as a fraction of the entropy of a uniform guess, 0 to 1.
    pub entropy_ratio: f32,
    /// Input of the model's last layer; absent for a model that does not output it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<f32>>,
    /// Sequence of the image in the site's stream IMAGES; the image stays there.
    pub image_sequence: u64,
    /// When the image was stored at the site, milliseconds since the epoch.
    pub published_at_ms: u64,
    /// The true label, if the publisher knew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truth: Option<String>,
}

impl HardCase {
    /// Message id it is published under, the same whoever publishes it and however often.
    pub fn message_id(&self) -> TaskId {
        self.task.child(&format!("hardcase-{}", self.image_sequence))
    }
}

impl Message for HardCase {
    const KIND: &'static str = "hardcase";
    const VERSION: u16 = 1;
}

//! A worker's sign of life, kept for a few seconds in the bucket `fleet`. Version history: 1, first.

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::id::{ReleaseId, SiteName};

/// A worker's sign of life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Beat {
    /// Its role: `recognizer`, `courier`, `verifier` or `janitor`.
    pub role: String,
    /// The process: name and number.
    pub worker: String,
    /// The site it works at; absent in the cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<SiteName>,
    /// When it was sent, milliseconds since the epoch.
    pub sent_at_ms: u64,
    /// Messages it finished since it started.
    pub finished: u64,
    /// Messages it holds now.
    pub holding: u64,
    /// Owner threads with a session each; 0 for a role without a model.
    #[serde(default)]
    pub replicas: u32,
    /// Learned cost of one image on one replica, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_ms: Option<f64>,
    /// Name of the model it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Release it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// Round trip to the cloud in milliseconds; absent when the cloud does not answer or is not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_rtt_ms: Option<f64>,
}

impl Message for Beat {
    const KIND: &'static str = "beat";
    const VERSION: u16 = 1;
}

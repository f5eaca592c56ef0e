//! How a camera is, as the worker that takes its pictures sees it: kept as the latest message of each camera, and in
//! the worker's heartbeats. Version history: 1, first.

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::fault::FaultNote;
use crate::id::{CameraName, SiteName};
use crate::picture::PictureReport;
use crate::vocabulary::WireWord;

crate::vocabulary! {
    /// What a camera does, as far as its pictures tell.
    #[derive(Default)]
    pub enum CameraState {
        /// The first connection is being made.
        #[default]
        Starting = "starting",
        /// Pictures arrive.
        Streaming = "streaming",
        /// No pictures; a new connection is made after a pause.
        Silent = "silent",
        /// A file or folder has ended.
        Ended = "ended",
    }
}

/// How a camera is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CameraHealth {
    /// Its site.
    pub site: SiteName,
    /// Its name.
    pub camera: CameraName,
    /// Whether pictures arrive.
    pub state: WireWord<CameraState>,
    /// Since when, milliseconds since the epoch.
    pub since_ms: u64,
    /// When this was written, milliseconds since the epoch.
    pub at_ms: u64,
    /// Why no pictures arrive; absent while they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<FaultNote>,
    /// When the latest picture arrived, milliseconds since the epoch; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture_at_ms: Option<u64>,
    /// Measures of the latest picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture: Option<PictureReport>,
    /// Coding of its stream, such as `h264`, `mjpeg` or `jpeg`; absent before the first connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codec: Option<String>,
    /// Width and height of its pictures, pixels; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_px: Option<(u32, u32)>,
    /// Pictures the camera sends, per second; absent until measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames_per_s: Option<f32>,
    /// How far the camera's own clock is ahead of this machine's, milliseconds, negative if behind; absent if it does
    /// not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ahead_ms: Option<i64>,
    /// What became of its pictures since the worker started.
    pub counts: FrameCounts,
}

/// What became of a camera's pictures since its worker started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FrameCounts {
    /// Pictures that should have been taken at the configured rate.
    pub wanted: u64,
    /// Pictures taken.
    pub taken: u64,
    /// Pictures published.
    pub published: u64,
    /// Pictures not published, because nothing moved.
    pub unchanged: u64,
    /// Pictures lost, because the site's server did not take them in time.
    pub dropped: u64,
    /// Pictures that could not be decoded.
    pub damaged: u64,
    /// Connections made after the first.
    pub reconnects: u64,
}

impl Message for CameraHealth {
    const KIND: &'static str = "camera-health";
    const VERSION: u16 = 1;
}

/// The state of what a camera's region shows, such as an open door: kept as the latest message of each camera.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegionState {
    /// Its site.
    pub site: SiteName,
    /// Name of the camera, or of the region that is a camera of its own.
    pub camera: CameraName,
    /// The state: one of the region's states.
    pub state: String,
    /// Capture time of the first picture of this state in a row, milliseconds since the epoch.
    pub since_ms: u64,
    /// Sequence of that picture in the stream IMAGES, by which two states are told apart in time.
    pub image_sequence: u64,
    /// The state before; absent at the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
}

impl Message for RegionState {
    const KIND: &'static str = "region-state";
    const VERSION: u16 = 1;
}

//! One picture of a camera, as it came.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::time::Instant;

/// A picture of a camera.
#[derive(Debug, Clone)]
pub struct Frame {
    /// The picture.
    pub picture: FramePicture,
    /// When all of it had arrived.
    pub arrived: Instant,
    /// The same, milliseconds since the epoch by this machine's clock: the capture time, as cameras' own clocks are
    /// often wrong.
    pub arrived_at_ms: u64,
    /// When the camera says it was taken, milliseconds since the epoch by the camera's clock; absent if it does not say.
    pub camera_at_ms: Option<u64>,
}

impl Frame {
    /// A picture that has just arrived.
    pub(crate) fn arriving(picture: FramePicture, camera_at_ms: Option<u64>) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { picture, arrived: Instant::now(), arrived_at_ms: since_epoch.as_millis() as u64, camera_at_ms }
    }
}

/// A picture as the camera coded it, or decoded where recognizers cannot read its coding.
#[derive(Debug, Clone)]
pub enum FramePicture {
    /// A whole JPEG.
    Jpeg(Bytes),
    /// A decoded picture of a video.
    Yuv(Arc<YuvPicture>),
}

/// A decoded picture of a video: planes of 8-bit samples, 4:2:0, BT.601 in limited range unless the video said
/// otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YuvPicture {
    /// Width in pixels, even.
    pub width_px: usize,
    /// Height in pixels, even.
    pub height_px: usize,
    /// Brightness, `width_px * height_px` samples, rows from the top.
    pub y: Vec<u8>,
    /// Blue difference, a quarter as many samples.
    pub u: Vec<u8>,
    /// Red difference, a quarter as many samples.
    pub v: Vec<u8>,
}

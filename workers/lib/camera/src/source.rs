//! Connections to cameras: from an address to frames.

use std::path::PathBuf;
use std::time::Duration;

use crate::address::{CameraAddress, CameraLogin};
use crate::error::CameraError;
use crate::frame::Frame;

/// What a source needs beside its address.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// The login; that in the address if absent.
    pub login: Option<CameraLogin>,
    /// Time between the pictures that are wanted. Faster cameras' other pictures are not decoded.
    pub interval: Duration,
    /// File of an authority to trust beside the system's, PEM.
    pub authority: Option<PathBuf>,
    /// The program ffmpeg; searched for in the path if absent.
    pub ffmpeg: Option<PathBuf>,
}

/// What a connection tells about its stream.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StreamFacts {
    /// Coding, such as `h264`, `h265`, `mjpeg` or `jpeg`.
    pub codec: String,
    /// Width and height of the latest picture, pixels.
    pub size_px: Option<(u32, u32)>,
    /// Pictures that arrived, whether wanted or not.
    pub received: u64,
    /// Pictures that could not be decoded.
    pub damaged: u64,
    /// Pictures per second that the camera sends; absent until measured.
    pub frames_per_s: Option<f32>,
    /// Time between pictures that can be decoded alone, seconds; absent until measured, or where all can.
    pub key_frame_distance_s: Option<f32>,
}

/// A connection to a camera.
#[derive(Debug)]
pub struct FrameSource {}

impl FrameSource {
    /// Connects.
    ///
    /// # Errors
    /// The camera cannot be reached, refuses the login, or sends nothing that can be decoded here.
    pub async fn open(_address: &CameraAddress, _options: &SourceOptions) -> Result<Self, CameraError> {
        Ok(Self {})
    }

    /// The next wanted picture; `None` once a file or folder has ended. Safe to cancel. Waits for as long as it takes:
    /// the caller watches over it.
    ///
    /// # Errors
    /// The connection ended, or what arrives is no picture.
    pub async fn next_frame(&mut self) -> Result<Option<Frame>, CameraError> {
        Ok(None)
    }

    /// What is known about the stream.
    pub fn facts(&self) -> StreamFacts {
        StreamFacts::default()
    }
}

//! Connections to cameras: from an address to frames.
//!
//! In: an address, a login and how often a picture is wanted. Out: [`Frame`]s, the newest at the time, as the camera coded
//! them where recognizers can read that, and decoded otherwise. Whatever a camera sends, one picture waits to be taken:
//! memory does not grow with its rate, nor with how slowly it is read.
//!
//! What goes wrong is named ([`CameraError`]). A connection that is silent is not wrong by itself, as some cameras send a
//! picture in five minutes: whoever takes the pictures watches over them. Addresses in errors never hold a login.

mod due;
mod ffmpeg;
mod files;
#[cfg(feature = "rtsp")]
mod h264;
#[cfg(feature = "rtsp")]
mod h265;
mod http;
mod jpeg_walker;
mod latest;
#[cfg(feature = "rtsp")]
mod rtsp;
#[cfg(feature = "rtsp")]
mod rtsp_tunnel;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use self::files::{PathContent, StillFiles};
use self::latest::LiveSource;
use crate::address::{CameraAddress, CameraCredentials, CameraPlace};
use crate::error::CameraError;
use crate::frame::Frame;

/// What a source needs beside its address.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// The login; that in the address if absent.
    pub login: Option<CameraCredentials>,
    /// Time between the pictures that are wanted. Faster cameras' other pictures are not decoded.
    pub interval: Duration,
    /// File of an authority to trust beside the system's, PEM.
    pub authority: Option<PathBuf>,
    /// The program ffmpeg; searched for in the path if absent.
    pub ffmpeg: Option<PathBuf>,
}

impl Default for SourceOptions {
    /// A picture a second.
    fn default() -> Self {
        Self { login: None, interval: Duration::from_secs(1), authority: None, ffmpeg: None }
    }
}

/// What a connection tells about its stream.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StreamFacts {
    /// Coding: `h264`, `h265`, `mjpeg` (a stream of JPEGs), `jpeg` (single pictures) or `video` (a file, by ffmpeg).
    pub codec: String,
    /// Width and height of the latest picture, pixels.
    pub size_px: Option<(u32, u32)>,
    /// Pictures that arrived, whether wanted or not.
    pub received: u64,
    /// Pictures that could not be decoded.
    pub damaged: u64,
    /// Pictures in a row, up to the latest, of which none can be decoded without a key frame before it.
    pub undecodable: u64,
    /// Pictures per second that the camera sends; absent until measured.
    pub frames_per_s: Option<f32>,
    /// Time between pictures that can be decoded alone, seconds; absent until measured, or where all can.
    pub key_frame_distance_s: Option<f32>,
}

/// A connection to a camera.
pub struct FrameSource(SourceKind);

enum SourceKind {
    /// Read by a task of its own, which ends when this is dropped.
    Live(LiveSource),
    Stills(Box<StillFiles>),
}

impl FrameSource {
    /// Connects.
    ///
    /// # Errors
    /// The camera cannot be reached, refuses the login, or sends nothing that can be decoded here.
    pub async fn open(address: &CameraAddress, options: &SourceOptions) -> Result<Self, CameraError> {
        let shown = address.to_string();
        let login = options.login.clone().or_else(|| address.login.clone());
        let live = match &address.place {
            CameraPlace::Http(url) => http::open(&shown, url, login, options).await?,
            #[cfg(feature = "rtsp")]
            CameraPlace::Rtsp(url) => rtsp::open(&shown, url, login, options).await?,
            #[cfg(not(feature = "rtsp"))]
            CameraPlace::Rtsp(_) => {
                let codec = "RTSP, which this program was built without".into();
                return Err(CameraError::Codec { address: shown, codec });
            }
            CameraPlace::Device(path) => ffmpeg::open_device(&shown, path, options).await?,
            CameraPlace::Path(path) => match files::open(&shown, path, options.interval).await? {
                PathContent::Stills(stills) => return Ok(Self(SourceKind::Stills(Box::new(stills)))),
                PathContent::Video => ffmpeg::open_file(&shown, path, options)?,
            },
        };
        Ok(Self(SourceKind::Live(live)))
    }

    /// The next wanted picture; `None` once a file or folder has ended. Safe to cancel. Waits for as long as it takes:
    /// the caller watches over it.
    ///
    /// # Errors
    /// The connection ended, or what arrives is no picture.
    pub async fn next_frame(&mut self) -> Result<Option<Frame>, CameraError> {
        match &mut self.0 {
            SourceKind::Live(live) => live.next_frame().await,
            SourceKind::Stills(stills) => stills.next_frame().await,
        }
    }

    /// Why no picture came for so long, although the connection stands.
    pub fn silence(&self, address: &CameraAddress, waited: Duration) -> CameraError {
        let (address, seconds) = (address.to_string(), waited.as_secs());
        match self.facts().undecodable {
            0 => CameraError::Silent { address, seconds },
            received => CameraError::NoKeyFrame { address, seconds, received },
        }
    }

    /// What is known about the stream.
    pub fn facts(&self) -> StreamFacts {
        match &self.0 {
            SourceKind::Live(live) => live.facts(),
            SourceKind::Stills(stills) => stills.facts(),
        }
    }
}

impl fmt::Debug for FrameSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FrameSource").field(&self.facts()).finish()
    }
}

//! Sources against real servers: an HTTP camera that breaks every rule, GStreamer's RTSP server, ffmpeg.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod files;
mod http;
mod http_camera;
mod rtsp;
mod rtsp_camera;

use std::path::Path;
use std::time::Duration;

use camera::source::{FrameSource, SourceOptions};
use camera::{CameraAddress, CameraCredentials, CameraError, Frame, FramePicture};

/// What no error and no address may show.
const PASSWORD: &str = "S3cr3t-of-the-camera";

fn address(text: &str) -> CameraAddress {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn every(interval_ms: u64) -> SourceOptions {
    SourceOptions { interval: Duration::from_millis(interval_ms), ..SourceOptions::default() }
}

fn login(password: &str) -> Option<CameraCredentials> {
    Some(CameraCredentials { user: "viewer".into(), password: password.into() })
}

/// The fault with which an address cannot be opened, or with which its pictures end, within `limit_s`.
async fn fault(url: &str, options: &SourceOptions, limit_s: u64) -> CameraError {
    let open_and_read = async {
        let mut source = match FrameSource::open(&address(url), options).await {
            Ok(source) => source,
            Err(error) => return error,
        };
        loop {
            match source.next_frame().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("{url} ended without a fault"),
                Err(error) => return error,
            }
        }
    };
    let error = within(limit_s, open_and_read).await;
    for shown in [error.to_string(), format!("{error:?}"), format!("{:?}", error.note()), format!("{options:?}")] {
        assert!(!shown.contains(PASSWORD), "a password is shown: {shown}");
    }
    error
}

/// What comes of `work` within so many seconds.
async fn within<T>(limit_s: u64, work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(limit_s), work).await;
    done.unwrap_or_else(|_| panic!("it took more than {limit_s} s"))
}

/// The next frame, which must come within so many seconds.
async fn next(source: &mut FrameSource, limit_s: u64) -> Frame {
    let frame = within(limit_s, source.next_frame()).await;
    frame.unwrap_or_else(|error| panic!("no frame: {error}")).expect("it ended")
}

/// Whether no frame and no fault comes for so long.
async fn is_silent(source: &mut FrameSource, wait: Duration) -> bool {
    tokio::time::timeout(wait, source.next_frame()).await.is_err()
}

fn jpeg_of(frame: &Frame) -> &[u8] {
    match &frame.picture {
        FramePicture::Jpeg(bytes) => bytes,
        FramePicture::Yuv(_) => panic!("decoded, where a JPEG was expected"),
    }
}

/// Writes a file that holds `text`.
fn file(folder: &tempfile::TempDir, name: &str, text: &[u8]) -> std::path::PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}

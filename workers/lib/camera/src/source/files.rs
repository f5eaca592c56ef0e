//! Stills: the JPEGs of a folder in the order of their names, or a single one, each given for one interval.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use schemas::limits::MAX_IMAGE_BYTES;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::StreamFacts;
use super::jpeg_walker::{jpeg_size_px, leading_jpeg};
use crate::error::CameraError;
use crate::frame::{Frame, FramePicture};

/// What a path leads to.
pub(super) enum PathContent {
    /// Stills.
    Stills(StillFiles),
    /// A file that is no JPEG: perhaps a video.
    Video,
}

/// Stills that are read one after another.
pub(super) struct StillFiles {
    address: String,
    files: Vec<PathBuf>,
    next: usize,
    interval: Duration,
    due: Option<Instant>,
    facts: StreamFacts,
}

/// Looks at a path.
///
/// # Errors
/// It cannot be read, or is a folder without JPEGs.
pub(super) async fn open(address: &str, path: &Path, interval: Duration) -> Result<PathContent, CameraError> {
    let unreadable = |why: String| CameraError::Unreadable { address: address.into(), why };
    let metadata = tokio::fs::metadata(path).await.map_err(|error| unreadable(error.to_string()))?;
    let files = if metadata.is_dir() {
        jpegs_in(path).await.map_err(|error| unreadable(error.to_string()))?
    } else if metadata.is_file() {
        if !begins_as_jpeg(path).await.map_err(|error| unreadable(error.to_string()))? {
            return Ok(PathContent::Video);
        }
        vec![path.to_owned()]
    } else {
        return Err(unreadable("it is neither a file nor a folder".into()));
    };
    if files.is_empty() {
        return Err(unreadable("there is no .jpg or .jpeg in it".into()));
    }
    let facts = StreamFacts { codec: "jpeg".into(), ..StreamFacts::default() };
    Ok(PathContent::Stills(StillFiles { address: address.into(), files, next: 0, interval, due: None, facts }))
}

async fn jpegs_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut entries, mut files) = (tokio::fs::read_dir(folder).await?, Vec::new());
    while let Some(entry) = entries.next_entry().await? {
        let path = entry.path();
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        if matches!(extension.as_deref(), Some("jpg" | "jpeg")) && !entry.file_type().await?.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

async fn begins_as_jpeg(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    tokio::fs::File::open(path).await?.take(3).read_to_end(&mut start).await?;
    Ok(start == [0xff, 0xd8, 0xff])
}

impl StillFiles {
    /// The next still, when it is due; files that hold no whole JPEG are counted and passed over. `None` after the last.
    /// Safe to cancel: a still that was not given is read again.
    ///
    /// # Errors
    /// A file cannot be read, or none of them holds a JPEG.
    pub(super) async fn next_frame(&mut self) -> Result<Option<Frame>, CameraError> {
        while let Some(path) = self.files.get(self.next) {
            if let Some(due) = self.due {
                tokio::time::sleep_until(due).await;
            }
            let unreadable = |error: io::Error| CameraError::Unreadable {
                address: path.display().to_string(),
                why: error.to_string(),
            };
            let jpeg = read_jpeg(path).await.map_err(unreadable);
            self.next += 1;
            self.facts.received += 1;
            let Some(jpeg) = jpeg? else {
                self.facts.damaged += 1;
                continue;
            };
            let now = Instant::now();
            self.due = Some((self.due.unwrap_or(now) + self.interval).max(now));
            self.facts.size_px = jpeg_size_px(&jpeg);
            return Ok(Some(Frame::arriving(FramePicture::Jpeg(jpeg), None)));
        }
        match self.facts.received > self.facts.damaged {
            true => Ok(None),
            false => {
                let why = format!("none of its {} files holds a whole JPEG", self.files.len());
                Err(CameraError::Unreadable { address: self.address.clone(), why })
            }
        }
    }

    pub(super) fn facts(&self) -> StreamFacts {
        self.facts.clone()
    }
}

/// The JPEG in a file, without what may follow it; `None` if there is no whole one.
async fn read_jpeg(path: &Path) -> io::Result<Option<Bytes>> {
    let mut bytes = Vec::new();
    // One byte more tells a file that is too large from one that just fits.
    tokio::fs::File::open(path).await?.take(MAX_IMAGE_BYTES + 1).read_to_end(&mut bytes).await?;
    let is_too_large = bytes.len() as u64 > MAX_IMAGE_BYTES;
    Ok(leading_jpeg(&Bytes::from(bytes)).filter(|_| !is_too_large))
}

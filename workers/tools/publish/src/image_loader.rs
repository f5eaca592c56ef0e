//! Loads a file: its bytes and task id. No file is read before its size is checked, and memory is limited by the
//! settings.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use std::{fs, io};

use bytes::Bytes;
use runtime::clock;
use schemas::limits::MAX_IMAGE_BYTES;
use schemas::{BlobRef, CameraName, SiteName, TaskId};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::capture::read_capture_time;
use crate::image_sender::{LabelError, check_label};
use crate::settings::{PageSelection, PublisherSettings};
use crate::source::SourceItem;
use crate::tile;

/// Size and times of a file; if all are unchanged, so is its content. The modification time alone is not enough because
/// programs set it (`cp -p`, a camera that resets its clock); they cannot set the change time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileStamp {
    pub size_bytes: u64,
    pub modified_at_ns: u64,
    pub changed_at_ns: i64,
}

impl FileStamp {
    /// For a regular file; absent for anything else.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|metadata| Self::read(&metadata))
    }

    fn read(metadata: &fs::Metadata) -> Self {
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let modified_at_ns = modified.and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or(0);
        let changed_at_ns = metadata.ctime().saturating_mul(1_000_000_000).saturating_add(metadata.ctime_nsec());
        Self { size_bytes: metadata.len(), modified_at_ns, changed_at_ns }
    }
}

/// Why a file was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("it is empty")]
    Empty,
    #[error("it is a folder or a device, not a file")]
    NotAFile,
    #[error("it has {size_bytes} bytes, at most {limit_bytes} are accepted; scale it down, or cut it with --tile")]
    TooLarge { size_bytes: u64, limit_bytes: u64 },
    #[error("it could not be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error(transparent)]
    Label(#[from] LabelError),
    #[error("the reading thread stopped")]
    Reader,
}

/// An image in memory.
pub(crate) struct LoadedImage {
    pub id: TaskId,
    pub bytes: Bytes,
    /// Whether it is a scan to be cut.
    pub is_scan: bool,
    /// Capture time in milliseconds since the epoch, from its Exif data or otherwise from its source.
    pub captured_at_ms: Option<u64>,
    /// Stamp of its file; absent for images that are not from a file.
    pub stamp: Option<FileStamp>,
    /// Its share of the allowed memory.
    _permit: OwnedSemaphorePermit,
}

/// Loads images; cheap to clone.
#[derive(Clone)]
pub(crate) struct ImageLoader {
    site: SiteName,
    run_id: Option<Arc<str>>,
    settings: Arc<PublisherSettings>,
    permit: Arc<Semaphore>,
    room_kib: u32,
}

impl ImageLoader {
    pub(crate) fn new(site: &SiteName, run_id: Option<&str>, settings: &Arc<PublisherSettings>) -> Self {
        let room_kib = settings.max_in_flight_mib.saturating_mul(1024);
        Self {
            site: site.clone(),
            run_id: run_id.map(Into::into),
            settings: settings.clone(),
            permit: Arc::new(Semaphore::new(room_kib as usize)),
            room_kib,
        }
    }

    /// Loads an image. Waits until its size fits into the allowed memory.
    pub(crate) async fn load(&self, found: &SourceItem) -> Result<LoadedImage, LoadError> {
        if let Some(label) = &found.label {
            check_label(label)?;
        }
        let size_bytes = match &found.bytes {
            Some(bytes) => bytes.len() as u64,
            None => self.size(&found.path).await?,
        };
        match size_bytes {
            0 => return Err(LoadError::Empty),
            _ if size_bytes > self.limit_bytes() => {
                return Err(LoadError::TooLarge { size_bytes, limit_bytes: self.limit_bytes() });
            }
            _ => {}
        }
        let kib = u32::try_from(size_bytes / 1024 + 1).unwrap_or(u32::MAX).min(self.room_kib);
        let permit = self.permit.clone().acquire_many_owned(kib).await.map_err(|_| LoadError::Reader)?;
        let (load, found) = (self.clone(), found.clone());
        tokio::task::spawn_blocking(move || load.read(found, permit)).await.map_err(|_| LoadError::Reader)?
    }

    async fn size(&self, path: &Path) -> Result<u64, LoadError> {
        let metadata = tokio::fs::metadata(path).await?;
        if metadata.is_file() { Ok(metadata.len()) } else { Err(LoadError::NotAFile) }
    }

    fn limit_bytes(&self) -> u64 {
        match self.settings.tile.limit_px() {
            None if self.settings.pages == PageSelection::First => MAX_IMAGE_BYTES,
            _ => MAX_IMAGE_BYTES.max(self.settings.tile.scan.max_bytes as u64),
        }
    }

    fn read(&self, found: SourceItem, permit: OwnedSemaphorePermit) -> Result<LoadedImage, LoadError> {
        let (bytes, stamp) = match found.bytes {
            Some(bytes) => (bytes, None),
            None => self.read_file(&found.path)?,
        };
        let is_scan = tile::is_cut(&bytes, &self.settings);
        let size_bytes = bytes.len() as u64;
        if size_bytes > MAX_IMAGE_BYTES && !is_scan {
            return Err(LoadError::TooLarge { size_bytes, limit_bytes: MAX_IMAGE_BYTES });
        }
        let (id, captured_at_ms) = match found.due {
            Some(_) => (TaskId::new_random(), found.captured_at_ms),
            None => {
                let noted = read_capture_time(&bytes, clock::now_ms());
                (self.id(&found.camera, &found.name, &bytes), noted.or(found.captured_at_ms))
            }
        };
        Ok(LoadedImage { id, bytes, is_scan, captured_at_ms, stamp, _permit: permit })
    }

    fn read_file(&self, path: &PathBuf) -> Result<(Bytes, Option<FileStamp>), LoadError> {
        let file = fs::File::open(path)?;
        // Taken before the content, so that the next run notices a change in between.
        let stamp = FileStamp::read(&file.metadata()?);
        let mut bytes = Vec::with_capacity(usize::try_from(stamp.size_bytes.min(self.limit_bytes())).unwrap_or(0));
        // It may have grown since its size was checked.
        file.take(self.limit_bytes() + 1).read_to_end(&mut bytes)?;
        let (size_bytes, limit_bytes) = (bytes.len() as u64, self.limit_bytes());
        match size_bytes {
            0 => Err(LoadError::Empty),
            _ if size_bytes > limit_bytes => Err(LoadError::TooLarge { size_bytes, limit_bytes }),
            _ => Ok((bytes.into(), Some(stamp))),
        }
    }

    /// The id is the same for the same name and content, unless `run_id` differs.
    fn id(&self, camera: &CameraName, name: &str, bytes: &[u8]) -> TaskId {
        let BlobRef { sha256, .. } = BlobRef::new(Sha256::digest(bytes).into(), bytes.len() as u64);
        let again = self.run_id.as_ref().map(|run_id| format!("\nagain {run_id}")).unwrap_or_default();
        TaskId::from_name(&format!("publish/{}/{camera}/{name}/{sha256}{again}", self.site))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(run_id: Option<&str>) -> ImageLoader {
        let settings = Arc::new(PublisherSettings::default());
        ImageLoader::new(&"reef".parse().unwrap(), run_id, &settings)
    }

    #[test]
    fn the_same_name_and_content_make_the_same_task() {
        let made = |run_id, camera: &str, name, bytes: &[u8]| load(run_id).id(&camera.parse().unwrap(), name, bytes);
        let id = made(None, "cam1", "day1/a.png", b"x");
        assert_eq!(id, made(None, "cam1", "day1/a.png", b"x"));
        let again = made(Some("2"), "cam1", "day1/a.png", b"x");
        assert_eq!(again, made(Some("2"), "cam1", "day1/a.png", b"x"));
        let others = [("cam2", "day1/a.png", b"x"), ("cam1", "day2/a.png", b"x"), ("cam1", "day1/a.png", b"y")];
        for other in others.map(|(camera, name, bytes)| made(None, camera, name, bytes)).into_iter().chain([again]) {
            assert_ne!(id, other);
        }
    }

    #[tokio::test]
    async fn an_oversize_file_is_refused_before_it_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // Sparse: reading it would take its full size in memory.
        file.as_file().set_len(1 << 40).unwrap();
        let found = SourceItem {
            path: file.path().into(),
            name: "a".into(),
            file: None,
            camera: "cam1".parse().unwrap(),
            label: None,
            captured_at_ms: None,
            due: None,
            bytes: None,
        };
        let refused = load(None).load(&found).await.err().unwrap();
        assert!(matches!(refused, LoadError::TooLarge { size_bytes, .. } if size_bytes == 1 << 40), "{refused}");
        let folder = SourceItem { path: std::env::temp_dir(), ..found };
        assert!(matches!(load(None).load(&folder).await.err().unwrap(), LoadError::NotAFile));
    }
}

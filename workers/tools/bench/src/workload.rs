//! Workload of the benches: the same model and images on every machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use schemas::limits::MAX_EMBEDDED_BYTES;
use serde::Serialize;

use crate::error::BenchError;

/// Default model, in a checkout: similar to a MobileNet, 0.66 million parameters.
const MODEL: &str = "fixtures/models/bench-cnn";
/// Number of generated images: enough that together they exceed the CPU caches.
const IMAGES: usize = 64;
const SEED: u64 = 1;

/// A model and images to recognize.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    /// Absolute path of the model folder.
    pub model: PathBuf,
    /// Encoded images, used round robin.
    pub images: Arc<[Bytes]>,
    /// Description for the report.
    pub summary: WorkloadSummary,
}

/// Description of a workload in a report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct WorkloadSummary {
    /// Folder of the model, as the user named it.
    pub model: String,
    /// Source of the images: a folder, or how they were generated.
    pub images: String,
    /// Number of distinct images.
    pub different_images: usize,
    /// Mean size of an image, bytes.
    pub mean_bytes: usize,
}

impl Workload {
    /// Loads the images, and checks the model's folder. Absent: the project's own model, and generated images.
    pub(crate) fn open(model: Option<&Path>, images: Option<&Path>) -> Result<Self, BenchError> {
        let named = model.unwrap_or(Path::new(MODEL));
        if model.is_none() && !named.is_dir() {
            return Err(BenchError::NoModel { looked_for: named.to_owned() });
        }
        let absolute = named.canonicalize().map_err(BenchError::file(named))?;
        let (source, images) = match images {
            Some(folder) => (folder.display().to_string(), read_images(folder)?),
            None => ("generated: 640x480 JPEG, quality 85".into(), generate_images()),
        };
        let total: usize = images.iter().map(Bytes::len).sum();
        let summary = WorkloadSummary {
            model: named.display().to_string(),
            images: source,
            different_images: images.len(),
            mean_bytes: total / images.len().max(1),
        };
        Ok(Self { model: absolute, images: images.into(), summary })
    }
}

fn generate_images() -> Vec<Bytes> {
    vision::pictures(IMAGES, SEED).into_iter().map(Bytes::from).collect()
}

/// Reads all files of a folder, sorted by name.
fn read_images(folder: &Path) -> Result<Vec<Bytes>, BenchError> {
    let unusable = |why: String| BenchError::NoImages { folder: folder.to_owned(), why };
    let entries = std::fs::read_dir(folder).map_err(BenchError::file(folder))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    let mut paths: Vec<PathBuf> = paths.map_err(BenchError::file(folder))?;
    paths.retain(|path| path.is_file());
    paths.sort();
    let mut images = Vec::with_capacity(paths.len());
    for path in paths {
        let image = std::fs::read(&path).map_err(BenchError::file(&path))?;
        if image.is_empty() || image.len() > MAX_EMBEDDED_BYTES {
            return Err(unusable(format!(
                "contains {}, which has {} bytes; an image must have 1 to {MAX_EMBEDDED_BYTES} bytes to fit a message",
                path.display(),
                image.len()
            )));
        }
        images.push(image.into());
    }
    if images.is_empty() {
        return Err(unusable("contains no files; name a folder of images".into()));
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_read_in_order_and_empty_files_and_folders_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_images(folder.path()).is_err(), "an empty folder was accepted");
        std::fs::write(folder.path().join("b"), b"second").unwrap();
        std::fs::write(folder.path().join("a"), b"first").unwrap();
        assert_eq!(read_images(folder.path()).unwrap(), [Bytes::from("first"), Bytes::from("second")]);
        std::fs::write(folder.path().join("c"), b"").unwrap();
        assert!(read_images(folder.path()).is_err(), "an empty file was accepted");
    }
}

//! What is recognized: the same model and the same images wherever they are measured.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use schemas::limits::MAX_EMBEDDED_BYTES;
use serde::Serialize;

use crate::error::BenchError;

/// The default model, in a checkout: shaped like a MobileNet, 0.66 million parameters.
const MODEL: &str = "fixtures/models/bench-cnn";
/// Generated images; as many as do not fit the caches together.
const IMAGES: usize = 64;
const SEED: u64 = 1;

/// What is recognized.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    /// Folder of the model, absolute.
    pub model: PathBuf,
    /// Encoded images, taken in turns.
    pub images: Arc<[Bytes]>,
    /// For the report.
    pub described: WorkloadSummary,
}

/// A workload in a report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct WorkloadSummary {
    /// Folder of the model as it was named.
    pub model: String,
    /// Where the images come from.
    pub images: String,
    /// How many different ones there are.
    pub different_images: usize,
    /// Their size on average, bytes.
    pub mean_bytes: usize,
}

impl Workload {
    /// The model and the images of these folders, or the project's own.
    pub(crate) fn open(model: Option<&Path>, images: Option<&Path>) -> Result<Self, BenchError> {
        let named = model.unwrap_or(Path::new(MODEL));
        if model.is_none() && !named.is_dir() {
            return Err(BenchError::NoModel { looked_for: named.to_owned() });
        }
        let absolute = named.canonicalize().map_err(BenchError::file(named))?;
        let (from, images) = match images {
            Some(folder) => (folder.display().to_string(), read(folder)?),
            None => ("generated: 640x480 JPEG, quality 85".into(), made()),
        };
        let total: usize = images.iter().map(Bytes::len).sum();
        let described = WorkloadSummary {
            model: named.display().to_string(),
            images: from,
            different_images: images.len(),
            mean_bytes: total / images.len().max(1),
        };
        Ok(Self { model: absolute, images: images.into(), described })
    }
}

fn made() -> Vec<Bytes> {
    vision::pictures(IMAGES, SEED).into_iter().map(Bytes::from).collect()
}

/// All files of a folder, in the order of their names.
fn read(folder: &Path) -> Result<Vec<Bytes>, BenchError> {
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
                "holds {}, which has {} bytes; an image that travels inside a message has 1 to {MAX_EMBEDDED_BYTES}",
                path.display(),
                image.len()
            )));
        }
        images.push(image.into());
    }
    if images.is_empty() {
        return Err(unusable("holds no files; name one with images in it".into()));
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_in_order_and_what_is_no_image_for_a_message_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).is_err(), "an empty folder was accepted");
        std::fs::write(folder.path().join("b"), b"second").unwrap();
        std::fs::write(folder.path().join("a"), b"first").unwrap();
        assert_eq!(read(folder.path()).unwrap(), [Bytes::from("first"), Bytes::from("second")]);
        std::fs::write(folder.path().join("c"), b"").unwrap();
        assert!(read(folder.path()).is_err(), "an empty file was accepted");
    }
}

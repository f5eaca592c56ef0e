//! Labelled images: a folder with an `index.csv` that names files and their true labels.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use dataset::read_dataset;

use crate::error::BenchError;

/// The project's own, in a checkout.
const OWN: &str = "fixtures/images/fashion";

/// An image with its true label.
#[derive(Debug, Clone)]
pub(crate) struct LabelledImage {
    /// Encoded.
    pub bytes: Bytes,
    /// The true one.
    pub label: String,
}

/// The project's own are 28x28; a camera's are not. Enlarged, one costs as much to decode and to send as a
/// picture of this side, pixels.
const SIDE_PX: u32 = 480;

/// The labels of a folder, sorted.
pub(crate) fn labels(folder: &Path) -> Result<Vec<String>, BenchError> {
    let labels: BTreeSet<String> = read_dataset(folder, None)?.rows.into_iter().map(|row| row.label).collect();
    Ok(labels.into_iter().collect())
}

/// Up to `most` images of the split `test`, or of all where none is named so; spread over the whole index.
pub(crate) fn read(folder: Option<&Path>, most: usize) -> Result<Vec<LabelledImage>, BenchError> {
    let own = folder.is_none();
    let folder = folder.unwrap_or(Path::new(OWN));
    let mut dataset = read_dataset(folder, None)?;
    dataset.keep_test_split();
    let images = dataset.spread(most).map(|row| {
        let path = dataset.path(row);
        let mut bytes = std::fs::read(&path).map_err(BenchError::file(&path))?;
        if own {
            let why = || format!("has {}, which is no picture", row.file);
            bytes = vision::enlarged(&bytes, SIDE_PX)
                .ok_or_else(|| BenchError::NoImages { folder: folder.to_owned(), why: why() })?;
        }
        Ok(LabelledImage { bytes: bytes.into(), label: row.label.clone() })
    });
    images.collect()
}

//! Labelled images: a folder with an `index.csv` that names files and their true labels.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use dataset::read_dataset;

use crate::error::BenchError;

/// The project's own images, in a checkout.
const OWN: &str = "fixtures/images/fashion";

/// An image with its true label.
#[derive(Debug, Clone)]
pub(crate) struct LabelledImage {
    /// The encoded image.
    pub bytes: Bytes,
    /// True label.
    pub label: String,
}

/// Side that the project's own images (28x28) are enlarged to, pixels, so that they cost as much to decode and send as
/// camera images.
const SIDE_PX: u32 = 480;

/// The labels of a folder, sorted.
pub(crate) fn labels(folder: &Path) -> Result<Vec<String>, BenchError> {
    let labels: BTreeSet<String> = read_dataset(folder, None)?.rows.into_iter().map(|row| row.label).collect();
    Ok(labels.into_iter().collect())
}

/// Reads up to `most` images of split `test`, or of all splits if it is empty, spread evenly over the index.
pub(crate) fn read(folder: Option<&Path>, most: usize) -> Result<Vec<LabelledImage>, BenchError> {
    let own = folder.is_none();
    let folder = folder.unwrap_or(Path::new(OWN));
    let mut dataset = read_dataset(folder, None)?;
    dataset.keep_test_split();
    let images = dataset.spread(most).map(|row| {
        let path = dataset.path(row);
        let mut bytes = std::fs::read(&path).map_err(BenchError::file(&path))?;
        if own {
            let why = || format!("contains {}, which is not an image", row.file);
            bytes = vision::enlarged(&bytes, SIDE_PX)
                .ok_or_else(|| BenchError::NoImages { folder: folder.to_owned(), why: why() })?;
        }
        Ok(LabelledImage { bytes: bytes.into(), label: row.label.clone() })
    });
    images.collect()
}

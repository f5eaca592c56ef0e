//! Labelled images: a folder with an `index.csv` that names files and their true labels.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::error::BenchError;

/// The project's own, in a checkout.
const OWN: &str = "fixtures/images/fashion";
/// What no model was trained on.
const SPLIT: &str = "test";

/// An image with its true label.
#[derive(Debug, Clone)]
pub struct LabelledImage {
    /// Encoded.
    pub bytes: Bytes,
    /// The true one.
    pub label: String,
}

/// The project's own are 28x28; a camera's are not. Enlarged, one costs as much to decode and to send as a
/// picture of this side, pixels.
const SIDE_PX: u32 = 480;

/// The labels of a folder's `index.csv`, sorted.
pub fn labels(folder: &Path) -> Result<Vec<String>, BenchError> {
    let rows = rows(folder)?;
    let labels: std::collections::BTreeSet<String> = rows.into_iter().map(|(_, label, _)| label).collect();
    Ok(labels.into_iter().filter(|label| !label.is_empty()).collect())
}

/// Path, label, and whether it is of the split `test`.
pub(crate) fn rows(folder: &Path) -> Result<Vec<(PathBuf, String, bool)>, BenchError> {
    let unusable = |why: String| BenchError::NoImages { folder: folder.to_owned(), why };
    let index = folder.join("index.csv");
    if !index.is_file() {
        return Err(unusable("has no index.csv; name one that has, or run this in a checkout of the project".into()));
    }
    let mut reader = csv::Reader::from_path(&index).map_err(|error| unusable(error.to_string()))?;
    let heads = reader.headers().map_err(|error| unusable(error.to_string()))?.clone();
    let column = |names: &[&str]| heads.iter().position(|head| names.contains(&head));
    let file = column(&["file", "path"]).ok_or_else(|| unusable("its index.csv has no column file or path".into()))?;
    let label = column(&["label", "class_name"])
        .ok_or_else(|| unusable("its index.csv has no column label or class_name".into()))?;
    let split = column(&["split"]);
    let mut rows = Vec::new();
    for row in reader.records() {
        let row = row.map_err(|error| unusable(error.to_string()))?;
        let field = |column: usize| row.get(column).unwrap_or_default();
        let test = split.is_some_and(|split| field(split) == SPLIT);
        rows.push((folder.join(field(file)), field(label).to_owned(), test));
    }
    Ok(rows)
}

/// Up to so many images of the split `test`, or of all where none is named so; spread over the whole index.
pub fn read(folder: Option<&Path>, most: usize) -> Result<Vec<LabelledImage>, BenchError> {
    let own = folder.is_none();
    let folder = folder.unwrap_or(Path::new(OWN));
    let unusable = |why: String| BenchError::NoImages { folder: folder.to_owned(), why };
    let mut rows = rows(folder)?;
    if rows.iter().any(|(_, _, test)| *test) {
        rows.retain(|(_, _, test)| *test);
    }
    let count = most.min(rows.len());
    let chosen = (0..count).filter_map(|number| rows.get(number * rows.len() / count));
    let images = chosen.map(|(path, label, _)| {
        let mut bytes = std::fs::read(path).map_err(BenchError::file(path))?;
        if own {
            bytes = vision::enlarged(&bytes, SIDE_PX)
                .ok_or_else(|| unusable(format!("{} is no picture", path.display())))?;
        }
        Ok(LabelledImage { bytes: bytes.into(), label: label.clone() })
    });
    let images: Vec<LabelledImage> = images.collect::<Result<_, BenchError>>()?;
    if images.is_empty() {
        return Err(unusable("names no images in its index.csv".into()));
    }
    Ok(images)
}

//! The images of one training as copy into the trainer's folder: an `index.csv`, and how far labels had been read.
//! Read again to resume an unfinished training.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use runtime::Fault;
use schemas::{LabelSource, TaskId};
use training::error::TrainError;

use crate::collector::ReadPositions;

const BEGUN: &str = "begun.json";

/// The images of one training.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrainingCopy {
    /// Number of images by source of their label.
    pub sources: BTreeMap<LabelSource, u64>,
    /// Their tasks, including the holdout.
    pub images: BTreeSet<TaskId>,
    /// How far the streams had been read when the images were chosen.
    pub begun: ReadPositions,
}

impl TrainingCopy {
    /// Reads a trainer's folder.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn read(work: &Path) -> Result<Self, Fault> {
        let index: PathBuf = work.join("index.csv");
        let unreadable = |error: csv::Error| Fault::retry("folder_unusable", format!("{}: {error}", index.display()));
        let mut reader = csv::Reader::from_path(&index).map_err(unreadable)?;
        let mut copy = Self { begun: begun(work), ..Self::default() };
        for row in reader.records() {
            let row = row.map_err(unreadable)?;
            let source = match row.get(2) {
                Some("person") => LabelSource::Person,
                Some("publisher") => LabelSource::Publisher,
                _ => LabelSource::Verdict,
            };
            *copy.sources.entry(source).or_default() += 1;
            copy.images.extend(row.get(0).and_then(|file| file.parse::<TaskId>().ok()));
        }
        Ok(copy)
    }
}

/// Saves how far the streams had been read when the images were chosen.
pub(crate) fn write_begun(work: &Path, marks: ReadPositions) -> Result<(), TrainError> {
    let path = work.join(BEGUN);
    std::fs::write(&path, serde_json::to_vec(&marks).unwrap_or_default()).map_err(TrainError::write(&path))
}

/// The beginning if it was not saved: checking too many labels is safe, too few is not.
fn begun(work: &Path) -> ReadPositions {
    let written = std::fs::read(work.join(BEGUN)).ok();
    written.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or(ReadPositions { answers: 1, labels: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_training_copy_is_read_back_with_its_positions() {
        let folder = tempfile::tempdir().unwrap();
        let task = TaskId::from_name("a");
        let index = format!("file,label,source,hard\n{task},cat,person,false\n");
        std::fs::write(folder.path().join("index.csv"), index).unwrap();
        let copy = TrainingCopy::read(folder.path()).unwrap();
        assert_eq!((copy.begun.labels, copy.images.contains(&task)), (1, true));
        write_begun(folder.path(), ReadPositions { answers: 9, labels: 7 }).unwrap();
        assert_eq!(TrainingCopy::read(folder.path()).unwrap().begun, ReadPositions { answers: 9, labels: 7 });
    }
}

//! What a training learns from, as it lies in the trainer's folder: an `index.csv`, and how far labels were read when it was
//! made. Whoever goes on with a training that was left unfinished reads it again.

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
    /// How many images there are, by who said what they show.
    pub sources: BTreeMap<LabelSource, u64>,
    /// Their tasks, those held out included.
    pub images: BTreeSet<TaskId>,
    /// How far the streams were read when they were chosen.
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
        let mut copied = Self { begun: begun(work), ..Self::default() };
        for row in reader.records() {
            let row = row.map_err(unreadable)?;
            let source = match row.get(2) {
                Some("person") => LabelSource::Person,
                Some("publisher") => LabelSource::Publisher,
                _ => LabelSource::Verdict,
            };
            *copied.sources.entry(source).or_default() += 1;
            copied.images.extend(row.get(0).and_then(|file| file.parse::<TaskId>().ok()));
        }
        Ok(copied)
    }
}

/// Writes down how far the streams were read when the images were chosen.
pub(crate) fn write_begun(work: &Path, marks: ReadPositions) -> Result<(), TrainError> {
    let path = work.join(BEGUN);
    std::fs::write(&path, serde_json::to_vec(&marks).unwrap_or_default()).map_err(TrainError::write(&path))
}

/// From the beginning where nobody wrote it down: too much is asked about, not too little.
fn begun(work: &Path) -> ReadPositions {
    let written = std::fs::read(work.join(BEGUN)).ok();
    written.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or(ReadPositions { answers: 1, labels: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_copied_is_read_again_with_how_far_labels_were_read() {
        let folder = tempfile::tempdir().unwrap();
        let task = TaskId::from_name("a");
        let index = format!("file,label,source,hard\n{task},cat,person,false\n");
        std::fs::write(folder.path().join("index.csv"), index).unwrap();
        let copied = TrainingCopy::read(folder.path()).unwrap();
        assert_eq!((copied.begun.labels, copied.images.contains(&task)), (1, true));
        write_begun(folder.path(), ReadPositions { answers: 9, labels: 7 }).unwrap();
        assert_eq!(TrainingCopy::read(folder.path()).unwrap().begun, ReadPositions { answers: 9, labels: 7 });
    }
}

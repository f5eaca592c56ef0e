//! Collects a site's training data: reads answers and labels from where it stopped, and copies the images into a
//! folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use runtime::Fault;
use schemas::limits::MAX_IMAGE_BYTES;
use schemas::task::HEADER_BLOB;
use schemas::{Answer, BlobRef, Label, SiteName, TaskId, decode};
use streams::reader::{self, StreamRange};
use streams::{Blobs, Bus, CarryError, subject, topology};

use crate::collection::{Collection, TrainingImage};
use crate::learned_images;
use crate::training_copy::{self, TrainingCopy};
use training::error::TrainError;

/// Reads a site's streams into a collection.
pub struct Collector {
    bus: Bus,
    site: SiteName,
    /// Labels read so far.
    pub collection: Collection,
    at: ReadPositions,
    trained: ReadPositions,
}

/// How far the streams were read: the sequences of the next answer and the next label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct ReadPositions {
    /// Next sequence in ANSWERS.
    pub answers: u64,
    /// Next sequence in LABELS.
    pub labels: u64,
}

impl Collector {
    /// A collector for a site. `trained`: how far the streams were read at the last training.
    pub fn new(bus: Bus, site: SiteName, collection: Collection, trained: ReadPositions) -> Self {
        Self { bus, site, collection, at: ReadPositions { answers: 1, labels: 1 }, trained }
    }

    /// How far it has read.
    pub fn marks(&self) -> ReadPositions {
        self.at
    }

    /// Reads what is new.
    pub async fn read_new(&mut self) -> Result<(), CarryError> {
        let Self { bus, site, collection, at, trained } = self;
        let last = reader::stream_level(bus, topology::ANSWERS).await?.last_sequence;
        if last >= at.answers {
            let finals = vec![subject::final_answers(site, None)];
            let new = StreamRange { subjects: finals, from_sequence: Some(at.answers), ..StreamRange::default() };
            reader::read_range(bus, topology::ANSWERS, new, last, |record| {
                if let Ok(answer) = decode::<Answer>(&record.payload) {
                    collection.add_answer(&answer, record.sequence >= trained.answers);
                }
            })
            .await?;
            at.answers = last + 1;
        }
        let last = reader::stream_level(bus, topology::LABELS).await?.last_sequence;
        if last < at.labels {
            return Ok(());
        }
        let mut labels = Vec::new();
        let new = StreamRange { from_sequence: Some(at.labels), ..StreamRange::default() };
        reader::read_range(bus, topology::LABELS, new, last, |record| match decode::<Label>(&record.payload) {
            Ok(label) => labels.push((record.sequence, label)),
            Err(error) => tracing::warn!(%error, subject = record.subject, "label unreadable; skipped"),
        })
        .await?;
        for (sequence, label) in labels {
            let slot = subject::final_answer_of_any_camera(site, label.task);
            let about = reader::last_message(bus, topology::ANSWERS, &slot).await?;
            let about = about.and_then(|record| decode::<Answer>(&record.payload).ok());
            collection.add_label(&label, about.as_ref(), sequence >= trained.labels);
        }
        at.labels = last + 1;
        Ok(())
    }

    /// Copies the images into a folder with an `index.csv` of their labels and removes images that are no longer
    /// needed. Newest first, up to `most_mib`.
    pub async fn copy_images(&self, blobs: &Blobs, folder: &Path, most_mib: u32) -> Result<TrainingCopy, Fault> {
        let failed = |error: TrainError| Fault::retry("folder_unusable", runtime::fault::error_chain(&error));
        std::fs::create_dir_all(folder).map_err(TrainError::write(folder)).map_err(failed)?;
        let (mut rows, mut bytes_left) = (Vec::new(), u64::from(most_mib) * 1024 * 1024);
        for image in self.collection.images().into_iter().rev() {
            let path = folder.join(image.task.to_string());
            let known = std::fs::metadata(&path).map(|found| found.len()).ok();
            let size = match known {
                Some(size) => size,
                None => match self.fetch(blobs, image.sequence).await? {
                    Some(bytes) => {
                        write(&path, &bytes).await.map_err(failed)?;
                        bytes.len() as u64
                    }
                    // Purged before it was copy.
                    None => continue,
                },
            };
            let Some(left) = bytes_left.checked_sub(size) else { break };
            bytes_left = left;
            rows.push(image);
        }
        remove_unneeded(folder, &rows).map_err(failed)?;
        write_index(folder, &rows).await.map_err(failed)?;
        training_copy::write_begun(folder, self.at).map_err(failed)?;
        TrainingCopy::read(folder)
    }

    /// Whether a label of the copy images has been retracted since.
    pub async fn is_outdated(&self, copy: &TrainingCopy) -> Result<bool, CarryError> {
        learned_images::is_retracted(&self.bus, &copy.images, copy.begun.labels).await
    }

    /// Deletes the record of an update that is not sent.
    pub async fn forget(&self, sequences: &[u64]) -> Result<(), CarryError> {
        learned_images::forget_images(&self.bus, sequences).await
    }

    async fn fetch(&self, blobs: &Blobs, sequence: u64) -> Result<Option<Vec<u8>>, Fault> {
        let Some(record) = reader::message_at(&self.bus, topology::IMAGES, sequence).await? else { return Ok(None) };
        let Some(blob) = record.header(HEADER_BLOB).and_then(|blob| blob.parse::<BlobRef>().ok()) else {
            return Ok(Some(record.payload.to_vec()));
        };
        match blobs.fetch_blob(&blob, MAX_IMAGE_BYTES).await {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            // Large images are kept for a shorter time than their messages.
            Err(CarryError::BadBlob { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Writes a file completely, or not at all.
async fn write(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let beside = path.with_extension("part");
    tokio::fs::write(&beside, bytes).await.map_err(TrainError::write(&beside))?;
    tokio::fs::rename(&beside, path).await.map_err(TrainError::write(path))
}

/// Removes images that are not needed.
fn remove_unneeded(folder: &Path, wanted: &[TrainingImage]) -> Result<(), TrainError> {
    let wanted: BTreeSet<String> = wanted.iter().map(|image| image.task.to_string()).collect();
    for entry in std::fs::read_dir(folder).map_err(TrainError::read(folder))? {
        let entry = entry.map_err(TrainError::read(folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_image = name.trim_end_matches(".part").parse::<TaskId>().is_ok();
        if is_image && !wanted.contains(&name) {
            std::fs::remove_file(entry.path()).map_err(TrainError::write(entry.path()))?;
        }
    }
    Ok(())
}

async fn write_index(folder: &Path, images: &[TrainingImage]) -> Result<(), TrainError> {
    let path: PathBuf = folder.join("index.csv");
    let failed = |error: csv::Error| TrainError::write(&path)(error.into());
    let mut index = csv::Writer::from_writer(Vec::new());
    index.write_record(["file", "label", "source", "hard"]).map_err(failed)?;
    for image in images {
        let hard = if image.hard { "true" } else { "false" };
        index.write_record([&image.task.to_string(), &image.label, image.source.as_str(), hard]).map_err(failed)?;
    }
    let bytes = index.into_inner().map_err(|error| TrainError::write(&path)(error.into_error()))?;
    write(&path, &bytes).await
}

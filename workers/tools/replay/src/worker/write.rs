//! Writes images to disk in order, in batches, on the thread of the replay: a separate thread per image costs more than
//! the write itself, in wake-ups and cold caches, and so does declaring each write as blocking to the runtime.

use std::collections::HashSet;
use std::time::Duration;

use schemas::TaskId;
use tokio::time::Instant;

use super::ReplayRun;
use crate::coco_folder::{CocoFolderWriter, CocoOutcome};
use crate::error::ReplayError;
use crate::fetch::ArchivedImage;
use crate::folder::FolderWriter;
use crate::row::TaskRow;
use crate::tarball::TarballWriter;

/// Bytes of images collected before they are written.
const BATCH_BYTES: usize = 1024 * 1024;
/// The first image after this time ends a batch, so that a slow replay has written all but its last one or two images.
const BATCH_TIME: Duration = Duration::from_millis(100);

/// Images fetched and not yet written: at most the batch size and one image.
struct WriteBatch<'a> {
    images: Vec<(&'a TaskRow, ArchivedImage)>,
    bytes: usize,
    begun_at: Instant,
}

impl<'a> WriteBatch<'a> {
    fn new() -> Self {
        Self { images: Vec::new(), bytes: 0, begun_at: Instant::now() }
    }

    fn add(&mut self, row: &'a TaskRow, image: ArchivedImage) {
        self.bytes += image.bytes.len();
        self.images.push((row, image));
    }

    fn is_due(&self) -> bool {
        self.bytes >= BATCH_BYTES || self.begun_at.elapsed() >= BATCH_TIME
    }
}

impl ReplayRun<'_> {
    /// Writes images to disk.
    pub(super) async fn write_images(
        &mut self,
        rows: Vec<TaskRow>,
        known: HashSet<TaskId>,
        mut writer: DiskWriter,
    ) -> Result<(), ReplayError> {
        let rows = self.skip_done(rows, &known);
        let mut batch = WriteBatch::new();
        let fetched = self
            .fetch(&rows, async |run, row, image, _room| {
                batch.add(row, image);
                if batch.is_due() { run.write(&mut writer, &mut batch) } else { Ok(()) }
            })
            .await;
        // Images fetched before an interruption are written; after a failed write there is nothing to save.
        let written = self.write(&mut writer, &mut batch);
        tokio::task::block_in_place(|| writer.end())?;
        fetched.and(written)?;
        self.note_end()
    }

    /// Writes a batch: of a folder, up to the first image that cannot be written; of an archive, all or a part that the
    /// next run finds.
    fn write(&mut self, writer: &mut DiskWriter, batch: &mut WriteBatch) -> Result<(), ReplayError> {
        let WriteBatch { images, .. } = std::mem::replace(batch, WriteBatch::new());
        tokio::task::block_in_place(|| {
            if let DiskWriter::Tar(tarball) = writer {
                tarball.put(&images)?;
            }
            images.iter().try_for_each(|(row, image)| {
                let outcome = match writer {
                    DiskWriter::Folder(folder) => folder.write_image(row, image).map(|()| CocoOutcome::Written)?,
                    DiskWriter::Coco(folder) => folder.write_image(row, image)?,
                    DiskWriter::Tar(_) => CocoOutcome::Written,
                };
                match outcome {
                    CocoOutcome::Written => self.through(row, image.bytes.len() as u64),
                    CocoOutcome::WithoutObjects => self.summary.without_objects += 1,
                    CocoOutcome::Undecodable => self.summary.undecodable += 1,
                }
                Ok(())
            })
        })
    }
}

/// A destination on disk.
pub(super) enum DiskWriter {
    Folder(Box<FolderWriter>),
    Coco(Box<CocoFolderWriter>),
    Tar(TarballWriter),
}

impl DiskWriter {
    fn end(self) -> Result<(), ReplayError> {
        match self {
            DiskWriter::Folder(folder) => folder.sync(),
            DiskWriter::Coco(folder) => folder.end(),
            DiskWriter::Tar(tarball) => tarball.end(),
        }
    }
}

//! Onto the disk, in order and some at a time: whoever walks writes. Handing each image to a thread of its own cost more than
//! writing it, in wake-ups and in caches gone cold; and so did telling the runtime of each that it may take a while.

use std::collections::HashSet;
use std::time::Duration;

use schemas::TaskId;
use tokio::time::Instant;

use super::ReplayRun;
use crate::error::ReplayError;
use crate::fetch::ArchivedImage;
use crate::folder::FolderWriter;
use crate::row::TaskRow;
use crate::tarball::TarballWriter;

/// Bytes of images collected before they are written.
const BATCH_BYTES: usize = 1024 * 1024;
/// The first image that comes after this ends a batch: a slow replay is on the disk but for its last one or two.
const BATCH_TIME: Duration = Duration::from_millis(100);

/// Images that were fetched and are not written: no more than so many bytes and one image.
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
    /// Fills a shelf.
    pub(super) async fn write_images(
        &mut self,
        rows: Vec<TaskRow>,
        known: HashSet<TaskId>,
        mut shelf: DiskWriter,
    ) -> Result<(), ReplayError> {
        let rows = self.rest(rows, &known);
        let mut batch = WriteBatch::new();
        let fetched = self
            .fetch(&rows, async |run, row, image, _room| {
                batch.add(row, image);
                if batch.is_due() { run.write(&mut shelf, &mut batch) } else { Ok(()) }
            })
            .await;
        // What was fetched before an interruption stays; after a write that failed there is nothing left to write.
        let written = self.write(&mut shelf, &mut batch);
        tokio::task::block_in_place(|| shelf.end())?;
        fetched.and(written)?;
        self.note_end()
    }

    /// Writes a batch: of a folder, up to the first image that cannot be written; of an archive, the whole or a part that is
    /// found when the same is asked again.
    fn write(&mut self, shelf: &mut DiskWriter, batch: &mut WriteBatch) -> Result<(), ReplayError> {
        let WriteBatch { images, .. } = std::mem::replace(batch, WriteBatch::new());
        tokio::task::block_in_place(|| {
            if let DiskWriter::Tar(tarball) = shelf {
                tarball.put(&images)?;
            }
            images.iter().try_for_each(|(row, image)| {
                if let DiskWriter::Folder(folder) = shelf {
                    folder.write_image(row, image)?;
                }
                self.through(row, image.bytes.len() as u64);
                Ok(())
            })
        })
    }
}

/// What is filled on the disk.
pub(super) enum DiskWriter {
    Folder(Box<FolderWriter>),
    Tar(TarballWriter),
}

impl DiskWriter {
    fn end(self) -> Result<(), ReplayError> {
        match self {
            DiskWriter::Folder(folder) => folder.sync(),
            DiskWriter::Tar(tarball) => tarball.end(),
        }
    }
}

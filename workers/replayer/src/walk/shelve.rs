//! Onto the disk, in order. Whoever walks writes: handing each image to a thread of its own cost more than writing it, in
//! wake-ups and in caches gone cold.

use std::collections::HashSet;

use schemas::TaskId;

use super::Run;
use crate::error::ReplayError;
use crate::fetch::Image;
use crate::folder::Folder;
use crate::row::Row;
use crate::tarball::Tarball;

impl Run<'_> {
    /// Fills a shelf.
    pub(super) async fn shelve(
        &mut self,
        rows: Vec<Row>,
        known: HashSet<TaskId>,
        mut shelf: Shelf,
    ) -> Result<(), ReplayError> {
        let rows = self.rest(rows, &known);
        let fetched = self
            .fetch(&rows, async |run, row, image, _room| {
                tokio::task::block_in_place(|| shelf.put(row, &image))?;
                run.through(row, image.bytes.len() as u64);
                Ok(())
            })
            .await;
        // What was written before an interruption stays.
        tokio::task::block_in_place(|| shelf.end())?;
        fetched?;
        self.note_end()
    }
}

/// What is filled on the disk.
pub(super) enum Shelf {
    Folder(Box<Folder>),
    Tar(Tarball),
}

impl Shelf {
    fn put(&mut self, row: &Row, image: &Image) -> Result<(), ReplayError> {
        match self {
            Shelf::Folder(folder) => folder.put(row, image),
            Shelf::Tar(tarball) => tarball.put(row, image),
        }
    }

    fn end(self) -> Result<(), ReplayError> {
        match self {
            Shelf::Folder(folder) => folder.settle(),
            Shelf::Tar(tarball) => tarball.end(),
        }
    }
}

//! Onto the disk: one thread writes what is fetched, in order.

use std::collections::HashSet;

use schemas::TaskId;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::Run;
use crate::error::ReplayError;
use crate::fetch::Image;
use crate::folder::Folder;
use crate::row::Row;
use crate::tarball::Tarball;

/// Images that wait for the disk.
const WAITING: usize = 256;

/// An image on its way to the disk.
struct Put {
    row: Row,
    image: Image,
    _room: OwnedSemaphorePermit,
}

impl Run<'_> {
    /// Onto the disk, by a thread of its own.
    pub(super) async fn shelve(
        &mut self,
        rows: Vec<Row>,
        known: HashSet<TaskId>,
        shelf: Shelf,
    ) -> Result<(), ReplayError> {
        let rows = self.rest(rows, &known);
        let (put, waiting) = mpsc::channel::<Put>(WAITING);
        let (done, mut written) = mpsc::unbounded_channel();
        let writing = tokio::task::spawn_blocking(move || shelf.fill(waiting, &done));
        let fetched = self
            .fetch(&rows, async |run, row, image, room| {
                while let Ok((row, bytes)) = written.try_recv() {
                    run.through(&row, bytes);
                }
                // Fails only when the thread has ended, and then it says why.
                let sent = put.send(Put { row: row.clone(), image, _room: room }).await;
                sent.map_err(|_| ReplayError::Interrupted)
            })
            .await;
        drop(put);
        let wrote = writing.await.map_err(|error| ReplayError::broken(&error))?;
        while let Ok((row, bytes)) = written.try_recv() {
            self.through(&row, bytes);
        }
        wrote.and(fetched)?;
        self.note_end()
    }
}

/// What is filled on the disk.
pub(super) enum Shelf {
    Folder(Box<Folder>),
    Tar(Tarball),
}

impl Shelf {
    /// Until nothing more comes; `done` hears of each that is written.
    fn fill(
        mut self,
        mut waiting: mpsc::Receiver<Put>,
        done: &mpsc::UnboundedSender<(Row, u64)>,
    ) -> Result<(), ReplayError> {
        while let Some(Put { row, image, _room }) = waiting.blocking_recv() {
            match &mut self {
                Shelf::Folder(folder) => folder.put(&row, &image)?,
                Shelf::Tar(tarball) => tarball.put(&row, &image)?,
            }
            let bytes = image.bytes.len() as u64;
            // Fails only when nobody counts any more.
            let _ = done.send((row, bytes));
        }
        match self {
            Shelf::Folder(folder) => folder.settle(),
            Shelf::Tar(tarball) => tarball.end(),
        }
    }
}

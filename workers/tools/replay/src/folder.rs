//! Writes images into a folder, with an `index.csv` that training reads.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemas::TaskId;

use crate::error::ReplayError;
use crate::fetch::ArchivedImage;
use crate::image_kind;
use crate::index::{HEADS, IndexWriter, cells};
use crate::row::TaskRow;

/// Rows collected before they are written.
const FLUSH_EVERY: usize = 64;

/// A folder being filled. Each image is written before its row, so a row always names a complete image.
pub(crate) struct FolderWriter {
    path: PathBuf,
    index: IndexWriter,
    cameras: HashSet<Arc<str>>,
    unflushed: usize,
}

impl FolderWriter {
    /// Opens or creates a folder, and returns the tasks it already has. An image whose size differs from its row was
    /// truncated by a machine crash and is fetched again.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    /// The system's words.
    pub(crate) fn open(path: &Path) -> Result<(Self, HashSet<TaskId>), ReplayError> {
        let whole = |cells: &csv::StringRecord| {
            let (file, task, bytes) = (cells.get(0)?, cells.get(4)?, cells.get(18)?);
            let size = fs::metadata(path.join(file)).ok()?.len();
            (bytes.parse() == Ok(size)).then(|| task.parse().ok()).flatten()
        };
        let (index, known) = IndexWriter::open(&path.join("index.csv"), &HEADS, whole)?;
        Ok((Self { path: path.into(), index, cameras: HashSet::new(), unflushed: 0 }, known))
    }

    /// Adds an image.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write_image(&mut self, row: &TaskRow, image: &ArchivedImage) -> Result<(), ReplayError> {
        let file = format!("{}/{}.{}", row.camera, row.task, image_kind::extension(&image.bytes));
        if !self.cameras.contains(&row.camera) {
            let folder = self.path.join(row.camera.as_ref());
            fs::create_dir_all(&folder).map_err(ReplayError::write(&folder))?;
            self.cameras.insert(row.camera.clone());
        }
        let path = self.path.join(&file);
        if let Err(error) = fs::write(&path, &image.bytes) {
            // A partial image is useless, especially on a full disk.
            let _ = fs::remove_file(&path);
            return Err(ReplayError::write(&path)(error));
        }
        self.index.add(cells(&file, row, image.bytes.len()))?;
        self.unflushed += 1;
        if self.unflushed >= FLUSH_EVERY {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ReplayError> {
        self.unflushed = 0;
        self.index.flush()
    }

    /// Finishes: waits until the index is on disk.
    ///
    /// # Errors
    /// The index cannot be written.
    pub(crate) fn sync(self) -> Result<(), ReplayError> {
        self.index.sync()
    }
}

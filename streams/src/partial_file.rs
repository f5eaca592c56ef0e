//! A file that is written to a temporary file and renamed into place only when it is complete. An interrupted write
//! leaves the destination as it was.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tempfile::NamedTempFile;

use crate::error::CarryError;

/// A partly received file. Dropping it removes the temporary file, unless it was finished.
pub(crate) struct PartialFile {
    temporary: NamedTempFile,
    destination: PathBuf,
}

impl PartialFile {
    /// Creates an empty temporary file in the destination's folder.
    pub(crate) fn create(destination: &Path) -> Result<Self, CarryError> {
        let folder = destination.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let readable = PermissionsExt::from_mode(0o644);
        let temporary = tempfile::Builder::new().prefix(".fetch-").permissions(readable).tempfile_in(folder);
        Ok(Self { temporary: temporary.map_err(file_error(destination))?, destination: destination.to_owned() })
    }

    /// Appends received chunks.
    pub(crate) async fn append(mut self, chunks: Vec<Bytes>) -> Result<Self, CarryError> {
        let destination = self.destination.clone();
        let write = move || {
            let file = self.temporary.as_file_mut();
            chunks.iter().try_for_each(|chunk| file.write_all(chunk)).map(|()| self)
        };
        spawn_blocking_io(write).await.map_err(file_error(&destination))
    }

    /// Syncs the complete file to disk and renames it to its destination.
    pub(crate) async fn finish(self) -> Result<(), CarryError> {
        let destination = self.destination.clone();
        let finish = move || {
            self.temporary.as_file().sync_all()?;
            self.temporary.persist(&self.destination).map(|_| ()).map_err(|error| error.error)
        };
        spawn_blocking_io(finish).await.map_err(file_error(&destination))
    }
}

async fn spawn_blocking_io<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// Wraps an I/O error with the file's path.
pub(crate) fn file_error(path: &Path) -> impl Fn(io::Error) -> CarryError {
    move |source| CarryError::File { path: path.to_owned(), source }
}

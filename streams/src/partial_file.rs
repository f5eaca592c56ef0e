//! A file that is written beside its place and appears there only when it is complete. Whoever is interrupted leaves the
//! place as it was.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tempfile::NamedTempFile;

use crate::error::CarryError;

/// The part of a file that has arrived. Removed when dropped, unless it was finished.
pub(crate) struct PartialFile {
    temporary: NamedTempFile,
    into: PathBuf,
}

impl PartialFile {
    /// An empty file in the folder of the one that it becomes.
    pub(crate) fn create(into: &Path) -> Result<Self, CarryError> {
        let folder = into.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let readable = PermissionsExt::from_mode(0o644);
        let temporary = tempfile::Builder::new().prefix(".fetch-").permissions(readable).tempfile_in(folder);
        Ok(Self { temporary: temporary.map_err(file_error(into))?, into: into.to_owned() })
    }

    /// Appends what arrived.
    pub(crate) async fn append(mut self, pieces: Vec<Bytes>) -> Result<Self, CarryError> {
        let into = self.into.clone();
        let write = move || {
            let file = self.temporary.as_file_mut();
            pieces.iter().try_for_each(|piece| file.write_all(piece)).map(|()| self)
        };
        on_a_blocking_thread(write).await.map_err(file_error(&into))
    }

    /// Moves the whole file into its place, and onto the disk.
    pub(crate) async fn finish(self) -> Result<(), CarryError> {
        let into = self.into.clone();
        let finish = move || {
            self.temporary.as_file().sync_all()?;
            self.temporary.persist(&self.into).map(|_| ()).map_err(|error| error.error)
        };
        on_a_blocking_thread(finish).await.map_err(file_error(&into))
    }
}

async fn on_a_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// An error of the operating system about a file.
pub(crate) fn file_error(path: &Path) -> impl Fn(io::Error) -> CarryError {
    move |source| CarryError::File { path: path.to_owned(), source }
}

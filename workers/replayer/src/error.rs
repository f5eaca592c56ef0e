//! Why a replay cannot go on.

use std::path::{Path, PathBuf};

use streams::CarryError;

/// Why a replay cannot go on. What was written until then stays; the same command goes on where it stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// More tasks than are held at a time.
    #[error("more than {most} tasks are meant: narrow it with --since and --until, --where or --camera")]
    TooMany {
        /// How many can be held.
        most: usize,
    },
    /// Nothing is meant.
    #[error("no task is meant: {why}")]
    Nothing {
        /// What there is, and what could be asked instead.
        why: String,
    },
    /// A file or folder that cannot be written.
    #[error("{path} cannot be written: run the same command again to go on once that is mended", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// The disk is full.
    #[error(
        "{path} cannot be written, for the disk is full: make room and run the same command again, which goes on with image {through} of {all}",
        path = path.display()
    )]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// Images written whole.
        through: u64,
        /// Images that were meant.
        all: u64,
    },
    /// A folder or file that holds something else.
    #[error("{path} holds {what}: name another one, or delete it", path = path.display())]
    Foreign {
        /// The folder or file.
        path: PathBuf,
        /// What it holds.
        what: String,
    },
    /// A subject nobody may be sent to.
    #[error("{why}")]
    Subject {
        /// Which, and what to write instead.
        why: String,
    },
    /// The pinned sets are full.
    #[error(
        "the pinned sets are full ({why}): {through} of {all} images are pinned; unpin a set with `tributary retention --unpin NAME`, or raise streams.pinned_max_mib with `tributary setup --apply`"
    )]
    PinsFull {
        /// The server's words.
        why: String,
        /// Images pinned.
        through: u64,
        /// Images that were meant.
        all: u64,
    },
    /// Work of the replay that ended without a result.
    #[error("a part of the replay broke off: {why}; the same command goes on where it stopped")]
    Broken {
        /// What it said.
        why: String,
    },
    /// It was told to stop.
    #[error("interrupted: the same command goes on where it stopped")]
    Interrupted,
    /// The broker failed.
    #[error(transparent)]
    Carry(#[from] CarryError),
    /// A model that cannot be used.
    #[error("the model cannot be used")]
    Model {
        /// Its own words.
        #[source]
        source: vision::InferenceError,
    },
}

impl ReplayError {
    /// Cannot write a file.
    pub fn write(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Write { path: path.as_ref().into(), source }
    }

    /// A full disk is told with how far it came.
    pub fn with_progress(self, through: u64, all: u64) -> Self {
        match self {
            Self::Write { path, source } if source.kind() == std::io::ErrorKind::StorageFull => {
                Self::DiskFull { path, through, all }
            }
            other => other,
        }
    }
}

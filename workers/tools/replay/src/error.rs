//! Why a replay failed.

use std::path::{Path, PathBuf};

use streams::CarryError;

/// Why a replay failed. What was written before stays; the same command resumes where it stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// Too many tasks match.
    #[error("more than {most} tasks match; narrow the selection with --since and --until, --where or --camera")]
    TooMany {
        /// The limit.
        most: usize,
    },
    /// The tasks that match list too many objects.
    #[error(
        "the tasks that match list more than {most} objects; narrow the selection with --since and --until, --where or --camera"
    )]
    TooManyObjects {
        /// The limit.
        most: usize,
    },
    /// No task matches.
    #[error("no task matches: {why}")]
    Nothing {
        /// What exists, and what to select instead.
        why: String,
    },
    /// A file or folder cannot be written.
    #[error("could not write {path}; fix that and run the same command again to resume", path = path.display())]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The disk is full.
    #[error(
        "could not write {path}: the disk is full; free space and run the same command again to resume with image {through} of {all}",
        path = path.display()
    )]
    DiskFull {
        /// Path of the file.
        path: PathBuf,
        /// Images written completely.
        through: u64,
        /// Images selected.
        all: u64,
    },
    /// The target is in use.
    #[error("{path} contains {what}; name another path, or delete it", path = path.display())]
    Foreign {
        /// Path of the folder or file.
        path: PathBuf,
        /// What it contains.
        what: String,
    },
    /// The subject is not allowed.
    #[error("{why}")]
    Subject {
        /// The subject, and what to use instead.
        why: String,
    },
    /// The pinned sets are full.
    #[error(
        "the pinned sets are full ({why}); {through} of {all} images are pinned; unpin a set with `tributary retention --unpin NAME`, or raise streams.pinned_max_mib with `tributary setup --apply`"
    )]
    PinsFull {
        /// Error of the server.
        why: String,
        /// Images pinned so far.
        through: u64,
        /// Images selected.
        all: u64,
    },
    /// A task of the replay stopped.
    #[error("the replay stopped unexpectedly: {why}; run the same command again to resume")]
    Broken {
        /// Error of the task.
        why: String,
    },
    /// The replay was stopped.
    #[error("interrupted; run the same command again to resume")]
    Interrupted,
    /// The broker failed.
    #[error(transparent)]
    Carry(#[from] CarryError),
    /// The model cannot be used.
    #[error("could not use the model")]
    Model {
        /// Error of the model.
        #[source]
        source: vision::InferenceError,
    },
}

impl ReplayError {
    /// Turns an I/O error from writing a file into a [`ReplayError`].
    pub fn write(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Write { path: path.as_ref().into(), source }
    }

    /// Adds the progress to an error about a full disk.
    pub fn with_progress(self, through: u64, all: u64) -> Self {
        match self {
            Self::Write { path, source } if source.kind() == std::io::ErrorKind::StorageFull => {
                Self::DiskFull { path, through, all }
            }
            other => other,
        }
    }
}

//! Why a folder of labelled pictures cannot be used.

use std::path::PathBuf;

/// Why a folder of labelled pictures cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The folder, or a folder in it, cannot be read.
    #[error("could not read {}", path.display())]
    Folder {
        /// Path of the folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The index cannot be read.
    #[error("could not read {}", path.display())]
    Index {
        /// Path of the index.
        path: PathBuf,
        /// What is wrong with it.
        source: csv::Error,
    },
    /// The index lacks a column.
    #[error("{} has no column {column}", path.display())]
    MissingColumn {
        /// Path of the index.
        path: PathBuf,
        /// Name of the column, or the names it may have.
        column: String,
    },
    /// The index names something that is not a file in its folder.
    #[error("{} names {file}, which {why}; an index names files of its own folder", path.display())]
    BadFile {
        /// Path of the index.
        path: PathBuf,
        /// The name in the index.
        file: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Nothing has a label.
    #[error(
        "{} has no labelled images; it needs an index.csv (columns file, label, split), or one folder per label",
        folder.display()
    )]
    Empty {
        /// Path of the folder.
        folder: PathBuf,
    },
}

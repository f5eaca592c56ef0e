//! Why a folder cannot be used.

use std::path::PathBuf;

/// Why a folder of labelled pictures cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The folder, or a folder in it.
    #[error("{} cannot be read", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The index.
    #[error("{} cannot be read", path.display())]
    Index {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: csv::Error,
    },
    /// The index lacks a column.
    #[error("{} has no column {column}", path.display())]
    MissingColumn {
        /// The index.
        path: PathBuf,
        /// Its name, or the names it may have.
        column: String,
    },
    /// The index names something that is not a file of its folder.
    #[error("{} names {file}, which {why}; an index names files of its own folder", path.display())]
    BadFile {
        /// The index.
        path: PathBuf,
        /// What it names.
        file: String,
        /// What is wrong with that.
        why: &'static str,
    },
    /// There is nothing with a label.
    #[error(
        "{} has no labelled images; it needs an index.csv (columns file, label, split), or a folder for each label",
        folder.display()
    )]
    Empty {
        /// The folder.
        folder: PathBuf,
    },
}

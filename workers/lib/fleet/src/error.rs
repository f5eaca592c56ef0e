//! Errors of a fleet's files.

use std::path::{Path, PathBuf};

/// What can be wrong with a fleet's folder or a site's file.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The folder already holds a fleet.
    #[error("{path} already holds a fleet and was not changed; see it with `tributary site list --fleet {path}`", path = path.display())]
    Exists {
        /// Path of the folder.
        path: PathBuf,
    },
    /// The folder holds no fleet.
    #[error("{path} does not hold a fleet; create one with `tributary fleet init {path} --hub HOST`", path = path.display())]
    NoFleet {
        /// Path of the folder.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{path} could not be {verb}", path = path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// `read` or `written`.
        verb: &'static str,
        /// Error of the system.
        #[source]
        source: std::io::Error,
    },
    /// A file has other contents than expected.
    #[error("{path} is invalid: {why}", path = path.display())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Other users can read a file with secrets.
    #[error("{path} has mode {mode:o}, so other users can use the keys in it; run `chmod 600 {path}`", path = path.display())]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// Permissions of the file.
        mode: u32,
    },
    /// A sealed file of a site could not be opened.
    #[error("{path} {why}", path = path.display())]
    Sealed {
        /// Path of the file.
        path: PathBuf,
        /// What is missing; continues the sentence after the path.
        why: &'static str,
    },
    /// A site, role or host that does not fit the request.
    #[error("{0}")]
    Site(String),
    /// A key or certificate could not be made.
    #[error("{what} could not be made: {why}")]
    NotMade {
        /// What was to be made.
        what: &'static str,
        /// Why it failed.
        why: String,
    },
}

impl FleetError {
    pub(crate) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, verb: "read", source }
    }

    pub(crate) fn written(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, verb: "written", source }
    }
}

//! Why a fleet is not as it should be.

use std::path::{Path, PathBuf};

/// What can be wrong with a fleet's folder or a site's file.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// A folder that holds something already.
    #[error("{path} holds a fleet already: nothing was changed; `tributary site list --fleet {path}` shows its sites", path = path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A folder without a fleet.
    #[error("{path} holds no fleet: make one with `tributary fleet init {path} --hub HOST`", path = path.display())]
    NoFleet {
        /// The folder.
        path: PathBuf,
    },
    /// A file that cannot be read or written.
    #[error("{path} cannot be {verb}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// `read` or `written`.
        verb: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of another kind, or that was changed by hand.
    #[error("{path} is not what it should be: {why}", path = path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file with secrets that others may read.
    #[error("{path} has mode {mode:o}, so others can use the keys in it: run `chmod 600 {path}`", path = path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A site's file that is sealed.
    #[error("{path} {why}", path = path.display())]
    Sealed {
        /// Which.
        path: PathBuf,
        /// What is missing.
        why: &'static str,
    },
    /// A site that is there, or is not.
    #[error("{0}")]
    Site(String),
    /// A key or a certificate that could not be made.
    #[error("{what} could not be made: {why}")]
    NotMade {
        /// Which.
        what: &'static str,
        /// Why.
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

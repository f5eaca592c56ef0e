//! Why a run failed, with what was published before. In every case the same command resumes where it stopped.

use streams::CarryError;

use crate::report::{PublishSummary, RefusedFile};
use crate::source::{self, SourceError};

/// Why a run failed. Images acknowledged before that stay published.
#[derive(Debug, thiserror::Error)]
pub enum PublishFailure {
    /// A setting is invalid.
    #[error("invalid setting: {why}")]
    Settings {
        /// The setting and its allowed values.
        why: String,
    },
    /// The source cannot be opened.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source failed during the run.
    #[error("the source failed after {} images", summary.published)]
    Broken {
        /// What was published before.
        summary: Box<PublishSummary>,
        /// The failure.
        #[source]
        source: SourceError,
    },
    /// No file was found, or all were refused.
    #[error("nothing was published: {}", nothing(summary))]
    Nothing {
        /// Why each file was refused.
        summary: Box<PublishSummary>,
    },
    /// The stream is full.
    #[error("the stream is full after {} images; run the same command again when it has space, it resumes where it stopped", summary.published)]
    Full {
        /// What was published before.
        summary: Box<PublishSummary>,
        /// Error of the server.
        #[source]
        source: CarryError,
    },
    /// The server does not answer, or refuses everything.
    #[error("publishing stopped after {} images; run the same command again, it resumes where it stopped", summary.published)]
    Stopped {
        /// What was published before.
        summary: Box<PublishSummary>,
        /// The failure.
        #[source]
        source: CarryError,
    },
}

impl PublishFailure {
    /// What was published before the failure.
    pub fn summary(&self) -> Option<&PublishSummary> {
        match self {
            Self::Settings { .. } | Self::Source(_) => None,
            Self::Broken { summary, .. }
            | Self::Nothing { summary }
            | Self::Full { summary, .. }
            | Self::Stopped { summary, .. } => Some(summary),
        }
    }
}

fn nothing(summary: &PublishSummary) -> String {
    match summary.refused.first() {
        Some(RefusedFile { file, reason }) if summary.refused_files == 1 => format!("{file} was refused: {reason}"),
        Some(RefusedFile { file, reason }) => {
            format!("all {} files were refused; the first, {file}: {reason}", summary.refused_files)
        }
        None if !summary.passed_over.is_empty() => {
            format!("no matching image files were found ({}); all files were skipped", source::extensions())
        }
        None => format!("no image files were found ({})", source::extensions()),
    }
}

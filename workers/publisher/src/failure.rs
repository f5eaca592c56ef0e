//! Why a run failed, with what was published before. Whatever the reason, the same command goes on where
//! it stopped.

use streams::CarryError;

use crate::report::{PublishSummary, RefusedFile};
use crate::source::{self, SourceError};

/// Why a run failed. What was acknowledged before stays published.
#[derive(Debug, thiserror::Error)]
pub enum PublishFailure {
    /// A setting that cannot work.
    #[error("setting {why}")]
    Settings {
        /// Which, and what it may be.
        why: String,
    },
    /// The source cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source broke on the way.
    #[error("source broke after {} images", summary.published)]
    Broken {
        /// What was published before.
        summary: Box<PublishSummary>,
        /// How it broke.
        #[source]
        source: SourceError,
    },
    /// There was nothing, or all of it was refused.
    #[error("nothing was published: {}", nothing(summary))]
    Nothing {
        /// Why each file was refused.
        summary: Box<PublishSummary>,
    },
    /// The stream takes no more.
    #[error("stream is full after {} images: run the same command again when there is room, it goes on where it stopped", summary.published)]
    Full {
        /// What was published before.
        summary: Box<PublishSummary>,
        /// The server's words.
        #[source]
        source: CarryError,
    },
    /// The server does not answer, or refuses everything.
    #[error("publishing stopped after {} images: run the same command again, it goes on where it stopped", summary.published)]
    Stopped {
        /// What was published before.
        summary: Box<PublishSummary>,
        /// What happened.
        #[source]
        source: CarryError,
    },
}

impl PublishFailure {
    /// What was published before it failed.
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
            format!("all {} files were refused, the first, {file}: {reason}", summary.refused_files)
        }
        None if !summary.passed_over.is_empty() => {
            format!("no image files that were asked for ({}), only what was passed over", source::extensions())
        }
        None => format!("no image files were found ({})", source::extensions()),
    }
}

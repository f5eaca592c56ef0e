//! Faults: a reason and a remedy for people, and a kind that programs can act on.

use serde::{Deserialize, Serialize};

use crate::limits::MAX_NOTE_BYTES;
use crate::vocabulary::WireWord;

crate::vocabulary! {
    /// Kinds of fault that a program acts on. Every other kind is only displayed; it is written where the fault occurs,
    /// as [`WireWord::Other`].
    pub enum FaultKind {
        /// A release's package is not in the cloud's store.
        PackageMissing = "package_missing",
        /// A release's package could not be fetched.
        PackageUnreachable = "package_unreachable",
        /// A release's package could not be written to the local disk.
        PackageUnwritable = "package_unwritable",
        /// Too little memory is free to load a release.
        MemoryShort = "memory_short",
        /// The trial process of a release could not be started.
        TrialImpossible = "trial_impossible",
        /// A release crashed the process that ran it.
        ReleaseCrashed = "release_crashed",
        /// A round's aggregate is no better than its base.
        NothingGained = "nothing_gained",
        /// The site's server does not answer.
        ServerAway = "server_away",
        /// A link forwards subjects that must stay at the site.
        LinkLetsThrough = "link_lets_through",
        /// A consumer is paused, so that it delivers nothing.
        ConsumerPaused = "consumer_paused",
        /// A consumer that workers need does not exist.
        ConsumerMissing = "consumer_missing",
    }
}

impl FaultKind {
    /// Whether a site retries a release that it did not run because of this fault. Such a fault can pass by itself and
    /// does not refuse the release for good.
    pub fn is_passing(self) -> bool {
        match self {
            Self::PackageMissing
            | Self::PackageUnreachable
            | Self::PackageUnwritable
            | Self::MemoryShort
            | Self::TrialImpossible => true,
            Self::ReleaseCrashed
            | Self::NothingGained
            | Self::ServerAway
            | Self::LinkLetsThrough
            | Self::ConsumerPaused
            | Self::ConsumerMissing => false,
        }
    }
}

/// A fault: a kind for programs, and a reason and remedy for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultNote {
    /// Stable word in snake case, such as `image_truncated`.
    #[serde(rename = "name")]
    pub kind: WireWord<FaultKind>,
    /// What failed and why.
    pub reason: String,
    /// What a person can do about it.
    pub remedy: String,
}

impl FaultNote {
    /// Creates a note; `reason` and `remedy` are cut to [`MAX_NOTE_BYTES`].
    pub fn new(kind: impl Into<WireWord<FaultKind>>, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind: kind.into(), reason: truncate(reason.into()), remedy: truncate(remedy.into()) }
    }

    /// Whether a site retries a release that it did not run because of this fault; false for a kind that is only
    /// displayed.
    pub fn is_passing(&self) -> bool {
        self.kind.known().is_some_and(FaultKind::is_passing)
    }
}

fn truncate(mut text: String) -> String {
    if text.len() > MAX_NOTE_BYTES {
        let end = (0..=MAX_NOTE_BYTES).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

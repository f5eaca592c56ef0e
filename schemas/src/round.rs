//! A round: sites learn from one base, their updates are merged, a release results. Version history: 1, first;
//! later with the event of a release that was remade, and with a focus on what is hard.
//!
//! The events of a round are in the stream that holds the sites' updates, so every reader agrees on which updates came
//! before a round was closed.

use serde::{Deserialize, Serialize};

use crate::blob::BlobRef;
use crate::codec::Message;
use crate::fault::FaultNote;
use crate::id::{ModelName, ReleaseId, SiteName};
use crate::root::Signature;

/// One event of a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Model of the round.
    pub model: ModelName,
    /// Number of the round, from 1.
    pub number: u64,
    /// The event.
    pub event: RoundEvent,
    /// When it was said, milliseconds since the epoch.
    pub said_at_ms: u64,
    /// Signature on an opening, where sites require one; otherwise absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

impl Message for Round {
    const KIND: &'static str = "round";
    const VERSION: u16 = 1;
}

/// Events of a round. Each happens at most once, except `Remade`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoundEvent {
    /// Sites are asked for updates.
    Opened(RoundTerms),
    /// Updates that arrive from now on are too late.
    Closed {
        /// Why it was closed now, in words.
        why: String,
    },
    /// The round produced a release.
    Sealed {
        /// Id of the release.
        release: ReleaseId,
        /// Weights of the release, in the cloud's bucket.
        weights: BlobRef,
        /// Updates merged into it.
        updates: u32,
    },
    /// The round produced no release; the last one remains.
    Failed(FaultNote),
    /// The round's release was derived again without some of its updates. The next round starts from the new one.
    Remade {
        /// Id of the new release.
        release: ReleaseId,
        /// Release that it replaces.
        of: ReleaseId,
        /// Weights of the new release, in the release store.
        weights: BlobRef,
        /// Updates merged into it.
        updates: u32,
    },
}

impl RoundEvent {
    /// The event's word, a token of its subject; the two ways a round can end share one.
    pub fn as_str(&self) -> &'static str {
        match self {
            RoundEvent::Opened(_) => "opened",
            RoundEvent::Closed { .. } => "closed",
            RoundEvent::Sealed { .. } | RoundEvent::Failed(_) => "ended",
            RoundEvent::Remade { .. } => "remade",
        }
    }

    /// The event's slot, a token of its subject: its word, and the release where a round may have several.
    pub fn slot(&self) -> String {
        match self {
            RoundEvent::Remade { release, .. } => format!("{}-{}", self.as_str(), release.as_str()),
            _ => self.as_str().to_owned(),
        }
    }
}

/// What a round asks of sites.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundTerms {
    /// Release to start from.
    pub base: ReleaseId,
    /// Weights of the base, in the cloud's bucket; absent when the base is the model that sites were set up with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<BlobRef>,
    /// Sites that are asked; empty means all.
    #[serde(default)]
    pub sites: Vec<SiteName>,
    /// Updates needed to close the round, at least 1.
    pub quorum: u32,
    /// Seconds to wait for stragglers after the quorum.
    pub grace_s: u32,
    /// Seconds after its opening when the round closes in any case.
    pub deadline_s: u32,
    /// Weights that are trained, as in the setting `trainer.trainable`.
    pub trainable: String,
    /// Patterns of names of weights that stay at each site.
    #[serde(default)]
    pub local: Vec<String>,
    /// Whether updates that no round asked for count too.
    #[serde(default)]
    pub unsolicited: bool,
    /// Largest staleness: updates whose base is up to this many releases older count, discounted.
    #[serde(default)]
    pub behind_max: u32,
    /// Classes to see more often; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub focus: Option<HardFocus>,
}

/// Classes that the base finds hard over all sites, and what their pictures look like to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HardFocus {
    /// How much more often a picture of average hardness is seen, 0 to 8: 1 is twice as often.
    pub strength: f32,
    /// The hardest first; at most [`HARD_CLASSES_MAX`].
    pub classes: Vec<HardClass>,
}

/// Most classes in a focus.
pub const HARD_CLASSES_MAX: usize = 32;

/// A class on which the base is often doubtful.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HardClass {
    /// Label of the class.
    pub label: String,
    /// Its share of all hard cases, 0 to 1.
    pub ratio: f32,
    /// Mean direction of the features of its hard cases, of length 1; absent where the base outputs no features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<f32>>,
}

//! A round: sites are asked to learn from one base, what they send is merged, a release is sealed. Version history: 1, first;
//! later with the event of a release that was remade, and with a focus on what is hard.
//!
//! What happens in a round is told in the stream that holds the sites' updates, so that what came before a round was
//! closed, and what after, is the same for whoever reads it.

use serde::{Deserialize, Serialize};

use crate::blob::BlobRef;
use crate::codec::Message;
use crate::fault::FaultNote;
use crate::id::{ModelName, ReleaseId, SiteName};
use crate::root::Signature;

/// Something that happened in a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// The model.
    pub model: ModelName,
    /// The round, from 1.
    pub number: u64,
    /// What happened.
    pub event: RoundEvent,
    /// When it was said, milliseconds since the epoch.
    pub said_at_ms: u64,
    /// Who said it, where sites ask for that: on the opening of a round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

impl Message for Round {
    const KIND: &'static str = "round";
    const VERSION: u16 = 1;
}

/// What happened. Each happens once in a round, but that its release is remade.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoundEvent {
    /// Sites are asked.
    Opened(RoundTerms),
    /// What comes from now on is late.
    Closed {
        /// Why now, in words.
        why: String,
    },
    /// A release was sealed.
    Sealed {
        /// Which.
        release: ReleaseId,
        /// Its weights, in the cloud's bucket.
        weights: BlobRef,
        /// Updates in it.
        updates: u32,
    },
    /// No release: the last one stands.
    Failed(FaultNote),
    /// Its release was derived again without some of its updates. The next round starts from this one in its place.
    Remade {
        /// The new release.
        release: ReleaseId,
        /// The one it takes the place of.
        of: ReleaseId,
        /// Its weights, in the release store.
        weights: BlobRef,
        /// Updates in it.
        updates: u32,
    },
}

impl RoundEvent {
    /// The word for it, a token of its subject; the two ways a round can end share one.
    pub fn as_str(&self) -> &'static str {
        match self {
            RoundEvent::Opened(_) => "opened",
            RoundEvent::Closed { .. } => "closed",
            RoundEvent::Sealed { .. } | RoundEvent::Failed(_) => "ended",
            RoundEvent::Remade { .. } => "remade",
        }
    }

    /// Its slot, a token of its subject: the word for it, and which release where a round may have several.
    pub fn slot(&self) -> String {
        match self {
            RoundEvent::Remade { release, .. } => format!("{}-{}", self.as_str(), release.as_str()),
            _ => self.as_str().to_owned(),
        }
    }
}

/// What sites are asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundTerms {
    /// The release to start from.
    pub base: ReleaseId,
    /// Its weights, in the cloud's bucket; absent when the base is the model that sites were set up with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<BlobRef>,
    /// The sites that are asked; all if empty.
    #[serde(default)]
    pub sites: Vec<SiteName>,
    /// So many updates are enough, at least 1.
    pub quorum: u32,
    /// How long others are waited for when there are enough, seconds.
    pub grace_s: u32,
    /// When the round is over in any case, seconds after it was opened.
    pub deadline_s: u32,
    /// Which weights are trained, as in the setting `trainer.trainable`.
    pub trainable: String,
    /// Patterns of names of weights that stay as each site has them.
    #[serde(default)]
    pub local: Vec<String>,
    /// Whether updates count that no round asked for.
    #[serde(default)]
    pub unsolicited: bool,
    /// Updates count whose base is so many releases older, discounted.
    #[serde(default)]
    pub behind_max: u32,
    /// What shall be seen oftener; absent: nothing that others found hard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub focus: Option<HardFocus>,
}

/// What the base finds hard, over all sites: classes, and what their pictures look like to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HardFocus {
    /// How much oftener a picture of average hardness is seen: 1 is twice as often. 0 to 8.
    pub strength: f32,
    /// The hardest first; at the most [`HARD_CLASSES_MAX`].
    pub classes: Vec<HardClass>,
}

/// Classes that a focus may name.
pub const HARD_CLASSES_MAX: usize = 32;

/// A class that the base is in doubt about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HardClass {
    /// Its label.
    pub label: String,
    /// Its part of all doubt, 0 to 1.
    pub ratio: f32,
    /// The mean direction of the features of its hard cases, of length 1; absent where the base gives no features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<f32>>,
}

//! What a site learned: its weights against a base release, by reference, and how they were trained. Never a picture.
//! Version history: 1, first; later with the
//! optional number of hard images, the optional signature and the optional gain.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::blob::BlobRef;
use crate::codec::{self, CodecError, Message};
use crate::id::{ModelName, ReleaseId, SiteName, TaskId};

/// One site's weights against a base release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// Site that trained it.
    pub site: SiteName,
    /// Model that was trained.
    pub model: ModelName,
    /// Round that it answers; 0 when no round asked for it.
    pub round: u64,
    /// Release that training started from.
    pub base: ReleaseId,
    /// Safetensors file of the trained tensors, named and shaped as in the base.
    pub weights: BlobRef,
    /// Number format of the weights.
    pub form: WeightFormat,
    /// Images learned from, by label.
    pub samples: BTreeMap<String, u64>,
    /// How many of those the site was doubtful about.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hard: u64,
    /// Images learned from, by source of the label.
    pub sources: BTreeMap<LabelSource, u64>,
    /// Accuracy of the base on the site's holdout.
    pub before: ModelAccuracy,
    /// Accuracy of these weights on the site's holdout.
    pub after: ModelAccuracy,
    /// Whether these weights differ from the base on the holdout by more than chance; absent where it was not tested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gain: Option<Gain>,
    /// Epochs trained.
    pub epochs: u32,
    /// Weights that were trained, as in the setting `trainer.trainable`.
    pub trainable: String,
    /// When training ended, milliseconds since the epoch.
    pub trained_at_ms: u64,
    /// The site's Ed25519 signature over [`Update::signed_bytes`]; absent without a key.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "serde_bytes")]
    pub signature: Option<Vec<u8>>,
}

impl Update {
    /// The bytes that are signed: the message without its signature.
    pub fn signed_bytes(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(&Self { signature: None, ..self.clone() })
    }

    /// Message id it is published under: the same round, site, base and weights are the same update.
    pub fn id(&self) -> TaskId {
        TaskId::from_name(&format!("update/{}/{}/{}/{}", self.site, self.round, self.base, self.weights.sha256))
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Message for Update {
    const KIND: &'static str = "update";
    const VERSION: u16 = 1;
}

/// Number format of an update's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightFormat {
    /// The weights themselves, 32-bit floats.
    #[default]
    F32,
    /// The weights themselves as 16-bit floats: half the bytes.
    F16,
    /// The difference from the base's weights as 16-bit floats: half the bytes, and finer than [`WeightFormat::F16`]
    /// where weights moved little.
    DeltaF16,
}

/// Who labelled an image, the most trusted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelSource {
    /// A person who looked at it.
    Person,
    /// Whoever published it.
    Publisher,
    /// The cloud's model.
    Verdict,
}

impl LabelSource {
    /// The word used on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            LabelSource::Person => "person",
            LabelSource::Publisher => "publisher",
            LabelSource::Verdict => "verdict",
        }
    }
}

/// How trained weights compare with their base on the holdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gain {
    /// Better by more than chance.
    Better,
    /// No difference beyond chance.
    Level,
    /// Worse by more than chance.
    Worse,
}

/// Accuracy of a model on labelled images.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct ModelAccuracy {
    /// Images tested.
    pub images: u64,
    /// Fraction of them that the model labels correctly, 0 to 1.
    pub accuracy_ratio: f64,
    /// Mean cross-entropy.
    pub loss: f64,
}

//! What a site learned: weights against a base release, by reference, and how they were come by. Never a picture.
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
    /// The site.
    pub site: SiteName,
    /// The model.
    pub model: ModelName,
    /// The round it answers; 0 when no round asked for it.
    pub round: u64,
    /// The release the site started from.
    pub base: ReleaseId,
    /// A safetensors file of the trained tensors, named and shaped as the base's.
    pub weights: BlobRef,
    /// How its values are written.
    pub form: WeightFormat,
    /// Images learned from, of each label.
    pub samples: BTreeMap<String, u64>,
    /// Of them, images that the site was in doubt about.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hard: u64,
    /// Images learned from, by who said what they show.
    pub sources: BTreeMap<LabelSource, u64>,
    /// The base on the images held out at the site.
    pub before: ModelAccuracy,
    /// These weights on the same images.
    pub after: ModelAccuracy,
    /// How these weights compare with the base on those images, by more than chance; absent where nobody compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gain: Option<Gain>,
    /// Times every image was seen.
    pub epochs: u32,
    /// Which weights were trained, as in the setting `trainer.trainable`.
    pub trainable: String,
    /// When it was made, milliseconds since the epoch.
    pub trained_at_ms: u64,
    /// The site's Ed25519 signature of [`Update::signed`]; absent without a key.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "serde_bytes")]
    pub signature: Option<Vec<u8>>,
}

impl Update {
    /// What a site signs: the message without its signature.
    pub fn signed_bytes(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(&Self { signature: None, ..self.clone() })
    }

    /// Under which it is published, however often: the same site, base and weights are the same update.
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

/// How the values of an update's weights are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightFormat {
    /// The weights themselves, 32-bit floats.
    #[default]
    F32,
    /// The weights themselves, rounded to 16-bit floats: half the bytes.
    F16,
    /// What is to be added to the base's weights, 16-bit floats: half the bytes, and finer than [`WeightForm::F16`]
    /// where weights moved little.
    DeltaF16,
}

/// Who said what an image shows, the most trusted first.
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
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            LabelSource::Person => "person",
            LabelSource::Publisher => "publisher",
            LabelSource::Verdict => "verdict",
        }
    }
}

/// How trained weights compare with those they started from, on images held out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gain {
    /// Better by more than chance.
    Better,
    /// Neither.
    Level,
    /// Worse by more than chance.
    Worse,
}

/// How right a model is on labelled images.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct ModelAccuracy {
    /// Images.
    pub images: u64,
    /// Of those, how many it is right about, 0 to 1.
    pub accuracy_ratio: f64,
    /// Mean cross-entropy.
    pub loss: f64,
}

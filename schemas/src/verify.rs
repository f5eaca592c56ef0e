//! A request to verify a task, with the reason and the site's answer. Version history: 1, first; later with the
//! reasons `overload` and `sampled`, the payload `features` and what a hard case needs, and the ticket.

use serde::{Deserialize, Serialize};

use crate::answer::Answer;
use crate::blob::BlobRef;
use crate::codec::Message;
use crate::hardcase::HardCase;

/// A task sent up for a verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// Why it is sent up.
    pub reason: VerifyReason,
    /// The image or its features.
    pub payload: Payload,
    /// The site's provisional answer, which names the task and all that is known about it.
    pub provisional: Answer,
    /// What a hard case needs beyond the answer; absent if none is to be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardness: Option<Hardness>,
    /// Code by which the site recognizes its own request; returned with the verdict. 32 bytes where present.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "serde_bytes")]
    pub ticket: Option<Vec<u8>>,
}

/// What a hard case holds beyond the answer it is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hardness {
    /// Entropy of the scores as a fraction of the entropy of a uniform guess, 0 to 1.
    pub entropy_ratio: f32,
    /// Input of the model's last layer; absent for a model that does not output it, and when it is
    /// the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<f32>>,
}

impl VerifyRequest {
    /// The hard case that the cloud keeps, if any. Deriving it here saves the site and its link a message per doubtful
    /// task.
    pub fn hard_case(&self) -> Option<HardCase> {
        let (answer, hardness) = (&self.provisional, self.hardness.as_ref()?);
        let features = match &self.payload {
            Payload::Features(features) => Some(features.clone()),
            Payload::Image(_) | Payload::Blob(_) => hardness.features.clone(),
        };
        Some(HardCase {
            task: answer.task,
            site: answer.site.clone(),
            camera: answer.camera.clone(),
            release: answer.release.clone()?,
            reason: answer.reason,
            top: answer.top.clone(),
            entropy_ratio: hardness.entropy_ratio,
            features,
            image_sequence: answer.image_sequence,
            published_at_ms: answer.published_at_ms,
            truth: answer.truth.clone(),
        })
    }
}

impl Message for VerifyRequest {
    const KIND: &'static str = "verify";
    const VERSION: u16 = 1;
}

/// Why a task is sent up; a token of its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyReason {
    /// The site's answer did not pass the gate.
    Doubtful,
    /// It did, and was sampled for verification, to learn how accurate the site is.
    Sampled,
    /// The site is overloaded and has no answer of its own yet.
    Overload,
}

impl VerifyReason {
    /// The token in the subject.
    pub fn as_str(self) -> &'static str {
        match self {
            VerifyReason::Doubtful => "doubtful",
            VerifyReason::Sampled => "sampled",
            VerifyReason::Overload => "overload",
        }
    }
}

/// What is sent up of the image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// The encoded image as it was published.
    Image(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Reference to the encoded image.
    Blob(BlobRef),
    /// Input of the last layer of the site's model; the image stays at the site.
    Features(Vec<f32>),
}

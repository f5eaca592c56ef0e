//! A task sent up, with the reason and the edge's answer. Version history: 1, first; later with the
//! reasons `overload` and `sampled`, the payload `features` and what a hard case needs, and the ticket.

use serde::{Deserialize, Serialize};

use crate::answer::Answer;
use crate::blob::BlobRef;
use crate::codec::Message;
use crate::hardcase::HardCase;

/// A task sent up for a verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// Why it is sent.
    pub reason: VerifyReason,
    /// What is sent.
    pub payload: Payload,
    /// The provisional answer of the edge, which names the task and all that is known about it.
    pub provisional: Answer,
    /// What is to be kept of it as a hard case; absent if nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardness: Option<Hardness>,
    /// What the site knows its own request by; comes back with the verdict. 32 bytes where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "serde_bytes")]
    pub ticket: Option<Vec<u8>>,
}

/// What a hard case holds beyond the answer it is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hardness {
    /// Entropy of the scores as a share of a uniform guess's, 0 to 1.
    pub entropy_ratio: f32,
    /// What the model gives before its last layer; absent for a model that does not give it, and when it is
    /// the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<f32>>,
}

impl VerifyRequest {
    /// The hard case that the cloud keeps, if it is to keep one: it is derived here, so that a doubtful task
    /// is one message less for the site and its link.
    pub fn hard_case(&self) -> Option<HardCase> {
        let (about, hardness) = (&self.provisional, self.hardness.as_ref()?);
        let features = match &self.payload {
            Payload::Features(features) => Some(features.clone()),
            Payload::Image(_) | Payload::Blob(_) => hardness.features.clone(),
        };
        Some(HardCase {
            task: about.task,
            site: about.site.clone(),
            camera: about.camera.clone(),
            release: about.release.clone()?,
            reason: about.reason,
            top: about.top.clone(),
            entropy_ratio: hardness.entropy_ratio,
            features,
            image_sequence: about.image_sequence,
            published_at_ms: about.published_at_ms,
            truth: about.truth.clone(),
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
    /// The edge's answer did not pass the gate.
    Doubtful,
    /// It did, and was drawn to be checked, so that the gate learns how right the site is.
    Sampled,
    /// The edge had too much to do: there is no answer of its own yet.
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

/// What is sent up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// The encoded image as it was published.
    Image(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Where the encoded image is.
    Blob(BlobRef),
    /// What the edge's model gives before its last layer; the image stays at the site.
    Features(Vec<f32>),
}

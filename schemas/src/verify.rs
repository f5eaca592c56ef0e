//! A request to verify a task, with the reason and the site's answer. Version history: 1, first; later with the
//! reasons `overload` and `sampled`, the payload `features` and what a hard case needs, and the ticket.

use bytes::Bytes;
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

    fn capacity_bytes(&self) -> usize {
        /// More than an answer of five labels takes, with its trace and its timings.
        const BESIDE_PAYLOAD: usize = 8 * 1024;
        // Each number takes a marker and four bytes.
        let floats = |floats: &[f32]| floats.len().saturating_mul(5);
        let features = self.hardness.as_ref().and_then(|hardness| hardness.features.as_deref());
        let payload_bytes = match &self.payload {
            Payload::Image(bytes) => bytes.len(),
            Payload::Blob(_) => 0,
            Payload::Features(features) => floats(features),
        };
        BESIDE_PAYLOAD.saturating_add(payload_bytes).saturating_add(floats(features.unwrap_or_default()))
    }
}

/// Why a task is sent up; a token of its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyReason {
    /// The site's answer did not pass the gate.
    Doubtful,
    /// It did, and was sampled for verification, to learn how accurate the site is.
    Sampled,
    /// The site offloads the task without an answer of its own, whatever the reason; the word on the wire is older than
    /// the other reasons.
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
    Image(#[serde(with = "crate::shared_bytes")] Bytes),
    /// Reference to the encoded image.
    Blob(BlobRef),
    /// Input of the last layer of the site's model; the image stays at the site.
    Features(Vec<f32>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{AnswerStage, Reason, Route};
    use crate::task::{StorageStamp, Task};
    use crate::{TaskId, decode, decode_shared, encode};

    fn request(payload: Payload) -> VerifyRequest {
        let stored = StorageStamp {
            site: "reef".parse().unwrap(),
            camera: "cam1".parse().unwrap(),
            sequence: 4,
            stored_at_ns: 1_000_000_000,
        };
        let task = Task::from_id(&stored, TaskId::from_name("a"));
        let provisional = Answer::for_task(&task, AnswerStage::Provisional, Route::Edge, Reason::LowConfidence, 1);
        VerifyRequest {
            reason: VerifyReason::Doubtful,
            payload,
            provisional,
            hardness: None,
            ticket: Some(vec![7; 32]),
        }
    }

    /// Where bytes lie in memory.
    fn place(bytes: &[u8]) -> std::ops::Range<usize> {
        let start = bytes.as_ptr() as usize;
        start..start + bytes.len()
    }

    #[test]
    fn an_image_is_copied_once_on_its_way_into_a_message_and_never_out_of_it() {
        let image = Bytes::from((0..700_000u32).map(|number| (number % 251) as u8).collect::<Vec<u8>>());
        let request = request(Payload::Image(image.clone()));
        let Payload::Image(held) = &request.payload else { unreachable!() };
        assert_eq!(place(held), place(&image), "the request shares the image");
        let encoded = encode(&request).unwrap();
        assert_eq!(encoded.capacity(), request.capacity_bytes(), "the buffer did not grow");
        let message = Bytes::from(encoded);
        let decoded: VerifyRequest = decode_shared(&message).unwrap();
        assert_eq!(decoded, request);
        let Payload::Image(shared) = &decoded.payload else { unreachable!() };
        let (inner, outer) = (place(shared), place(&message));
        assert!(outer.start < inner.start && inner.end < outer.end, "{inner:?} in {outer:?}");
        // Nothing of one message is taken for a part of another.
        let copied: VerifyRequest = decode(&message).unwrap();
        let Payload::Image(copied) = copied.payload else { unreachable!() };
        assert!(copied == image && !outer.contains(&place(&copied).start));
        let wrong = decode_shared::<VerifyRequest>(&message.slice(..message.len() - 1));
        assert!(wrong.is_err(), "{wrong:?}");
    }

    #[test]
    fn an_image_is_read_as_other_clients_may_write_it() {
        let bytes = rmp_serde::to_vec_named(&serde_json::json!({ "image": [1, 2, 255] })).unwrap();
        let payload: Payload = rmp_serde::from_slice(&bytes).unwrap();
        assert_eq!(payload, Payload::Image(Bytes::from_static(&[1, 2, 255])));
        let bytes = rmp_serde::to_vec_named(&serde_json::json!({ "image": "abc" })).unwrap();
        assert_eq!(rmp_serde::from_slice::<Payload>(&bytes).unwrap(), Payload::Image(Bytes::from_static(b"abc")));
    }
}

//! Makes dead letters: the message, whole unless it is large, with its origin and its fault.

use schemas::limits::{CUT_LETTER_BYTES, MAX_LETTER_BYTES};
use schemas::{BlobRef, DeadLetter, FaultNote, Role, SiteName, TaskId, TruncatedPayload};
use sha2::{Digest, Sha256};
use streams::reader::StoredMessage;

use crate::clock;

/// The payload as a dead letter keeps it: whole, or its beginning with size and digest.
fn keep_payload(payload: &[u8]) -> (Vec<u8>, Option<TruncatedPayload>) {
    if payload.len() <= MAX_LETTER_BYTES {
        return (payload.to_vec(), None);
    }
    let sha256 = BlobRef::new(Sha256::digest(payload).into(), payload.len() as u64).sha256;
    let beginning = payload.get(..CUT_LETTER_BYTES).unwrap_or(payload);
    (beginning.to_vec(), Some(TruncatedPayload { size_bytes: payload.len() as u64, sha256 }))
}

/// The dead letter of a stored message.
pub fn from_stored_message(
    role: Role,
    stream: &str,
    site: &SiteName,
    task: Option<TaskId>,
    record: &StoredMessage,
    attempts: u64,
    fault: FaultNote,
) -> DeadLetter {
    let (payload, cut) = keep_payload(&record.payload);
    DeadLetter {
        id: id(stream, site, task, record.sequence),
        task,
        site: site.clone(),
        role: role.into(),
        stream: stream.into(),
        subject: record.subject.clone(),
        sequence: record.sequence,
        attempts,
        died_at_ms: clock::now_ms(),
        fault,
        headers: record.headers.iter().cloned().collect(),
        payload,
        cut,
    }
}

/// The same message always yields the same id, however often it is given up.
fn id(stream: &str, site: &SiteName, task: Option<TaskId>, sequence: u64) -> TaskId {
    let origin = || TaskId::from_name(&format!("{stream}/{site}/{sequence}"));
    task.unwrap_or_else(origin).child(&format!("dead-{sequence}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_message_is_kept_as_its_beginning_size_and_digest() {
        assert_eq!(keep_payload(&[7; 100]), (vec![7; 100], None));
        let (beginning, cut) = keep_payload(&vec![7; MAX_LETTER_BYTES + 1]);
        let cut = cut.unwrap();
        assert_eq!((beginning.len(), cut.size_bytes), (CUT_LETTER_BYTES, MAX_LETTER_BYTES as u64 + 1));
        assert_eq!(cut.sha256.len(), 64);
    }
}

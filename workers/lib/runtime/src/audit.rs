//! Records who did what by hand. Each site and the cloud have a stream that accepts notes and deletes none, and each
//! note carries the digest of the one before, so that a removed or changed note is detected.

use schemas::{AuditNote, SiteName, decode, encode};
use sha2::{Digest, Sha256};
use streams::reader::{self, StoredMessage};
use streams::{Bus, CarryError, publish, subject, topology};

use crate::clock;

/// Attempts to append a note when others append at the same time.
const MAX_ATTEMPTS: u32 = 20;

/// Records an action that was taken.
///
/// # Errors
/// The stream did not accept the note; the action was taken even so.
pub async fn record_action(
    bus: &Bus,
    place: &SiteName,
    action: &str,
    about: impl Into<String>,
) -> Result<(), CarryError> {
    let (slot, about) = (subject::audit(place), about.into());
    for _ in 0..MAX_ATTEMPTS {
        let last = reader::last_message(bus, topology::AUDIT, &slot).await?;
        let previous = last.as_ref().map_or([0; 32], digest);
        let note = AuditNote {
            place: place.clone(),
            at_ms: clock::now_ms(),
            actor: actor(),
            action: action.into(),
            about: about.chars().take(1000).collect(),
            previous: previous.to_vec(),
        };
        let after = last.map_or(0, |last| last.sequence);
        if publish::append_message(bus, &slot, encode(&note)?.into(), after).await? {
            return Ok(());
        }
    }
    Err(CarryError::Outrun { what: format!("the audit of {place}") })
}

fn digest(record: &StoredMessage) -> [u8; 32] {
    Sha256::digest(&record.payload).into()
}

/// The user and host that run this process.
fn actor() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten();
    let user = user.map_or_else(|| nix::unistd::getuid().to_string(), |user| user.name);
    let host = nix::unistd::gethostname().map_or_else(|_| "?".into(), |host| host.to_string_lossy().into_owned());
    format!("{user}@{host}")
}

/// Where a chain of notes breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainBreak {
    /// Sequence of the first note that does not follow its predecessor.
    pub sequence: u64,
    /// Why, in words for people.
    pub why: String,
}

/// The first note of a place that does not follow its predecessor. Pure. Old notes that the stream dropped for space
/// are no break.
pub fn find_break(records: &[StoredMessage]) -> Option<ChainBreak> {
    let mut before: Option<[u8; 32]> = None;
    for record in records {
        let broken = |why: &str| Some(ChainBreak { sequence: record.sequence, why: why.into() });
        let Ok(note) = decode::<AuditNote>(&record.payload) else { return broken("it is not a valid note") };
        if subject::audit(&note.place) != record.subject {
            return broken("it belongs to another place");
        }
        match before {
            Some(before) if note.previous != before => {
                return broken("it does not match the digest of the note before it");
            }
            None if record.sequence == 1 && note.previous != [0; 32] => return broken("its predecessor is missing"),
            _ => {}
        }
        before = Some(digest(record));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sequence: u64, about: &str, previous: [u8; 32]) -> StoredMessage {
        let place: SiteName = "reef".parse().unwrap();
        let (actor, action) = ("a@b".to_owned(), "policy set".to_owned());
        let note = AuditNote {
            place: place.clone(),
            at_ms: 5,
            actor,
            action,
            about: about.into(),
            previous: previous.to_vec(),
        };
        let (subject, payload) = (subject::audit(&place), encode(&note).unwrap().into());
        StoredMessage { subject, sequence, stored_at_ns: 0, headers: Vec::new(), payload }
    }

    #[test]
    fn removed_or_changed_notes_are_detected() {
        let first = record(1, "one", [0; 32]);
        let second = record(2, "two", digest(&first));
        let third = record(3, "three", digest(&second));
        let all = [first.clone(), second.clone(), third.clone()];
        assert_eq!(find_break(&all), None);
        assert_eq!(find_break(&all[1..]), None, "the oldest may be dropped");
        assert_eq!(find_break(&[first.clone(), third.clone()]).unwrap().sequence, 3);
        let changed = record(2, "other", digest(&first));
        assert_eq!(find_break(&[first, changed, third]).unwrap().sequence, 3);
        assert_eq!(find_break(&[record(1, "one", [7; 32])]).unwrap().sequence, 1);
    }
}

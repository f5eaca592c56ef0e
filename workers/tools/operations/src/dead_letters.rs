//! Dead letters: reading and selecting them, and redriving them on request. A redriven dead letter's message is published
//! again as the same task, and the tombstone is removed for a new outcome.

use bytes::Bytes;
use janitor::audit::republication;
use schemas::task::HEADER_FILE;
use schemas::{BlobRef, DeadLetter, Route, SiteName, TaskId, decode};
use sha2::{Digest, Sha256};
use streams::reader::{self, StoredMessage, StreamRange};
use streams::{Bus, CarryError, Publisher, subject, topology};

use crate::PUBLISH_TIMEOUT;
use crate::audit::record_change;
use crate::words::count;

/// A dead letter, after its sequence in the stream.
pub type DeadLetterRow = (u64, DeadLetter);

/// Why no dead letter was selected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeadLetterSelectionError {
    /// None has such an id.
    #[error(
        "no dead letter's id starts with {id:?}: `tributary dead-letters list` shows them, --cloud those of the cloud"
    )]
    Unknown {
        /// Start of the id.
        id: String,
    },
    /// Several have.
    #[error("several dead letters' ids start with {id:?} ({first}, {second}): write more of the id")]
    Ambiguous {
        /// Start of the id.
        id: String,
        /// One of them.
        first: TaskId,
        /// Another one.
        second: TaskId,
    },
}

/// Why a dead letter was not redriven, or its payload not read.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// Its subject is none that messages of its stream have.
    #[error(
        "a dead letter from {stream} may not be published again on {subject:?} (letter_misaddressed): if it is what you want, publish its message by hand"
    )]
    Misaddressed {
        /// The stream that its message came from.
        stream: String,
        /// Its subject, cut to a printable length.
        subject: String,
    },
    /// Only the beginning of its message still exists.
    #[error(
        "the dead letter keeps only the beginning of a message of {size_bytes} bytes, and message {sequence} of {stream} no longer exists (letter_cut): publish the image again"
    )]
    Cut {
        /// Size of the message, bytes.
        size_bytes: u64,
        /// Its sequence.
        sequence: u64,
        /// Its stream.
        stream: String,
    },
    /// The server failed.
    #[error(transparent)]
    Carry(#[from] CarryError),
}

/// Dead letters were not redriven from this one on.
#[derive(Debug, thiserror::Error)]
#[error("dead letter {letter} was not redriven; {done} were: run the command again for the rest")]
pub struct RedriveError {
    /// Id of the first dead letter that was not redriven.
    pub letter: TaskId,
    /// How many were redriven before it.
    pub done: usize,
    /// Why.
    #[source]
    pub why: DeadLetterError,
}

/// Every dead letter of a JetStream domain, oldest first.
pub async fn read_dead_letters(bus: &Bus) -> Result<Vec<DeadLetterRow>, CarryError> {
    let level = reader::stream_level(bus, topology::DEAD).await?;
    let mut letters = Vec::new();
    if level.messages == 0 {
        return Ok(letters);
    }
    reader::read_range(bus, topology::DEAD, StreamRange::default(), level.last_sequence, |record: StoredMessage| {
        match decode::<DeadLetter>(&record.payload) {
            Ok(letter) => letters.push((record.sequence, letter)),
            Err(error) => tracing::warn!(sequence = record.sequence, %error, "dead letter unreadable"),
        }
    })
    .await?;
    Ok(letters)
}

/// The image's file name, if its publisher gave one.
pub fn file_name(letter: &DeadLetter) -> Option<&str> {
    letter.headers.get(HEADER_FILE).map(String::as_str)
}

/// Dead letters with this fault; all of them without one. Pure.
pub fn with_fault(letters: Vec<DeadLetterRow>, fault: Option<&str>) -> Vec<DeadLetterRow> {
    letters.into_iter().filter(|(_, letter)| fault.is_none_or(|fault| letter.fault.kind.as_str() == fault)).collect()
}

/// Dead letters whose file name contains a text, ignoring case. Pure.
pub fn with_file(letters: Vec<DeadLetterRow>, text: &str) -> Vec<DeadLetterRow> {
    let text = text.to_lowercase();
    let contains =
        |letter: &DeadLetter| file_name(letter).is_some_and(|file| file.to_lowercase().contains(text.as_str()));
    letters.into_iter().filter(|(_, letter)| contains(letter)).collect()
}

/// The one dead letter whose id, or whose task's id, starts with this. Pure.
pub fn select_dead_letter<'a>(
    letters: &'a [DeadLetterRow],
    id: &str,
) -> Result<&'a DeadLetterRow, DeadLetterSelectionError> {
    let begins = |whole: &str| !id.is_empty() && whole.starts_with(&id.to_ascii_lowercase());
    let fits = |(_, letter): &&DeadLetterRow| {
        begins(&letter.id.to_string()) || letter.task.is_some_and(|task| begins(&task.to_string()))
    };
    let id = id.to_owned();
    match letters.iter().filter(fits).collect::<Vec<_>>()[..] {
        [letter] => Ok(letter),
        [] => Err(DeadLetterSelectionError::Unknown { id }),
        [(_, first), (_, second), ..] => {
            Err(DeadLetterSelectionError::Ambiguous { id, first: first.id, second: second.id })
        }
    }
}

/// The dead letters whose ids start with these, each once. Pure.
pub fn select_dead_letters(
    letters: &[DeadLetterRow],
    ids: &[String],
) -> Result<Vec<DeadLetterRow>, DeadLetterSelectionError> {
    let mut chosen: Vec<DeadLetterRow> = Vec::new();
    for id in ids {
        let letter = select_dead_letter(letters, id)?;
        if chosen.iter().all(|(sequence, _)| *sequence != letter.0) {
            chosen.push(letter.clone());
        }
    }
    Ok(chosen)
}

/// Redrives dead letters in order, and stops at the first that cannot be. `place`: whose audit log records it.
/// `on_redriven` is told of each one. Returns how many were redriven.
///
/// # Errors
/// Which one was not redriven, and why; those before it were.
pub async fn redrive_dead_letters(
    bus: &Bus,
    place: &SiteName,
    letters: &[DeadLetterRow],
    mut on_redriven: impl FnMut(&DeadLetter),
) -> Result<usize, RedriveError> {
    let publisher = Publisher::new(bus.clone(), PUBLISH_TIMEOUT);
    let (mut done, mut failed) = (0, None);
    for (sequence, letter) in letters {
        if let Err(why) = redrive_dead_letter(bus, &publisher, *sequence, letter).await {
            failed = Some(RedriveError { letter: letter.id, done, why });
            break;
        }
        done += 1;
        on_redriven(letter);
    }
    if done > 0 {
        record_change(bus, place, "dead-letters redrive", count(done as u64, "dead letter")).await;
    }
    failed.map_or(Ok(done), Err)
}

/// Publishes a dead letter's message again and removes the dead letter. After an interruption at any point, it can be
/// repeated.
async fn redrive_dead_letter(
    bus: &Bus,
    publisher: &Publisher,
    sequence: u64,
    letter: &DeadLetter,
) -> Result<(), DeadLetterError> {
    if !subject::may_be_redelivered(&letter.stream, &letter.site, &letter.subject) {
        let subject = letter.subject.chars().take(100).collect();
        return Err(DeadLetterError::Misaddressed { stream: letter.stream.clone(), subject });
    }
    let task = letter.task.unwrap_or_else(|| TaskId::from_name(&format!("{}/{}", letter.subject, letter.sequence)));
    if let (true, Ok((site, camera))) = (letter.stream == topology::IMAGES, subject::read_image(&letter.subject)) {
        let slot = subject::final_answer(&site, &camera, task);
        if reader::read_outcome(bus, &slot).await?.is_some_and(|outcome| outcome.route == Route::Dead) {
            reader::purge_subject(bus, topology::ANSWERS, &slot).await?;
        }
    }
    let payload = read_payload(bus, letter).await?;
    let headers = letter.headers.iter().map(|(name, value)| (name.clone(), value.clone()));
    // The dead letter's own sequence is part of the id, so that a message that fails again can be redriven again.
    let publication = republication(letter.subject.clone(), payload, headers, task, sequence);
    publisher.publish(&publication).await?;
    Ok(reader::delete_message(bus, topology::DEAD, sequence).await?)
}

/// The whole payload of a dead letter's message; a large one is only in its original stream.
///
/// # Errors
/// The message is no longer there.
pub async fn read_payload(bus: &Bus, letter: &DeadLetter) -> Result<Bytes, DeadLetterError> {
    let Some(cut) = &letter.cut else { return Ok(letter.payload.clone().into()) };
    let record = reader::message_at(bus, &letter.stream, letter.sequence).await?;
    let is_whole = |payload: &Bytes| BlobRef::new(Sha256::digest(payload).into(), cut.size_bytes).sha256 == cut.sha256;
    record.map(|record| record.payload).filter(is_whole).ok_or_else(|| DeadLetterError::Cut {
        size_bytes: cut.size_bytes,
        sequence: letter.sequence,
        stream: letter.stream.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{FaultNote, Role};

    fn letter(name: &str) -> DeadLetterRow {
        let id = TaskId::from_name(name);
        let letter = DeadLetter {
            id,
            task: Some(id.child("task")),
            site: "reef".parse().unwrap(),
            role: Role::Recognizer.into(),
            stream: "IMAGES".into(),
            subject: "image.reef.cam-1".into(),
            sequence: 1,
            attempts: 1,
            died_at_ms: 0,
            fault: FaultNote::new(name, "", ""),
            headers: Default::default(),
            payload: vec![1, 2, 3],
            cut: None,
        };
        (1, letter)
    }

    #[test]
    fn a_dead_letter_is_selected_by_the_start_of_its_id_or_its_tasks() {
        let letters = [letter("a"), letter("b")];
        let begin = |id: TaskId| id.to_string()[..8].to_owned();
        assert_eq!(select_dead_letter(&letters, &begin(letters[1].1.id)).unwrap(), &letters[1]);
        assert_eq!(
            select_dead_letter(&letters, &begin(letters[0].1.task.unwrap()).to_uppercase()).unwrap(),
            &letters[0]
        );
    }

    #[test]
    fn an_unknown_an_empty_and_an_ambiguous_start_are_refused() {
        let letters = [letter("a"), letter("a")];
        let why = |id: &str| select_dead_letter(&letters, id).unwrap_err().to_string();
        assert!(why("zz").contains("no dead letter's id starts with \"zz\""));
        assert!(why("").contains("no dead letter"));
        assert!(why(&letters[0].1.id.to_string()).contains("write more of the id"));
    }

    #[test]
    fn a_dead_letter_named_twice_is_redriven_once() {
        let letters = [letter("a")];
        let id = letters[0].1.id.to_string();
        assert_eq!(select_dead_letters(&letters, &[id.clone(), id]).unwrap().len(), 1);
    }

    #[test]
    fn dead_letters_are_filtered_by_fault_and_by_file() {
        let mut letters = vec![letter("a"), letter("b")];
        letters[1].1.headers.insert(HEADER_FILE.into(), "Dock/one.jpg".into());
        assert_eq!(with_fault(letters.clone(), Some("b")), letters[1..]);
        assert_eq!(with_fault(letters.clone(), None), letters);
        assert_eq!(with_file(letters.clone(), "dock/"), letters[1..]);
    }
}

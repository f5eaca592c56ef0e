//! After a restart of the server: images that were acknowledged although their outcome is gone.
//!
//! The server writes images to the disk before it acknowledges them, answers a moment later (they can
//! be made again). So a crash may leave an image marked as done whose answer is lost. The audit
//! compares the two streams, headers only, and has such images recognized again under their old task.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use runtime::Fault;
use schemas::task::{HEADER_MESSAGE_ID, HEADER_TASK, Stored};
use schemas::{SiteName, Task, TaskId};
use streams::read::{self, Record, Stretch};
use streams::{Bus, CarryError, Publication, Publisher, subject, topology};

/// At most this many of the newest images are compared; 16 bytes of memory each.
const MOST_IMAGES: u64 = 1_000_000;

/// An image whose outcome was not found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    task: TaskId,
    slot: String,
    sequence: u64,
    /// Sequence of its provisional answer, if it has one.
    promised: Option<u64>,
}

/// Images that were delivered to a recognizer and have no final answer at this moment. Some are
/// still being worked on; [`redo`] tells them apart later.
pub async fn suspects(bus: &Bus, site: &SiteName) -> Result<Vec<Suspect>, CarryError> {
    let recognized = read::progress(bus, topology::IMAGES, topology::RECOGNIZER).await?;
    let answers = read::level(bus, topology::ANSWERS).await?;
    let mut finals = HashSet::new();
    let mut promised = HashMap::new();
    let mut oldest_answer_ns = None;
    let all = Stretch { headers_only: true, ..Stretch::default() };
    read::stretch(bus, topology::ANSWERS, all, answers.last_sequence, |record| {
        oldest_answer_ns.get_or_insert(record.stored_at_ns);
        if let Ok(task) = subject::read_finality(&record.subject) {
            finals.insert(task);
        } else if let Some(task) = record.header(HEADER_TASK).and_then(|task| task.parse::<TaskId>().ok()) {
            promised.insert(task, record.sequence);
        }
    })
    .await?;
    // Answers that were dropped for room are no longer known: images older than what is left are
    // beyond judging.
    let known_since_ns = if answers.first_sequence > 1 { oldest_answer_ns.unwrap_or(i128::MAX) } else { i128::MIN };
    let from = recognized.delivered.saturating_sub(MOST_IMAGES).max(1);
    let newest = Stretch { headers_only: true, from_sequence: Some(from), ..Stretch::default() };
    let mut suspects = Vec::new();
    if recognized.delivered == 0 {
        return Ok(suspects);
    }
    read::stretch(bus, topology::IMAGES, newest, recognized.delivered, |record| {
        let Some((task, slot)) = task_of(&record, site).filter(|(task, _)| !finals.contains(task)) else { return };
        if record.stored_at_ns >= known_since_ns {
            suspects.push(Suspect { task, slot, sequence: record.sequence, promised: promised.get(&task).copied() });
        }
    })
    .await?;
    Ok(suspects)
}

fn task_of(record: &Record, site: &SiteName) -> Option<(TaskId, String)> {
    let (named, camera) = subject::read_image(&record.subject).ok()?;
    let stored = Stored { site: named, camera, sequence: record.sequence, stored_at_ns: record.stored_at_ns };
    let task = Task::id_of(&stored, &|name| record.header(name)).ok()?;
    (stored.site == *site).then(|| (task, subject::finality(site, &stored.camera, task)))
}

/// Looks at the suspects again and has those recognized anew that nobody works on any more. Returns
/// those that are still being worked on, and how many were redone.
pub async fn redo(bus: &Bus, publisher: &Publisher, suspects: Vec<Suspect>) -> Result<(Vec<Suspect>, u64), Fault> {
    let recognized = read::progress(bus, topology::IMAGES, topology::RECOGNIZER).await?;
    let kept = read::progress(bus, topology::ANSWERS, topology::PROMISES).await?;
    let (mut open, mut redone) = (Vec::new(), 0);
    for suspect in suspects {
        if suspect.sequence > recognized.floor {
            open.push(suspect);
        } else if suspect.promised.is_none_or(|sequence| sequence <= kept.floor)
            && read::outcome(bus, &suspect.slot).await?.is_none()
            && let Some(image) = read::at(bus, topology::IMAGES, suspect.sequence).await?
        {
            tracing::warn!(task_id = %suspect.task, sequence = suspect.sequence, "outcome lost in a crash, recognized again");
            publisher.publish(&again(&image, suspect.task)).await?;
            read::delete(bus, topology::IMAGES, suspect.sequence).await?;
            redone += 1;
        }
    }
    Ok((open, redone))
}

/// The same image once more, as the same task.
fn again(image: &Record, task: TaskId) -> Publication {
    let headers = image.headers.iter().map(|(name, value)| (name.clone(), value.clone()));
    republication(image.subject.clone(), image.payload.clone(), headers, task, image.sequence)
}

/// A message published again for a task it already had: under a new message id, so that the stream
/// takes it, and with the old task, so that it fills the old slot.
pub(crate) fn republication(
    subject: String,
    payload: impl Into<bytes::Bytes>,
    headers: impl Iterator<Item = (String, String)>,
    task: TaskId,
    sequence: u64,
) -> Publication {
    let id = task.child(&format!("again-{sequence}")).to_string();
    let mut publication = Publication::with_id(subject, payload, id).header(HEADER_TASK, task.to_string());
    let own = |name: &str| name.starts_with("Nats-") || name == HEADER_MESSAGE_ID || name == HEADER_TASK;
    publication.headers.extend(headers.filter(|(name, _)| !own(name)).map(|(name, value)| (name.into(), value)));
    publication
}

/// How long after a restart a suspect is looked at again: by then whoever died with a message has
/// lost it to somebody else.
pub fn patience(ack_wait: Duration) -> Duration {
    ack_wait + ack_wait / 2
}

//! Images that were acknowledged although their outcome is missing, whatever the reason: a crash of the server took the
//! answer, which is written a moment after the image; or somebody acknowledged what was not theirs. They are given to
//! the recognizers again, under their old task.

use runtime::Fault;
use schemas::limits::MAX_MESSAGE_BYTES;
use schemas::task::HEADER_BLOB;
use schemas::task::{HEADER_IMAGE, HEADER_MESSAGE_ID, HEADER_TASK, StorageStamp};
use schemas::{CameraName, SiteName, Task, TaskId};
use streams::reader::{self, MessageReader, StoredMessage, StreamRange};
use streams::{Blobs, Bus, CarryError, Publication, Publisher, subject, topology};
use tokio::time::Instant;

use crate::outcomes::OutcomeIndex;

/// Reads what is known of outcomes; up to where the answers were read stands beside it.
pub struct OutcomeAudit {
    /// Of which server process: another one may have lost the newest answers.
    pub server: String,
    /// What the answers say.
    pub index: OutcomeIndex,
    answers_read: u64,
    /// When it began, and how many images were redone since, until that was said.
    pub begun: Option<(Instant, u64)>,
}

impl OutcomeAudit {
    /// Begins with what is stored. Images from before the oldest answer are beyond judging, for theirs may have been dropped
    /// for room.
    pub async fn begin(bus: &Bus) -> Result<Self, CarryError> {
        let server = bus.server_id();
        let (images, answers) =
            (reader::stream_level(bus, topology::IMAGES).await?, reader::stream_level(bus, topology::ANSWERS).await?);
        let mut floor = images.first_sequence.saturating_sub(1);
        if answers.first_sequence > 1 && answers.messages > 0 {
            let oldest = reader::message_at(bus, topology::ANSWERS, answers.first_sequence).await?;
            let since_ns = oldest.map_or(i128::MAX, |oldest| oldest.stored_at_ns);
            let first = reader::first_since(bus, topology::IMAGES, since_ns).await?;
            floor = first.map_or(images.last_sequence, |first| first.sequence - 1);
        }
        Ok(Self {
            server,
            index: OutcomeIndex::after(floor),
            answers_read: answers.first_sequence.saturating_sub(1),
            begun: Some((Instant::now(), 0)),
        })
    }

    /// Reads the answers that came since, headers only.
    pub async fn read_on(&mut self, bus: &Bus) -> Result<(), CarryError> {
        let answers = reader::stream_level(bus, topology::ANSWERS).await?;
        let (from, last) = (self.answers_read + 1, answers.last_sequence);
        if last >= from && answers.messages > 0 {
            let since = StreamRange { headers_only: true, from_sequence: Some(from), ..StreamRange::default() };
            let mut reader = MessageReader::open(bus, topology::ANSWERS, since, last).await?;
            while let Some(record) = reader.next().await? {
                self.see(&record);
            }
            self.answers_read = last;
        }
        let images = reader::stream_level(bus, topology::IMAGES).await?;
        self.index.forget_before(images.first_sequence);
        Ok(())
    }

    fn see(&mut self, record: &StoredMessage) {
        let Some(image) = record.header(HEADER_IMAGE).and_then(|image| image.parse().ok()) else { return };
        match subject::read_final_answer(&record.subject) {
            Ok(_) => self.index.finish(image),
            Err(_) => self.index.promise(image, record.sequence),
        }
    }
}

/// How an image turned out that seemed to be without an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditOutcome {
    /// It is recognized again.
    Redone,
    /// It was published twice, and the other one has the outcome.
    Duplicate,
    /// It is not in the stream any more.
    Gone,
}

/// Looks at one image closely and has it recognized again if it has no outcome.
pub async fn republish_image(
    bus: &Bus,
    publisher: &Publisher,
    site: &SiteName,
    sequence: u64,
) -> Result<AuditOutcome, Fault> {
    let Some(image) = reader::message_at(bus, topology::IMAGES, sequence).await? else { return Ok(AuditOutcome::Gone) };
    let camera = subject::read_image(&image.subject).map_or_else(|_| CameraName::unknown(), |(_, camera)| camera);
    let stored = StorageStamp { site: site.clone(), camera, sequence, stored_at_ns: image.stored_at_ns };
    let task = Task::id_of(&stored, &|name| image.header(name), &image.payload)
        .unwrap_or_else(|_| TaskId::from_sequence(site, &stored.camera, sequence, stored.stored_at_ns));
    if reader::read_outcome(bus, &subject::final_answer(site, &stored.camera, task)).await?.is_some() {
        return Ok(AuditOutcome::Duplicate);
    }
    tracing::warn!(task_id = %task, sequence, "an acknowledged image has no outcome: it is recognized again");
    publisher.publish(&republish_unanswered(bus, &image, task).await?).await?;
    reader::remove_answered(bus, topology::IMAGES, sequence).await?;
    Ok(AuditOutcome::Redone)
}

/// The same image once more, as the same task. With one more header the largest would be too large: its bytes go to the
/// bucket.
async fn republish_unanswered(bus: &Bus, image: &StoredMessage, task: TaskId) -> Result<Publication, Fault> {
    const ROOM_BYTES: usize = 1024;
    let headers = image.headers.iter().map(|(name, value)| (name.clone(), value.clone()));
    let header_bytes: usize = image.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    if image.payload.len() + header_bytes + ROOM_BYTES < MAX_MESSAGE_BYTES {
        return Ok(republication(image.subject.clone(), image.payload.clone(), headers, task, image.sequence));
    }
    let blob = Blobs::open(bus).await?.store_blob(&image.payload).await?;
    let smaller = republication(image.subject.clone(), Vec::new(), headers, task, image.sequence);
    Ok(smaller.header(HEADER_BLOB, blob.to_string()))
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

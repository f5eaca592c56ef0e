//! Finds images that were acknowledged although they have no outcome, whatever the reason: a crash of the server lost
//! the answer, which is written a moment after the image, or somebody acknowledged a message that was not theirs. They
//! are given to the recognizers again, under their old task.

use runtime::Fault;
use schemas::limits::MAX_MESSAGE_BYTES;
use schemas::task::HEADER_BLOB;
use schemas::task::{HEADER_IMAGE, HEADER_MESSAGE_ID, HEADER_TASK, StorageStamp};
use schemas::{CameraName, SiteName, Task, TaskId};
use streams::reader::{self, MessageReader, StoredMessage, StreamRange};
use streams::{Blobs, Bus, CarryError, Publication, Publisher, subject, topology};
use tokio::time::Instant;

use crate::outcomes::OutcomeIndex;

/// Reads the stream of answers and knows which images have an outcome.
pub struct OutcomeAudit {
    /// Id of the server process at the start; another process may have lost the newest answers.
    pub server: String,
    /// Outcomes known from the answers.
    pub index: OutcomeIndex,
    answers_read: u64,
    /// When the audit started and how many images it requeued since; absent once that was logged.
    pub begun: Option<(Instant, u64)>,
}

impl OutcomeAudit {
    /// Starts with what is stored. Images older than the oldest answer are not judged, because their answers may have
    /// been dropped for space.
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

    /// Reads the answers that were stored since, headers only.
    pub async fn read_new_answers(&mut self, bus: &Bus) -> Result<(), CarryError> {
        let answers = reader::stream_level(bus, topology::ANSWERS).await?;
        let (from, last) = (self.answers_read + 1, answers.last_sequence);
        if last >= from && answers.messages > 0 {
            let since = StreamRange { headers_only: true, from_sequence: Some(from), ..StreamRange::default() };
            let mut reader = MessageReader::open(bus, topology::ANSWERS, since, last).await?;
            while let Some(record) = reader.next().await? {
                self.add_answer(&record);
            }
            self.answers_read = last;
        }
        let images = reader::stream_level(bus, topology::IMAGES).await?;
        self.index.forget_before(images.first_sequence);
        Ok(())
    }

    fn add_answer(&mut self, record: &StoredMessage) {
        let Some(image) = record.header(HEADER_IMAGE).and_then(|image| image.parse().ok()) else { return };
        match subject::read_final_answer(&record.subject) {
            Ok(_) => self.index.finish(image),
            Err(_) => self.index.add_provisional(image, record.sequence),
        }
    }
}

/// Result for an image that seemed to have no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditOutcome {
    /// It was requeued.
    Requeued,
    /// It was published twice, and the other copy has the outcome.
    Duplicate,
    /// It is no longer in the stream.
    Gone,
}

/// Looks at one image closely and requeues it if it has no outcome.
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
    tracing::warn!(task_id = %task, sequence, "acknowledged image without outcome; requeued");
    publisher.publish(&republish_unanswered(bus, &image, task).await?).await?;
    reader::remove_answered(bus, topology::IMAGES, sequence).await?;
    Ok(AuditOutcome::Requeued)
}

/// The same image again, as the same task. With one more header the largest message would be too large: the bytes then
/// go to the blob bucket.
async fn republish_unanswered(bus: &Bus, image: &StoredMessage, task: TaskId) -> Result<Publication, Fault> {
    const SPARE_BYTES: usize = 1024;
    let headers = image.headers.iter().map(|(name, value)| (name.clone(), value.clone()));
    let header_bytes: usize = image.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    if image.payload.len() + header_bytes + SPARE_BYTES < MAX_MESSAGE_BYTES {
        return Ok(republication(image.subject.clone(), image.payload.clone(), headers, task, image.sequence));
    }
    let blob = Blobs::open(bus).await?.store_blob(&image.payload).await?;
    let by_reference = republication(image.subject.clone(), Vec::new(), headers, task, image.sequence);
    Ok(by_reference.header(HEADER_BLOB, blob.to_string()))
}

/// A message published again for a task it already had: under a new message id, so that the stream
/// accepts it, and with the old task, so that it fills the old slot.
pub fn republication(
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

//! Sends one image and returns its place in the stream. Large payloads go to the blob bucket first, and the message has
//! a reference. Retries with the same id until the retry timeout.

use std::time::Duration;

use bytes::Bytes;
use runtime::traces::StageSpan;
use schemas::limits::{MAX_EMBEDDED_BYTES, MAX_LABEL_BYTES};
use schemas::task::{
    HEADER_BLOB, HEADER_CAPTURED_AT, HEADER_DEADLINE, HEADER_FILE, HEADER_LABEL, HEADER_PRIORITY, HEADER_TILE,
};
use schemas::{BlobRef, CameraName, SiteName, TaskId, Tile};
use streams::backoff::Backoff;
use streams::{Blobs, Bus, CarryError, Publication, PublishOutcome, Publisher, subject};
use tokio::sync::OnceCell;
use tokio::time::Instant;

/// Pauses before a failed blob upload is retried; estimates.
const FIRST_BLOB_PAUSE: Duration = Duration::from_millis(500);
const MAX_BLOB_PAUSE: Duration = Duration::from_secs(5);

/// An image to be sent.
#[derive(Debug, Clone)]
pub(crate) struct ImageMessage {
    pub id: TaskId,
    pub camera: CameraName,
    pub payload: Bytes,
    /// Name of its file, for people to search by.
    pub file: Option<String>,
    /// Number of the page in its file, from 1; absent unless pages are published one by one.
    pub page: Option<u32>,
    pub label: Option<String>,
    pub captured_at_ms: Option<u64>,
    pub tile: Option<Tile>,
}

/// Headers that all images of a run have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunHeaders {
    /// True label of images that no other source labels.
    pub label: Option<String>,
    /// How long after storing a final answer is useful, milliseconds.
    pub deadline_ms: Option<u64>,
    /// Priority from 0 (bulk) to 9 (first).
    pub priority: Option<u8>,
}

/// Why a label cannot be sent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LabelError {
    #[error("its label has {size_bytes} bytes, at most {MAX_LABEL_BYTES} are accepted")]
    TooLong { size_bytes: usize },
    #[error("its label {label:?} has a line break or another control character")]
    Control { label: String },
}

/// Refuses labels that are too long for a header or contain line breaks, which would start another header.
pub(crate) fn check_label(label: &str) -> Result<(), LabelError> {
    if label.len() > MAX_LABEL_BYTES {
        return Err(LabelError::TooLong { size_bytes: label.len() });
    }
    if label.chars().any(char::is_control) {
        return Err(LabelError::Control { label: label.to_owned() });
    }
    Ok(())
}

/// Sends to the subjects of a site's cameras.
pub(crate) struct ImageSender {
    bus: Bus,
    publisher: Publisher,
    blobs: OnceCell<Blobs>,
    site: SiteName,
    pub mark: RunHeaders,
    retry_timeout: Duration,
}

impl ImageSender {
    pub(crate) fn new(bus: &Bus, site: &SiteName, mark: RunHeaders, retry_timeout: Duration) -> Self {
        Self {
            bus: bus.clone(),
            publisher: Publisher::new(bus.clone(), retry_timeout),
            blobs: OnceCell::new(),
            site: site.clone(),
            mark,
            retry_timeout,
        }
    }

    /// Returns when the stream has stored the image.
    pub(crate) async fn send(&self, message: &ImageMessage) -> Result<PublishOutcome, CarryError> {
        let span = StageSpan::begin_publishing(message.id, &self.site, &message.camera);
        let sent = self.send_in(message, &span).await;
        if sent.is_err() {
            span.fail("carry_failed");
        }
        sent
    }

    async fn send_in(&self, message: &ImageMessage, span: &StageSpan) -> Result<PublishOutcome, CarryError> {
        let blob = match message.payload.len() > MAX_EMBEDDED_BYTES {
            true => Some(self.store(message).await?),
            false => None,
        };
        self.publisher.publish(&span.mark(publication(&self.site, &self.mark, message, blob.as_ref()))).await
    }

    /// Storing a blob twice has no effect, so it can be retried.
    async fn store(&self, message: &ImageMessage) -> Result<BlobRef, CarryError> {
        let blobs = self.blobs.get_or_try_init(|| Blobs::open(&self.bus)).await?;
        let give_up_at = Instant::now() + self.retry_timeout;
        let mut backoff = Backoff::new(FIRST_BLOB_PAUSE, MAX_BLOB_PAUSE);
        loop {
            let pause = backoff.next_pause();
            match blobs.store_blob(&message.payload).await {
                Err(error @ CarryError::Broker { .. }) if Instant::now() + pause < give_up_at => {
                    tracing::debug!(camera = %message.camera, %error, "blob upload retried");
                    tokio::time::sleep(pause).await;
                }
                ended => return ended,
            }
        }
    }
}

fn publication(site: &SiteName, mark: &RunHeaders, message: &ImageMessage, blob: Option<&BlobRef>) -> Publication {
    let payload = if blob.is_some() { Bytes::new() } else { message.payload.clone() };
    let headers = [
        (HEADER_BLOB, blob.map(BlobRef::to_string)),
        (HEADER_LABEL, message.label.clone()),
        (HEADER_CAPTURED_AT, message.captured_at_ms.map(|ms| ms.to_string())),
        (HEADER_DEADLINE, mark.deadline_ms.map(|ms| ms.to_string())),
        (HEADER_PRIORITY, mark.priority.map(|priority| priority.to_string())),
        (HEADER_FILE, message.file.clone()),
        (HEADER_TILE, message.tile.as_ref().map(Tile::header)),
    ];
    headers.into_iter().fold(
        Publication::with_id(subject::image(site, &message.camera), payload, message.id.to_string()),
        |publication, (name, value)| match value {
            Some(value) => publication.header(name, value),
            None => publication,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_that_would_break_the_headers_is_refused() {
        assert_eq!(check_label("ankle boot"), Ok(()));
        assert!(check_label("a\r\nTributary-Priority: 9").is_err());
        assert!(check_label(&"x".repeat(257)).is_err());
    }
}

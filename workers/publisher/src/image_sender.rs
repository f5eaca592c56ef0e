//! Send: one message in, its place in the stream out. Large payloads go to the blob bucket first and the
//! message carries a reference. Retries under the same id until the patience is used up.

use std::time::Duration;

use bytes::Bytes;
use schemas::limits::{MAX_EMBEDDED_BYTES, MAX_LABEL_BYTES};
use schemas::task::{
    HEADER_BLOB, HEADER_CAPTURED_AT, HEADER_DEADLINE, HEADER_FILE, HEADER_LABEL, HEADER_PRIORITY, HEADER_TILE,
};
use schemas::{BlobRef, CameraName, SiteName, TaskId, Tile};
use streams::{Blobs, Bus, CarryError, Publication, PublishOutcome, Publisher, subject};
use tokio::sync::OnceCell;
use tokio::time::Instant;

/// Before a blob that failed is tried again; a guess.
const BLOB_DELAY: Duration = Duration::from_millis(500);

/// An image on its way.
#[derive(Debug, Clone)]
pub(crate) struct ImageMessage {
    pub id: TaskId,
    pub camera: CameraName,
    pub payload: Bytes,
    /// Name of its file, for people to search by.
    pub file: Option<String>,
    /// Number of the page in its file, from 1, if pages are published one by one.
    pub page: Option<u32>,
    pub label: Option<String>,
    pub captured_at_ms: Option<u64>,
    pub tile: Option<Tile>,
}

/// What every image of a run is sent with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunHeaders {
    /// The true label of images for which nothing else names one.
    pub label: Option<String>,
    /// How long after it was stored a final answer is of use, milliseconds.
    pub deadline_ms: Option<u64>,
    /// 0 (bulk) to 9 (first).
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

/// A line break would end the header and begin another.
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
    patience: Duration,
}

impl ImageSender {
    pub fn new(bus: &Bus, site: &SiteName, mark: RunHeaders, patience: Duration) -> Self {
        Self {
            bus: bus.clone(),
            publisher: Publisher::new(bus.clone(), patience),
            blobs: OnceCell::new(),
            site: site.clone(),
            mark,
            patience,
        }
    }

    /// Returns when the stream has it.
    pub async fn send(&self, message: &ImageMessage) -> Result<PublishOutcome, CarryError> {
        let blob = match message.payload.len() > MAX_EMBEDDED_BYTES {
            true => Some(self.store(message).await?),
            false => None,
        };
        self.publisher.publish(&publication(&self.site, &self.mark, message, blob.as_ref())).await
    }

    /// Storing twice is storing once, so it can be repeated.
    async fn store(&self, message: &ImageMessage) -> Result<BlobRef, CarryError> {
        let blobs = self.blobs.get_or_try_init(|| Blobs::open(&self.bus)).await?;
        let give_up_at = Instant::now() + self.patience;
        loop {
            match blobs.store_blob(&message.payload).await {
                Err(error @ CarryError::Broker { .. }) if Instant::now() + BLOB_DELAY < give_up_at => {
                    tracing::debug!(camera = %message.camera, %error, "storing a blob again");
                    tokio::time::sleep(BLOB_DELAY).await;
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

//! Sends a camera's pictures to the site's stream, one at a time: while one waits for the server, newer ones are dropped
//! and counted, so that a full disk costs pictures, never memory.

use std::time::Duration;

use bytes::Bytes;
use runtime::traces::StageSpan;
use schemas::limits::MAX_EMBEDDED_BYTES;
use schemas::task::{HEADER_BLOB, HEADER_CAPTURED_AT, HEADER_PICTURE, HEADER_STATES, HEADER_THUMBNAIL};
use schemas::{CameraName, FaultNote, PictureReport, SiteName, TaskId};
use streams::{Blobs, Bus, CarryError, Publication, Publisher, subject};
use tokio::sync::OnceCell;
use vision::thumbnail::Thumbnail;

/// How long a picture is retried before it is dropped: a newer one is worth more.
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);

/// A picture on its way.
#[derive(Debug)]
pub(crate) struct CameraImage {
    pub camera: CameraName,
    pub jpeg: Bytes,
    pub captured_at_ms: u64,
    pub report: PictureReport,
    pub thumbnail: Thumbnail,
    /// States of what it shows; empty without any.
    pub states: String,
}

/// Sends the pictures of a site's cameras.
pub(crate) struct CameraImageSender {
    bus: Bus,
    site: SiteName,
    publisher: Publisher,
    blobs: OnceCell<Blobs>,
}

impl CameraImageSender {
    pub(crate) fn new(bus: &Bus, site: &SiteName) -> Self {
        Self {
            bus: bus.clone(),
            site: site.clone(),
            publisher: Publisher::new(bus.clone(), RETRY_TIMEOUT),
            blobs: OnceCell::new(),
        }
    }

    /// Returns when the stream has stored the picture.
    pub(crate) async fn send(&self, image: CameraImage) -> Result<(), CarryError> {
        let id = TaskId::new_random();
        let span = StageSpan::begin_publishing(id, &self.site, &image.camera);
        let sent = async {
            let is_large = image.jpeg.len() > MAX_EMBEDDED_BYTES;
            let blob = match is_large {
                true => {
                    let blobs = self.blobs.get_or_try_init(|| Blobs::open(&self.bus)).await?;
                    Some(blobs.store_blob(&image.jpeg).await?)
                }
                false => None,
            };
            let payload = if is_large { Bytes::new() } else { image.jpeg };
            let mut publication =
                Publication::with_id(subject::image(&self.site, &image.camera), payload, id.to_string())
                    .header(HEADER_CAPTURED_AT, image.captured_at_ms.to_string())
                    .header(HEADER_PICTURE, image.report.header())
                    .header(HEADER_THUMBNAIL, image.thumbnail.header());
            if let Some(blob) = blob {
                publication = publication.header(HEADER_BLOB, blob.to_string());
            }
            if !image.states.is_empty() {
                publication = publication.header(HEADER_STATES, image.states);
            }
            self.publisher.publish(&span.mark(publication)).await
        };
        let sent = sent.await.map(|_| ());
        if sent.is_err() {
            span.fail("carry_failed");
        }
        sent
    }
}

/// Why a picture was lost, for people.
pub(crate) fn loss(error: &CarryError) -> FaultNote {
    let remedy = match error {
        CarryError::Full { .. } => {
            "free disk space, or raise streams.images_max_mib; newer pictures are published as soon as there is space"
        }
        _ => "check that the site's server runs; newer pictures are published as soon as it answers",
    };
    FaultNote::new("camera_picture_dropped", format!("pictures are dropped: {error}"), remedy)
}

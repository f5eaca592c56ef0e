//! Fetches the images of rows, in order.

use bytes::Bytes;
use schemas::limits::MAX_IMAGE_BYTES;
use schemas::task::HEADER_BLOB;
use schemas::{BlobRef, SetName};
use streams::{Blobs, Bus, CarryError, topology};

use crate::error::ReplayError;
use crate::read_limiter::ReadLimiter;
use crate::row::TaskRow;

/// Where images are read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageOrigin {
    /// A site's archive.
    Images,
    /// A pinned set.
    Pinned(SetName),
}

/// An archived image.
#[derive(Debug, Clone)]
pub struct ArchivedImage {
    /// Its encoded bytes, whether inline or in the bucket.
    pub bytes: Bytes,
    /// Names and values of the headers it was published with.
    pub headers: Vec<(String, String)>,
}

/// Calls `each` with each row's image, in order; `None` for one that has been purged, or whose bytes have.
///
/// # Errors
/// Those of `each` and of the broker.
pub async fn fetch<'r>(
    bus: &Bus,
    from: &ImageOrigin,
    rows: &'r [TaskRow],
    pace: &mut ReadLimiter,
    mut each: impl AsyncFnMut(&'r TaskRow, Option<ArchivedImage>) -> Result<(), ReplayError>,
) -> Result<(), ReplayError> {
    let (stream, blobs) = match from {
        ImageOrigin::Images => (topology::IMAGES, Blobs::open(bus).await?),
        ImageOrigin::Pinned(_) => (topology::PINNED, Blobs::open_pinned(bus).await?),
    };
    let sequences: Vec<u64> = rows.iter().map(|row| row.sequence).collect();
    streams::fetch_many::fetch_many(bus, stream, &sequences, async |place, record| {
        let Some(row) = rows.get(place) else { return Ok(()) };
        let image = match record {
            Some(record) => whole(&blobs, record.payload, record.headers).await?,
            None => None,
        };
        pace.wait(image.as_ref().map_or(0, |image| image.bytes.len())).await?;
        each(row, image).await
    })
    .await
}

async fn whole(
    blobs: &Blobs,
    payload: Bytes,
    headers: Vec<(String, String)>,
) -> Result<Option<ArchivedImage>, CarryError> {
    let blob =
        headers.iter().find(|(name, _)| name == HEADER_BLOB).and_then(|(_, value)| value.parse::<BlobRef>().ok());
    let bytes = match blob {
        None => payload,
        Some(blob) => match blobs.fetch_blob(&blob, MAX_IMAGE_BYTES).await {
            Ok(bytes) => bytes,
            // Large images are kept for a shorter time than their messages.
            Err(CarryError::BadBlob { .. }) => return Ok(None),
            Err(error) => return Err(error),
        },
    };
    Ok(Some(ArchivedImage { bytes, headers }))
}

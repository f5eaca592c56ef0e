//! Refuses images while the disk is nearly full: the stream then accepts nothing and its metadata says why.
//!
//! A stream that refuses new messages drops nothing when its limit is lowered, so a limit of one byte refuses
//! everything; the original limit is kept in the stream's metadata and restored from there.

use async_nats::jetstream::stream::Config as StreamConfig;

use crate::connect::Bus;
use crate::error::{CarryError, missing_or_failed};
use crate::topology::IMAGES;

/// Metadata key of the stream's limit while it accepts images, bytes.
const KEY_LIMIT: &str = "tributary-max-bytes";
/// Metadata key of the reason for the refusal.
const KEY_REASON: &str = "tributary-refuses";

/// Why images are refused at present; `None` while they are accepted.
pub async fn refusal_reason(bus: &Bus) -> Result<Option<String>, CarryError> {
    Ok(reason_in(&config(bus).await?))
}

pub(crate) fn reason_in(config: &StreamConfig) -> Option<String> {
    config.metadata.get(KEY_REASON).cloned()
}

/// The limit of a stream in bytes, even while it refuses everything.
pub(crate) fn limit_in(config: &StreamConfig) -> i64 {
    config.metadata.get(KEY_LIMIT).and_then(|limit| limit.parse().ok()).unwrap_or(config.max_bytes)
}

/// Refuses images from now on.
pub async fn refuse_images(bus: &Bus, reason: &str) -> Result<(), CarryError> {
    let mut config = config(bus).await?;
    let limit = limit_in(&config);
    config.metadata.insert(KEY_LIMIT.into(), limit.to_string());
    config.metadata.insert(KEY_REASON.into(), reason.into());
    config.max_bytes = 1;
    update(bus, config).await
}

/// Accepts images again.
pub async fn accept_images(bus: &Bus) -> Result<(), CarryError> {
    let mut config = config(bus).await?;
    config.max_bytes = limit_in(&config);
    config.metadata.remove(KEY_LIMIT);
    config.metadata.remove(KEY_REASON);
    update(bus, config).await
}

async fn config(bus: &Bus) -> Result<StreamConfig, CarryError> {
    let stream = bus
        .nats()?
        .js
        .get_stream(IMAGES)
        .await
        .map_err(|error| missing_or_failed(error, format!("stream {IMAGES}")))?;
    Ok(stream.cached_info().config.clone())
}

async fn update(bus: &Bus, config: StreamConfig) -> Result<(), CarryError> {
    let updated = bus.nats()?.js.update_stream(config).await;
    updated.map(|_| ()).map_err(CarryError::broker(format!("changing stream {IMAGES}")))
}

//! How full a site's archive is, what is pinned, and what would be purged next; and unpinning a set.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use janitor::{JanitorSettings, purge};
use schemas::limits::MAX_IMAGE_BYTES;
use schemas::task::HEADER_BLOB;
use schemas::{BlobRef, SetName, SiteName};
use serde::Serialize;
use streams::reader::{self, MessageReader, StoredMessage, StreamLevel, StreamRange};
use streams::{Blobs, Bus, CarryError, subject, topology};

use crate::audit::record_change;
use crate::words::count;

/// How full the archive is, and the pinned sets.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RetentionReport {
    /// The stream of images.
    pub images: StreamLevel,
    /// When the oldest image was stored, milliseconds since the epoch; absent if there is none.
    pub oldest_at_ms: Option<u64>,
    /// Above this, the oldest answered images are purged.
    pub purged_above_bytes: u64,
    /// The stream of pinned images.
    pub pinned: StreamLevel,
    /// The pinned sets, by name.
    pub sets: BTreeMap<String, RetainedImages>,
    /// What the next purge removes; absent unless it was asked for, or if nothing can be purged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub would_go: Option<PurgePreview>,
}

/// Images of one set or camera.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct RetainedImages {
    /// Number of images.
    pub images: u64,
    /// Their size.
    pub bytes: u64,
    /// Time of the oldest, milliseconds since the epoch.
    pub oldest_at_ms: u64,
    /// Time of the newest, likewise.
    pub newest_at_ms: u64,
    /// Images that are also in a pinned set; absent for a set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned: Option<u64>,
}

/// What the next purge removes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PurgePreview {
    /// Whether the janitor's next round purges it; otherwise it is purged once the stream is too full.
    pub now: bool,
    /// All answered images before this sequence are removed.
    pub before_sequence: u64,
    /// The images, by camera.
    pub cameras: BTreeMap<String, RetainedImages>,
}

/// Why a set was not unpinned.
#[derive(Debug, thiserror::Error)]
pub enum UnpinError {
    /// There is no such set.
    #[error("site {site} has no pinned set {set}; {}", if known.is_empty() { "none is pinned".into() } else { format!("there are {known}") })]
    Unknown {
        /// The site.
        site: SiteName,
        /// Name of the set.
        set: SetName,
        /// The sets that there are.
        known: String,
    },
    /// The server failed.
    #[error(transparent)]
    Carry(#[from] CarryError),
}

impl RetainedImages {
    fn add(&mut self, bytes: u64, at_ms: u64) {
        self.images += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.oldest_at_ms = if self.images == 1 { at_ms } else { self.oldest_at_ms.min(at_ms) };
        self.newest_at_ms = self.newest_at_ms.max(at_ms);
    }
}

/// Reads how full a site's archive is, and what is pinned. `with_preview`: also what would be purged next.
pub async fn read_retention(
    bus: &Bus,
    site: &SiteName,
    settings: &JanitorSettings,
    with_preview: bool,
) -> Result<RetentionReport, CarryError> {
    let images = reader::stream_level(bus, topology::IMAGES).await?;
    let oldest = match images.messages {
        0 => None,
        _ => reader::message_at(bus, topology::IMAGES, images.first_sequence).await?,
    };
    let PinnedSets { sets, sequences, .. } = read_pinned(bus, site).await?;
    Ok(RetentionReport {
        images,
        oldest_at_ms: oldest.map(|record| ms(record.stored_at_ns)),
        purged_above_bytes: (images.max_bytes as f64 * settings.high_ratio) as u64,
        pinned: reader::stream_level(bus, topology::PINNED).await?,
        sets,
        would_go: if with_preview { preview_purge(bus, site, settings, &images, &sequences).await? } else { None },
    })
}

/// Deletes a pinned set, and returns what it held. After an interruption it can be repeated.
pub async fn unpin_set(bus: &Bus, site: &SiteName, set: &SetName) -> Result<RetainedImages, UnpinError> {
    let mut pinned = read_pinned(bus, site).await?;
    let Some(held) = pinned.sets.remove(set.as_str()) else {
        let known = pinned.sets.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(UnpinError::Unknown { site: site.clone(), set: set.clone(), known });
    };
    // Large images first: after an interruption, the same function finds the rest.
    let large = Blobs::open_pinned(bus).await?;
    for (key, holders) in &pinned.large {
        if holders.iter().all(|holder| holder == set.as_str()) {
            large.remove_blob(key).await?;
        }
    }
    reader::purge_subject(bus, topology::PINNED, &subject::pins(Some(set), site)).await?;
    record_change(bus, site, "retention unpin", format!("set {set} of {}", count(held.images, "image"))).await;
    Ok(held)
}

async fn preview_purge(
    bus: &Bus,
    site: &SiteName,
    settings: &JanitorSettings,
    images: &StreamLevel,
    pinned: &HashSet<u64>,
) -> Result<Option<PurgePreview>, CarryError> {
    let recognized = reader::consumer_progress(bus, topology::IMAGES, &topology::recognizer_durable(site)).await?;
    let now = purge::purge_before(images, &recognized, settings);
    // Nothing is due yet: then the oldest go first, as much as the janitor purges at a time.
    let at_a_time = (settings.high_ratio - settings.low_ratio) * images.max_bytes as f64;
    let until = now.map_or(recognized.floor, |before| before - 1);
    if images.messages == 0 || until < images.first_sequence {
        return Ok(None);
    }
    let part = StreamRange { headers_only: true, from_sequence: Some(images.first_sequence), ..StreamRange::default() };
    let mut reader = MessageReader::open(bus, topology::IMAGES, part, until).await?;
    let (mut cameras, mut bytes, mut before) = (BTreeMap::<String, RetainedImages>::new(), 0, images.first_sequence);
    while let Some(record) = reader.next().await? {
        bytes += record.payload_bytes();
        if now.is_none() && bytes as f64 > at_a_time {
            break;
        }
        before = record.sequence + 1;
        let Ok((_, camera)) = subject::read_image(&record.subject) else { continue };
        let held = cameras.entry(camera.to_string()).or_default();
        held.add(image_bytes(&record), ms(record.stored_at_ns));
        *held.pinned.get_or_insert(0) += u64::from(pinned.contains(&record.sequence));
    }
    Ok(Some(PurgePreview { now: now.is_some(), before_sequence: before, cameras }))
}

/// The pinned sets of a site.
#[derive(Default)]
struct PinnedSets {
    sets: BTreeMap<String, RetainedImages>,
    /// Sequences of pinned images in IMAGES.
    sequences: HashSet<u64>,
    /// Keys of images too large for a message, and the sets that hold them.
    large: HashMap<String, BTreeSet<String>>,
}

async fn read_pinned(bus: &Bus, site: &SiteName) -> Result<PinnedSets, CarryError> {
    let mut pinned = PinnedSets::default();
    let level = reader::stream_level(bus, topology::PINNED).await?;
    if level.messages == 0 {
        return Ok(pinned);
    }
    let subjects = vec![subject::pins(None, site)];
    let all = StreamRange { headers_only: true, subjects, ..StreamRange::default() };
    reader::read_range(bus, topology::PINNED, all, level.last_sequence, |record| {
        let Ok((set, _)) = subject::read_pin(&record.subject) else { return };
        if let Some(blob) = reference(&record) {
            pinned.large.entry(blob.key).or_default().insert(set.to_string());
        }
        let row = record.header(replay::republish::HEADER_ROW);
        let row = row.and_then(|row| serde_json::from_str::<replay::TaskRow>(row).ok());
        pinned.sequences.extend(row.as_ref().map(|row| row.sequence));
        let at_ms = row.map_or_else(|| ms(record.stored_at_ns), |row| row.published_at_ms);
        pinned.sets.entry(set.to_string()).or_default().add(image_bytes(&record), at_ms);
    })
    .await?;
    Ok(pinned)
}

/// The blob of an image that was too large for its message.
fn reference(record: &StoredMessage) -> Option<BlobRef> {
    record.header(HEADER_BLOB)?.parse().ok()
}

/// Size of an image, in its message or in a blob.
fn image_bytes(record: &StoredMessage) -> u64 {
    // The header is not trusted: no image is larger than the limit.
    reference(record).map_or_else(|| record.payload_bytes(), |blob| blob.size_bytes.min(MAX_IMAGE_BYTES))
}

fn ms(ns: i128) -> u64 {
    u64::try_from(ns / 1_000_000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_headers_claim_add_up_to_what_images_can_have() {
        let record = |name: &str, value: String| StoredMessage {
            subject: "image.reef.cam-1".into(),
            sequence: 1,
            stored_at_ns: 0,
            headers: vec![(name.into(), value)],
            payload: vec![0; 7].into(),
        };
        let blob = BlobRef::new([7; 32], u64::MAX).to_string();
        let claims = [record(HEADER_BLOB, blob), record("Nats-Msg-Size", u64::MAX.to_string())];
        let mut held = RetainedImages::default();
        claims.iter().for_each(|record| held.add(image_bytes(record), 1));
        assert_eq!(held.bytes, MAX_IMAGE_BYTES + 7);
    }

    #[test]
    fn a_set_that_is_not_there_is_refused_with_those_that_are() {
        let unknown = |known: &str| {
            let (site, set) = ("reef".parse().unwrap(), "a".parse().unwrap());
            UnpinError::Unknown { site, set, known: known.into() }.to_string()
        };
        assert_eq!(unknown(""), "site reef has no pinned set a; none is pinned");
        assert_eq!(unknown("b, c"), "site reef has no pinned set a; there are b, c");
    }
}

//! `tributary retention`: how full a site's archive is, what is pinned, and what would be purged next.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use janitor::purge;
use runtime::settings::LoadedSettings;
use schemas::limits::MAX_IMAGE_BYTES;
use schemas::task::HEADER_BLOB;
use schemas::{BlobRef, SetName};
use serde::Serialize;
use streams::reader::{self, MessageReader, StoredMessage, StreamLevel, StreamRange};
use streams::{Blobs, CarryError, subject, topology};

use crate::settings::Settings;
use crate::site_target::{self, SiteTarget};
use crate::{audit, format, stdout};

const EXAMPLES: &str = "\
When the stream of images is fuller than janitor.high_ratio, the janitor purges the oldest answered images down to \
janitor.low_ratio; unanswered images are never purged. A pinned set is a separate copy with the answers, kept until it \
is unpinned; streams.pinned_max_mib limits all sets together.

Examples:
  tributary retention
  tributary retention --dry-run                   which images would be purged next, by camera
  tributary pin doubtful --since 7d --where hard
  tributary export --pinned doubtful --to ./doubtful
  tributary retention --unpin doubtful";

/// Show how full the archive is, what is pinned, and what would be purged next.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RetentionArgs {
    /// List the images that the next purge would remove; nothing is removed.
    #[arg(long)]
    dry_run: bool,
    /// Delete a pinned set.
    #[arg(long, value_name = "NAME", conflicts_with = "dry_run")]
    unpin: Option<SetName>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How full the archive is, and the pinned sets.
#[derive(Serialize)]
struct RetentionReport {
    images: StreamLevel,
    oldest_at_ms: Option<u64>,
    purged_above_bytes: u64,
    pinned: StreamLevel,
    sets: BTreeMap<String, RetainedImages>,
    #[serde(skip_serializing_if = "Option::is_none")]
    would_go: Option<PurgePreview>,
}

/// Images of one set or camera.
#[derive(Default, Serialize)]
struct RetainedImages {
    images: u64,
    bytes: u64,
    oldest_at_ms: u64,
    newest_at_ms: u64,
    /// Images that are also in a pinned set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pinned: Option<u64>,
}

#[derive(Serialize)]
struct PurgePreview {
    /// Whether the janitor's next round purges it; otherwise it is purged once the stream is too full.
    now: bool,
    before_sequence: u64,
    cameras: BTreeMap<String, RetainedImages>,
}

impl RetainedImages {
    fn add(&mut self, bytes: u64, at_ms: u64) {
        self.images += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.oldest_at_ms = if self.images == 1 { at_ms } else { self.oldest_at_ms.min(at_ms) };
        self.newest_at_ms = self.newest_at_ms.max(at_ms);
    }
}

/// Shows what is kept, or deletes a pinned set.
pub async fn command(loaded: &LoadedSettings<Settings>, args: &RetentionArgs) -> anyhow::Result<()> {
    let site = site_target::open(loaded, "retention").await?;
    if let Some(set) = &args.unpin {
        let pinned = pinned(&site).await?;
        let Some(held) = pinned.sets.get(set.as_str()) else {
            let known = pinned.sets.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            anyhow::bail!(
                "site {} has no pinned set {set}; {}",
                site.name,
                if known.is_empty() { "none is pinned".into() } else { format!("there are {known}") }
            );
        };
        // Large images first: after an interruption, the same command finds the rest.
        let large = Blobs::open_pinned(&site.bus).await?;
        for (key, holders) in &pinned.large {
            if holders.iter().all(|holder| holder == set.as_str()) {
                large.remove_blob(key).await?;
            }
        }
        reader::purge_subject(&site.bus, topology::PINNED, &subject::pins(Some(set), &site.name)).await?;
        audit::record_command(
            &site.bus,
            &site.name,
            "retention unpin",
            format!("set {set} of {}", format::count(held.images, "image")),
        )
        .await;
        return stdout::print_line(format_args!("set {set} with {} is unpinned", format::count(held.images, "image")));
    }
    let kept = look(&site, &loaded.settings, args.dry_run).await?;
    if args.json { stdout::json(&kept) } else { stdout::print_line(text(&kept, &site, &loaded.settings)) }
}

async fn look(site: &SiteTarget, settings: &Settings, dry_run: bool) -> anyhow::Result<RetentionReport> {
    let images = reader::stream_level(&site.bus, topology::IMAGES).await?;
    let oldest = match images.messages {
        0 => None,
        _ => reader::message_at(&site.bus, topology::IMAGES, images.first_sequence).await?,
    };
    let PinnedSets { sets, sequences, .. } = pinned(site).await?;
    Ok(RetentionReport {
        images,
        oldest_at_ms: oldest.map(|record| ms(record.stored_at_ns)),
        purged_above_bytes: (images.max_bytes as f64 * settings.janitor.high_ratio) as u64,
        pinned: reader::stream_level(&site.bus, topology::PINNED).await?,
        sets,
        would_go: if dry_run { would_go(site, settings, &images, &sequences).await? } else { None },
    })
}

async fn would_go(
    site: &SiteTarget,
    settings: &Settings,
    images: &StreamLevel,
    pinned: &HashSet<u64>,
) -> Result<Option<PurgePreview>, CarryError> {
    let recognized =
        reader::consumer_progress(&site.bus, topology::IMAGES, &topology::recognizer_durable(&site.name)).await?;
    let now = purge::purge_before(images, &recognized, &settings.janitor);
    // Nothing is due yet: then the oldest go first, as much as the janitor purges at a time.
    let at_a_time = (settings.janitor.high_ratio - settings.janitor.low_ratio) * images.max_bytes as f64;
    let until = now.map_or(recognized.floor, |before| before - 1);
    if images.messages == 0 || until < images.first_sequence {
        return Ok(None);
    }
    let part = StreamRange { headers_only: true, from_sequence: Some(images.first_sequence), ..StreamRange::default() };
    let mut reader = MessageReader::open(&site.bus, topology::IMAGES, part, until).await?;
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

async fn pinned(site: &SiteTarget) -> Result<PinnedSets, CarryError> {
    let mut pinned = PinnedSets::default();
    let level = reader::stream_level(&site.bus, topology::PINNED).await?;
    if level.messages == 0 {
        return Ok(pinned);
    }
    let subjects = vec![subject::pins(None, &site.name)];
    let all = StreamRange { headers_only: true, subjects, ..StreamRange::default() };
    reader::read_range(&site.bus, topology::PINNED, all, level.last_sequence, |record| {
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

fn text(kept: &RetentionReport, site: &SiteTarget, settings: &Settings) -> String {
    let used = |level: &StreamLevel| {
        format!("{} of {}", format::format_size(level.bytes), format::format_size(level.max_bytes))
    };
    let oldest = kept.oldest_at_ms.map(|at_ms| format!(", oldest {}", format::format_time(at_ms)));
    let mut lines = vec![
        format!("site {}", site.name),
        format!(
            "  images  {} ({}){}; above {} the oldest answered are purged",
            kept.images.messages,
            used(&kept.images),
            oldest.unwrap_or_default(),
            format::format_size(kept.purged_above_bytes)
        ),
        format!("  pinned  {} ({})", kept.pinned.messages, used(&kept.pinned)),
    ];
    let rows = |all: &BTreeMap<String, RetainedImages>| -> Vec<Vec<String>> {
        all.iter()
            .map(|(name, held)| {
                let mut row = vec![
                    name.clone(),
                    held.images.to_string(),
                    format::format_size(held.bytes),
                    format::format_time(held.oldest_at_ms),
                    format::format_time(held.newest_at_ms),
                ];
                row.extend(held.pinned.map(|pinned| pinned.to_string()));
                row
            })
            .collect()
    };
    if !kept.sets.is_empty() {
        lines.push(String::new());
        lines.push(format::table(&["set", "images", "bytes", "oldest", "newest"], &rows(&kept.sets)));
    }
    if let Some(would_go) = &kept.would_go {
        let when = match would_go.now {
            true => format!("within seconds, down to {:.0} % full", settings.janitor.low_ratio * 100.0),
            false => format!(
                "first, after another {} of images",
                format::format_size(kept.purged_above_bytes.saturating_sub(kept.images.bytes))
            ),
        };
        lines.push(String::new());
        lines.push(format!("To be purged {when}: all answered images before sequence {}.", would_go.before_sequence));
        lines.push(format::table(
            &["camera", "images", "bytes", "oldest", "newest", "pinned"],
            &rows(&would_go.cameras),
        ));
    }
    lines.join("\n")
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
}

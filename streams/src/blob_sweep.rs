//! Removes the pieces of blobs whose upload was interrupted: no description names them, so nobody can read them, and
//! they fill the bucket until they expire.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde::Deserialize;

use crate::connect::Bus;
use crate::error::CarryError;
use crate::reader::{self, StreamRange};

/// Removes pieces in a bucket that no description names and whose newest piece is older than `after`. Returns the
/// number of uploads removed.
pub async fn remove_unfinished_blobs(bus: &Bus, bucket: &str, after: Duration) -> Result<u64, CarryError> {
    #[derive(Deserialize)]
    struct BlobDescription {
        #[serde(default)]
        nuid: String,
    }
    let stream = format!("OBJ_{bucket}");
    let level = reader::stream_level(bus, &stream).await?;
    if level.messages == 0 {
        return Ok(0);
    }
    let (now_ns, _) = reader::server_time(bus).await?;
    let pieces = format!("$O.{bucket}.C.");
    let mut newest: HashMap<String, i128> = HashMap::new();
    let range = StreamRange { headers_only: true, subjects: vec![format!("{pieces}>")], ..StreamRange::default() };
    reader::read_range(bus, &stream, range, level.last_sequence, |record| {
        if let Some(upload) = record.subject.strip_prefix(&pieces) {
            let at = newest.entry(upload.to_owned()).or_insert(record.stored_at_ns);
            *at = (*at).max(record.stored_at_ns);
        }
    })
    .await?;
    // Read after the pieces: an upload that finished meanwhile has its description.
    let last = reader::stream_level(bus, &stream).await?.last_sequence;
    let mut named = HashSet::new();
    let range = StreamRange { subjects: vec![format!("$O.{bucket}.M.>")], ..StreamRange::default() };
    reader::read_range(bus, &stream, range, last, |record| {
        named.extend(
            serde_json::from_slice::<BlobDescription>(&record.payload).ok().map(|description| description.nuid),
        );
    })
    .await?;
    let old_ns = now_ns.saturating_sub(i128::try_from(after.as_nanos()).unwrap_or(i128::MAX));
    let mut removed = 0;
    for (upload, _) in newest.iter().filter(|(upload, at)| **at < old_ns && !named.contains(*upload)) {
        reader::purge_subject(bus, &stream, &format!("{pieces}{upload}")).await?;
        removed += 1;
    }
    Ok(removed)
}

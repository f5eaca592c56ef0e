//! Finds images that the stream refused and whose publisher was not told: one that asks for no acknowledgement, or an
//! MQTT client, whose acknowledgement comes from the server and not from the stream. Near the limit the janitor
//! compares what is published with what is stored; an image that is missing becomes a dead letter, so that somebody
//! learns of it.
//!
//! Only near the limit, because listening costs the server one more delivery of every image.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use runtime::{Fault, clock, dead_letter};
use schemas::{DeadLetter, FaultNote, OutcomeReport, Role, SiteName, TaskId, encode};
use streams::reader::{self, StoredMessage, StreamLevel, StreamRange};
use streams::tap::{TapMessage, watch_subject};
use streams::{Bus, Publication, Publisher, subject, topology};
use tokio::time::Instant;

/// Listening starts when the stream has less space left than this, or a tenth of its limit.
const NEAR_BYTES: u64 = 256 * 1024 * 1024;
/// Delay before a published image is looked for in the stream.
const STORED_AFTER: Duration = Duration::from_secs(2);
/// Most published images that are waiting to be looked for; further ones are not checked.
const MAX_HEARD: usize = 4096;

/// Whether to listen at this fill level.
pub(crate) fn is_near(level: &StreamLevel, refusing: bool) -> bool {
    let margin = NEAR_BYTES.max(level.max_bytes / 10);
    refusing || (level.max_bytes > 0 && level.bytes.saturating_add(margin) > level.max_bytes)
}

/// Identifies a published image by what headers tell: subject and size.
type ImageKey = (String, u64);

/// Images published and images stored.
#[derive(Default)]
struct RefusalMatch {
    heard: VecDeque<(Instant, ImageKey, Option<DeadLetter>)>,
    stored: HashMap<ImageKey, u64>,
}

impl RefusalMatch {
    /// Records a published image; `letter` is its dead letter if its publisher expects no reply.
    fn record_event(&mut self, at: Instant, key: ImageKey, letter: Option<DeadLetter>) {
        if self.heard.len() < MAX_HEARD {
            self.heard.push_back((at, key, letter));
        }
    }

    fn store(&mut self, key: ImageKey) {
        *self.stored.entry(key).or_default() += 1;
    }

    /// The dead letters of images that were published before `until`, were not stored, and whose publisher was not
    /// told.
    fn refused(&mut self, until: Instant) -> Vec<DeadLetter> {
        let mut refused = Vec::new();
        while self.heard.front().is_some_and(|(at, ..)| *at <= until) {
            let Some((_, key, letter)) = self.heard.pop_front() else { break };
            match self.stored.get_mut(&key).filter(|count| **count > 0) {
                Some(count) => *count -= 1,
                None => refused.extend(letter),
            }
        }
        if self.heard.is_empty() {
            self.stored.clear();
        }
        refused
    }
}

/// Whether to listen now.
pub(crate) async fn is_near_now(bus: &Bus, report: &Mutex<OutcomeReport>) -> bool {
    let refusing = report.lock().unwrap_or_else(PoisonError::into_inner).refusing.is_some();
    reader::stream_level(bus, topology::IMAGES).await.is_ok_and(|level| is_near(&level, refusing))
}

/// Listens until the stream is no longer near its limit, and counts refused images in the report.
pub(crate) async fn listen_for_refusals(
    bus: &Bus,
    site: &SiteName,
    publisher: &Publisher,
    report: &Mutex<OutcomeReport>,
) -> Result<(), Fault> {
    let mut published = Box::pin(watch_subject(bus, subject::all_images()).await?);
    bus.flush_published().await;
    let mut read_to = reader::stream_level(bus, topology::IMAGES).await?.last_sequence;
    let mut found = RefusalMatch::default();
    let mut looks = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            Some(heard) = published.next() => {
                let key = (heard.subject.clone(), heard.payload.len() as u64);
                found.record_event(Instant::now(), key, (!heard.has_reply).then(|| refusal_letter(site, heard)));
            }
            _ = looks.tick() => {
                // Before reading the stream: what is looked for was published before this time.
                let until = Instant::now().checked_sub(STORED_AFTER);
                let level = reader::stream_level(bus, topology::IMAGES).await?;
                if level.last_sequence > read_to {
                    let new = StreamRange { headers_only: true, from_sequence: Some(read_to + 1), ..StreamRange::default() };
                    reader::read_range(bus, topology::IMAGES, new, level.last_sequence, |record| {
                        found.store((record.subject.clone(), record.payload_bytes()));
                    })
                    .await?;
                    read_to = level.last_sequence;
                }
                let refused = until.map(|until| found.refused(until)).unwrap_or_default();
                for letter in &refused {
                    let slot = subject::dead(topology::IMAGES, site, letter.id);
                    publisher.publish(&Publication::first_on_subject(slot, encode(letter)?)).await?;
                }
                if !refused.is_empty() {
                    tracing::warn!(count = refused.len(), "refused images not reported to publishers");
                    report.lock().unwrap_or_else(PoisonError::into_inner).refused += refused.len() as u64;
                }
                if found.heard.is_empty() && !is_near_now(bus, report).await {
                    return Ok(());
                }
            }
        }
    }
}

/// The dead letter of an image that was refused.
fn refusal_letter(site: &SiteName, heard: TapMessage) -> DeadLetter {
    let reason = "the stream of images was full, and the publisher could not be told: over MQTT, and without a reply subject, the stream sends no acknowledgement";
    let remedy = "free space (`tributary status` shows what is full), then run `tributary dead-letters redrive`; publish with a JetStream acknowledgement to be told at once (docs/publishing.md)";
    let fault = FaultNote::new("stream_refused", reason, remedy);
    let stored_at_ns = i128::from(clock::now_ms()) * 1_000_000;
    let record = StoredMessage {
        subject: heard.subject,
        sequence: 0,
        stored_at_ns,
        headers: heard.headers,
        payload: heard.payload,
    };
    let id = TaskId::new_random();
    DeadLetter {
        id,
        ..dead_letter::from_stored_message(Role::Janitor, topology::IMAGES, site, None, &record, 0, fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> Option<DeadLetter> {
        let site = "reef".parse().unwrap();
        let heard =
            TapMessage { subject: "image.reef.a".into(), headers: Vec::new(), payload: "x".into(), has_reply: false };
        Some(refusal_letter(&site, heard))
    }

    #[test]
    fn images_not_stored_are_refused_unless_their_publisher_was_told() {
        let now = Instant::now();
        let key = |camera: &str, size| (format!("image.reef.{camera}"), size);
        let mut found = RefusalMatch::default();
        found.record_event(now, key("a", 10), letter());
        found.record_event(now, key("a", 10), letter());
        found.record_event(now, key("a", 20), letter());
        found.record_event(now, key("b", 10), None);
        found.record_event(now + STORED_AFTER, key("a", 10), letter());
        found.store(key("a", 10));
        assert_eq!(found.refused(now).len(), 2, "one of two equal ones, and the larger one");
        assert_eq!(found.refused(now + STORED_AFTER).len(), 1);
    }

    #[test]
    fn a_small_stream_is_always_near_its_limit_and_a_large_one_at_the_last_tenth() {
        let level = |bytes, max_bytes| StreamLevel {
            messages: 1,
            bytes,
            max_bytes,
            first_sequence: 1,
            last_sequence: 1,
            gaps: 0,
        };
        assert!(is_near(&level(0, 1024 * 1024), false));
        assert!(!is_near(&level(3 << 30, 4 << 30), false) && is_near(&level(3900 << 20, 4 << 30), false));
        assert!(is_near(&level(0, 4 << 30), true));
    }
}

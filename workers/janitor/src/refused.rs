//! Images that the stream refused and whose publisher was not told: one that asks for no acknowledgement, or an MQTT client,
//! whose acknowledgement is the server's word and not the stream's. Near the limit the janitor listens to what is published
//! and holds it against what was stored; what is not there becomes a dead letter, so that somebody hears of it.
//!
//! Only near the limit, for listening costs the server every image once more.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use runtime::{Fault, clock, dead_letter};
use schemas::{DeadLetter, FaultNote, OutcomeReport, SiteName, TaskId, encode};
use streams::reader::{self, StoredMessage, StreamLevel, StreamRange};
use streams::tap::{TapMessage, watch_subject};
use streams::{Bus, Publication, Publisher, subject, topology};
use tokio::time::Instant;

/// It listens when less than this is left in the stream, or a tenth of it.
const NEAR_BYTES: u64 = 256 * 1024 * 1024;
/// What was published is looked for in the stream after this.
const STORED_AFTER: Duration = Duration::from_secs(2);
/// What is heard and not yet looked for, at the most; beyond that nothing is said of the rest.
const MOST_HEARD: usize = 4096;

/// Whether it listens at this level.
pub fn is_near(level: &StreamLevel, refusing: bool) -> bool {
    let room = NEAR_BYTES.max(level.max_bytes / 10);
    refusing || (level.max_bytes > 0 && level.bytes.saturating_add(room) > level.max_bytes)
}

/// What tells one published image from another, as far as headers say: subject and size.
type ImageKey = (String, u64);

/// What was heard and what was stored.
#[derive(Default)]
struct RefusalMatch {
    heard: VecDeque<(Instant, ImageKey, Option<DeadLetter>)>,
    stored: HashMap<ImageKey, u64>,
}

impl RefusalMatch {
    /// Something was published; `letter` if nobody answers its publisher.
    fn record_event(&mut self, at: Instant, key: ImageKey, letter: Option<DeadLetter>) {
        if self.heard.len() < MOST_HEARD {
            self.heard.push_back((at, key, letter));
        }
    }

    fn store(&mut self, key: ImageKey) {
        *self.stored.entry(key).or_default() += 1;
    }

    /// The letters of what was published before `until`, was not stored, and whose publisher was not told.
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

/// Whether it listens now.
pub async fn is_near_now(bus: &Bus, report: &Mutex<OutcomeReport>) -> bool {
    let refusing = report.lock().unwrap_or_else(PoisonError::into_inner).refusing.is_some();
    reader::stream_level(bus, topology::IMAGES).await.is_ok_and(|level| is_near(&level, refusing))
}

/// Listens until the stream is no longer near its limit, and counts in the report what was refused.
pub async fn listen_for_refusals(
    bus: &Bus,
    site: &SiteName,
    publisher: &Publisher,
    report: &Mutex<OutcomeReport>,
) -> Result<(), Fault> {
    let mut passing = Box::pin(watch_subject(bus, subject::all_images()).await?);
    bus.flush_published().await;
    let mut read_to = reader::stream_level(bus, topology::IMAGES).await?.last_sequence;
    let mut found = RefusalMatch::default();
    let mut looks = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            Some(heard) = passing.next() => {
                let key = (heard.subject.clone(), heard.payload.len() as u64);
                found.record_event(Instant::now(), key, (!heard.has_reply).then(|| of(site, heard)));
            }
            _ = looks.tick() => {
                // A look at the stream first: what is looked for was published before it.
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
                    tracing::warn!(count = refused.len(), "images were refused and their publishers were not told");
                    report.lock().unwrap_or_else(PoisonError::into_inner).refused += refused.len() as u64;
                }
                if found.heard.is_empty() && !is_near_now(bus, report).await {
                    return Ok(());
                }
            }
        }
    }
}

/// The letter of an image that was refused.
fn of(site: &SiteName, heard: TapMessage) -> DeadLetter {
    let reason = "the stream of images took nothing more, and its publisher could not be told: over MQTT, and without a reply subject, an acknowledgement is not the stream's";
    let remedy = "make room (`tributary status` says what is full), then `tributary dead-letters redrive`; publish with a JetStream acknowledgement to be told at once (docs/publishing.md)";
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
    DeadLetter { id, ..dead_letter::from_stored_message("janitor", topology::IMAGES, site, None, &record, 0, fault) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> Option<DeadLetter> {
        let site = "reef".parse().unwrap();
        let heard =
            TapMessage { subject: "image.reef.a".into(), headers: Vec::new(), payload: "x".into(), has_reply: false };
        Some(of(&site, heard))
    }

    #[test]
    fn what_was_heard_and_not_stored_is_refused_unless_its_publisher_was_told() {
        let now = Instant::now();
        let key = |camera: &str, size| (format!("image.reef.{camera}"), size);
        let mut found = RefusalMatch::default();
        found.record_event(now, key("a", 10), letter());
        found.record_event(now, key("a", 10), letter());
        found.record_event(now, key("a", 20), letter());
        found.record_event(now, key("b", 10), None);
        found.record_event(now + STORED_AFTER, key("a", 10), letter());
        found.store(key("a", 10));
        assert_eq!(found.refused(now).len(), 2, "one of two alike, and the larger one");
        assert_eq!(found.refused(now + STORED_AFTER).len(), 1);
    }

    #[test]
    fn a_small_stream_is_always_near_its_limit_and_a_large_one_when_a_tenth_is_left() {
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

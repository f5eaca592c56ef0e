//! One stream with its durable consumers, limited to the settings that our plans use: a state machine that is told the
//! time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy, RetentionPolicy};
use bytes::Bytes;
use schemas::task::HEADER_MESSAGE_ID;
use tokio::time::Instant;

use crate::reader::{ConsumerProgress, StoredMessage, StreamLevel};

/// Duplicate window of a stream that sets none, as in nats-server.
const DEFAULT_WINDOW: Duration = Duration::from_secs(120);
/// Storage overhead of each message, bytes.
const OVERHEAD_BYTES: u64 = 30;

/// The simulated time of a request, for intervals and as nanoseconds since the epoch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub at: Instant,
    pub ns: i128,
}

/// A published message that is not stored yet.
#[derive(Debug, Clone)]
pub(super) struct IncomingMessage {
    pub subject: String,
    pub headers: Vec<(String, String)>,
    pub payload: Bytes,
    /// Required sequence of the last message on its subject; 0: the subject must be empty.
    pub expected_last: Option<u64>,
}

impl IncomingMessage {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Why a stream refuses a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreRefusal {
    Full(&'static str),
    TooLarge,
    WrongLast,
    NoStream,
}

/// Position of a stored message, or of its duplicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredAt {
    pub sequence: u64,
    pub is_duplicate: bool,
}

/// A message that reached its consumer's delivery limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExhaustedNotice {
    pub durable: String,
    pub sequence: u64,
    pub deliveries: u64,
}

#[derive(Debug)]
struct KeptMessage {
    message: StoredMessage,
    stored_at: Instant,
    bytes: u64,
}

#[derive(Debug)]
struct PendingDelivery {
    due_at: Instant,
    attempts: u64,
}

#[derive(Debug)]
struct MemoryConsumer {
    config: pull::Config,
    /// The next stream sequence to deliver for the first time.
    next: u64,
    pending: BTreeMap<u64, PendingDelivery>,
    /// Recent acknowledgements, with time, sequence and attempts; a killed server may forget them.
    recent_acks: VecDeque<(Instant, u64, u64)>,
    delivered: u64,
    active_at_ms: Option<u64>,
}

impl MemoryConsumer {
    fn filters(&self) -> Vec<&str> {
        let one = Some(self.config.filter_subject.as_str()).filter(|filter| !filter.is_empty());
        one.into_iter().chain(self.config.filter_subjects.iter().map(String::as_str)).collect()
    }

    fn wants(&self, subject: &str) -> bool {
        let filters = self.filters();
        filters.is_empty() || filters.iter().any(|filter| subject_matches(filter, subject))
    }
}

/// A stream in memory.
#[derive(Debug)]
pub(super) struct MemoryStream {
    pub config: StreamConfig,
    last: u64,
    messages: BTreeMap<u64, KeptMessage>,
    by_subject: BTreeMap<String, BTreeSet<u64>>,
    /// Message ids in order of arrival, for the duplicate window.
    ids: VecDeque<(Instant, String)>,
    sequence_of_id: BTreeMap<String, u64>,
    bytes: u64,
    consumers: BTreeMap<String, MemoryConsumer>,
}

impl MemoryStream {
    pub(super) fn new(config: StreamConfig) -> Self {
        Self {
            config,
            last: 0,
            messages: BTreeMap::new(),
            by_subject: BTreeMap::new(),
            ids: VecDeque::new(),
            sequence_of_id: BTreeMap::new(),
            bytes: 0,
            consumers: BTreeMap::new(),
        }
    }

    pub(super) fn add_consumer(&mut self, config: pull::Config) {
        let name = config.durable_name.clone().unwrap_or_default();
        let consumer = MemoryConsumer {
            config,
            next: 1,
            pending: BTreeMap::new(),
            recent_acks: VecDeque::new(),
            delivered: 0,
            active_at_ms: None,
        };
        self.consumers.entry(name).or_insert(consumer);
    }

    pub(super) fn accepts(&self, subject: &str) -> bool {
        self.config.subjects.iter().any(|pattern| subject_matches(pattern, subject))
    }

    /// The subject under which a message is stored, after the stream's transform.
    fn stored_subject(&self, subject: &str) -> String {
        let transform = self.config.subject_transform.as_ref();
        transform.and_then(|rule| transform_subject(&rule.source, &rule.destination, subject)).unwrap_or(subject.into())
    }

    /// Removes expired messages, and returns the messages that reached their delivery limit.
    pub(super) fn expire(&mut self, now: Moment) -> Vec<ExhaustedNotice> {
        let max_age = self.config.max_age;
        if !max_age.is_zero() {
            let is_old = |kept: &KeptMessage| now.at.saturating_duration_since(kept.stored_at) >= max_age;
            let old: Vec<u64> = self.messages.iter().take_while(|(_, kept)| is_old(kept)).map(|(at, _)| *at).collect();
            for sequence in old {
                self.remove(sequence);
            }
        }
        let window = match self.config.duplicate_window {
            Duration::ZERO => DEFAULT_WINDOW,
            window => window,
        };
        while let Some((at, id)) = self.ids.front()
            && now.at.saturating_duration_since(*at) >= window
        {
            self.sequence_of_id.remove(id);
            self.ids.pop_front();
        }
        let mut notices = Vec::new();
        for (durable, consumer) in &mut self.consumers {
            let most = u64::try_from(consumer.config.max_deliver).unwrap_or(u64::MAX).max(1);
            let messages = &self.messages;
            consumer.pending.retain(|sequence, delivery| {
                if delivery.due_at > now.at || delivery.attempts < most {
                    return true;
                }
                if messages.contains_key(sequence) {
                    let (sequence, deliveries) = (*sequence, delivery.attempts);
                    notices.push(ExhaustedNotice { durable: durable.clone(), sequence, deliveries });
                }
                false
            });
        }
        notices
    }

    /// Stores a message, or finds its duplicate.
    pub(super) fn store(&mut self, incoming: IncomingMessage, now: Moment) -> Result<StoredAt, StoreRefusal> {
        let subject = self.stored_subject(&incoming.subject);
        // A stream with a source does not check for duplicates, as in nats-server.
        let id = incoming.header(HEADER_MESSAGE_ID).filter(|_| self.config.sources.is_none()).map(str::to_owned);
        if let Some(sequence) = id.as_ref().and_then(|id| self.sequence_of_id.get(id)) {
            return Ok(StoredAt { sequence: *sequence, is_duplicate: true });
        }
        if let Some(expected) = incoming.expected_last
            && self.last_on(&subject).map_or(0, |message| message.sequence) != expected
        {
            return Err(StoreRefusal::WrongLast);
        }
        let header_bytes: usize = incoming.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        let bytes = (subject.len() + header_bytes + incoming.payload.len()) as u64 + OVERHEAD_BYTES;
        self.make_room(&subject, bytes)?;
        self.last += 1;
        let sequence = self.last;
        if let Some(id) = id {
            self.ids.push_back((now.at, id.clone()));
            self.sequence_of_id.insert(id, sequence);
        }
        let IncomingMessage { headers, payload, .. } = incoming;
        let message = StoredMessage { subject: subject.clone(), sequence, stored_at_ns: now.ns, headers, payload };
        // An interest stream acknowledges a message that no consumer wants, but does not keep it.
        let is_wanted = self.config.retention != RetentionPolicy::Interest
            || self.consumers.values().any(|consumer| consumer.wants(&subject));
        if is_wanted {
            self.bytes += bytes;
            self.by_subject.entry(subject).or_default().insert(sequence);
            self.messages.insert(sequence, KeptMessage { message, stored_at: now.at, bytes });
        }
        Ok(StoredAt { sequence, is_duplicate: false })
    }

    fn make_room(&mut self, subject: &str, bytes: u64) -> Result<(), StoreRefusal> {
        let limit = |limit: i64| u64::try_from(limit).ok().filter(|limit| *limit > 0);
        let on_subject = self.by_subject.get(subject).map_or(0, BTreeSet::len) as u64;
        let most_on_subject = limit(self.config.max_messages_per_subject);
        // With a limit per subject it replaces the oldest there, so even a full `DiscardPolicy::New` stream accepts it.
        let replaces_oldest = most_on_subject.is_some_and(|most| on_subject >= most);
        let (most, most_bytes) = (limit(self.config.max_messages), limit(self.config.max_bytes));
        if self.config.discard == DiscardPolicy::New {
            if !replaces_oldest && most.is_some_and(|most| self.messages.len() as u64 >= most) {
                return Err(StoreRefusal::Full("maximum messages exceeded"));
            }
            if !replaces_oldest && most_bytes.is_some_and(|most| self.bytes + bytes > most) {
                return Err(StoreRefusal::Full("maximum bytes exceeded"));
            }
        }
        if replaces_oldest && let Some(oldest) = self.by_subject.get(subject).and_then(|all| all.first().copied()) {
            self.remove(oldest);
        }
        if self.config.discard == DiscardPolicy::Old {
            let is_over = |stream: &Self| {
                most.is_some_and(|most| stream.messages.len() as u64 >= most)
                    || most_bytes.is_some_and(|most| stream.bytes + bytes > most)
            };
            while is_over(self)
                && let Some(oldest) = self.messages.keys().next().copied()
            {
                self.remove(oldest);
            }
        }
        Ok(())
    }

    /// Removes a message; false if it was not there.
    pub(super) fn remove(&mut self, sequence: u64) -> bool {
        let Some(kept) = self.messages.remove(&sequence) else { return false };
        self.bytes = self.bytes.saturating_sub(kept.bytes);
        if let Some(all) = self.by_subject.get_mut(&kept.message.subject) {
            all.remove(&sequence);
            if all.is_empty() {
                self.by_subject.remove(&kept.message.subject);
            }
        }
        for consumer in self.consumers.values_mut() {
            consumer.pending.remove(&sequence);
        }
        true
    }

    pub(super) fn remove_matching(&mut self, below: Option<u64>, pattern: Option<&str>) -> u64 {
        let is_match = |message: &StoredMessage| {
            below.is_none_or(|below| message.sequence < below)
                && pattern.is_none_or(|pattern| subject_matches(pattern, &message.subject))
        };
        let removed: Vec<u64> =
            self.messages.values().map(|kept| &kept.message).filter(|m| is_match(m)).map(|m| m.sequence).collect();
        for sequence in &removed {
            self.remove(*sequence);
        }
        removed.len() as u64
    }

    pub(super) fn at(&self, sequence: u64) -> Option<&StoredMessage> {
        self.messages.get(&sequence).map(|kept| &kept.message)
    }

    /// The newest message on a subject; wildcards are allowed.
    pub(super) fn last_on(&self, pattern: &str) -> Option<&StoredMessage> {
        match self.by_subject.get(pattern).and_then(|all| all.last()) {
            Some(sequence) => self.at(*sequence),
            None => {
                self.messages.values().rev().map(|kept| &kept.message).find(|m| subject_matches(pattern, &m.subject))
            }
        }
    }

    /// The newest message of each matching subject, oldest first.
    pub(super) fn last_of_each(&self, patterns: &[String]) -> Vec<StoredMessage> {
        let matching = self.by_subject.iter().filter(|(subject, _)| matches_any(patterns, subject));
        let newest: BTreeSet<u64> = matching.filter_map(|(_, all)| all.last().copied()).collect();
        newest.into_iter().filter_map(|sequence| self.at(sequence).cloned()).collect()
    }

    /// Matching messages from a sequence on; an empty pattern list matches every message.
    pub(super) fn messages_from<'a>(
        &'a self,
        sequence: u64,
        patterns: &'a [String],
    ) -> impl Iterator<Item = &'a StoredMessage> {
        let messages = self.messages.range(sequence..).map(|(_, kept)| &kept.message);
        messages.filter(|message| patterns.is_empty() || matches_any(patterns, &message.subject))
    }

    pub(super) fn last_sequence(&self) -> u64 {
        self.last
    }

    pub(super) fn level(&self) -> StreamLevel {
        let messages = self.messages.len() as u64;
        let first_sequence =
            self.messages.keys().next().copied().unwrap_or(if self.last > 0 { self.last + 1 } else { 0 });
        let spanned = if messages > 0 { self.last + 1 - first_sequence } else { 0 };
        StreamLevel {
            messages,
            bytes: self.bytes,
            max_bytes: u64::try_from(crate::image_refusal::limit_in(&self.config)).unwrap_or(0),
            first_sequence,
            last_sequence: self.last,
            gaps: spanned.saturating_sub(messages),
        }
    }

    pub(super) fn progress(&self, durable: &str) -> Option<ConsumerProgress> {
        let consumer = self.consumers.get(durable)?;
        let floor = consumer.pending.keys().next().map_or(consumer.delivered, |first| first - 1);
        Some(ConsumerProgress {
            pending: self.waiting_for(consumer),
            unacked: consumer.pending.len() as u64,
            floor,
            delivered: consumer.delivered,
            active_at_ms: consumer.active_at_ms,
        })
    }

    fn waiting_for(&self, consumer: &MemoryConsumer) -> u64 {
        self.messages.range(consumer.next..).filter(|(_, kept)| consumer.wants(&kept.message.subject)).count() as u64
    }

    pub(super) fn has_consumer(&self, durable: &str) -> bool {
        self.consumers.contains_key(durable)
    }

    pub(super) fn consumer_names(&self) -> impl Iterator<Item = &String> {
        self.consumers.keys()
    }

    /// Delivers a consumer's next message, with its delivery count and the number of messages pending after it.
    pub(super) fn deliver(&mut self, durable: &str, now: Moment) -> Option<(StoredMessage, u64, u64)> {
        let consumer = self.consumers.get_mut(durable)?;
        let due = consumer.pending.iter().filter(|(_, delivery)| delivery.due_at <= now.at);
        let again = due.min_by_key(|(sequence, delivery)| (delivery.due_at, **sequence)).map(|(sequence, _)| *sequence);
        let sequence = match again {
            Some(sequence) => sequence,
            None => {
                let most = usize::try_from(consumer.config.max_ack_pending).unwrap_or(0);
                if most > 0 && consumer.pending.len() >= most {
                    return None;
                }
                let mut waiting = self.messages.range(consumer.next..);
                let (sequence, _) = waiting.find(|(_, kept)| consumer.wants(&kept.message.subject))?;
                consumer.next = sequence + 1;
                *sequence
            }
        };
        let due_at = now.at + consumer.config.ack_wait;
        let delivery = consumer.pending.entry(sequence).or_insert(PendingDelivery { due_at, attempts: 0 });
        (delivery.due_at, delivery.attempts) = (due_at, delivery.attempts + 1);
        let attempts = delivery.attempts;
        consumer.delivered = consumer.delivered.max(sequence);
        consumer.active_at_ms = u64::try_from(now.ns / 1_000_000).ok();
        let message = self.messages.get(&sequence)?.message.clone();
        let waiting = self.consumers.get(durable).map_or(0, |consumer| self.waiting_for(consumer));
        Some((message, attempts, waiting))
    }

    /// Time of a consumer's next redelivery; absent if no message is unacknowledged.
    pub(super) fn next_due(&self, durable: &str) -> Option<Instant> {
        self.consumers.get(durable)?.pending.values().map(|delivery| delivery.due_at).min()
    }

    /// Acknowledges a message; false if it was not pending.
    pub(super) fn acknowledge(&mut self, durable: &str, sequence: u64, now: Moment) -> bool {
        let Some(consumer) = self.consumers.get_mut(durable) else { return false };
        let Some(delivery) = consumer.pending.remove(&sequence) else { return false };
        consumer.recent_acks.push_back((now.at, sequence, delivery.attempts));
        if consumer.recent_acks.len() > 64 {
            consumer.recent_acks.pop_front();
        }
        let is_over = match self.config.retention {
            RetentionPolicy::Limits => false,
            RetentionPolicy::WorkQueue => true,
            RetentionPolicy::Interest => {
                let subject = self.at(sequence).map(|message| message.subject.clone());
                let waits = |consumer: &MemoryConsumer| {
                    let wants = subject.as_ref().is_some_and(|subject| consumer.wants(subject));
                    wants && (consumer.next <= sequence || consumer.pending.contains_key(&sequence))
                };
                !self.consumers.values().any(waits)
            }
        };
        if is_over {
            self.remove(sequence);
        }
        true
    }

    /// Postpones the redelivery of a message: by the delay, or by the acknowledgement wait if absent.
    pub(super) fn postpone(&mut self, durable: &str, sequence: u64, delay: Option<Duration>, now: Moment) {
        let Some(consumer) = self.consumers.get_mut(durable) else { return };
        let ack_wait = consumer.config.ack_wait;
        if let Some(delivery) = consumer.pending.get_mut(&sequence) {
            delivery.due_at = now.at + delay.unwrap_or(ack_wait);
        }
    }

    /// Forgets acknowledgements that a killed server had not yet written to disk. Those messages are redelivered.
    pub(super) fn forget_acks_since(&mut self, since: Instant, now: Moment) {
        for consumer in self.consumers.values_mut() {
            while let Some((at, sequence, attempts)) = consumer.recent_acks.pop_back() {
                if at < since {
                    consumer.recent_acks.push_back((at, sequence, attempts));
                    break;
                }
                if self.messages.contains_key(&sequence) {
                    consumer.pending.insert(sequence, PendingDelivery { due_at: now.at, attempts });
                }
            }
        }
    }
}

fn matches_any(patterns: &[String], subject: &str) -> bool {
    patterns.iter().any(|pattern| subject_matches(pattern, subject))
}

/// Whether a subject matches a pattern. Pure.
pub(super) fn subject_matches(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(wanted), Some(found)) if wanted == found => {}
            _ => return false,
        }
    }
}

/// Applies a transform with `{{wildcard(n)}}`; `None` if the subject does not match the source. Pure.
fn transform_subject(source: &str, destination: &str, subject: &str) -> Option<String> {
    if !subject_matches(source, subject) {
        return None;
    }
    let wild = source.split('.').zip(subject.split('.')).filter(|(token, _)| *token == "*").map(|(_, found)| found);
    let mut transformed = destination.to_owned();
    for (number, found) in (1..).zip(wild) {
        transformed = transformed.replace(&format!("{{{{wildcard({number})}}}}"), found);
    }
    Some(transformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_nats_server() {
        for (pattern, subject, is_match) in [
            ("image.>", "image.reef.cam", true),
            ("image.>", "image", false),
            ("image.*.*", "image.reef.cam", true),
            ("image.*", "image.reef.cam", false),
            (">", "image", true),
            ("image.reef", "image.reef", true),
            ("image.reef.cam", "image.reef", false),
        ] {
            assert_eq!(subject_matches(pattern, subject), is_match, "{pattern} {subject}");
        }
        let (source, destination) = ("outcome.*.*.*", "answer.final.{{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}");
        let transformed = transform_subject(source, destination, "outcome.reef.cam.7");
        assert_eq!(transformed.as_deref(), Some("answer.final.reef.cam.7"));
        assert_eq!(transform_subject(source, destination, "image.reef.cam.7"), None);
    }
}

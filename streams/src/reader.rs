//! Reading streams without taking from them: one message, a stretch of them, how many wait.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{DeleteStatus, DirectGetErrorKind, LastRawMessageErrorKind, Stream};
use bytes::Bytes;
use futures::{Stream as FuturesStream, StreamExt};
use schemas::limits::MAX_MESSAGE_BYTES;
use schemas::{Answer, decode};
use serde::Serialize;
use tokio::time::Instant;

use crate::connect::Bus;
use crate::error::{CarryError, is_message_gone, missing_or_failed};
use crate::topology::{ADVISORIES, ANSWERS, FLEET, IMAGES, PINNED};

/// The note of images that we deleted ourselves.
const REMOVED: &str = "removed-images";

/// Bytes fetched ahead while reading a stretch, about: bounded so that large images do not pile up.
const READ_AHEAD_BYTES: u64 = 16 * 1024 * 1024;
/// Messages fetched ahead at least and at the most; the server gives out no more at a time.
const READ_AHEAD: std::ops::RangeInclusive<u64> = 16..=500;
/// At the most where the messages are images: going by the mean alone, a stretch of large ones in a stream of small ones would
/// be held at once.
const IMAGES_AHEAD: u64 = 128;

/// A stored message, read and not taken.
#[derive(Debug, Clone)]
pub struct StoredMessage {
    /// Its subject.
    pub subject: String,
    /// Sequence in its stream, from 1.
    pub sequence: u64,
    /// When it was stored, nanoseconds since the epoch.
    pub stored_at_ns: i128,
    /// Names and first values of its headers.
    pub headers: Vec<(String, String)>,
    /// Its bytes; empty when only headers were asked for.
    pub payload: Bytes,
}

impl StoredMessage {
    /// Size of its payload, bytes, also where only headers were asked for.
    pub fn payload_bytes(&self) -> u64 {
        // What the server says of a payload it leaves out. A publisher may have written the header, too: one that claims
        // more than a message can hold is none of the server's.
        let left_out = self.header("Nats-Msg-Size").and_then(|size| size.parse().ok());
        left_out.filter(|size| *size <= MAX_MESSAGE_BYTES as u64).unwrap_or(self.payload.len() as u64)
    }

    /// Whether a number that goes up by one with each decision, or each round, may stand in this message: each took a
    /// message of the stream, so none is much higher than the sequence. What claims a higher one would be followed by
    /// nothing, or by zero. Some are allowed, for a stream may have been made anew from a copy.
    pub fn may_be_number(&self, number: u64) -> bool {
        const MOST_AHEAD: u64 = 1000;
        (1..=self.sequence.saturating_add(MOST_AHEAD)).contains(&number)
    }

    /// Its sequence in the stream that it was copied from, where it was.
    pub fn source_sequence(&self) -> Option<u64> {
        self.header("Nats-Stream-Source")?.split(' ').nth(1)?.parse().ok()
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// How full a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct StreamLevel {
    /// Messages in it.
    pub messages: u64,
    /// Bytes in it.
    pub bytes: u64,
    /// Bytes it may hold; 0 is no limit of its own.
    pub max_bytes: u64,
    /// Sequence of its oldest message.
    pub first_sequence: u64,
    /// Sequence of its newest message; 0 if it never had one.
    pub last_sequence: u64,
    /// Sequences between its oldest and its newest message that are gone.
    #[serde(default)]
    pub gaps: u64,
}

/// How far a durable consumer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ConsumerProgress {
    /// Messages not yet delivered.
    pub pending: u64,
    /// Messages delivered and not yet acknowledged.
    pub unacked: u64,
    /// Everything up to this stream sequence is acknowledged.
    pub floor: u64,
    /// The newest stream sequence delivered.
    pub delivered: u64,
    /// When something was delivered last, by the server's clock, milliseconds since the epoch.
    pub active_at_ms: Option<u64>,
}

impl ConsumerProgress {
    /// Grows with every message that is acknowledged, in whatever order, and with nothing else.
    pub fn finished(&self) -> u64 {
        self.delivered.saturating_sub(self.unacked)
    }
}

/// Which part of a stream to read.
#[derive(Debug, Clone, Default)]
pub struct StreamRange {
    /// Only these subjects; all if empty.
    pub subjects: Vec<String>,
    /// From this sequence; from the oldest if absent.
    pub from_sequence: Option<u64>,
    /// Only what comes from now on.
    pub only_new: bool,
    /// Headers without payloads.
    pub headers_only: bool,
}

/// How full a stream is.
pub async fn stream_level(bus: &Bus, stream: &str) -> Result<StreamLevel, CarryError> {
    let found = open(bus, stream).await?;
    let info = found.get_info().await.map_err(|error| missing_or_failed(error, format!("stream {stream}")))?;
    Ok(StreamLevel {
        messages: info.state.messages,
        bytes: info.state.bytes,
        max_bytes: u64::try_from(crate::image_refusal::limit_in(&info.config)).unwrap_or(0),
        first_sequence: info.state.first_sequence,
        last_sequence: info.state.last_sequence,
        gaps: info.state.deleted_count.unwrap_or(0),
    })
}

/// What a stream was made to forbid by hand: `deny_purge`, `deny_delete` or `sealed`.
pub async fn stream_restriction(bus: &Bus, stream: &str) -> Result<Option<&'static str>, CarryError> {
    let info = bus.js.get_stream(stream).await.map_err(|error| missing_or_failed(error, format!("stream {stream}")))?;
    let config = &info.cached_info().config;
    let flags = [("deny_purge", config.deny_purge), ("deny_delete", config.deny_delete), ("sealed", config.sealed)];
    Ok(flags.into_iter().find(|(_, set)| *set).map(|(name, _)| name))
}

/// What somebody may have done to a durable consumer by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerState {
    /// Its name.
    pub name: String,
    /// Whether it delivers nothing for now.
    pub paused: bool,
}

/// The consumers of a stream.
pub async fn consumer_states(bus: &Bus, stream: &str) -> Result<Vec<ConsumerState>, CarryError> {
    let found = open(bus, stream).await?;
    let mut consumers = found.consumers();
    let mut states = Vec::new();
    while let Some(info) = consumers.next().await {
        let info = info.map_err(CarryError::broker(format!("listing the consumers of {stream}")))?;
        states.push(ConsumerState { paused: info.paused, name: info.name });
    }
    Ok(states)
}

/// What the server's clock says, nanoseconds since the epoch, in the middle of a question that took so long.
pub async fn server_time(bus: &Bus) -> Result<(i128, Duration), CarryError> {
    #[derive(serde::Deserialize)]
    struct TimestampedReply {
        ts: String,
    }
    const WHAT: &str = "asking for the server's time";
    let asked_at = Instant::now();
    let asked = bus.js.request(format!("STREAM.INFO.KV_{FLEET}"), &serde_json::json!({})).await;
    match asked.map_err(CarryError::broker(WHAT))? {
        Response::Ok(TimestampedReply { ts }) => {
            let took = asked_at.elapsed();
            let ts = async_nats::datetime::parse_rfc3339(&ts).map_err(CarryError::broker(WHAT))?;
            Ok((ts.unix_timestamp_nanos(), took))
        }
        Response::Err { error } => Err(CarryError::broker(WHAT)(error)),
    }
}

/// The oldest message of a stream that was stored at a time or later, headers only.
pub async fn first_since(bus: &Bus, stream: &str, since_ns: i128) -> Result<Option<StoredMessage>, CarryError> {
    let what = || format!("reading {stream}");
    let Ok(start_time) = async_nats::datetime::from_nanos(since_ns) else { return Ok(None) };
    let config = pull::OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartTime { start_time },
        headers_only: true,
        max_batch: 1,
        ..pull::OrderedConfig::default()
    };
    let consumer = open(bus, stream).await?.create_consumer(config).await.map_err(CarryError::broker(what()))?;
    if consumer.cached_info().num_pending == 0 {
        return Ok(None);
    }
    let mut messages = consumer.messages().await.map_err(CarryError::broker(what()))?;
    let message = messages.next().await.transpose().map_err(CarryError::broker(what()))?;
    Ok(message.and_then(|message| delivered(&message)).map(|(record, _)| record))
}

/// How far a durable consumer is.
pub async fn consumer_progress(bus: &Bus, stream: &str, durable: &str) -> Result<ConsumerProgress, CarryError> {
    let info = open(bus, stream).await?.consumer_info(durable).await;
    let info = info.map_err(|_| CarryError::Missing { what: format!("consumer {durable} on stream {stream}") })?;
    Ok(ConsumerProgress {
        pending: info.num_pending,
        unacked: info.num_ack_pending as u64,
        floor: info.ack_floor.stream_sequence,
        delivered: info.delivered.stream_sequence,
        active_at_ms: info
            .delivered
            .last_active
            .and_then(|at| u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()),
    })
}

/// The newest message on a subject, which may hold wildcards.
pub async fn last_message(bus: &Bus, stream: &str, subject: &str) -> Result<Option<StoredMessage>, CarryError> {
    let found = open(bus, stream).await?;
    let message = if subject.contains('*') {
        match found.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(message),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(None),
            Err(error) => Err(CarryError::broker(format!("reading {subject}"))(error)),
        }
    } else {
        match found.direct_get_last_for_subject(subject).await {
            Ok(message) => Ok(message),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(None),
            Err(error) => Err(CarryError::broker(format!("reading {subject}"))(error)),
        }
    }?;
    Ok(Some(record_of(message)))
}

/// The outcome in the slot of a final answer ([`crate::subject::finality`]), if there is one.
pub async fn read_outcome(bus: &Bus, slot: &str) -> Result<Option<Answer>, CarryError> {
    let record = last_message(bus, ANSWERS, slot).await?;
    Ok(record.map(|record| decode(&record.payload)).transpose()?)
}

/// How long a question to the server of this domain takes; an error if it is not answered in time.
pub async fn round_trip(bus: &Bus, patience: Duration) -> Result<Duration, CarryError> {
    let asked_at = Instant::now();
    let answered = tokio::time::timeout(patience, bus.js.query_account()).await;
    match answered {
        Ok(Ok(_)) => Ok(asked_at.elapsed()),
        Ok(Err(error)) => Err(CarryError::broker("asking the server")(error)),
        Err(_) => Err(CarryError::NoAck { subject: "a question to the server".into(), patience }),
    }
}

/// The message under a sequence, if it is still there.
pub async fn message_at(bus: &Bus, stream: &str, sequence: u64) -> Result<Option<StoredMessage>, CarryError> {
    match open(bus, stream).await?.direct_get(sequence).await {
        Ok(message) => Ok(Some(record_of(message))),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(CarryError::broker(format!("reading message {sequence} of {stream}"))(error)),
    }
}

/// A message that its durable delivered as often as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExhaustedDelivery {
    /// Its sequence in its stream.
    pub sequence: u64,
    /// How often it was delivered.
    pub deliveries: u64,
    /// Sequence of the notice in [`ADVISORIES`].
    pub own_sequence: u64,
}

/// The oldest notice about a message of a durable that was delivered as often as it may and never finished.
pub async fn next_exhausted(bus: &Bus, stream: &str, durable: &str) -> Result<Option<ExhaustedDelivery>, CarryError> {
    #[derive(serde::Deserialize)]
    struct MaxDeliveriesAdvisory {
        stream_seq: u64,
        #[serde(default)]
        deliveries: u64,
    }
    let subject = format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{stream}.{durable}");
    let found = open(bus, ADVISORIES).await?.direct_get_first_for_subject(subject).await;
    let message = match found {
        Ok(message) => message,
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CarryError::broker(format!("reading {ADVISORIES}"))(error)),
    };
    let own_sequence = message.sequence;
    match serde_json::from_slice::<MaxDeliveriesAdvisory>(&message.payload) {
        Ok(notice) => {
            Ok(Some(ExhaustedDelivery { sequence: notice.stream_seq, deliveries: notice.deliveries, own_sequence }))
        }
        // Nobody's words but the server's belong there; what is no notice names no message.
        Err(_) => Ok(Some(ExhaustedDelivery { sequence: 0, deliveries: 0, own_sequence })),
    }
}

/// Deletes a message whose outcome stands elsewhere, and notes that we did: gaps in IMAGES that nobody made on purpose are
/// told.
pub async fn remove_answered(bus: &Bus, stream: &str, sequence: u64) -> Result<(), CarryError> {
    if stream == IMAGES {
        crate::fleet::Ledger::open(bus).await?.update_note(REMOVED, |note| removed(note, sequence)).await?;
    }
    delete_message(bus, stream, sequence).await
}

/// The sequences of IMAGES that we deleted ourselves, newest last.
pub async fn removed_images(bus: &Bus) -> Result<Vec<u64>, CarryError> {
    let note = crate::fleet::Ledger::open(bus).await?.read(REMOVED).await?;
    Ok(note.and_then(|note| serde_json::from_str(&note).ok()).unwrap_or_default())
}

/// The note of deleted images with one more; the oldest are forgotten, for they are purged long since. Pure.
fn removed(note: Option<&str>, sequence: u64) -> String {
    const MOST: usize = 10_000;
    let mut removed: Vec<u64> = note.and_then(|note| serde_json::from_str(note).ok()).unwrap_or_default();
    if !removed.contains(&sequence) {
        removed.push(sequence);
    }
    removed.drain(..removed.len().saturating_sub(MOST));
    serde_json::to_string(&removed).unwrap_or_default()
}

/// Deletes one message. Its bytes are not overwritten, which would cost as much as writing them.
pub async fn delete_message(bus: &Bus, stream: &str, sequence: u64) -> Result<(), CarryError> {
    let what = || format!("deleting message {sequence} of {stream}");
    let question = serde_json::json!({ "seq": sequence, "no_erase": true });
    let asked = bus.js.request(format!("STREAM.MSG.DELETE.{stream}"), &question).await;
    match asked.map_err(CarryError::broker(what()))? {
        Response::Ok(DeleteStatus { .. }) => Ok(()),
        // Somebody else was faster, or it was sent twice.
        Response::Err { error } if is_message_gone(&error) => Ok(()),
        Response::Err { error } => Err(CarryError::broker(what())(error)),
    }
}

/// Deletes everything older than a sequence; returns how many messages went.
pub async fn purge_before(bus: &Bus, stream: &str, sequence: u64) -> Result<u64, CarryError> {
    let purged = open(bus, stream).await?.purge().sequence(sequence).await;
    purged.map(|purged| purged.purged).map_err(CarryError::broker(format!("purging {stream}")))
}

/// Deletes everything on one subject.
pub async fn purge_subject(bus: &Bus, stream: &str, subject: &str) -> Result<(), CarryError> {
    let purged = open(bus, stream).await?.purge().filter(subject).await;
    purged.map(|_| ()).map_err(CarryError::broker(format!("purging {subject}")))
}

/// Reads a stretch in order and goes on with what arrives; broken connections are mended inside.
pub async fn follow_range(
    bus: &Bus,
    stream: &str,
    stretch: StreamRange,
) -> Result<impl FuturesStream<Item = Result<StoredMessage, CarryError>> + use<>, CarryError> {
    let (_, records) = ordered(bus, stream, stretch).await?;
    Ok(records.map(|record| record.map(|(record, _)| record)))
}

/// Reads a stretch up to and including a sequence, then ends.
pub async fn read_range(
    bus: &Bus,
    stream: &str,
    stretch: StreamRange,
    until_sequence: u64,
    mut each: impl FnMut(StoredMessage),
) -> Result<(), CarryError> {
    let mut reader = MessageReader::open(bus, stream, stretch, until_sequence).await?;
    while let Some(record) = reader.next().await? {
        each(record);
    }
    Ok(())
}

/// Messages, each with how many wait after it.
type StoredMessages = Pin<Box<dyn FuturesStream<Item = Result<(StoredMessage, u64), CarryError>> + Send>>;

/// A stretch that is read at the pace of whoever reads; no more than a few messages are fetched ahead.
pub struct MessageReader {
    records: StoredMessages,
    stream: String,
    pending: u64,
    until_sequence: u64,
}

impl MessageReader {
    /// Up to and including a sequence.
    pub async fn open(bus: &Bus, stream: &str, stretch: StreamRange, until_sequence: u64) -> Result<Self, CarryError> {
        let (pending, records) = ordered(bus, stream, stretch).await?;
        Ok(Self { records: Box::pin(records), stream: stream.into(), pending, until_sequence })
    }

    /// The next message; `None` at the end.
    ///
    /// # Errors
    /// What the broker says; and when nothing comes although more waits, for half of a stretch must not pass for the whole.
    pub async fn next(&mut self) -> Result<Option<StoredMessage>, CarryError> {
        const PATIENCE: Duration = Duration::from_secs(20);
        if self.pending == 0 {
            return Ok(None);
        }
        let ended = || CarryError::broker(format!("reading {}", self.stream))("it ended although more waits");
        let next = tokio::time::timeout(PATIENCE, self.records.next()).await;
        let (record, left) = next.ok().flatten().ok_or_else(ended)??;
        self.pending = if record.sequence >= self.until_sequence { 0 } else { left };
        Ok(Some(record).filter(|record| record.sequence <= self.until_sequence))
    }
}

/// The newest messages on these subjects that are `wanted`, `count` of them at the most, oldest first.
/// Looks back ever further, so that few are found quickly and all are found in the end.
pub async fn newest_messages(
    bus: &Bus,
    stream: &str,
    look: StreamRange,
    count: usize,
    wanted: impl Fn(&StoredMessage) -> bool,
) -> Result<Vec<StoredMessage>, CarryError> {
    /// How far the first look goes back, in messages of the stream; and how much further each next one.
    const FIRST_LOOK: u64 = 256;
    const FURTHER: u64 = 8;
    let level = stream_level(bus, stream).await?;
    let mut reach = FIRST_LOOK.max(count as u64);
    loop {
        let from = level.last_sequence.saturating_sub(reach).max(level.first_sequence).max(1);
        let mut found = VecDeque::new();
        let part = StreamRange { from_sequence: Some(from), ..look.clone() };
        self::read_range(bus, stream, part, level.last_sequence, |record| {
            if wanted(&record) {
                found.push_back(record);
            }
            if found.len() > count {
                found.pop_front();
            }
        })
        .await?;
        if found.len() >= count || from <= level.first_sequence.max(1) {
            return Ok(found.into());
        }
        reach = reach.saturating_mul(FURTHER);
    }
}

/// How many messages wait at the start, and each message with how many wait after it.
async fn ordered(
    bus: &Bus,
    stream: &str,
    stretch: StreamRange,
) -> Result<(u64, impl FuturesStream<Item = Result<(StoredMessage, u64), CarryError>> + use<>), CarryError> {
    let deliver_policy = match stretch.from_sequence {
        Some(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
        None if stretch.only_new => DeliverPolicy::New,
        None => DeliverPolicy::All,
    };
    let config = pull::OrderedConfig {
        deliver_policy,
        filter_subjects: stretch.subjects,
        headers_only: stretch.headers_only,
        max_batch: ahead(bus, stream).await? as i64,
        ..pull::OrderedConfig::default()
    };
    let failed = |error| CarryError::broker(format!("reading {stream}"))(error);
    let consumer = open(bus, stream).await?.create_consumer(config).await.map_err(failed)?;
    let pending = consumer.cached_info().num_pending;
    let messages = consumer.messages().await.map_err(CarryError::broker(format!("reading {stream}")))?;
    let what = format!("reading {stream}");
    let records = messages.filter_map(move |message| {
        let what = what.clone();
        async move {
            match message {
                Ok(message) => delivered(&message).map(Ok),
                Err(error) => Some(Err(CarryError::broker(what)(error))),
            }
        }
    });
    Ok((pending, records))
}

/// How many messages may be fetched ahead: as many as take so much memory, going by what the stream holds.
async fn ahead(bus: &Bus, stream: &str) -> Result<u64, CarryError> {
    let level = stream_level(bus, stream).await?;
    let each_bytes = level.bytes / level.messages.max(1);
    let most = if [IMAGES, PINNED].contains(&stream) { IMAGES_AHEAD } else { *READ_AHEAD.end() };
    Ok((READ_AHEAD_BYTES / each_bytes.max(1)).clamp(*READ_AHEAD.start(), most))
}

/// The stream that stores what is published on a subject, if there is one.
pub async fn stream_of(bus: &Bus, subject: &str) -> Result<Option<String>, CarryError> {
    #[derive(serde::Deserialize)]
    struct StreamNamesReply {
        streams: Option<Vec<String>>,
    }
    let what = || format!("asking who stores {subject}");
    let asked = bus.js.request("STREAM.NAMES", &serde_json::json!({ "subject": subject })).await;
    match asked.map_err(CarryError::broker(what()))? {
        Response::Ok(StreamNamesReply { streams }) => Ok(streams.and_then(|names| names.into_iter().next())),
        Response::Err { error } => Err(CarryError::broker(what())(error)),
    }
}

async fn open(bus: &Bus, stream: &str) -> Result<Stream<()>, CarryError> {
    bus.js.get_stream_no_info(stream).await.map_err(|error| missing_or_failed(error, format!("stream {stream}")))
}

fn record_of(message: async_nats::jetstream::message::StreamMessage) -> StoredMessage {
    StoredMessage {
        subject: message.subject.to_string(),
        sequence: message.sequence,
        stored_at_ns: message.time.unix_timestamp_nanos(),
        headers: headers_of(Some(&message.headers)),
        payload: message.payload,
    }
}

fn delivered(message: &async_nats::jetstream::Message) -> Option<(StoredMessage, u64)> {
    let info = message.info().ok()?;
    let record = StoredMessage {
        subject: message.subject.to_string(),
        sequence: info.stream_sequence,
        stored_at_ns: info.published.unix_timestamp_nanos(),
        headers: headers_of(message.headers.as_ref()),
        payload: message.payload.clone(),
    };
    Some((record, info.pending))
}

pub(crate) fn headers_of(headers: Option<&async_nats::HeaderMap>) -> Vec<(String, String)> {
    let all = headers.into_iter().flat_map(|headers| headers.iter());
    all.filter_map(|(name, values)| Some((name.to_string(), values.first()?.as_str().to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_of_deleted_images_bent_keeps_its_bounds() {
        let notes = bend::texts(["[1,2,3,18446744073709551615]", "[]"]);
        bend::bend_all("notes of deleted images", &notes, bend::turns(), |bytes| {
            let next = removed(Some(&String::from_utf8_lossy(bytes)), 7);
            assert!(serde_json::from_str::<Vec<u64>>(&next).unwrap().contains(&7), "{next}");
            1
        });
    }

    #[test]
    fn sizes_in_headers_that_were_bent_are_those_of_messages() {
        bend::bend_all("sizes in headers", &bend::texts(["1048576"]), bend::turns(), |bytes| {
            let headers = vec![("Nats-Msg-Size".to_owned(), String::from_utf8_lossy(bytes).into_owned())];
            let record =
                StoredMessage { subject: "a".into(), sequence: 1, stored_at_ns: 0, headers, payload: Bytes::new() };
            assert!(record.payload_bytes() <= MAX_MESSAGE_BYTES as u64);
            1
        });
    }
}

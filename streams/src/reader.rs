//! Reads streams without taking from them: single messages, ranges, levels and progress.

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

/// Key of the ledger note with the images that we deleted ourselves.
const REMOVED: &str = "removed-images";

/// Bytes fetched ahead while reading a range, approximately; limited so that large images do not pile up.
const READ_AHEAD_BYTES: u64 = 16 * 1024 * 1024;
/// Fewest and most messages fetched ahead; the server delivers no more at a time.
const READ_AHEAD: std::ops::RangeInclusive<u64> = 16..=500;
/// Most messages fetched ahead from streams of images: judged by the mean size alone, a range of large images in a
/// stream of small ones would be held in memory at once.
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
    /// Payload; empty when only headers were requested.
    pub payload: Bytes,
}

impl StoredMessage {
    /// Size of its payload in bytes, even if only headers were requested.
    pub fn payload_bytes(&self) -> u64 {
        // The server's header for an omitted payload. A publisher may have written that header too: a value
        // beyond the largest message does not come from the server.
        let omitted = self.header("Nats-Msg-Size").and_then(|size| size.parse().ok());
        omitted.filter(|size| *size <= MAX_MESSAGE_BYTES as u64).unwrap_or(self.payload.len() as u64)
    }

    /// Whether a consecutive number of a decision or a round is plausible in this message: each number took a message
    /// of the stream, so none is much higher than the sequence. A far higher one would leave no number to follow it.
    /// Some distance is allowed, because a stream may have been recreated from a copy.
    pub fn may_be_number(&self, number: u64) -> bool {
        const MAX_AHEAD: u64 = 1000;
        (1..=self.sequence.saturating_add(MAX_AHEAD)).contains(&number)
    }

    /// Sequence in the stream that it was copied from; `None` if it is not a copy.
    pub fn source_sequence(&self) -> Option<u64> {
        self.header("Nats-Stream-Source")?.split(' ').nth(1)?.parse().ok()
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Fill level of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct StreamLevel {
    /// Messages in the stream.
    pub messages: u64,
    /// Bytes in the stream.
    pub bytes: u64,
    /// Bytes it may hold; 0: no limit of its own.
    pub max_bytes: u64,
    /// Sequence of the oldest message.
    pub first_sequence: u64,
    /// Sequence of the newest message; 0 if there never was one.
    pub last_sequence: u64,
    /// Deleted messages between the oldest and the newest.
    #[serde(default)]
    pub gaps: u64,
}

/// Progress of a durable consumer.
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
    /// When it last delivered something, milliseconds since the epoch by the server's clock.
    pub active_at_ms: Option<u64>,
}

impl ConsumerProgress {
    /// Number of finished messages; grows by one with every acknowledgement, in any order.
    pub fn finished(&self) -> u64 {
        self.delivered.saturating_sub(self.unacked)
    }
}

/// A part of a stream.
#[derive(Debug, Clone, Default)]
pub struct StreamRange {
    /// Only these subjects; all if empty.
    pub subjects: Vec<String>,
    /// First sequence; the oldest if absent.
    pub from_sequence: Option<u64>,
    /// Only messages stored from now on.
    pub only_new: bool,
    /// Headers without payloads.
    pub headers_only: bool,
}

/// The fill level of a stream.
pub async fn stream_level(bus: &Bus, stream: &str) -> Result<StreamLevel, CarryError> {
    in_memory!(bus, link => link.stream_level(stream).await);
    let handle = open(bus, stream).await?;
    let info = handle.get_info().await.map_err(|error| missing_or_failed(error, format!("stream {stream}")))?;
    Ok(StreamLevel {
        messages: info.state.messages,
        bytes: info.state.bytes,
        max_bytes: u64::try_from(crate::image_refusal::limit_in(&info.config)).unwrap_or(0),
        first_sequence: info.state.first_sequence,
        last_sequence: info.state.last_sequence,
        gaps: info.state.deleted_count.unwrap_or(0),
    })
}

/// What somebody made a stream forbid by hand: `deny_purge`, `deny_delete` or `sealed`.
pub async fn stream_restriction(bus: &Bus, stream: &str) -> Result<Option<&'static str>, CarryError> {
    let info = bus
        .nats()?
        .js
        .get_stream(stream)
        .await
        .map_err(|error| missing_or_failed(error, format!("stream {stream}")))?;
    let config = &info.cached_info().config;
    let flags = [("deny_purge", config.deny_purge), ("deny_delete", config.deny_delete), ("sealed", config.sealed)];
    Ok(flags.into_iter().find(|(_, set)| *set).map(|(name, _)| name))
}

/// State of a consumer that a person may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerState {
    /// Name of the consumer.
    pub name: String,
    /// Whether it is paused and delivers nothing.
    pub paused: bool,
}

/// The states of a stream's consumers.
pub async fn consumer_states(bus: &Bus, stream: &str) -> Result<Vec<ConsumerState>, CarryError> {
    in_memory!(bus, link => {
        let names = link.consumer_names(stream).await?;
        Ok(names.into_iter().map(|name| ConsumerState { name, paused: false }).collect())
    });
    let handle = open(bus, stream).await?;
    let mut consumers = handle.consumers();
    let mut states = Vec::new();
    while let Some(info) = consumers.next().await {
        let info = info.map_err(CarryError::broker(format!("listing the consumers of {stream}")))?;
        states.push(ConsumerState { paused: info.paused, name: info.name });
    }
    Ok(states)
}

/// The server's clock, nanoseconds since the epoch, at the middle of a request, and the time the request took.
pub async fn server_time(bus: &Bus) -> Result<(i128, Duration), CarryError> {
    #[derive(serde::Deserialize)]
    struct TimestampedReply {
        ts: String,
    }
    in_memory!(bus, link => link.server_time().await);
    const WHAT: &str = "asking for the server's time";
    let asked_at = Instant::now();
    let reply = bus.nats()?.js.request(format!("STREAM.INFO.KV_{FLEET}"), &serde_json::json!({})).await;
    match reply.map_err(CarryError::broker(WHAT))? {
        Response::Ok(TimestampedReply { ts }) => {
            let took = asked_at.elapsed();
            let ts = async_nats::datetime::parse_rfc3339(&ts).map_err(CarryError::broker(WHAT))?;
            Ok((ts.unix_timestamp_nanos(), took))
        }
        Response::Err { error } => Err(CarryError::broker(WHAT)(error)),
    }
}

/// The oldest message of a stream stored at or after a time, headers only.
pub async fn first_since(bus: &Bus, stream: &str, since_ns: i128) -> Result<Option<StoredMessage>, CarryError> {
    in_memory!(bus, link => link.first_since(stream, since_ns).await);
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

/// The progress of a durable consumer.
pub async fn consumer_progress(bus: &Bus, stream: &str, durable: &str) -> Result<ConsumerProgress, CarryError> {
    in_memory!(bus, link => link.consumer_progress(stream, durable).await);
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

/// The newest message on a subject, which may contain wildcards.
pub async fn last_message(bus: &Bus, stream: &str, subject: &str) -> Result<Option<StoredMessage>, CarryError> {
    in_memory!(bus, link => link.last_message(stream, subject).await);
    let handle = open(bus, stream).await?;
    let message = if subject.contains('*') {
        match handle.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(message),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(None),
            Err(error) => Err(CarryError::broker(format!("reading {subject}"))(error)),
        }
    } else {
        match handle.direct_get_last_for_subject(subject).await {
            Ok(message) => Ok(message),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(None),
            Err(error) => Err(CarryError::broker(format!("reading {subject}"))(error)),
        }
    }?;
    Ok(Some(record_of(message)))
}

/// The outcome in the slot of a final answer ([`crate::subject::final_answer`]), if there is one.
pub async fn read_outcome(bus: &Bus, slot: &str) -> Result<Option<Answer>, CarryError> {
    let record = last_message(bus, ANSWERS, slot).await?;
    Ok(record.map(|record| decode(&record.payload)).transpose()?)
}

/// How long a request to the server of this domain takes; an error if it takes longer than `timeout`.
pub async fn round_trip(bus: &Bus, timeout: Duration) -> Result<Duration, CarryError> {
    let asked_at = Instant::now();
    in_memory!(bus, link => link.server_time().await.map(|(_, took)| took));
    let reply = tokio::time::timeout(timeout, bus.nats()?.js.query_account()).await;
    match reply {
        Ok(Ok(_)) => Ok(asked_at.elapsed()),
        Ok(Err(error)) => Err(CarryError::broker("querying the server")(error)),
        Err(_) => Err(CarryError::NoAck { subject: "a request to the server".into(), timeout }),
    }
}

/// The message with a sequence, if it still exists.
pub async fn message_at(bus: &Bus, stream: &str, sequence: u64) -> Result<Option<StoredMessage>, CarryError> {
    in_memory!(bus, link => link.message_at(stream, sequence).await);
    match open(bus, stream).await?.direct_get(sequence).await {
        Ok(message) => Ok(Some(record_of(message))),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(CarryError::broker(format!("reading message {sequence} of {stream}"))(error)),
    }
}

/// A message that its durable delivered as often as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExhaustedDelivery {
    /// Sequence of the message in its stream.
    pub sequence: u64,
    /// Number of deliveries.
    pub deliveries: u64,
    /// Sequence of the server's notice in [`ADVISORIES`].
    pub own_sequence: u64,
}

/// The oldest notice about a message of a durable that was delivered as often as it may and never finished.
pub async fn next_exhausted(bus: &Bus, stream: &str, durable: &str) -> Result<Option<ExhaustedDelivery>, CarryError> {
    in_memory!(bus, link => Ok(link.next_exhausted(stream, durable).await?.map(exhausted)));
    let subject = format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{stream}.{durable}");
    let found = open(bus, ADVISORIES).await?.direct_get_first_for_subject(subject).await;
    match found {
        Ok(message) => Ok(Some(exhausted(record_of(message)))),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(CarryError::broker(format!("reading {ADVISORIES}"))(error)),
    }
}

/// What a notice says.
fn exhausted(message: StoredMessage) -> ExhaustedDelivery {
    #[derive(serde::Deserialize, Default)]
    struct MaxDeliveriesAdvisory {
        stream_seq: u64,
        #[serde(default)]
        deliveries: u64,
    }
    // Only the server should publish there; something else names no message.
    let notice: MaxDeliveriesAdvisory = serde_json::from_slice(&message.payload).unwrap_or_default();
    ExhaustedDelivery { sequence: notice.stream_seq, deliveries: notice.deliveries, own_sequence: message.sequence }
}

/// Deletes a message whose outcome is stored, and notes the deletion: gaps in IMAGES that are not noted
/// are reported as faults.
pub async fn remove_answered(bus: &Bus, stream: &str, sequence: u64) -> Result<(), CarryError> {
    if stream == IMAGES {
        crate::fleet::Ledger::open(bus).await?.update_note(REMOVED, |note| add_removed(note, sequence)).await?;
    }
    delete_message(bus, stream, sequence).await
}

/// The sequences of IMAGES that we deleted ourselves, newest last.
pub async fn removed_images(bus: &Bus) -> Result<Vec<u64>, CarryError> {
    let note = crate::fleet::Ledger::open(bus).await?.read(REMOVED).await?;
    Ok(note.and_then(|note| serde_json::from_str(&note).ok()).unwrap_or_default())
}

/// Adds a sequence to the note of deleted images and forgets the oldest, which were purged long ago. Pure.
fn add_removed(note: Option<&str>, sequence: u64) -> String {
    const MAX_NOTED: usize = 10_000;
    let mut removed: Vec<u64> = note.and_then(|note| serde_json::from_str(note).ok()).unwrap_or_default();
    if !removed.contains(&sequence) {
        removed.push(sequence);
    }
    removed.drain(..removed.len().saturating_sub(MAX_NOTED));
    serde_json::to_string(&removed).unwrap_or_default()
}

/// Deletes one message. Its bytes are not overwritten, which would cost as much as writing them.
pub async fn delete_message(bus: &Bus, stream: &str, sequence: u64) -> Result<(), CarryError> {
    in_memory!(bus, link => link.delete_message(stream, sequence).await);
    let what = || format!("deleting message {sequence} of {stream}");
    let question = serde_json::json!({ "seq": sequence, "no_erase": true });
    let reply = bus.nats()?.js.request(format!("STREAM.MSG.DELETE.{stream}"), &question).await;
    match reply.map_err(CarryError::broker(what()))? {
        Response::Ok(DeleteStatus { .. }) => Ok(()),
        // Somebody else deleted it, or the request was sent twice.
        Response::Err { error } if is_message_gone(&error) => Ok(()),
        Response::Err { error } => Err(CarryError::broker(what())(error)),
    }
}

/// Deletes everything older than a sequence; returns the number of messages deleted.
pub async fn purge_before(bus: &Bus, stream: &str, sequence: u64) -> Result<u64, CarryError> {
    in_memory!(bus, link => link.purge(stream, Some(sequence), None).await);
    let purged = open(bus, stream).await?.purge().sequence(sequence).await;
    purged.map(|purged| purged.purged).map_err(CarryError::broker(format!("purging {stream}")))
}

/// Deletes everything on one subject.
pub async fn purge_subject(bus: &Bus, stream: &str, subject: &str) -> Result<(), CarryError> {
    in_memory!(bus, link => link.purge(stream, None, Some(subject)).await.map(|_| ()));
    let purged = open(bus, stream).await?.purge().filter(subject).await;
    purged.map(|_| ()).map_err(CarryError::broker(format!("purging {subject}")))
}

/// Reads a range in order and continues with new messages; reconnects by itself.
pub async fn follow_range(
    bus: &Bus,
    stream: &str,
    range: StreamRange,
) -> Result<impl FuturesStream<Item = Result<StoredMessage, CarryError>> + use<>, CarryError> {
    let (_, records) = ordered(bus, stream, range).await?;
    Ok(records.map(|record| record.map(|(record, _)| record)))
}

/// Reads a range up to and including a sequence.
pub async fn read_range(
    bus: &Bus,
    stream: &str,
    range: StreamRange,
    until_sequence: u64,
    mut each: impl FnMut(StoredMessage),
) -> Result<(), CarryError> {
    let mut reader = MessageReader::open(bus, stream, range, until_sequence).await?;
    while let Some(record) = reader.next().await? {
        each(record);
    }
    Ok(())
}

/// Messages, each with the number of messages still to come.
pub(crate) type StoredMessages = Pin<Box<dyn FuturesStream<Item = Result<(StoredMessage, u64), CarryError>> + Send>>;

/// Reads a range at the caller's pace; fetches only a few messages ahead.
pub struct MessageReader {
    records: StoredMessages,
    stream: String,
    pending: u64,
    until_sequence: u64,
}

impl MessageReader {
    /// Starts a range that ends with a sequence, inclusive.
    pub async fn open(bus: &Bus, stream: &str, range: StreamRange, until_sequence: u64) -> Result<Self, CarryError> {
        let (pending, records) = ordered(bus, stream, range).await?;
        Ok(Self { records, stream: stream.into(), pending, until_sequence })
    }

    /// The next message; `None` at the end.
    ///
    /// # Errors
    /// Any error of the broker; also when no message arrives although more remain, so that half of a range does not
    /// pass for the whole.
    pub async fn next(&mut self) -> Result<Option<StoredMessage>, CarryError> {
        const NEXT_TIMEOUT: Duration = Duration::from_secs(20);
        if self.pending == 0 {
            return Ok(None);
        }
        let ended = || CarryError::broker(format!("reading {}", self.stream))("the stream of messages ended early");
        let next = tokio::time::timeout(NEXT_TIMEOUT, self.records.next()).await;
        let (record, left) = next.ok().flatten().ok_or_else(ended)??;
        self.pending = if record.sequence >= self.until_sequence { 0 } else { left };
        Ok(Some(record).filter(|record| record.sequence <= self.until_sequence))
    }
}

/// The newest `count` messages on these subjects that are `wanted`, oldest first.
/// Looks back in growing steps, so that recent ones are found quickly and all are found in the end.
pub async fn newest_messages(
    bus: &Bus,
    stream: &str,
    range: StreamRange,
    count: usize,
    wanted: impl Fn(&StoredMessage) -> bool,
) -> Result<Vec<StoredMessage>, CarryError> {
    /// How far back the first step goes, in messages of the stream, and the factor of each further step.
    const FIRST_STEP: u64 = 256;
    const STEP_FACTOR: u64 = 8;
    let level = stream_level(bus, stream).await?;
    let mut reach = FIRST_STEP.max(count as u64);
    loop {
        let from = level.last_sequence.saturating_sub(reach).max(level.first_sequence).max(1);
        let mut found = VecDeque::new();
        let part = StreamRange { from_sequence: Some(from), ..range.clone() };
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
        reach = reach.saturating_mul(STEP_FACTOR);
    }
}

/// The number of messages to come, and the messages, each with the number still to come.
async fn ordered(bus: &Bus, stream: &str, range: StreamRange) -> Result<(u64, StoredMessages), CarryError> {
    in_memory!(bus, link => link.ordered(stream, range).await);
    let deliver_policy = match range.from_sequence {
        Some(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
        None if range.only_new => DeliverPolicy::New,
        None => DeliverPolicy::All,
    };
    let config = pull::OrderedConfig {
        deliver_policy,
        filter_subjects: range.subjects,
        headers_only: range.headers_only,
        max_batch: fetch_ahead(bus, stream).await? as i64,
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
    Ok((pending, Box::pin(records)))
}

/// How many messages to fetch ahead, given the mean size of those in the stream.
async fn fetch_ahead(bus: &Bus, stream: &str) -> Result<u64, CarryError> {
    let level = stream_level(bus, stream).await?;
    let each_bytes = level.bytes / level.messages.max(1);
    let max = if [IMAGES, PINNED].contains(&stream) { IMAGES_AHEAD } else { *READ_AHEAD.end() };
    Ok((READ_AHEAD_BYTES / each_bytes.max(1)).clamp(*READ_AHEAD.start(), max))
}

/// The stream that stores what is published on a subject, if there is one.
pub async fn stream_of(bus: &Bus, subject: &str) -> Result<Option<String>, CarryError> {
    #[derive(serde::Deserialize)]
    struct StreamNamesReply {
        streams: Option<Vec<String>>,
    }
    in_memory!(bus, link => link.stream_of(subject).await);
    let what = || format!("looking up the stream of {subject}");
    let reply = bus.nats()?.js.request("STREAM.NAMES", &serde_json::json!({ "subject": subject })).await;
    match reply.map_err(CarryError::broker(what()))? {
        Response::Ok(StreamNamesReply { streams }) => Ok(streams.and_then(|names| names.into_iter().next())),
        Response::Err { error } => Err(CarryError::broker(what())(error)),
    }
}

async fn open(bus: &Bus, stream: &str) -> Result<Stream<()>, CarryError> {
    bus.nats()?
        .js
        .get_stream_no_info(stream)
        .await
        .map_err(|error| missing_or_failed(error, format!("stream {stream}")))
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
    fn a_damaged_note_of_deleted_images_stays_within_limits() {
        let notes = bend::texts(["[1,2,3,18446744073709551615]", "[]"]);
        bend::bend_all("notes of deleted images", &notes, bend::turns(), |bytes| {
            let next = add_removed(Some(&String::from_utf8_lossy(bytes)), 7);
            assert!(serde_json::from_str::<Vec<u64>>(&next).unwrap().contains(&7), "{next}");
            1
        });
    }

    #[test]
    fn damaged_sizes_in_headers_stay_within_a_message() {
        bend::bend_all("sizes in headers", &bend::texts(["1048576"]), bend::turns(), |bytes| {
            let headers = vec![("Nats-Msg-Size".to_owned(), String::from_utf8_lossy(bytes).into_owned())];
            let record =
                StoredMessage { subject: "a".into(), sequence: 1, stored_at_ns: 0, headers, payload: Bytes::new() };
            assert!(record.payload_bytes() <= MAX_MESSAGE_BYTES as u64);
            1
        });
    }
}

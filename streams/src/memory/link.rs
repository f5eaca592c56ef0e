//! A client's connection to servers in memory: every operation is a request and a reply, and the network may lose
//! either.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::AckKind;
use bytes::Bytes;
use futures::future::ready;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use rand::RngExt;
use schemas::limits::MAX_MESSAGE_BYTES;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::stream::{IncomingMessage, MemoryStream, Moment, StoreRefusal, StoredAt};
use super::{ClusterEvent, ClusterState, MemoryCluster};
use crate::bucket::KeyState;
use crate::error::CarryError;
use crate::publish::{Publication, PublishRetry};
use crate::reader::{ConsumerProgress, StoredMessage, StoredMessages, StreamLevel, StreamRange};
use crate::tap::TapMessage;
use crate::topology::ADVISORIES;

/// Time after which a request counts as unanswered, as with a real server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which a pull request expires and the puller sends a new one.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// Pause before the next pull request when a whole batch was lost.
const LOST_BATCH_PAUSE: Duration = Duration::from_secs(1);
/// Chunk size of an object, bytes, as the NATS client writes it.
const CHUNK_BYTES: usize = 128 * 1024;

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestFailure {
    /// No reply in time; the server may have carried it out.
    NoAnswer,
    /// No server can take it.
    NoResponders,
}

impl std::fmt::Display for RequestFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoAnswer => "no answer in time",
            Self::NoResponders => "no responders",
        })
    }
}

impl std::error::Error for RequestFailure {}

/// Why a message was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemoryPublishError {
    /// The stream refused it.
    Refused(StoreRefusal),
    /// The request failed.
    Request(RequestFailure),
}

impl MemoryPublishError {
    /// Whether the expected last sequence was wrong: another message came first.
    pub(crate) fn is_taken(self) -> bool {
        self == Self::Refused(StoreRefusal::WrongLast)
    }

    /// Says whether a retry can help.
    pub(crate) fn classify(self, publication: &Publication, timeout: Duration) -> PublishRetry {
        let subject = publication.subject.clone();
        match self {
            Self::Refused(StoreRefusal::Full(why)) => {
                PublishRetry::Permanent(CarryError::Full { subject, why: why.into() })
            }
            Self::Refused(StoreRefusal::TooLarge) => {
                PublishRetry::Permanent(CarryError::TooLarge { subject, size_bytes: publication.payload.len() })
            }
            Self::Refused(StoreRefusal::NoStream) | Self::Request(RequestFailure::NoResponders) => {
                PublishRetry::Transient(CarryError::NoStream { subject })
            }
            Self::Refused(StoreRefusal::WrongLast) | Self::Request(RequestFailure::NoAnswer) => {
                PublishRetry::Transient(CarryError::NoAck { subject, timeout })
            }
        }
    }

    /// The error of a failed write to a bucket.
    pub(crate) fn unwritten(self, subject: String) -> CarryError {
        match self {
            Self::Refused(StoreRefusal::Full(why)) => CarryError::Full { subject, why: why.into() },
            other => CarryError::broker(format!("storing in {subject}"))(other),
        }
    }
}

impl std::fmt::Display for MemoryPublishError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(refusal) => write!(f, "refused: {refusal:?}"),
            Self::Request(failure) => write!(f, "{failure}"),
        }
    }
}

impl std::error::Error for MemoryPublishError {}

/// A client's connection: the server it is connected to (`home`) and the one it talks to (`target`).
#[derive(Clone)]
pub(crate) struct MemoryLink {
    cluster: MemoryCluster,
    home: String,
    target: String,
    /// Whether the client's process is alive; shared by all clones.
    is_alive: Arc<AtomicBool>,
}

impl MemoryLink {
    pub(super) fn new(cluster: MemoryCluster, server: &str) -> Self {
        Self { cluster, home: server.into(), target: server.into(), is_alive: Arc::new(AtomicBool::new(true)) }
    }

    /// From now on nothing is sent or received, as after the death of the client's process.
    pub(super) fn kill(&self) {
        self.is_alive.store(false, Ordering::Relaxed);
    }

    fn is_alive(&self) -> bool {
        self.is_alive.load(Ordering::Relaxed)
    }

    /// Waits forever if the client was killed.
    async fn block_if_killed(&self) {
        if !self.is_alive() {
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn in_domain(&self, domain: Option<&str>) -> Self {
        let target = domain.unwrap_or(&self.home).to_owned();
        Self { target, ..self.clone() }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.cluster.state().servers.get(&self.home).is_some_and(|server| server.is_up)
    }

    pub(crate) fn server_id(&self) -> String {
        let incarnation = self.cluster.state().servers.get(&self.home).map_or(0, |server| server.incarnation);
        format!("{}-{incarnation}", self.home)
    }

    /// Waits until every acknowledgement already sent has arrived or is lost.
    pub(crate) async fn flush(&self) {
        let longest = {
            let faults = &self.cluster.state().faults;
            faults.max_delay + faults.max_link_delay
        };
        tokio::time::sleep(longest).await;
    }

    /// Sends a request, runs `act` on the server, and returns the reply.
    async fn request<T>(
        &self,
        target: &str,
        act: impl FnOnce(&mut ClusterState, Moment) -> T,
    ) -> Result<T, RequestFailure> {
        self.block_if_killed().await;
        self.cluster.state().requests += 1;
        let asked_at = Instant::now();
        let (delay, is_lost) = self.draw_trip(target, |faults| faults.lost_request_ratio);
        wait(delay).await;
        if is_lost {
            return self.time_out(asked_at).await;
        }
        self.arrive(target, asked_at).await?;
        let (done, delay, is_lost) = {
            let now = self.cluster.now();
            let done = act(&mut self.cluster.state(), now);
            let (delay, is_lost) = self.draw_trip(target, |faults| faults.lost_reply_ratio);
            (done, delay, is_lost)
        };
        wait(delay).await;
        self.block_if_killed().await;
        if is_lost || !self.cluster.state().is_reachable(&self.home, target) {
            return self.time_out(asked_at).await;
        }
        Ok(done)
    }

    /// Waits for a server that is down, as a reconnecting client does. A request over a cut link is lost.
    async fn arrive(&self, target: &str, asked_at: Instant) -> Result<(), RequestFailure> {
        loop {
            let changed = self.cluster.0.changed.notified();
            let is_home_up = {
                let mut state = self.cluster.state();
                if state.is_reachable(&self.home, target) {
                    return Ok(());
                }
                let is_home_up = state.is_reachable(&self.home, &self.home);
                // A server that has noticed the cut answers "no responders" at once; before that the request times out.
                if is_home_up && state.draw(0.5) {
                    return Err(RequestFailure::NoResponders);
                }
                is_home_up
            };
            if is_home_up {
                return self.time_out(asked_at).await;
            }
            if tokio::time::timeout_at(asked_at + REQUEST_TIMEOUT, changed).await.is_err() {
                return Err(RequestFailure::NoAnswer);
            }
        }
    }

    async fn time_out<T>(&self, asked_at: Instant) -> Result<T, RequestFailure> {
        tokio::time::sleep_until(asked_at + REQUEST_TIMEOUT).await;
        Err(RequestFailure::NoAnswer)
    }

    /// Draws the delay of one trip and whether the message is lost.
    fn draw_trip(&self, target: &str, ratio: impl Fn(&super::NetworkFaults) -> f64) -> (Duration, bool) {
        let mut state = self.cluster.state();
        let (longest, over_link) = (state.faults.max_delay, state.faults.max_link_delay);
        let longest = if self.home == target { longest } else { longest + over_link };
        let (delay, ratio) = (state.draw_delay(longest), ratio(&state.faults));
        (delay, state.draw(ratio))
    }

    /// Sends a request that concerns one stream of the server.
    async fn request_stream<T>(
        &self,
        stream: &str,
        what: impl Fn() -> String,
        act: impl FnOnce(&mut MemoryStream, Moment) -> T,
    ) -> Result<T, CarryError> {
        let asked = self
            .request(&self.target, |state, now| state.stream(&self.target, stream, now).map(|stream| act(stream, now)));
        let answered = asked.await.map_err(CarryError::broker(what()))?;
        answered.ok_or_else(|| CarryError::Missing { what: format!("stream {stream}") })
    }

    pub(crate) async fn publish(
        &self,
        subject: &str,
        headers: Vec<(String, String)>,
        payload: Bytes,
        expected_last: Option<u64>,
    ) -> Result<StoredAt, MemoryPublishError> {
        // Writes to a bucket in another domain carry the domain in the subject.
        let (target, subject) = match subject.strip_prefix("$JS.").and_then(|rest| rest.split_once(".API.")) {
            Some((domain, subject)) => (Some(domain.to_owned()), subject.to_owned()),
            None if subject.starts_with('$') => (Some(self.home.clone()), subject.to_owned()),
            None => (self.cluster.state().server_of(&self.home, subject), subject.to_owned()),
        };
        let Some(target) = target else { return Err(MemoryPublishError::Refused(StoreRefusal::NoStream)) };
        if payload.len() > MAX_MESSAGE_BYTES {
            return Err(MemoryPublishError::Refused(StoreRefusal::TooLarge));
        }
        let incoming = IncomingMessage { subject, headers, payload, expected_last };
        let asked = self.request(&target, |state, now| {
            let stored = state.publish(&target, incoming, now);
            self.cluster.0.changed.notify_waiters();
            stored
        });
        asked.await.map_err(MemoryPublishError::Request)?.map_err(MemoryPublishError::Refused)
    }

    /// Publishes with core NATS: current subscribers receive it, no stream stores it.
    pub(crate) fn publish_unstored(&self, subject: &str, headers: &[(String, String)], payload: &Bytes) {
        let mut state = self.cluster.state();
        if let Some(server) = state.servers.get_mut(&self.home).filter(|server| server.is_up) {
            server.notify_taps(subject, headers, payload);
        }
    }

    pub(crate) fn tap(&self, pattern: &str) -> Pin<Box<dyn Stream<Item = TapMessage> + Send>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        if let Some(server) = self.cluster.state().servers.get_mut(&self.home) {
            server.taps.push((pattern.into(), sender));
        }
        Box::pin(futures::stream::unfold(receiver, async |mut receiver| {
            let next = receiver.recv().await?;
            Some((next, receiver))
        }))
    }

    pub(crate) async fn stream_level(&self, stream: &str) -> Result<StreamLevel, CarryError> {
        self.request_stream(stream, || format!("looking up stream {stream}"), |stream, _| stream.level()).await
    }

    pub(crate) async fn consumer_progress(&self, stream: &str, durable: &str) -> Result<ConsumerProgress, CarryError> {
        let what = || format!("looking up consumer {durable} on stream {stream}");
        let progress = self.request_stream(stream, what, |stream, _| stream.progress(durable)).await?;
        progress.ok_or_else(|| CarryError::Missing { what: format!("consumer {durable} on stream {stream}") })
    }

    pub(crate) async fn consumer_names(&self, stream: &str) -> Result<Vec<String>, CarryError> {
        let what = || format!("listing the consumers of {stream}");
        self.request_stream(stream, what, |stream, _| stream.consumer_names().cloned().collect()).await
    }

    pub(crate) async fn last_message(&self, stream: &str, subject: &str) -> Result<Option<StoredMessage>, CarryError> {
        self.request_stream(stream, || format!("reading {subject}"), |stream, _| stream.last_on(subject).cloned()).await
    }

    pub(crate) async fn message_at(&self, stream: &str, sequence: u64) -> Result<Option<StoredMessage>, CarryError> {
        let what = || format!("reading message {sequence} of {stream}");
        self.request_stream(stream, what, |stream, _| stream.at(sequence).cloned()).await
    }

    pub(crate) async fn first_since(&self, stream: &str, since_ns: i128) -> Result<Option<StoredMessage>, CarryError> {
        let found = self.request_stream(
            stream,
            || format!("reading {stream}"),
            |stream, _| {
                stream.messages_from(0, &[]).find(|message| message.stored_at_ns >= since_ns).map(without_payload)
            },
        );
        found.await
    }

    pub(crate) async fn next_exhausted(
        &self,
        stream: &str,
        durable: &str,
    ) -> Result<Option<StoredMessage>, CarryError> {
        let patterns = [format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{stream}.{durable}")];
        let asked = self.request(&self.target, |state, now| {
            // Looking up the stream publishes the advisories that are due, even if nobody pulls.
            state.stream(&self.target, stream, now)?;
            let advisories = state.stream(&self.target, ADVISORIES, now)?;
            Some(advisories.messages_from(0, &patterns).next().cloned())
        });
        let answered = asked.await.map_err(CarryError::broker(format!("reading {ADVISORIES}")))?;
        answered.ok_or_else(|| CarryError::Missing { what: format!("stream {stream}") })
    }

    pub(crate) async fn delete_message(&self, stream: &str, sequence: u64) -> Result<(), CarryError> {
        let asked = self.request(&self.target, |state, now| {
            let removed = state.stream(&self.target, stream, now)?.remove(sequence);
            if removed {
                let (server, stream) = (self.target.clone(), stream.to_owned());
                state.events.push(ClusterEvent::Deleted { server, stream, sequence });
            }
            Some(())
        });
        let what = format!("deleting message {sequence} of {stream}");
        let answered = asked.await.map_err(CarryError::broker(what))?;
        answered.ok_or_else(|| CarryError::Missing { what: format!("stream {stream}") })
    }

    pub(crate) async fn purge(
        &self,
        stream: &str,
        below: Option<u64>,
        subject: Option<&str>,
    ) -> Result<u64, CarryError> {
        self.request_stream(stream, || format!("purging {stream}"), |stream, _| stream.remove_matching(below, subject))
            .await
    }

    pub(crate) async fn server_time(&self) -> Result<(i128, Duration), CarryError> {
        let asked_at = Instant::now();
        let asked = self.request(&self.target, |_, now| now.ns).await;
        Ok((asked.map_err(CarryError::broker("asking for the server's time"))?, asked_at.elapsed()))
    }

    pub(crate) async fn stream_of(&self, subject: &str) -> Result<Option<String>, CarryError> {
        let asked = self.request(&self.target, |state, _| {
            let server = state.servers.get(&self.target)?;
            server.streams.iter().find(|(_, stream)| stream.accepts(subject)).map(|(name, _)| name.clone())
        });
        asked.await.map_err(CarryError::broker(format!("asking who stores {subject}")))
    }

    /// Supports the two forms of Direct Get that we use: the newest message of each subject, or the next messages on
    /// one.
    pub(crate) async fn request_messages(
        &self,
        stream: &str,
        query: &Value,
        most: usize,
    ) -> Result<Vec<StoredMessage>, CarryError> {
        let text = |name: &str| query.get(name).and_then(Value::as_str).map(str::to_owned);
        let number = |name: &str| query.get(name).and_then(Value::as_u64);
        let batch = usize::try_from(number("batch").unwrap_or(1)).unwrap_or(usize::MAX).min(most);
        let most_bytes = number("max_bytes").unwrap_or(u64::MAX);
        let last: Vec<String> = match query.get("multi_last").and_then(Value::as_array) {
            Some(patterns) => patterns.iter().filter_map(|pattern| pattern.as_str().map(str::to_owned)).collect(),
            None => Vec::new(),
        };
        let next: Vec<String> = text("next_by_subj").into_iter().collect();
        if last.is_empty() && next.is_empty() {
            return Err(CarryError::broker(format!("reading {stream}"))("not in memory"));
        }
        let what = || format!("reading {stream}");
        let found = self.request_stream(stream, what, |stream, _| {
            if next.is_empty() {
                stream.last_of_each(&last)
            } else {
                stream.messages_from(number("seq").unwrap_or(0), &next).take(batch).cloned().collect()
            }
        });
        let (mut bytes, mut kept) = (0u64, Vec::new());
        for message in found.await?.into_iter().take(batch) {
            bytes = bytes.saturating_add(message.payload.len() as u64);
            if bytes > most_bytes && !kept.is_empty() {
                break;
            }
            kept.push(message);
        }
        Ok(kept)
    }

    /// Follows a range: returns the number of messages already there, and a stream of messages, each with the number
    /// still pending after it.
    pub(crate) async fn ordered(&self, stream: &str, range: StreamRange) -> Result<(u64, StoredMessages), CarryError> {
        let subjects = range.subjects.clone();
        let (next, pending) = self
            .request_stream(
                stream,
                || format!("reading {stream}"),
                |stream, _| {
                    let next = match range.from_sequence {
                        Some(sequence) => sequence,
                        None if range.only_new => stream.last_sequence() + 1,
                        None => 0,
                    };
                    (next, stream.messages_from(next, &subjects).count() as u64)
                },
            )
            .await?;
        let follower = MemoryFollower { link: self.clone(), stream: stream.into(), range, next, is_broken: false };
        Ok((pending, Box::pin(futures::stream::unfold(follower, MemoryFollower::follow))))
    }

    /// Whether a bucket exists.
    pub(crate) async fn has_bucket(&self, stream: &str) -> Result<bool, CarryError> {
        match self.stream_level(stream).await {
            Ok(_) => Ok(true),
            Err(CarryError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes an object as the NATS client does: its chunks, then its metadata. Returns its NUID.
    pub(crate) async fn put_object(
        &self,
        bucket: &str,
        key: &str,
        encoded: &str,
        bytes: &[u8],
    ) -> Result<String, MemoryPublishError> {
        let nuid = format!("M{:020X}", self.cluster.state().rng.random_range(0..u64::MAX));
        let target = format!("$JS.{}.API.", self.target);
        for chunk in bytes.chunks(CHUNK_BYTES) {
            let subject = format!("{target}$O.{bucket}.C.{nuid}");
            self.publish(&subject, Vec::new(), Bytes::copy_from_slice(chunk), None).await?;
        }
        let size = bytes.len();
        let text = serde_json::json!({ "name": key, "bucket": bucket, "nuid": nuid, "size": size, "deleted": false });
        self.describe_object(bucket, encoded, &text).await?;
        Ok(nuid)
    }

    pub(crate) async fn remove_object(&self, bucket: &str, key: &str, encoded: &str) -> Result<(), MemoryPublishError> {
        let text = serde_json::json!({ "name": key, "bucket": bucket, "nuid": "", "size": 0, "deleted": true });
        self.describe_object(bucket, encoded, &text).await
    }

    async fn describe_object(&self, bucket: &str, encoded: &str, text: &Value) -> Result<(), MemoryPublishError> {
        let subject = format!("$O.{bucket}.M.{encoded}");
        // New metadata replaces the old.
        let stream = format!("OBJ_{bucket}");
        let _left = self.purge(&stream, None, Some(&subject)).await;
        let subject = format!("$JS.{}.API.{subject}", self.target);
        self.publish(&subject, Vec::new(), text.to_string().into(), None).await.map(|_| ())
    }

    /// Sends an acknowledgement of any kind; nothing confirms that it arrived.
    fn send_ack(&self, delivery: &MemoryDelivery, kind: AckKind) {
        if !self.is_alive() {
            return;
        }
        let (delay, is_lost) = self.draw_trip(&self.target, |faults| faults.lost_ack_ratio);
        if is_lost {
            return;
        }
        let (link, stream, durable, sequence) =
            (self.clone(), delivery.stream.clone(), delivery.durable.clone(), delivery.message.sequence);
        let arrive = move || {
            let now = link.cluster.now();
            let mut state = link.cluster.state();
            if !state.is_reachable(&link.home, &link.target) {
                return;
            }
            let Some(target) = state.stream(&link.target, &stream, now) else { return };
            match kind {
                AckKind::Ack if target.acknowledge(&durable, sequence, now) => {
                    let server = link.target.clone();
                    state.events.push(ClusterEvent::Acknowledged { server, stream, durable, sequence });
                }
                AckKind::Progress => target.postpone(&durable, sequence, None, now),
                AckKind::Nak(delay) => target.postpone(&durable, sequence, Some(delay.unwrap_or_default()), now),
                // We never send the others.
                AckKind::Ack | AckKind::Next | AckKind::Term => {}
            }
            drop(state);
            link.cluster.0.changed.notify_waiters();
        };
        if delay.is_zero() {
            return arrive();
        }
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            arrive();
        });
    }
}

async fn wait(delay: Duration) {
    // Even without a delay, let other tasks run.
    match delay.is_zero() {
        true => tokio::task::yield_now().await,
        false => tokio::time::sleep(delay).await,
    }
}

fn without_payload(message: &StoredMessage) -> StoredMessage {
    let mut headers = message.headers.clone();
    headers.push(("Nats-Msg-Size".into(), message.payload.len().to_string()));
    StoredMessage { headers, payload: Bytes::new(), ..message.clone() }
}

/// An ordered reader of a stream.
struct MemoryFollower {
    link: MemoryLink,
    stream: String,
    range: StreamRange,
    next: u64,
    is_broken: bool,
}

impl MemoryFollower {
    async fn follow(mut self) -> Option<(Result<(StoredMessage, u64), CarryError>, Self)> {
        if self.is_broken {
            return None;
        }
        let cluster = self.link.cluster.clone();
        loop {
            self.link.block_if_killed().await;
            let changed = cluster.0.changed.notified();
            if let Some((message, left)) = self.next_message() {
                let (delay, is_broken) = self.link.draw_trip(&self.link.target, |faults| faults.broken_follow_ratio);
                wait(delay).await;
                if is_broken {
                    self.is_broken = true;
                    let what = format!("reading {}", self.stream);
                    return Some((Err(CarryError::broker(what)(RequestFailure::NoAnswer)), self));
                }
                self.next = message.sequence + 1;
                let message = if self.range.headers_only { without_payload(&message) } else { message };
                return Some((Ok((message, left)), self));
            }
            changed.await;
        }
    }

    fn next_message(&self) -> Option<(StoredMessage, u64)> {
        let now = self.link.cluster.now();
        let mut state = self.link.cluster.state();
        if !state.is_reachable(&self.link.home, &self.link.target) {
            return None;
        }
        let stream = state.stream(&self.link.target, &self.stream, now)?;
        let mut waiting = stream.messages_from(self.next, &self.range.subjects);
        let message = waiting.next()?.clone();
        Some((message, waiting.count() as u64))
    }
}

/// A puller on a durable consumer, with the messages that are on their way to it.
pub(crate) struct MemoryPull {
    link: MemoryLink,
    stream: String,
    durable: String,
    batch: usize,
    /// Deliveries on their way, each with its time of arrival.
    arriving: VecDeque<(Instant, MemoryDelivery)>,
}

impl MemoryPull {
    pub(crate) fn new(link: &MemoryLink, stream: &str, durable: &str, batch: usize) -> Self {
        let (link, stream, durable) = (link.clone(), stream.into(), durable.into());
        Self { link, stream, durable, batch, arriving: VecDeque::new() }
    }

    /// Waits for the next message. Cancel-safe.
    ///
    /// # Errors
    /// The consumer does not exist.
    pub(crate) async fn next(&mut self) -> Result<MemoryDelivery, CarryError> {
        let cluster = self.link.cluster.clone();
        loop {
            self.link.block_if_killed().await;
            if let Some((at, _)) = self.arriving.front() {
                tokio::time::sleep_until(*at).await;
                self.link.block_if_killed().await;
                if let Some((_, delivery)) = self.arriving.pop_front() {
                    return Ok(delivery);
                }
            }
            let changed = cluster.0.changed.notified();
            let due_at = self.fetch()?;
            if self.arriving.is_empty() {
                let retry_at = due_at.unwrap_or_else(|| Instant::now() + PULL_EXPIRES);
                let _timed_out_or_changed = tokio::time::timeout_at(retry_at, changed).await;
            }
        }
    }

    /// Fetches the messages that are available. Returns when to fetch again, if that is known.
    fn fetch(&mut self) -> Result<Option<Instant>, CarryError> {
        let now = self.link.cluster.now();
        let mut guard = self.link.cluster.state();
        let state = &mut *guard;
        if !state.is_reachable(&self.link.home, &self.link.target) {
            return Ok(None);
        }
        let longest = match self.link.home == self.link.target {
            true => state.faults.max_delay,
            false => state.faults.max_delay + state.faults.max_link_delay,
        };
        let missing = || CarryError::Missing { what: format!("consumer {} on stream {}", self.durable, self.stream) };
        let mut arrives_at = now.at;
        let mut is_all = false;
        for _ in 0..self.batch {
            let stream = state.stream(&self.link.target, &self.stream, now).ok_or_else(missing)?;
            if !stream.has_consumer(&self.durable) {
                return Err(missing());
            }
            let Some((message, attempts, pending)) = stream.deliver(&self.durable, now) else {
                is_all = true;
                break;
            };
            state.events.push(ClusterEvent::Delivered {
                server: self.link.target.clone(),
                stream: self.stream.clone(),
                durable: self.durable.clone(),
                sequence: message.sequence,
                attempts,
            });
            let ratio = state.faults.lost_delivery_ratio;
            if state.draw(ratio) {
                continue;
            }
            // Deliveries arrive in order, as on one connection.
            arrives_at = arrives_at.max(now.at + state.draw_delay(longest));
            let (link, stream, durable) = (self.link.clone(), self.stream.clone(), self.durable.clone());
            self.arriving.push_back((arrives_at, MemoryDelivery { link, stream, durable, message, attempts, pending }));
        }
        let stream = state.stream(&self.link.target, &self.stream, now).ok_or_else(missing)?;
        let due_at = stream.next_due(&self.durable);
        Ok(match is_all {
            // A message that is already due and was not delivered waits for others to be acknowledged
            // (max_ack_pending).
            true => due_at.filter(|at| *at > now.at),
            // More is available, but the whole batch may be lost.
            false => Some(now.at + LOST_BATCH_PAUSE),
        })
    }
}

/// A delivered message that is not yet acknowledged.
pub(crate) struct MemoryDelivery {
    link: MemoryLink,
    stream: String,
    durable: String,
    pub(crate) message: StoredMessage,
    pub(crate) attempts: u64,
    pub(crate) pending: u64,
}

impl MemoryDelivery {
    /// Sends an acknowledgement of any kind; nothing confirms that it arrives.
    pub(crate) fn acknowledge(&self, kind: AckKind) {
        self.link.send_ack(self, kind);
    }
}

/// A key-value bucket in memory: a stream that keeps the newest value of each key.
#[derive(Clone)]
pub(crate) struct MemoryBucket {
    link: MemoryLink,
    name: String,
}

impl MemoryBucket {
    pub(crate) async fn open(link: &MemoryLink, name: &str) -> Result<Self, CarryError> {
        let bucket = Self { link: link.clone(), name: name.into() };
        match link.has_bucket(&bucket.stream()).await? {
            true => Ok(bucket),
            false => Err(CarryError::Missing { what: format!("bucket {name}") }),
        }
    }

    fn stream(&self) -> String {
        format!("KV_{}", self.name)
    }

    fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.name)
    }

    pub(crate) async fn read_key(&self, key: &str) -> Result<KeyState, CarryError> {
        let last = self.link.last_message(&self.stream(), &self.subject(key)).await?;
        let revision = last.as_ref().map_or(0, |message| message.sequence);
        Ok(KeyState { value: last.filter(is_value).map(|message| message.payload), revision })
    }

    /// Writes a key; given a revision, only if that is still the key's latest.
    pub(crate) async fn write_key(
        &self,
        key: &str,
        value: Bytes,
        revision: Option<u64>,
    ) -> Result<(), MemoryPublishError> {
        let subject = format!("$JS.{}.API.{}", self.link.target, self.subject(key));
        self.link.publish(&subject, Vec::new(), value, revision).await.map(|_| ())
    }

    pub(crate) async fn watch(&self, keys: &str) -> Result<BoxStream<'static, (String, Bytes)>, CarryError> {
        let prefix = self.subject("");
        let range = StreamRange { subjects: vec![self.subject(keys)], ..StreamRange::default() };
        let (_, messages) = self.link.ordered(&self.stream(), range).await?;
        let good = messages.take_while(|message| ready(message.is_ok()));
        let values = good.filter_map(move |message| {
            let message = message.ok().map(|(message, _)| message).filter(is_value);
            let value = message.and_then(|m| Some((m.subject.strip_prefix(&prefix)?.to_owned(), m.payload)));
            ready(value)
        });
        Ok(values.boxed())
    }
}

/// Whether a bucket's message holds a value rather than a delete or purge marker.
fn is_value(message: &StoredMessage) -> bool {
    message.header("KV-Operation").is_none()
}

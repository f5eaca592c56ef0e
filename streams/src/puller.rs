//! Pulling from a durable consumer: asks for no more than the caller can hold, and recovers from every
//! failure of the pull itself.

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::Stream;
use async_nats::jetstream::{AckKind, Message};
use bytes::Bytes;
use futures::StreamExt;
use schemas::limits::MAX_MESSAGE_BYTES;

use crate::connect::Bus;
use crate::error::{CarryError, missing_or_failed};
use crate::reader::{StoredMessage, headers_of};

/// How long a pull request is open before it is renewed.
const EXPIRES: Duration = Duration::from_secs(30);
/// A pull request that was lost on the way is noticed after two of these.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The same over a link. When the hub reloads its accounts, because a site was added or revoked, it forgets the pull
/// requests of the others, and a message sent to a forgotten one comes again only after the ack wait. So none is old.
const EXPIRES_AFAR: Duration = Duration::from_secs(10);
const HEARTBEAT_AFAR: Duration = Duration::from_secs(5);
const REOPEN_DELAY: Duration = Duration::from_millis(250);
const MAX_REOPEN_DELAY: Duration = Duration::from_secs(5);

/// Bytes per pull request: twice the largest message, so that a batch of large ones stays small.
const BATCH_BYTES: usize = 2 * MAX_MESSAGE_BYTES;

/// Pulls messages of one durable consumer, which all pullers of that name share.
pub struct Puller {
    bus: Bus,
    stream: String,
    durable: String,
    batch: usize,
    open: Option<Stream>,
    /// Failures to open in a row.
    failures: u32,
}

impl Puller {
    /// A puller that looks its consumer up on first use and creates nothing. `batch`:
    /// messages per request; up to one and a half times as many may wait here unhandled.
    pub fn new(bus: &Bus, stream: &str, durable: &str, batch: usize) -> Self {
        let (bus, stream, durable) = (bus.clone(), stream.into(), durable.into());
        Self { bus, stream, durable, batch: batch.max(1), open: None, failures: 0 }
    }

    async fn reopen(&self) -> Result<Stream, CarryError> {
        let consumer: PullConsumer =
            self.bus.js.get_consumer_from_stream(&self.durable, &self.stream).await.map_err(|error| {
                missing_or_failed(error, format!("consumer {} on stream {}", self.durable, self.stream))
            })?;
        let (expires, heartbeat) = match self.bus.is_remote() {
            true => (EXPIRES_AFAR, HEARTBEAT_AFAR),
            false => (EXPIRES, HEARTBEAT),
        };
        consumer
            .stream()
            .max_messages_per_batch(self.batch)
            .max_bytes_per_batch(BATCH_BYTES)
            .expires(expires)
            .heartbeat(heartbeat)
            .messages()
            .await
            .map_err(CarryError::broker(format!("pulling from {}", self.stream)))
    }

    /// The next message; waits as long as it takes. Cancel-safe.
    pub async fn next(&mut self) -> Delivery {
        loop {
            let Some(open) = &mut self.open else {
                match self.reopen().await {
                    Ok(stream) => {
                        self.open = Some(stream);
                        self.failures = 0;
                    }
                    Err(error) => {
                        tracing::warn!(stream = self.stream, durable = self.durable, %error, "pull failed; retrying");
                        self.failures = self.failures.saturating_add(1);
                        tokio::time::sleep((REOPEN_DELAY * self.failures).min(MAX_REOPEN_DELAY)).await;
                    }
                }
                continue;
            };
            match open.next().await {
                Some(Ok(message)) => match Delivery::read(message) {
                    Some(delivery) => return delivery,
                    None => tracing::warn!(stream = self.stream, "message without delivery metadata skipped"),
                },
                Some(Err(error)) => {
                    tracing::debug!(stream = self.stream, durable = self.durable, %error, "pull interrupted; retrying");
                    self.open = None;
                    tokio::time::sleep(REOPEN_DELAY).await;
                }
                None => self.open = None,
            }
        }
    }
}

/// A message that awaits its acknowledgement.
pub struct Delivery {
    message: Message,
    /// Sequence in its stream, from 1.
    pub sequence: u64,
    /// Number of this delivery, from 1.
    pub attempts: u64,
    /// When the stream stored it, nanoseconds since the epoch.
    pub stored_at_ns: i128,
    /// Messages of its consumer that were not yet delivered at that time.
    pub pending: u64,
}

impl Delivery {
    fn read(message: Message) -> Option<Self> {
        let info = message.info().ok()?;
        let (sequence, attempts) = (info.stream_sequence, u64::try_from(info.delivered).unwrap_or(1));
        let stored_at_ns = info.published.unix_timestamp_nanos();
        let pending = info.pending;
        Some(Self { sequence, attempts, stored_at_ns, pending, message })
    }

    /// Subject of the message.
    pub fn subject(&self) -> &str {
        &self.message.subject
    }

    /// Payload, shared and not copied.
    pub fn payload(&self) -> &Bytes {
        &self.message.payload
    }

    /// The last value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.message.headers.as_ref()?.get_last(name).map(|value| value.as_str())
    }

    /// The message as a reader of the stream sees it.
    pub fn record(&self) -> StoredMessage {
        StoredMessage {
            subject: self.message.subject.to_string(),
            sequence: self.sequence,
            stored_at_ns: self.stored_at_ns,
            headers: headers_of(self.message.headers.as_ref()),
            payload: self.message.payload.clone(),
        }
    }

    /// Acknowledges the message: it is never delivered again. A lost acknowledgement causes another delivery.
    pub async fn ack(&self) -> Result<(), CarryError> {
        self.message.ack().await.map_err(CarryError::broker("acknowledging"))
    }

    /// Reports progress: the ack wait starts anew.
    pub async fn progress(&self) -> Result<(), CarryError> {
        self.message.ack_with(AckKind::Progress).await.map_err(CarryError::broker("reporting progress"))
    }

    /// Has the message delivered again after the delay, to any worker.
    pub async fn retry(&self, delay: Duration) -> Result<(), CarryError> {
        self.message.ack_with(AckKind::Nak(Some(delay))).await.map_err(CarryError::broker("returning a message"))
    }
}

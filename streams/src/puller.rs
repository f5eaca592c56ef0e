//! Pulling from a durable consumer: asks for no more than the caller can hold, and recovers from every
//! failure of the pull itself.

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::Stream;
use async_nats::jetstream::{AckKind, Message};
use bytes::Bytes;
use futures::StreamExt;
use schemas::limits::MAX_MESSAGE_BYTES;

use crate::backoff::{Backoff, wait_about};
use crate::connect::Bus;
use crate::error::{CarryError, missing_or_failed};
#[cfg(feature = "memory")]
use crate::memory::{MemoryDelivery, MemoryPull};
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
    backoff: Backoff,
    #[cfg(feature = "memory")]
    memory: Option<MemoryPull>,
}

impl Puller {
    /// A puller that looks its consumer up on first use and creates nothing. `batch`:
    /// messages per request; up to one and a half times as many may wait here unhandled.
    pub fn new(bus: &Bus, stream: &str, durable: &str, batch: usize) -> Self {
        let batch = batch.max(1);
        #[cfg(feature = "memory")]
        let memory = bus.memory().map(|link| MemoryPull::new(link, stream, durable, batch));
        Self {
            bus: bus.clone(),
            stream: stream.into(),
            durable: durable.into(),
            batch,
            open: None,
            backoff: Backoff::new(REOPEN_DELAY, MAX_REOPEN_DELAY),
            #[cfg(feature = "memory")]
            memory,
        }
    }

    async fn reopen(&self) -> Result<Stream, CarryError> {
        let consumer: PullConsumer =
            self.bus.nats()?.js.get_consumer_from_stream(&self.durable, &self.stream).await.map_err(|error| {
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
            #[cfg(feature = "memory")]
            if let Some(memory) = &mut self.memory {
                match memory.next().await {
                    Ok(delivery) => return Delivery::from_memory(delivery),
                    Err(_) => self.backoff.pause().await,
                }
                continue;
            }
            let Some(open) = &mut self.open else {
                match self.reopen().await {
                    Ok(stream) => {
                        self.open = Some(stream);
                        self.backoff.reset();
                    }
                    Err(error) => {
                        tracing::warn!(stream = self.stream, durable = self.durable, %error, "pull failed; retrying");
                        self.backoff.pause().await;
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
                    wait_about(REOPEN_DELAY).await;
                }
                None => self.open = None,
            }
        }
    }
}

/// A message that awaits its acknowledgement.
pub struct Delivery {
    message: DeliveredMessage,
    /// Sequence in its stream, from 1.
    pub sequence: u64,
    /// Number of this delivery, from 1.
    pub attempts: u64,
    /// When the stream stored it, nanoseconds since the epoch.
    pub stored_at_ns: i128,
    /// Messages of its consumer that were not yet delivered at that time.
    pub pending: u64,
}

/// The message of a delivery, and how its acknowledgement leaves.
enum DeliveredMessage {
    Nats(Message),
    #[cfg(feature = "memory")]
    Memory(MemoryDelivery),
}

impl Delivery {
    #[cfg(feature = "memory")]
    fn from_memory(delivery: MemoryDelivery) -> Self {
        let StoredMessage { sequence, stored_at_ns, .. } = delivery.message;
        let (attempts, pending) = (delivery.attempts, delivery.pending);
        Self { message: DeliveredMessage::Memory(delivery), sequence, attempts, stored_at_ns, pending }
    }

    fn read(message: Message) -> Option<Self> {
        let info = message.info().ok()?;
        let (sequence, attempts) = (info.stream_sequence, u64::try_from(info.delivered).unwrap_or(1));
        let stored_at_ns = info.published.unix_timestamp_nanos();
        let pending = info.pending;
        Some(Self { sequence, attempts, stored_at_ns, pending, message: DeliveredMessage::Nats(message) })
    }

    /// Subject of the message.
    pub fn subject(&self) -> &str {
        match &self.message {
            DeliveredMessage::Nats(message) => &message.subject,
            #[cfg(feature = "memory")]
            DeliveredMessage::Memory(delivery) => &delivery.message.subject,
        }
    }

    /// Payload, shared and not copied.
    pub fn payload(&self) -> &Bytes {
        match &self.message {
            DeliveredMessage::Nats(message) => &message.payload,
            #[cfg(feature = "memory")]
            DeliveredMessage::Memory(delivery) => &delivery.message.payload,
        }
    }

    /// The last value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        match &self.message {
            DeliveredMessage::Nats(message) => message.headers.as_ref()?.get_last(name).map(|value| value.as_str()),
            #[cfg(feature = "memory")]
            DeliveredMessage::Memory(delivery) => delivery.message.header(name),
        }
    }

    /// The message as a reader of the stream sees it.
    pub fn record(&self) -> StoredMessage {
        match &self.message {
            DeliveredMessage::Nats(message) => StoredMessage {
                subject: message.subject.to_string(),
                sequence: self.sequence,
                stored_at_ns: self.stored_at_ns,
                headers: headers_of(message.headers.as_ref()),
                payload: message.payload.clone(),
            },
            #[cfg(feature = "memory")]
            DeliveredMessage::Memory(delivery) => delivery.message.clone(),
        }
    }

    /// Acknowledges the message: it is never delivered again. A lost acknowledgement causes another delivery.
    pub async fn ack(&self) -> Result<(), CarryError> {
        self.tell(AckKind::Ack).await.map_err(CarryError::broker("acknowledging"))
    }

    /// Reports progress: the ack wait starts anew.
    pub async fn progress(&self) -> Result<(), CarryError> {
        self.tell(AckKind::Progress).await.map_err(CarryError::broker("reporting progress"))
    }

    /// Has the message delivered again after the delay, to any worker.
    pub async fn retry(&self, delay: Duration) -> Result<(), CarryError> {
        self.tell(AckKind::Nak(Some(delay))).await.map_err(CarryError::broker("returning a message"))
    }

    async fn tell(&self, word: AckKind) -> Result<(), async_nats::Error> {
        match &self.message {
            DeliveredMessage::Nats(message) => message.ack_with(word).await,
            #[cfg(feature = "memory")]
            DeliveredMessage::Memory(delivery) => {
                delivery.acknowledge(word);
                Ok(())
            }
        }
    }
}

//! Publishing with an acknowledgement, a bound on the bytes in flight, and retries under one id.
//!
//! Returned only when the stream has stored the message, had it already, or refused it for good.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use schemas::task::HEADER_MESSAGE_ID;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::connect::Bus;
use crate::error::{CarryError, is_full, is_taken, server_error};

/// Images awaiting their acknowledgement may hold this much memory. Above about 128 MB the server
/// answers 429; 32 MiB keeps it busy at every image size measured.
const MAX_IN_FLIGHT_KIB: usize = 32 * 1024;
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// A message on its way to a stream.
#[derive(Debug, Clone)]
pub struct Publication {
    /// Where it goes.
    pub subject: String,
    /// Its bytes.
    pub payload: Bytes,
    /// Names and values of its headers.
    pub headers: Vec<(Cow<'static, str>, String)>,
    /// Whether it may only be the first on its subject: the slot of a final answer.
    pub first_only: bool,
}

impl Publication {
    /// A message that is stored once under this id, inside the stream's duplicate window.
    pub fn with_id(subject: String, payload: impl Into<Bytes>, id: impl Into<String>) -> Self {
        Self {
            subject,
            payload: payload.into(),
            headers: vec![(HEADER_MESSAGE_ID.into(), id.into())],
            first_only: false,
        }
    }

    /// A message that is stored only if its subject has none yet, however long ago.
    pub fn first_on_subject(subject: String, payload: impl Into<Bytes>) -> Self {
        Self { subject, payload: payload.into(), headers: Vec::new(), first_only: true }
    }

    /// With one more header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn header_map(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers.insert(name.as_ref(), value.as_str());
        }
        headers
    }

    fn message(&self) -> PublishMessage {
        let message = PublishMessage::build().payload(self.payload.clone()).headers(self.header_map());
        if self.first_only { message.expected_last_subject_sequence(0) } else { message }
    }
}

/// Stores a message behind another, if that is still the last on its subject; 0: behind none. False if it is not.
///
/// # Errors
/// What else the server says.
pub async fn append_message(bus: &Bus, subject: &str, payload: Bytes, after_sequence: u64) -> Result<bool, CarryError> {
    let message = PublishMessage::build().payload(payload).expected_last_subject_sequence(after_sequence);
    let sent = async { bus.js.send_publish(subject.to_owned(), message).await?.await };
    match sent.await {
        Ok(_) => Ok(true),
        Err(error) if is_taken(&error) => Ok(false),
        Err(error) => Err(CarryError::broker(format!("publishing on {subject}"))(error)),
    }
}

/// Where a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishOutcome {
    /// Stored now, under this sequence.
    Stored(u64),
    /// Stored before, under this sequence.
    Duplicate(u64),
    /// Its slot holds another message, which stays.
    Taken,
}

/// Publishes; cheap to clone, clones share the bound on bytes in flight.
#[derive(Clone)]
pub struct Publisher {
    bus: Bus,
    room: Arc<Semaphore>,
    patience: Duration,
}

impl Publisher {
    /// `patience`: how long a message is retried before the caller hears of it.
    pub fn new(bus: Bus, patience: Duration) -> Self {
        Self { bus, room: Arc::new(Semaphore::new(MAX_IN_FLIGHT_KIB)), patience }
    }

    /// Publishes one message and waits for its acknowledgement. Waits first for room among the bytes
    /// in flight.
    ///
    /// # Errors
    /// `Full` and `TooLarge` at once; `NoStream` and `NoAck` when the patience is used up.
    pub async fn publish(&self, publication: &Publication) -> Result<PublishOutcome, CarryError> {
        let kib = (publication.payload.len() / 1024 + 1).min(MAX_IN_FLIGHT_KIB);
        let _room = self
            .room
            .acquire_many(u32::try_from(kib).unwrap_or(u32::MAX))
            .await
            .map_err(CarryError::broker("waiting for room"))?;
        let give_up_at = Instant::now() + self.patience;
        let mut delay = FIRST_DELAY;
        loop {
            match self.once(publication).await {
                Ok(placed) => return Ok(placed),
                Err(error) if is_taken(&error) => return Ok(PublishOutcome::Taken),
                Err(error) => match verdict(&error, publication, self.patience) {
                    Hopeless(CarryError::Full { subject, why }) => return Err(self.full(subject, why).await),
                    Hopeless(error) => return Err(error),
                    Passing(error) if Instant::now() + delay > give_up_at => return Err(error),
                    Passing(error) => tracing::debug!(subject = publication.subject, %error, "publishing again"),
                },
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(LONGEST_DELAY);
        }
    }

    /// A full stream with the reason, where somebody wrote one down.
    async fn full(&self, subject: String, why: String) -> CarryError {
        let reason = match subject.starts_with("image.") {
            true => crate::image_refusal::refusal_reason(&self.bus).await.ok().flatten(),
            false => None,
        };
        CarryError::Full { subject, why: reason.unwrap_or(why) }
    }

    async fn once(&self, publication: &Publication) -> Result<PublishOutcome, PublishError> {
        let ack = self.bus.js.send_publish(publication.subject.clone(), publication.message()).await?.await?;
        Ok(if ack.duplicate { PublishOutcome::Duplicate(ack.sequence) } else { PublishOutcome::Stored(ack.sequence) })
    }
}

enum PublishRetry {
    Hopeless(CarryError),
    Passing(CarryError),
}
use PublishRetry::{Hopeless, Passing};

fn verdict(error: &PublishError, publication: &Publication, patience: Duration) -> PublishRetry {
    let subject = publication.subject.clone();
    if let Some(refused) = server_error(error) {
        let (code, why) = (refused.error_code(), refused.to_string());
        if is_full(&refused) {
            return Hopeless(CarryError::Full { subject, why });
        }
        if code == ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM {
            return Hopeless(CarryError::TooLarge { subject, size_bytes: publication.payload.len() });
        }
        tracing::debug!(subject, code = code.0, why, "server refused a message");
    }
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => {
            Hopeless(CarryError::TooLarge { subject, size_bytes: publication.payload.len() })
        }
        PublishErrorKind::StreamNotFound => Passing(CarryError::NoStream { subject }),
        _ => Passing(CarryError::NoAck { subject, patience }),
    }
}

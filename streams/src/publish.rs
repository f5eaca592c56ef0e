//! Publishing with an acknowledgement, a limit on the bytes in flight, and retries under one message id.
//!
//! A publish returns only when the stream has stored the message, had stored it before, or refused it for good.

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

use crate::backoff::Backoff;
use crate::connect::Bus;
use crate::error::{CarryError, is_full, is_taken, server_error};
use crate::reader;
use crate::subject::slot_of;
use crate::subject_table::stored_in;
use crate::topology::DEAD;

/// Memory for messages that await their acknowledgement, KiB. Above about 128 MB the server
/// answers 429; 32 MiB keeps it busy at every image size measured.
const MAX_IN_FLIGHT_KIB: usize = 32 * 1024;
const FIRST_DELAY: Duration = Duration::from_millis(50);
const MAX_DELAY: Duration = Duration::from_secs(2);

/// A message to publish to a stream.
#[derive(Debug, Clone)]
pub struct Publication {
    /// Subject it is published on.
    pub subject: String,
    /// Payload of the message.
    pub payload: Bytes,
    /// Names and values of the headers.
    pub headers: Vec<(Cow<'static, str>, String)>,
    /// Whether it is stored only if its subject has no message yet, as in the slot of a final answer.
    pub first_only: bool,
}

impl Publication {
    /// A message that is stored once under this id within the stream's duplicate window.
    pub fn with_id(subject: String, payload: impl Into<Bytes>, id: impl Into<String>) -> Self {
        Self {
            subject,
            payload: payload.into(),
            headers: vec![(HEADER_MESSAGE_ID.into(), id.into())],
            first_only: false,
        }
    }

    /// A message that is stored only if its subject never had one.
    pub fn first_on_subject(subject: String, payload: impl Into<Bytes>) -> Self {
        Self { subject, payload: payload.into(), headers: Vec::new(), first_only: true }
    }

    /// Adds a header.
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

    /// Its headers with their names and values.
    #[cfg(feature = "memory")]
    pub(crate) fn header_list(&self) -> Vec<(String, String)> {
        self.headers.iter().map(|(name, value)| (name.to_string(), value.clone())).collect()
    }

    fn message(&self) -> PublishMessage {
        let message = PublishMessage::build().payload(self.payload.clone()).headers(self.header_map());
        if self.first_only { message.expected_last_subject_sequence(0) } else { message }
    }
}

/// Stores a message if `after_sequence` is still the last on its subject; 0: if the subject has none. False if it is
/// not.
///
/// # Errors
/// Any other error of the server.
pub async fn append_message(bus: &Bus, subject: &str, payload: Bytes, after_sequence: u64) -> Result<bool, CarryError> {
    in_memory!(bus, link => match link.publish(subject, Vec::new(), payload, Some(after_sequence)).await {
        Ok(_) => Ok(true),
        Err(failure) if failure.is_taken() => Ok(false),
        Err(failure) => Err(CarryError::broker(format!("publishing on {subject}"))(failure)),
    });
    let message = PublishMessage::build().payload(payload).expected_last_subject_sequence(after_sequence);
    let js = &bus.nats()?.js;
    let sent = async { js.send_publish(subject.to_owned(), message).await?.await };
    match sent.await {
        Ok(_) => Ok(true),
        Err(error) if is_taken(&error) => Ok(false),
        Err(error) => Err(CarryError::broker(format!("publishing on {subject}"))(error)),
    }
}

/// What became of a published message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishOutcome {
    /// Stored now, under this sequence.
    Stored(u64),
    /// Stored before, under this sequence: the same id within the stream's duplicate window, or, in the slot of a message
    /// that is stored only if it is the first, the same bytes. So is a message whose acknowledgement was lost.
    Duplicate(u64),
    /// Its slot holds another message, which stays.
    Taken,
}

/// Publishes messages; cheap to clone, and clones share the limit on bytes in flight.
#[derive(Clone)]
pub struct Publisher {
    bus: Bus,
    in_flight_kib: Arc<Semaphore>,
    timeout: Duration,
}

impl Publisher {
    /// `timeout`: how long a message is retried before an error is returned.
    pub fn new(bus: Bus, timeout: Duration) -> Self {
        Self { bus, in_flight_kib: Arc::new(Semaphore::new(MAX_IN_FLIGHT_KIB)), timeout }
    }

    /// The connection it publishes on.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Publishes one message and waits for its acknowledgement. Waits first until it fits in the limit on bytes
    /// in flight.
    ///
    /// # Errors
    /// `Full` and `TooLarge` at once; `NoStream` and `NoAck` after the timeout.
    pub async fn publish(&self, publication: &Publication) -> Result<PublishOutcome, CarryError> {
        let kib = (publication.payload.len() / 1024 + 1).min(MAX_IN_FLIGHT_KIB);
        let _permit = self
            .in_flight_kib
            .acquire_many(u32::try_from(kib).unwrap_or(u32::MAX))
            .await
            .map_err(CarryError::broker("waiting for the limit on bytes in flight"))?;
        let give_up_at = Instant::now() + self.timeout;
        let mut backoff = Backoff::new(FIRST_DELAY, MAX_DELAY);
        loop {
            let pause = backoff.next_pause();
            let published = match self.publish_once(publication).await {
                Ok(PublishOutcome::Taken) => self.compare_slot(publication).await,
                other => other,
            };
            match published {
                Ok(outcome) => return Ok(outcome),
                Err(Permanent(CarryError::Full { subject, why })) => return Err(self.full_error(subject, why).await),
                Err(Permanent(error)) => return Err(error),
                Err(Transient(error)) if Instant::now() + pause > give_up_at => return Err(error),
                Err(Transient(error)) => tracing::debug!(subject = publication.subject, %error, "publish retried"),
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Whether a slot that is taken holds this very message: it was stored, and the acknowledgement lost. Dead letters are
    /// not compared: each has a slot of its own, and who writes them may not read them.
    async fn compare_slot(&self, publication: &Publication) -> Result<PublishOutcome, PublishRetry> {
        let slot = slot_of(&publication.subject);
        let Some(stream) = stored_in(&slot).filter(|stream| *stream != DEAD) else { return Ok(PublishOutcome::Taken) };
        match reader::last_message(&self.bus, stream, &slot).await {
            Ok(Some(stored)) if stored.payload == publication.payload => {
                tracing::debug!(subject = publication.subject, sequence = stored.sequence, "message was stored before");
                Ok(PublishOutcome::Duplicate(stored.sequence))
            }
            Ok(_) => Ok(PublishOutcome::Taken),
            // Nobody knows whose message it is: asked again, as for an acknowledgement.
            Err(error) => Err(Transient(error)),
        }
    }

    /// The error for a full stream, with the janitor's reason where it noted one.
    async fn full_error(&self, subject: String, why: String) -> CarryError {
        let reason = match subject.starts_with("image.") {
            true => crate::image_refusal::refusal_reason(&self.bus).await.ok().flatten(),
            false => None,
        };
        CarryError::Full { subject, why: reason.unwrap_or(why) }
    }

    async fn publish_once(&self, publication: &Publication) -> Result<PublishOutcome, PublishRetry> {
        in_memory!(self.bus, link => {
            let expected = publication.first_only.then_some(0);
            let (subject, payload) = (publication.subject.as_str(), publication.payload.clone());
            match link.publish(subject, publication.header_list(), payload, expected).await {
                Ok(stored) if stored.is_duplicate => Ok(PublishOutcome::Duplicate(stored.sequence)),
                Ok(stored) => Ok(PublishOutcome::Stored(stored.sequence)),
                Err(failure) if failure.is_taken() => Ok(PublishOutcome::Taken),
                Err(failure) => Err(failure.classify(publication, self.timeout)),
            }
        });
        let js = &self.bus.nats().map_err(Permanent)?.js;
        let sent = async { js.send_publish(publication.subject.clone(), publication.message()).await?.await };
        match sent.await {
            Ok(ack) if ack.duplicate => Ok(PublishOutcome::Duplicate(ack.sequence)),
            Ok(ack) => Ok(PublishOutcome::Stored(ack.sequence)),
            Err(error) if is_taken(&error) => Ok(PublishOutcome::Taken),
            Err(error) => Err(classify_error(&error, publication, self.timeout)),
        }
    }
}

/// Whether a failed publish is worth a retry.
pub(crate) enum PublishRetry {
    Permanent(CarryError),
    Transient(CarryError),
}
use PublishRetry::{Permanent, Transient};

fn classify_error(error: &PublishError, publication: &Publication, timeout: Duration) -> PublishRetry {
    let subject = publication.subject.clone();
    if let Some(refused) = server_error(error) {
        let (code, why) = (refused.error_code(), refused.to_string());
        if is_full(&refused) {
            return Permanent(CarryError::Full { subject, why });
        }
        if code == ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM {
            return Permanent(CarryError::TooLarge { subject, size_bytes: publication.payload.len() });
        }
        tracing::debug!(subject, code = code.0, why, "message refused by the server");
    }
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => {
            Permanent(CarryError::TooLarge { subject, size_bytes: publication.payload.len() })
        }
        PublishErrorKind::StreamNotFound => Transient(CarryError::NoStream { subject }),
        _ => Transient(CarryError::NoAck { subject, timeout }),
    }
}

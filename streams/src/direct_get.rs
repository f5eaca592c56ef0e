//! Many stored messages for one question, without a consumer (Direct Get in batches, ADR-31 of the NATS architecture
//! documents): whoever asks needs no right to make anything, and leaves nothing behind.

use std::time::Duration;

use async_nats::StatusCode;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::Value;

use crate::connect::Bus;
use crate::error::CarryError;
use crate::reader::{StoredMessage, headers_of};

/// What the server says behind the last message of a batch.
const END_OF_BATCH: u16 = 204;
/// Between two messages of an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The messages that a question to a stream is answered with, oldest first. Nobody is asked to hold more than the question
/// says (`batch`, `max_bytes`), and no more than `most` are kept.
///
/// # Errors
/// That nobody answers in time, or what the server refuses.
pub(crate) async fn request_messages(
    bus: &Bus,
    stream: &str,
    question: &Value,
    most: usize,
) -> Result<Vec<StoredMessage>, CarryError> {
    let what = || format!("reading {stream}");
    let inbox = bus.client.new_inbox();
    let mut answers = bus.client.subscribe(inbox.clone()).await.map_err(CarryError::broker(what()))?;
    let question = serde_json::to_vec(question).map_err(CarryError::broker(what()))?;
    let subject = format!("{}.DIRECT.GET.{stream}", bus.api_prefix());
    let asked = bus.client.publish_with_reply(subject, inbox, Bytes::from(question)).await;
    asked.map_err(CarryError::broker(what()))?;
    let mut records = Vec::new();
    while records.len() < most {
        let next = tokio::time::timeout(PATIENCE, answers.next()).await;
        let Some(answer) = next.map_err(|_| CarryError::broker(what())("no answer in time"))? else {
            return Err(CarryError::broker(what())("the connection ended"));
        };
        match answer.status {
            None | Some(StatusCode::OK) => {}
            Some(StatusCode::NOT_FOUND) => break,
            Some(status) if status.as_u16() == END_OF_BATCH => break,
            Some(StatusCode::NO_RESPONDERS) => return Err(CarryError::Missing { what: format!("stream {stream}") }),
            Some(status) => {
                let words = answer.description.unwrap_or_default();
                return Err(CarryError::broker(what())(format!("refused: {status} {words}")));
            }
        }
        let headers = headers_of(answer.headers.as_ref());
        let header = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let time = header("Nats-Time-Stamp").and_then(|text| async_nats::datetime::parse_rfc3339(text).ok());
        let (Some(subject), Some(sequence), Some(time)) =
            (header("Nats-Subject"), header("Nats-Sequence").and_then(|text| text.parse().ok()), time)
        else {
            return Err(CarryError::broker(what())("an answer that does not say what it is"));
        };
        let (subject, stored_at_ns) = (subject.to_owned(), time.unix_timestamp_nanos());
        records.push(StoredMessage { subject, sequence, stored_at_ns, headers, payload: answer.payload });
    }
    Ok(records)
}

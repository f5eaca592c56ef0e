//! Reads many stored messages with one request and without a consumer (Direct Get in batches, ADR-31 of the NATS
//! architecture documents): the reader needs no permission to create anything and leaves nothing behind.

use std::time::Duration;

use async_nats::StatusCode;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::Value;

use crate::connect::Bus;
use crate::error::CarryError;
use crate::reader::{StoredMessage, headers_of};

/// Status that the server sends after the last message of a batch.
const END_OF_BATCH: u16 = 204;
/// Timeout between two messages of a reply.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The stored messages that answer a request to a stream, oldest first. The request limits what the server sends
/// (`batch`, `max_bytes`), and at most `most` messages are kept.
///
/// # Errors
/// No reply in time, or the server refuses.
pub(crate) async fn request_messages(
    bus: &Bus,
    stream: &str,
    question: &Value,
    max_messages: usize,
) -> Result<Vec<StoredMessage>, CarryError> {
    in_memory!(bus, link => link.request_messages(stream, question, max_messages).await);
    let what = || format!("reading {stream}");
    let client = &bus.nats()?.client;
    let inbox = client.new_inbox();
    let mut replies = client.subscribe(inbox.clone()).await.map_err(CarryError::broker(what()))?;
    let question = serde_json::to_vec(question).map_err(CarryError::broker(what()))?;
    let subject = format!("{}.DIRECT.GET.{stream}", bus.api_prefix());
    let asked = client.publish_with_reply(subject, inbox, Bytes::from(question)).await;
    asked.map_err(CarryError::broker(what()))?;
    let mut records = Vec::new();
    while records.len() < max_messages {
        let next = tokio::time::timeout(MESSAGE_TIMEOUT, replies.next()).await;
        let Some(reply) = next.map_err(|_| CarryError::broker(what())("no reply in time"))? else {
            return Err(CarryError::broker(what())("the connection ended"));
        };
        match reply.status {
            None | Some(StatusCode::OK) => {}
            Some(StatusCode::NOT_FOUND) => break,
            Some(status) if status.as_u16() == END_OF_BATCH => break,
            Some(StatusCode::NO_RESPONDERS) => return Err(CarryError::Missing { what: format!("stream {stream}") }),
            Some(status) => {
                let description = reply.description.unwrap_or_default();
                return Err(CarryError::broker(what())(format!("refused: {status} {description}")));
            }
        }
        let headers = headers_of(reply.headers.as_ref());
        let header = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let time = header("Nats-Time-Stamp").and_then(|text| async_nats::datetime::parse_rfc3339(text).ok());
        let (Some(subject), Some(sequence), Some(time)) =
            (header("Nats-Subject"), header("Nats-Sequence").and_then(|text| text.parse().ok()), time)
        else {
            return Err(CarryError::broker(what())("the reply lacks subject, sequence or time"));
        };
        let (subject, stored_at_ns) = (subject.to_owned(), time.unix_timestamp_nanos());
        records.push(StoredMessage { subject, sequence, stored_at_ns, headers, payload: reply.payload });
    }
    Ok(records)
}

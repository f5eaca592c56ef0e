//! Tap: messages as they pass, to look at and nothing else. Takes from no stream and keeps nothing; what
//! passed before or while nobody looked is not seen.

use bytes::Bytes;
use futures::{Stream, StreamExt};

use crate::connect::Bus;
use crate::error::CarryError;
use crate::reader::headers_of;
use crate::subject::check_pattern;

/// A message that passed.
#[derive(Debug, Clone)]
pub struct TapMessage {
    /// Its subject.
    pub subject: String,
    /// Names and first values of its headers.
    pub headers: Vec<(String, String)>,
    /// Its bytes.
    pub payload: Bytes,
    /// Whether its publisher asks for an answer.
    pub has_reply: bool,
}

/// What passes on a subject, which may hold wildcards, from now on. The server's own talk (`$…`, `_…`) is
/// left out unless the subject asks for it.
pub async fn watch_subject(bus: &Bus, pattern: &str) -> Result<impl Stream<Item = TapMessage> + use<>, CarryError> {
    check_pattern(pattern)?;
    let failed = CarryError::broker(format!("listening to {pattern}"));
    let messages = bus.client.subscribe(pattern.to_owned()).await.map_err(failed)?;
    let own = |subject: &str| subject.starts_with(['$', '_']);
    let all = own(pattern);
    Ok(messages.filter_map(move |message| {
        let passing = TapMessage {
            headers: headers_of(message.headers.as_ref()),
            subject: message.subject.to_string(),
            has_reply: message.reply.is_some(),
            payload: message.payload,
        };
        let shown = all || !own(&passing.subject);
        async move { shown.then_some(passing) }
    }))
}

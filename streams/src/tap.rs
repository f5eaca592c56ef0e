//! Shows messages as they are published. Takes from no stream and stores nothing; messages published
//! before or while nobody watched are not seen.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::connect::Bus;
use crate::error::CarryError;
use crate::reader::headers_of;
use crate::subject::check_pattern;

/// A message seen by the tap.
#[derive(Debug, Clone)]
pub struct TapMessage {
    /// Its subject.
    pub subject: String,
    /// Names and first values of its headers.
    pub headers: Vec<(String, String)>,
    /// Its bytes.
    pub payload: Bytes,
    /// Whether its publisher asks for a reply.
    pub has_reply: bool,
}

/// Messages published from now on, on a subject that may contain wildcards. The server's internal subjects (`$…`,
/// `_…`) are omitted unless the pattern names them.
pub async fn watch_subject(bus: &Bus, pattern: &str) -> Result<BoxStream<'static, TapMessage>, CarryError> {
    check_pattern(pattern)?;
    let failed = CarryError::broker(format!("subscribing to {pattern}"));
    let own = |subject: &str| subject.starts_with(['$', '_']);
    let all = own(pattern);
    let shown = move |message: &TapMessage| futures::future::ready(all || !own(&message.subject));
    in_memory!(bus, link => Ok(link.tap(pattern).filter(shown).boxed()));
    let messages = bus.nats()?.client.subscribe(pattern.to_owned()).await.map_err(failed)?;
    let messages = messages.map(|message| TapMessage {
        headers: headers_of(message.headers.as_ref()),
        subject: message.subject.to_string(),
        has_reply: message.reply.is_some(),
        payload: message.payload,
    });
    Ok(messages.filter(shown).boxed())
}

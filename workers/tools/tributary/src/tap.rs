//! `tributary tap`: any message as it passes, decoded.

use anyhow::Context;
use futures::StreamExt;
use runtime::clock;
use runtime::settings::LoadedSettings;
use serde::Serialize;
use serde_json::Value;
use streams::subject_table::SUBJECTS;
use streams::tap::{TapMessage, watch_subject};

use crate::settings::Settings;
use crate::{format, site_target, stdout};

/// Longer text that is no message of ours is shown by its length.
const MAX_TEXT_BYTES: usize = 1000;
/// What is on the server besides messages of ours.
const WIDER: [&str; 3] = ["*", ">", "$JS"];

const EXAMPLES: &str = "\
Images and answers never leave the site's server, so --cloud shows none of them. The server's own talk is
left out unless the subject begins with $ or _.

Examples:
  tributary tap 'answer.>'                      every answer of this site, as it is made
  tributary tap 'image.*.cam-1' --count 1       whether anything comes from a camera
  tributary tap 'verify.>' --cloud --json       what arrives in the cloud, one JSON object a line";

/// Every subject there is, and the examples.
fn help() -> String {
    let mut lines = vec!["`*` stands for one word of a subject, `>` for all that follow. What exists:".to_owned()];
    lines.extend(SUBJECTS.iter().map(|row| format!("  {:<37} {}", row.form, row.carries)));
    lines.push(EXAMPLES.into());
    lines.join("\n")
}

/// Look at messages as they pass, decoded.
///
/// Listens beside the streams: takes nothing, delays nothing, and sees only what passes from now on. For
/// what is stored already, use `answers` and `dead`.
#[derive(clap::Args)]
#[command(after_help = help())]
pub struct TapArgs {
    /// What to listen to, for example 'answer.>'; in quotes, for the shell would take the signs.
    #[arg(value_name = "SUBJECT")]
    subject: String,
    /// Listen at the cloud's server instead of the site's.
    #[arg(long)]
    cloud: bool,
    /// End after so many messages.
    #[arg(long, short = 'n', value_name = "N")]
    count: Option<u64>,
    /// JSON, one object a line.
    #[arg(long)]
    json: bool,
}

/// A message for people and programs to look at.
#[derive(Serialize)]
struct TapLine {
    at_ms: u64,
    subject: String,
    size_bytes: usize,
    headers: serde_json::Map<String, Value>,
    body: Value,
}

/// Shows messages until there were enough.
pub async fn command(loaded: &LoadedSettings<Settings>, args: &TapArgs) -> anyhow::Result<()> {
    streams::subject::check_pattern(&args.subject)?;
    let first = args.subject.split('.').next().unwrap_or_default();
    let is_known = SUBJECTS.iter().any(|row| row.form.split('.').next() == Some(first)) || WIDER.contains(&first);
    if !is_known && !first.starts_with(['$', '_']) {
        tracing::warn!(
            subject = args.subject,
            "nothing of Tributary's is on such a subject (`tributary tap --help` lists them)"
        );
    }
    let bus =
        if args.cloud { site_target::cloud(loaded, "tap").await? } else { site_target::open(loaded, "tap").await?.bus };
    let mut passing = std::pin::pin!(watch_subject(&bus, &args.subject).await?);
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let message = passing.next().await.context("server closed the connection")?;
        let shown = shown(&message, clock::now_ms());
        if args.json { stdout::json_line(&shown) } else { stdout::print_line(text(&shown)) }?;
        left -= 1;
    }
    Ok(())
}

fn shown(message: &TapMessage, at_ms: u64) -> TapLine {
    let headers = message.headers.iter().map(|(name, value)| (name.clone(), value.as_str().into()));
    TapLine {
        at_ms,
        subject: message.subject.clone(),
        size_bytes: message.payload.len(),
        headers: headers.collect(),
        body: body(&message.payload),
    }
}

/// A message of ours as JSON, JSON as it is, short text as text, a picture by its kind, the rest by length.
fn body(payload: &[u8]) -> Value {
    if payload.is_empty() {
        return Value::Null;
    }
    if let Ok((format, width_px, height_px)) = vision::dimensions(payload) {
        return format!("<image/{} {width_px}x{height_px}, {} bytes>", format.name(), payload.len()).into();
    }
    if let Some(message) = schemas::codec::to_json(payload) {
        return message;
    }
    match std::str::from_utf8(payload) {
        Ok(text) => match serde_json::from_str(text) {
            Ok(value @ (Value::Object(_) | Value::Array(_))) => value,
            _ if text.len() <= MAX_TEXT_BYTES => text.into(),
            _ => format!("<text {} bytes>", payload.len()).into(),
        },
        Err(_) => format!("<{} bytes>", payload.len()).into(),
    }
}

fn text(shown: &TapLine) -> String {
    let TapLine { at_ms, subject, size_bytes, headers, body } = shown;
    let mut text = format!("{}  {}  {size_bytes} bytes", format::format_time(*at_ms), format::plain_number(subject));
    for (name, value) in headers {
        text.push_str(&format!("\n  {name}: {}", format::plain_number(value.as_str().unwrap_or_default())));
    }
    match body {
        Value::Null => text,
        Value::String(body) => text + "\n  " + &format::plain_number(body),
        body => text + "\n  " + &body.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_shown_by_its_kind_and_size() {
        let picture = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../fixtures/images/fashion/coat");
        let path = std::fs::read_dir(picture).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(body(&bytes), format!("<image/png 28x28, {} bytes>", bytes.len()));
    }

    #[test]
    fn json_and_text_are_shown_and_other_bytes_are_counted() {
        assert_eq!(body(br#"{"a":1}"#)["a"], 1);
        assert_eq!(body(b"hello"), "hello");
        assert_eq!(body(&[0xff, 0xfe, 0]), "<3 bytes>");
        assert_eq!(body(b""), Value::Null);
    }
}

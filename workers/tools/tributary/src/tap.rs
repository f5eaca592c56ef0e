//! `tributary tap`: messages as they pass, decoded.

use anyhow::Context;
use futures::StreamExt;
use runtime::clock;
use runtime::settings::LoadedSettings;
use serde::Serialize;
use serde_json::Value;
use streams::fleet;
use streams::subject_table::SUBJECTS;
use streams::tap::{TapMessage, watch_subject};

use crate::settings::Settings;
use crate::{format, site_target, stdout};

/// Longer text that is no Tributary message is shown by its length.
const MAX_TEXT_BYTES: usize = 1000;
/// Word for the heartbeats of all workers, which are entries of a bucket.
const HEARTBEATS: &str = "heartbeats";
/// First tokens of patterns that reach beyond Tributary's subjects.
const WIDE_PATTERNS: [&str; 3] = ["*", ">", "$JS"];

const EXAMPLES: &str = "\
Images and answers never leave the site's server, so --cloud shows none of them. The server's own messages are omitted \
unless the subject begins with $ or _.

Examples:
  tributary tap 'answer.>'                        every answer of this site
  tributary tap 'image.*.cam-1' --count 1         does this camera publish?
  tributary tap 'verify.>' --cloud --json         requests that reach the cloud
  tributary tap heartbeats --json                 everything that workers say of themselves";

/// The table of subjects, and the examples.
fn help() -> String {
    let mut lines = vec!["`*` matches one token of a subject, `>` all that follow. Subjects:".to_owned()];
    lines.extend(SUBJECTS.iter().map(|row| format!("  {:<37} {}", row.form, row.carries)));
    lines.push(format!("  {HEARTBEATS:<37} heartbeats of all workers, every few seconds"));
    lines.push(EXAMPLES.into());
    lines.join("\n")
}

/// Watch messages as they pass, decoded.
///
/// Shows messages from now on, without consuming or delaying them. For stored messages, use `answers` and
/// `dead-letters`.
#[derive(clap::Args)]
#[command(after_help = help())]
pub(crate) struct TapArgs {
    /// Subject or pattern to watch, quoted for the shell: 'answer.>'; or `heartbeats`.
    #[arg(value_name = "SUBJECT")]
    subject: String,
    /// Watch the cloud's server instead of the site's.
    #[arg(long)]
    cloud: bool,
    /// Stop after N messages.
    #[arg(long, short = 'n', value_name = "N")]
    count: Option<u64>,
    /// Print JSON, one object per line.
    #[arg(long)]
    json: bool,
}

/// A message as it is printed.
#[derive(Serialize)]
struct TapLine {
    at_ms: u64,
    subject: String,
    size_bytes: usize,
    headers: serde_json::Map<String, Value>,
    body: Value,
}

/// Prints messages until the count is reached.
pub(crate) async fn command(loaded: &LoadedSettings<Settings>, args: &TapArgs) -> anyhow::Result<()> {
    let heartbeats = fleet::heartbeats_pattern();
    let pattern = if args.subject == HEARTBEATS { heartbeats.as_str() } else { args.subject.as_str() };
    streams::subject::check_pattern(pattern)?;
    let first = pattern.split('.').next().unwrap_or_default();
    let is_known =
        SUBJECTS.iter().any(|row| row.form.split('.').next() == Some(first)) || WIDE_PATTERNS.contains(&first);
    if !is_known && !first.starts_with(['$', '_']) {
        stdout::print_note(format_args!(
            "no Tributary message has a subject like {}: `tributary tap --help` lists the subjects",
            format::plain_text(&args.subject)
        ));
    }
    let bus =
        if args.cloud { site_target::cloud(loaded, "tap").await? } else { site_target::open(loaded, "tap").await?.bus };
    let mut passing = std::pin::pin!(watch_subject(&bus, pattern).await?);
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let message = passing.next().await.context("the server closed the connection")?;
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

/// A Tributary message as JSON, JSON as it is, short text as text, an image by format and size, the rest by length.
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
    let mut text = format!("{}  {}  {size_bytes} bytes", format::format_time(*at_ms), format::plain_text(subject));
    for (name, value) in headers {
        text.push_str(&format!("\n  {name}: {}", format::plain_text(value.as_str().unwrap_or_default())));
    }
    match body {
        Value::Null => text,
        Value::String(body) => text + "\n  " + &format::plain_text(body),
        body => text + "\n  " + &body.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_shown_by_its_format_and_size() {
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

//! Standard output: one place that writes to it. A reader that has seen enough (`| head`) ends the command
//! quietly and is no error.

use std::fmt;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

/// Nobody reads any more.
#[derive(Debug)]
struct StdoutClosed;

impl fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// Writes text as it is, and sends it on at once.
pub fn print_text(text: impl fmt::Display) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        written => written.context("standard output cannot be written"),
    }
}

/// Writes one line.
pub fn print_line(line: impl fmt::Display) -> anyhow::Result<()> {
    print_text(format_args!("{line}\n"))
}

/// Writes one JSON object in one line.
pub fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    print_line(serde_json::to_string(value)?)
}

/// Writes JSON for people to look at.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    print_line(serde_json::to_string_pretty(value)?)
}

/// Says something besides what was asked for, on standard error.
pub fn print_note(note: impl fmt::Display) {
    eprintln!("{note}");
}

/// A command's end: that nobody reads any more is a good one. What went wrong is said on standard error.
pub fn is_closed(ended: anyhow::Result<()>) -> ExitCode {
    match ended {
        Err(error) if !error.is::<StdoutClosed>() => {
            print_note(format_args!("error: {}", with_causes(&error, "\n  because: ")));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// An error and its causes; many repeat their cause in their own text.
pub fn with_causes(error: &anyhow::Error, between: &str) -> String {
    error.chain().fold(String::new(), |mut text, cause| {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            let before = if text.is_empty() { "" } else { between };
            text.push_str(before);
            text.push_str(&cause);
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_its_causes_once() {
        let error =
            anyhow::anyhow!("disk is full").context("file cannot be written: disk is full").context("no report");
        assert_eq!(with_causes(&error, ": "), "no report: file cannot be written: disk is full");
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error() {
        assert_eq!(is_closed(Err(anyhow::Error::new(StdoutClosed).context("list"))), ExitCode::SUCCESS);
        assert_eq!(is_closed(Err(anyhow::anyhow!("broken"))), ExitCode::FAILURE);
    }
}

//! Standard output: the only place that writes to it. A reader that closes it (`| head`) ends the command quietly,
//! without an error.

use std::fmt;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

/// The reader has closed standard output.
#[derive(Debug)]
struct StdoutClosed;

impl fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// Writes text as it is, and flushes it.
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

/// Writes indented JSON.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    print_line(serde_json::to_string_pretty(value)?)
}

/// Sets a field of a JSON object.
pub fn set_field(object: &mut serde_json::Value, name: &str, value: serde_json::Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(name.to_owned(), value);
    }
}

/// Writes a note to standard error, beside the result on standard output.
pub fn print_note(note: impl fmt::Display) {
    eprintln!("{note}");
}

/// The exit code of a command; its error goes to standard error. A closed standard output is a success.
pub fn exit_code(ended: anyhow::Result<()>) -> ExitCode {
    match ended {
        Err(error) if !error.is::<StdoutClosed>() => {
            print_note(format_args!("error: {}", with_causes(&error, "\n  because: ")));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// An error and its causes, without those that its text already includes.
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
    fn an_error_names_its_causes_once() {
        let error =
            anyhow::anyhow!("disk is full").context("file cannot be written: disk is full").context("no report");
        assert_eq!(with_causes(&error, ": "), "no report: file cannot be written: disk is full");
    }

    #[test]
    fn a_closed_standard_output_is_no_error() {
        assert_eq!(exit_code(Err(anyhow::Error::new(StdoutClosed).context("list"))), ExitCode::SUCCESS);
        assert_eq!(exit_code(Err(anyhow::anyhow!("broken"))), ExitCode::FAILURE);
    }
}

//! OpenTelemetry traces: each image has one trace, with a span for each stage that it passes at the site and in the
//! cloud.
//!
//! A stage reads the `traceparent` header of the message that it handles, and writes its own span into the messages
//! that it publishes. If the setting `telemetry.otlp` names a collector, spans are sent to it; otherwise a stage only
//! passes the received header on. No stage waits for the collector: spans that do not fit in the queue are counted and
//! dropped.

mod exporter;
mod otlp;
mod span;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use schemas::FaultNote;
use serde::{Deserialize, Serialize};

use crate::fault::Fault;

pub use span::{SpanKind, StageSpan, current};

/// This process's exporter; empty if no collector is set.
static EXPORTER: OnceLock<exporter::SpanExporter> = OnceLock::new();

/// Settings for traces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySettings {
    /// URL of a collector that accepts OTLP over HTTP, such as `http://127.0.0.1:4318`; if absent, no traces are sent.
    pub otlp: Option<String>,
    /// Share of the traces begun here that are sent, 0 to 1. A trace that a camera began is sent if its header says
    /// sampled.
    pub sample_ratio: f64,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self { otlp: None, sample_ratio: 1.0 }
    }
}

impl TelemetrySettings {
    /// Checks the settings.
    pub fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            return Err(format!("sample_ratio is {}; it must be between 0 and 1", self.sample_ratio));
        }
        self.otlp.as_deref().map_or(Ok(()), |address| exporter::spans_url(address).map(|_| ()))
    }
}

/// Starts the exporter if the settings name a collector. The collector need not be reachable yet.
///
/// # Errors
/// The URL is invalid, or the HTTP client cannot be created.
pub fn start(settings: &TelemetrySettings) -> Result<(), Fault> {
    let Some(address) = &settings.otlp else { return Ok(()) };
    let failed = |why: String| {
        let remedy = "set telemetry.otlp to the URL of a collector that accepts OTLP over HTTP, or omit it";
        Fault::Stop(FaultNote::new("telemetry_not_started", why, remedy))
    };
    let exporter = exporter::SpanExporter::start(address, settings.sample_ratio).map_err(failed)?;
    let _already_started = EXPORTER.set(exporter);
    Ok(())
}

/// Sends the queued spans before the process ends; gives up after `limit`.
pub async fn finish(limit: Duration) {
    if let Some(exporter) = EXPORTER.get() {
        exporter.finish(limit).await;
    }
}

/// The queue for this process's spans; absent if no collector is set.
fn sink() -> Option<Arc<exporter::SpanSink>> {
    EXPORTER.get().map(|exporter| exporter.sink.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_settings_are_refused_with_key_value_and_range() {
        let check = |otlp: &str, sample_ratio: f64| TelemetrySettings { otlp: Some(otlp.into()), sample_ratio }.check();
        for address in ["http://127.0.0.1:4318", "http://collector:4318/", "https://otlp.example/v1/traces"] {
            assert_eq!(check(address, 0.5), Ok(()), "{address}");
        }
        for (address, wrong) in [
            ("collector:4318", "\"collector:4318\""),
            ("", "\"\""),
            ("ftp://collector", "\"ftp://collector\""),
            ("http://collector:4318?key=1", "?key=1"),
        ] {
            let why = check(address, 1.0).unwrap_err();
            assert!(why.starts_with("otlp") && why.contains(wrong) && why.contains("4318"), "{why}");
        }
        let why = check("http://me:secret@collector:4318", 1.0).unwrap_err();
        assert!(why.starts_with("otlp") && !why.contains("secret"), "{why}");
        for ratio in [-0.1, 1.1, f64::NAN] {
            let why = check("http://collector:4318", ratio).unwrap_err();
            assert!(why.contains("sample_ratio") && why.contains("between 0 and 1"), "{why}");
        }
        assert_eq!(TelemetrySettings::default().check(), Ok(()));
    }
}

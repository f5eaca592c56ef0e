//! Logging to standard error: text for people or JSON for programs.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Initializes logging once. `TRIBUTARY_LOG` sets the levels, such as `debug` or `info,streams=trace`;
/// without it `level` applies. JSON lines if `json`.
pub fn init_logging(level: &str, json: bool) {
    let filter = EnvFilter::try_from_env("TRIBUTARY_LOG")
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},async_nats=error,ort=warn")));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let set = if json { log.json().try_init() } else { log.with_target(false).try_init() };
    if let Err(error) = set {
        tracing::debug!(%error, "logging already initialized");
    }
}

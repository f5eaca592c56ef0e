//! Logging to standard error: text for people or JSON for programs.

use std::io::IsTerminal;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Initializes logging once. `TRIBUTARY_LOG` sets the levels, such as `debug` or `info,streams=trace`;
/// without it `level` applies. JSON lines if `json`.
pub fn init_logging(level: &str, json: bool) {
    let filter = std::env::var("TRIBUTARY_LOG")
        .ok()
        .and_then(|levels| parse_levels(&levels))
        .or_else(|| parse_levels(&format!("{level},async_nats=error,ort=warn")))
        .unwrap_or_default();
    let filtered = tracing_subscriber::registry().with(filter);
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let set =
        if json { filtered.with(log.json()).try_init() } else { filtered.with(log.with_target(false)).try_init() };
    if let Err(error) = set {
        tracing::debug!(%error, "logging already initialized");
    }
}

/// Levels by target, such as `info,streams=trace`; none if nothing is said, or not in this form.
fn parse_levels(text: &str) -> Option<Targets> {
    let levels: Vec<&str> = text.split(',').map(str::trim).filter(|level| !level.is_empty()).collect();
    if levels.is_empty() { None } else { levels.join(",").parse().ok() }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn levels_are_read_by_target_and_what_is_not_in_their_form_is_none() {
        let levels = parse_levels(" info, streams=trace,, ").unwrap();
        let enabled = |target, level| levels.would_enable(target, &level);
        assert!(enabled("courier", Level::INFO) && !enabled("courier", Level::DEBUG));
        assert!(enabled("streams::pull", Level::TRACE));
        for text in ["", " ", ",", "streams=loud", "streams=info=debug"] {
            assert!(parse_levels(text).is_none(), "{text:?}");
        }
    }
}

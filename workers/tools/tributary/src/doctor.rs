//! `tributary doctor`: what on this machine, in the settings and on the servers breaks a promise.

mod machine_checks;
mod server_checks;

use anyhow::bail;
use runtime::settings::LoadedSettings;
use serde::Serialize;

use crate::settings::Settings;
use crate::{format, site_target, stdout};

const EXAMPLES: &str = "\
`ok` is as it should be. `warn` works and is worth knowing. `bad` does not work, or breaks a promise, which is
then named; the exit status is 1 if something is bad. Nothing is changed.

Examples:
  tributary doctor                                    this machine and the running `tributary up`
  tributary doctor --nats nats://127.0.0.1:4222       a server of your own
  tributary doctor --json | jq '.[] | select(.state != \"ok\")'";

/// Check this machine, the settings and the servers for what breaks a promise.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DoctorArgs {
    /// Print the checks as JSON.
    #[arg(long)]
    json: bool,
}

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum CheckStatus {
    Ok,
    Warn,
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct DoctorCheck {
    state: CheckStatus,
    /// What was looked at.
    what: String,
    /// What was found.
    found: String,
    /// The promise that is broken by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    breaks: Option<&'static str>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl DoctorCheck {
    fn ok(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { state: CheckStatus::Ok, what: what.into(), found: found.into(), breaks: None, remedy: None }
    }

    fn warn(what: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: CheckStatus::Warn, remedy: Some(remedy.into()), ..Self::ok(what, found) }
    }

    fn bad(what: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: CheckStatus::Bad, ..Self::warn(what, found, remedy) }
    }

    fn breaks(self, promise: &'static str) -> Self {
        Self { breaks: Some(promise), ..self }
    }
}

/// Looks at everything and says how it is.
pub async fn command(loaded: &LoadedSettings<Settings>, args: &DoctorArgs) -> anyhow::Result<()> {
    let settings = loaded.settings.clone();
    let mut checks = tokio::task::spawn_blocking(move || machine_checks::checks(&settings)).await?;
    match site_target::open(loaded, "doctor").await {
        Ok(site) => checks.extend(server_checks::checks(&site, &loaded.settings).await),
        Err(error) => {
            let found = stdout::with_causes(&error, ": ");
            checks.push(DoctorCheck::bad(
                "server",
                found,
                "streams, consumers and the cloud cannot be looked at without it",
            ));
        }
    }
    if args.json {
        stdout::json(&checks)?;
    } else {
        stdout::print_line(text(&checks))?;
    }
    match checks.iter().filter(|check| check.state == CheckStatus::Bad).count() {
        0 => Ok(()),
        bad => bail!("{} bad", if bad == 1 { "1 check is".into() } else { format!("{bad} checks are") }),
    }
}

fn text(checks: &[DoctorCheck]) -> String {
    let mut lines = Vec::new();
    let width = checks.iter().map(|check| check.what.len()).max().unwrap_or(0);
    let indent = " ".repeat(width + 7);
    for DoctorCheck { state, what, found, breaks, remedy } in checks {
        lines.push(format!("{:4}  {what:width$} {}", format::wire_word(state), format::plain_number(found)));
        lines.extend(breaks.iter().map(|promise| format!("{indent}breaks the promise: {promise}")));
        lines.extend(remedy.iter().map(|remedy| format!("{indent}{remedy}")));
    }
    lines.join("\n")
}

//! `tributary doctor`: checks this machine, the settings and the servers.

mod machine_checks;
mod server_checks;

use anyhow::bail;
use runtime::settings::LoadedSettings;
use serde::Serialize;

use crate::settings::Settings;
use crate::{format, site_target, stdout};

const EXAMPLES: &str = "\
Each check is `ok`, `warn` (works, but worth knowing) or `bad` (does not work, or breaks a guarantee, which is named). \
Fails if one is bad. Changes nothing.

Examples:
  tributary doctor                                this machine and the running `tributary up`
  tributary doctor --nats nats://127.0.0.1:4222   your own server
  tributary doctor --json | jq '.[] | select(.state != \"ok\")'";

/// Check this machine, the settings and the servers for problems.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DoctorArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum CheckStatus {
    Ok,
    Warn,
    Bad,
}

/// One check with its result.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct DoctorCheck {
    state: CheckStatus,
    /// What was checked.
    what: String,
    /// What was found.
    found: String,
    /// The guarantee that this breaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    breaks: Option<&'static str>,
    /// What to do.
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

    fn breaks(self, guarantee: &'static str) -> Self {
        Self { breaks: Some(guarantee), ..self }
    }
}

/// Runs all checks and prints them.
pub(crate) async fn command(loaded: &LoadedSettings<Settings>, args: &DoctorArgs) -> anyhow::Result<()> {
    let settings = loaded.settings.clone();
    let mut checks = tokio::task::spawn_blocking(move || machine_checks::checks(&settings)).await?;
    match site_target::open(loaded, "doctor").await {
        Ok(site) => checks.extend(server_checks::checks(&site, &loaded.settings).await),
        Err(error) => {
            let found = stdout::with_causes(&error, ": ");
            checks.push(DoctorCheck::bad(
                "server",
                found,
                "start it; streams, consumers and the cloud cannot be checked without it",
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
        lines.push(format!("{:4}  {what:width$} {}", format::wire_word(state), format::plain_text(found)));
        lines.extend(breaks.iter().map(|guarantee| format!("{indent}breaks the guarantee: {guarantee}")));
        lines.extend(remedy.iter().map(|remedy| format!("{indent}{remedy}")));
    }
    lines.join("\n")
}

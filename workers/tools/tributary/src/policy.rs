//! `tributary policy`: show or choose the policy that decides where images are recognized.

use std::str::FromStr;

use offload::policy::{POLICIES, PolicyName};
use recognizer::signals::{POLICY_NOTE, PolicyOverride};
use runtime::settings::LoadedSettings;
use streams::fleet::{self, Ledger};

use crate::settings::Settings;
use crate::{audit, format, site_target, stdout};

const EXAMPLES: &str = "\
Policies:
  earliest-finish   offload an image if the cloud is predicted to finish sooner (default)
  paper             offload above the load limit while the link is good, else hold
  edge-only         send nothing up; doubtful answers are final as they are
  cloud-only        send every image up

The choice is stored at the site's server and applies to all its recognizers, at once and after restarts. Without one, \
the settings of each recognizer apply (recognizer.policy.name).

Examples:
  tributary policy                                the current policy, and its last decisions
  tributary policy edge-only                      send nothing up from now on
  tributary policy --clear                        return to the configured policy";

/// Show or choose the policy that decides where images are recognized.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct PolicyArgs {
    /// Policy to choose; omit it to show the current one.
    #[arg(value_name = "NAME", value_parser = <PolicyName as FromStr>::from_str)]
    name: Option<PolicyName>,
    /// Clear the override; return to the configured policy.
    #[arg(long, conflicts_with = "name")]
    clear: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Shows or chooses the policy.
pub async fn command(loaded: &LoadedSettings<Settings>, args: &PolicyArgs) -> anyhow::Result<()> {
    let site = site_target::open(loaded, "policy").await?;
    let ledger = Ledger::open(&site.bus).await?;
    if let Some(name) = args.name {
        let chosen = PolicyOverride { name };
        ledger.write(POLICY_NOTE, serde_json::to_string(&chosen)?).await?;
        audit::record_command(&site.bus, &site.name, "policy set", format!("{name}")).await;
        return stdout::print_line(format_args!("site {}: policy {name} chosen", site.name));
    }
    if args.clear {
        ledger.write(POLICY_NOTE, serde_json::to_string(&None::<PolicyOverride>)?).await?;
        audit::record_command(&site.bus, &site.name, "policy clear", "").await;
        return stdout::print_line(format_args!(
            "site {}: override cleared; the settings of each recognizer apply",
            site.name
        ));
    }
    let note = ledger.read(POLICY_NOTE).await?;
    let chosen: Option<PolicyOverride> = note.and_then(|note| serde_json::from_str(&note).ok()).flatten();
    let beats = fleet::live_workers(&site.bus).await?;
    let decisions: Vec<_> = beats.into_iter().filter_map(|beat| Some((beat.worker, beat.decision?))).collect();
    if args.json {
        let decisions: serde_json::Map<String, serde_json::Value> = decisions
            .into_iter()
            .map(|(worker, decision)| Ok((worker, serde_json::to_value(decision)?)))
            .collect::<anyhow::Result<_>>()?;
        return stdout::json(&serde_json::json!({ "chosen": chosen, "recognizers": decisions }));
    }
    stdout::print_line(match &chosen {
        Some(chosen) => format!("site {}: {} was chosen", site.name, chosen.name),
        None => format!("site {}: no override; the settings of each recognizer apply", site.name),
    })?;
    for (worker, decision) in &decisions {
        stdout::print_line(format_args!(
            "{}: {}, {}; {}",
            format::plain_text(worker),
            decision.policy,
            decision.state,
            decision.why
        ))?;
    }
    if decisions.is_empty() {
        stdout::print_line("No recognizer is running.")?;
    }
    let names: Vec<&str> = POLICIES.iter().map(|policy| policy.as_str()).collect();
    stdout::print_line(format_args!("Choose with `tributary policy NAME`: {}", names.join(", ")))
}

//! `tributary policy`: see which policy decides where images are recognized, or choose another one.

use std::str::FromStr;

use anyhow::ensure;
use offload::policy::{POLICIES, PolicyName};
use recognizer::signals::{POLICY_NOTE, PolicyOverride};
use runtime::settings::LoadedSettings;
use streams::fleet::{self, Ledger};

use crate::settings::Settings;
use crate::{audit, format, site_target, stdout};

const EXAMPLES: &str = "\
Policies:
  earliest-finish   redirect an image only if the cloud is predicted to be done sooner (the default)
  paper             redirect what is too much while the link is good, hold it while it is not
  edge-only         nothing goes up; doubtful answers stay as they are
  cloud-only        every image goes up
  hard-example      the usual baseline: one synchronous upload for each doubtful image
  random            a share of the images goes up, drawn by lot
  oracle            what the edge gets wrong goes up; needs true labels, so for measurements only

The choice is kept at the site's server: it holds for every recognizer of the site, at once and after a restart,
until another one is chosen. --settings and --set say what holds when none was chosen.

Examples:
  tributary policy                        which one decides, and what it decided
  tributary policy edge-only              nothing goes up from now on
  tributary policy random --share 0.1
  tributary policy --clear                what the settings say holds again";

/// See which policy decides where images are recognized, or choose another one while the site runs.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct PolicyArgs {
    /// The policy to choose; without one, what is in force is shown.
    #[arg(value_name = "NAME", value_parser = <PolicyName as FromStr>::from_str)]
    name: Option<PolicyName>,
    /// Share of the images that `random` sends up, 0 to 1.
    #[arg(long, value_name = "SHARE", requires = "name")]
    share: Option<f64>,
    /// Take the choice back: what the settings say holds again.
    #[arg(long, conflicts_with = "name")]
    clear: bool,
    /// JSON.
    #[arg(long)]
    json: bool,
}

/// Shows or chooses.
pub async fn command(loaded: &LoadedSettings<Settings>, args: &PolicyArgs) -> anyhow::Result<()> {
    let site = site_target::open(loaded, "policy").await?;
    let ledger = Ledger::open(&site.bus).await?;
    if let Some(name) = args.name {
        if let Some(share) = args.share {
            ensure!((0.0..=1.0).contains(&share), "--share {share}: it must lie between 0 and 1");
            ensure!(name == PolicyName::Random, "--share says how much `random` sends up; {name} has no such number");
        }
        let chosen = PolicyOverride { name, share_ratio: args.share };
        ledger.write(POLICY_NOTE, serde_json::to_string(&chosen)?).await?;
        audit::record_command(&site.bus, &site.name, "policy set", format!("{name}")).await;
        return stdout::print_line(format_args!("site {}: {name} decides from now on", site.name));
    }
    if args.clear {
        ledger.write(POLICY_NOTE, serde_json::to_string(&None::<PolicyOverride>)?).await?;
        audit::record_command(&site.bus, &site.name, "policy clear", "").await;
        return stdout::print_line(format_args!("site {}: the settings of each recognizer hold again", site.name));
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
        None => format!("site {}: none was chosen, so the settings of each recognizer hold", site.name),
    })?;
    for (worker, decision) in &decisions {
        stdout::print_line(format_args!(
            "{}: {}, {}; {}",
            format::plain_number(worker),
            decision.policy,
            decision.state,
            decision.why
        ))?;
    }
    if decisions.is_empty() {
        stdout::print_line("No recognizer gives a sign of life.")?;
    }
    let names: Vec<&str> = POLICIES.iter().map(|policy| policy.as_str()).collect();
    stdout::print_line(format_args!("Choose with `tributary policy NAME`: {}", names.join(", ")))
}

//! `tributary policy`: show or choose the policy that decides where images are recognized.

use std::str::FromStr;

use offload::policy::{POLICIES, PolicyName};
use operations::policy::{self, PolicyReport};
use runtime::settings::LoadedSettings;
use schemas::SiteName;

use crate::settings::Settings;
use crate::{decision_text, format, site_target, stdout};

const EXAMPLES: &str = "\
Policies:
  earliest-finish   offload an image if the cloud is predicted to finish sooner, or the site is short of memory;
                    never hold one (default)
  paper             offload above the load limit while the link is good, else hold (state `listen`)
  edge-only         send nothing up; doubtful answers are final as they are
  cloud-only        send every image up; hold images while the link is down

The objective of earliest-finish (recognizer.policy.objective), with the constraints of privacy (recognizer.verify.payload), \
deadlines and budgets:
  hierarchical      level by level: offloading by time, then joules, bytes and accuracy; a doubtful answer by the accuracy \
a verdict gains, then joules and bytes. Differences within recognizer.policy.tolerance are ties (default)
  weighted          by one sum, in a unit of cost of your choice: per_s for a second until the answer, per_j for a joule, \
per_mb for a megabyte sent up, minus per_point for a point of accuracy. The points are learned from verdicts

The choice is stored at the site's server and applies to all its recognizers, at once and after restarts. Without one, \
the settings of each recognizer apply (recognizer.policy.name).

Examples:
  tributary policy                                the current policy, and its last decisions
  tributary policy edge-only                      send nothing up from now on
  tributary policy --clear                        return to the configured policy";

/// Show or choose the policy that decides where images are recognized.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PolicyArgs {
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
pub(crate) async fn command(loaded: &LoadedSettings<Settings>, args: &PolicyArgs) -> anyhow::Result<()> {
    let site = site_target::open(loaded, "policy").await?;
    if let Some(name) = args.name {
        policy::choose_policy(&site.bus, &site.name, name).await?;
        return stdout::print_line(format_args!("site {}: policy {name} chosen", site.name));
    }
    if args.clear {
        policy::clear_policy(&site.bus, &site.name).await?;
        return stdout::print_line(format_args!(
            "site {}: override cleared; the settings of each recognizer apply",
            site.name
        ));
    }
    let report = policy::read_policy(&site.bus).await?;
    if args.json { stdout::json(&report) } else { print(&report, &site.name) }
}

fn print(report: &PolicyReport, site: &SiteName) -> anyhow::Result<()> {
    stdout::print_line(match &report.chosen {
        Some(chosen) => format!("site {site}: {} was chosen", chosen.name),
        None => format!("site {site}: no override; the settings of each recognizer apply"),
    })?;
    for (worker, decision) in &report.recognizers {
        stdout::print_line(format_args!(
            "{}: {}, {}; {}",
            format::plain_text(worker),
            decision.policy,
            decision.state,
            decision.why
        ))?;
        for line in decision_text::signals(decision) {
            stdout::print_line(format_args!("  {line}"))?;
        }
    }
    if report.recognizers.is_empty() {
        stdout::print_line("No recognizer is running.")?;
    }
    let names: Vec<&str> = POLICIES.iter().map(|policy| policy.as_str()).collect();
    stdout::print_line(format_args!("Choose with `tributary policy NAME`: {}", names.join(", ")))
}

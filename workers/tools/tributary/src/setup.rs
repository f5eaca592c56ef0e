//! `tributary setup`: creates missing streams, and reports differences.

use anyhow::bail;
use runtime::settings::LoadedSettings;
use schemas::SiteName;
use streams::topology::{self, PlanScope, RepairMode, SetupFinding, SetupStatus};

use crate::settings::Settings;
use crate::site_target;
use crate::{format, stdout};

const EXAMPLES: &str = "\
`tributary up` does this by itself. On your own server, run it once, and again after an upgrade or a change of limits; \
running it twice does no harm.

Examples:
  tributary setup --nats nats://127.0.0.1:4222 --site reef
                                                  a site's server
  tributary setup --nats nats://cloud:4222 --cloud reef,farm
                                                  the cloud's server, for two sites
  tributary setup --apply                         also change what differs";

/// Create missing streams, consumers and buckets, and report differences.
///
/// Workers wait for what this command creates.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SetupArgs {
    /// Set up the cloud's server for these sites (comma-separated) instead of a site's server.
    #[arg(long, value_name = "SITE,…", value_delimiter = ',')]
    cloud: Vec<SiteName>,
    /// Set up site and cloud on one server, as in `tributary up` without --sites.
    #[arg(long, conflicts_with = "cloud")]
    both: bool,
    /// Also change what differs, except limits that the server has higher.
    #[arg(long)]
    apply: bool,
    /// With --apply: also lower higher limits and replicas, which may drop messages.
    #[arg(long, requires = "apply")]
    shrink: bool,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

/// Creates streams, consumers and buckets.
pub(crate) async fn command(loaded: &LoadedSettings<Settings>, args: &SetupArgs) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    let here = site_target::open(loaded, "setup").await?;
    let (name, bus) = (here.name.clone(), here.bus.clone());
    let shared = here.up.as_ref().is_some_and(|up| up.cloud_domain.is_none());
    let (bus, place, flag) = match &args.cloud[..] {
        [] if args.both || shared => (bus, PlanScope::Both(name), " --both".into()),
        [] => (bus, PlanScope::Site(name), String::new()),
        sites => {
            (here.whole_cloud()?.clone(), PlanScope::Cloud(sites.to_vec()), format!(" --cloud {}", format::list(sites)))
        }
    };
    let at = if args.cloud.is_empty() { here.name.clone() } else { SiteName::cloud() };
    let mode = match (args.apply, args.shrink) {
        (true, true) => RepairMode::AndLower,
        (true, false) => RepairMode::Everything,
        (false, _) => RepairMode::Missing,
    };
    let findings = operations::setup::apply_setup(&bus, &at, &place, &settings.streams, mode).await?;
    print(&findings, &flag, args)?;
    match findings.iter().filter(|finding| matches!(finding.state, SetupStatus::Refused(_))).count() {
        0 => Ok(()),
        refused => bail!("the server refused {refused} of {} (reasons above)", findings.len()),
    }
}

fn print(findings: &[SetupFinding], flag: &str, args: &SetupArgs) -> anyhow::Result<()> {
    if args.json {
        return stdout::json(&findings);
    }
    let mut differs = false;
    for SetupFinding { what, state } in findings {
        match state {
            SetupStatus::Same => stdout::print_line(format_args!("same      {what}"))?,
            SetupStatus::Created => stdout::print_line(format_args!("created   {what}"))?,
            SetupStatus::Missing => stdout::print_line(format_args!("missing   {what}"))?,
            SetupStatus::Refused(why) => {
                stdout::print_line(format_args!("refused   {what}: {}", format::plain_text(why)))?
            }
            SetupStatus::Updated(differences) | SetupStatus::Differs(differences) => {
                differs |= matches!(state, SetupStatus::Differs(_));
                let word = if matches!(state, SetupStatus::Differs(_)) { "differs" } else { "changed" };
                for difference in differences {
                    let topology::SettingDifference { setting, wanted, found } = difference;
                    let (found, wanted) = (format::setting(setting, found), format::setting(setting, wanted));
                    stdout::print_line(format_args!("{word:9} {what}: {setting} is {found}, wanted {wanted}"))?;
                }
            }
        }
    }
    if differs && args.apply {
        stdout::print_line(format_args!(
            "Higher limits were kept; `tributary setup{flag} --apply --shrink` lowers them."
        ))?;
    } else if differs {
        stdout::print_line(format_args!("Differences were kept; `tributary setup{flag} --apply` changes them."))?;
    }
    Ok(())
}

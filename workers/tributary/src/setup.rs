//! `tributary setup`: create what is missing, report what differs.

use anyhow::bail;
use runtime::settings::Loaded;
use schemas::SiteName;
use streams::topology::{self, Finding, Mend, Place, State};

use crate::settings::Settings;
use crate::site;
use crate::{audit, form, out};

const EXAMPLES: &str = "\
Doing it twice is doing it once. `tributary up` does it by itself; a server of your own needs it once, and
again after an upgrade or after limits in the settings were changed.

Examples:
  tributary setup --nats nats://127.0.0.1:4222 --site reef      a site's server
  tributary setup --nats nats://cloud:4222 --cloud reef,farm    the cloud's, for these two sites
  tributary setup --apply                                       change what differs, too";

/// Create streams, consumers and buckets, and report what differs from what is wanted.
///
/// Workers create nothing themselves: they wait for what this command makes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct SetupArgs {
    /// Set up the cloud's server for these sites instead of a site's: comma-separated names.
    #[arg(long, value_name = "SITE,…", value_delimiter = ',')]
    cloud: Vec<SiteName>,
    /// Set up site and cloud on one server; what a running `tributary up` without --sites has.
    #[arg(long, conflicts_with = "cloud")]
    both: bool,
    /// Change what differs as well; without it, differences are only reported.
    #[arg(long)]
    apply: bool,
    /// With --apply, lower limits and replicas as well where the server has higher ones; this drops messages.
    #[arg(long, requires = "apply")]
    lower: bool,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

/// Creates streams, consumers and buckets.
pub async fn command(loaded: &Loaded<Settings>, args: &SetupArgs) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    let here = site::open(loaded, "setup").await?;
    let (name, bus) = (here.name.clone(), here.bus.clone());
    let shared = here.up.as_ref().is_some_and(|up| up.cloud_domain.is_none());
    let (bus, place, flag) = match &args.cloud[..] {
        [] if args.both || shared => (bus, Place::Both(name), " --both".into()),
        [] => (bus, Place::Site(name), String::new()),
        sites => (here.whole_cloud()?.clone(), Place::Cloud(sites.to_vec()), format!(" --cloud {}", form::list(sites))),
    };
    let at = if args.cloud.is_empty() { here.name.clone() } else { SiteName::cloud() };
    let mend = match (args.apply, args.lower) {
        (true, true) => Mend::AndLower,
        (true, false) => Mend::Everything,
        (false, _) => Mend::Missing,
    };
    let findings = topology::apply_plan(&bus, &topology::plan_topology(&place, &settings.streams), mend).await?;
    let is_change = |finding: &&Finding| matches!(finding.state, State::Created | State::Updated(_));
    let changed: Vec<&str> = findings.iter().filter(is_change).map(|finding| finding.what.as_str()).collect();
    if !changed.is_empty() {
        audit::record_command(&bus, &at, "setup", changed.join(", ")).await;
    }
    print(&findings, &flag, args)?;
    match findings.iter().filter(|finding| matches!(finding.state, State::Refused(_))).count() {
        0 => Ok(()),
        refused => bail!("the server refused {refused} of {}; the rest is as said above", findings.len()),
    }
}

fn print(findings: &[Finding], flag: &str, args: &SetupArgs) -> anyhow::Result<()> {
    if args.json {
        return out::json(&findings);
    }
    let mut differs = false;
    for Finding { what, state } in findings {
        match state {
            State::Same => out::print_line(format_args!("same      {what}"))?,
            State::Created => out::print_line(format_args!("created   {what}"))?,
            State::Missing => out::print_line(format_args!("missing   {what}"))?,
            State::Refused(why) => out::print_line(format_args!("refused   {what}: {}", form::plain_number(why)))?,
            State::Updated(differences) | State::Differs(differences) => {
                differs |= matches!(state, State::Differs(_));
                let word = if matches!(state, State::Differs(_)) { "differs" } else { "changed" };
                for difference in differences {
                    let topology::Difference { setting, wanted, found } = difference;
                    let (found, wanted) = (form::setting(setting, found), form::setting(setting, wanted));
                    out::print_line(format_args!("{word:9} {what}: {setting} is {found}, wanted {wanted}"))?;
                }
            }
        }
    }
    if differs && args.apply {
        out::print_line(format_args!(
            "What is higher than wanted was kept; `tributary setup{flag} --apply --lower` lowers it."
        ))?;
    } else if differs {
        out::print_line(format_args!("Nothing that differs was changed; `tributary setup{flag} --apply` changes it."))?;
    }
    Ok(())
}

//! `tributary setup`: create what is missing, report what differs.

use runtime::settings::Loaded;
use streams::topology::{self, Finding, Mend, Place, State};

use crate::settings::Settings;
use crate::site;

/// Where to set up, and how far.
#[derive(clap::Args)]
pub struct SetupArgs {
    /// Set up the cloud's server for these sites instead of a site's: comma-separated names.
    #[arg(long, value_name = "SITE,…", value_delimiter = ',')]
    cloud: Vec<String>,
    /// Set up site and cloud on one server.
    #[arg(long, conflicts_with = "cloud")]
    both: bool,
    /// Change what differs as well; without it, differences are only reported.
    #[arg(long)]
    apply: bool,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

/// Creates streams, consumers and buckets.
pub async fn command(loaded: &Loaded<Settings>, args: &SetupArgs) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    let place = match &args.cloud[..] {
        [] if args.both => Place::Both(settings.site.clone()),
        [] => Place::Site(settings.site.clone()),
        sites => Place::Cloud(sites.iter().map(|site| site.parse()).collect::<Result<_, _>>()?),
    };
    let (bus, _) = site::connect(loaded, "setup").await?;
    let mend = if args.apply { Mend::Everything } else { Mend::Missing };
    let findings = topology::setup(&bus, &topology::plan(&place, &settings.streams), mend).await?;
    print(&findings, args.json)
}

#[allow(clippy::print_stdout)]
fn print(findings: &[Finding], json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(findings)?);
        return Ok(());
    }
    let mut differs = false;
    for Finding { what, state } in findings {
        match state {
            State::Same => println!("same      {what}"),
            State::Created => println!("created   {what}"),
            State::Missing => println!("missing   {what}"),
            State::Updated(differences) | State::Differs(differences) => {
                differs |= matches!(state, State::Differs(_));
                let word = if matches!(state, State::Differs(_)) { "differs" } else { "changed" };
                for difference in differences {
                    let topology::Difference { setting, wanted, found } = difference;
                    println!("{word:9} {what}: {setting} is {found}, wanted {wanted}");
                }
            }
        }
    }
    if differs {
        println!("Nothing that differs was changed; `tributary setup --apply` changes it.");
    }
    Ok(())
}

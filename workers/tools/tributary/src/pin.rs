//! `tributary pin`: answered images kept whatever their age, as a set with a name.

use replay::ReplayDestination;
use runtime::Shutdown;
use runtime::settings::LoadedSettings;
use schemas::SetName;

use crate::replay_run::{self, ReadArgs};
use crate::replay_summary::SummaryContext;
use crate::selection::{self, FILTER_HELP, FilterArgs, READ_HELP, SampleArgs};
use crate::settings::Settings;
use crate::site_target;

const ABOUT: &str = "\
A pinned set is a copy at the site of images, answers and labels. It stays until `tributary retention --unpin NAME`; \
all sets together hold at most streams.pinned_max_mib. Pinning again adds what is missing.";

const COMMANDS: &str = "\
Examples:
  tributary pin spawning --since 2026-11-01 --until 2026-11-08
  tributary pin doubtful --since 7d --where hard --sample random --limit 1000
  tributary retention                               how much each set holds
  tributary export --pinned spawning --to ./spawning";

fn help() -> String {
    [ABOUT, READ_HELP, FILTER_HELP, COMMANDS].join("\n\n")
}

/// Keep answered images beyond the retention limits, as a named set.
#[derive(clap::Args, Debug)]
#[command(after_help = help())]
pub(crate) struct PinSetArgs {
    /// Name of the set: letters, digits, - and _.
    #[arg(value_name = "NAME")]
    name: SetName,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    sample: SampleArgs,
    #[command(flatten)]
    read: ReadArgs,
}

/// Pins images.
pub(crate) async fn command(
    loaded: &LoadedSettings<Settings>,
    args: &PinSetArgs,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    args.filter.query()?;
    let site = site_target::open(loaded, "pin").await?;
    let request = format!("pin {} --site {}", args.name, site.name);
    let options = selection::archive_options(&args.filter, &args.sample, &request)?;
    let (destination, context) = (ReplayDestination::Pin(args.name.clone()), SummaryContext::Pinned(args.name.clone()));
    replay_run::run_and_report(&site, &loaded.settings, &args.read, options, destination, context, &shutdown).await
}

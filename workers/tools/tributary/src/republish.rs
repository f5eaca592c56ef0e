//! `tributary republish`: answered images once more, on a subject; or their labels, to the site's trainer.

use replay::{ReplayDestination, ReplaySpacing};
use runtime::Shutdown;
use runtime::settings::LoadedSettings;

use crate::replay_run::{self, ReadArgs};
use crate::replay_summary::SummaryContext;
use crate::selection::{FILTER_HELP, READ_HELP, SelectionArgs};
use crate::settings::Settings;
use crate::site_target;

const ABOUT: &str = "\
Republished images are marked: they are recognized again under new tasks, never sent to the cloud and never learned \
from. {site} and {camera} in SUBJECT stand for where each image came from.";

const COMMANDS: &str = "\
Examples:
  tributary republish --to 'image.lab.{camera}' --camera cam-1 --pace original
  tributary republish --to 'replay.{site}.{camera}' --since 1h --pace 5
  tributary republish --to-trainer --where wrong    the site's trainer learns from them again";

fn help() -> String {
    [ABOUT, READ_HELP, FILTER_HELP, COMMANDS].join("\n\n")
}

/// Publish answered images again on a subject, or their labels to the site's trainer.
#[derive(clap::Args, Debug)]
#[command(after_help = help(), group(clap::ArgGroup::new("destination").args(["to", "to_trainer"]).required(true)))]
pub(crate) struct RepublishArgs {
    /// Subject to publish on; may contain {site} and {camera}.
    #[arg(long, value_name = "SUBJECT")]
    to: Option<String>,
    /// Publish the labels only, for the site's trainer to learn from again.
    #[arg(long)]
    to_trainer: bool,
    /// Pace: max, original (the intervals of the first time) or images per second.
    #[arg(long, value_name = "PACE", default_value = "max", conflicts_with = "to_trainer", value_parser = spacing)]
    pace: ReplaySpacing,
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    read: ReadArgs,
}

fn spacing(text: &str) -> Result<ReplaySpacing, String> {
    match text {
        "max" => Ok(ReplaySpacing::Fast),
        "original" => Ok(ReplaySpacing::Original),
        rate => match rate.parse::<f64>() {
            Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(ReplaySpacing::Rate(rate)),
            _ => Err("use max, original or a number of images per second".into()),
        },
    }
}

/// Publishes images or labels again.
pub(crate) async fn command(
    loaded: &LoadedSettings<Settings>,
    args: &RepublishArgs,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let (destination, to) = match &args.to {
        Some(template) => {
            (ReplayDestination::Subject { template: template.clone(), spacing: args.pace }, format!("--to {template}"))
        }
        None => (ReplayDestination::Trainer, "--to-trainer".to_owned()),
    };
    args.selection.options("")?;
    let site = site_target::open(loaded, "republish").await?;
    let options = args.selection.options(&format!("republish --site {} {to}", site.name))?;
    let context = SummaryContext::Republished(args.to.clone().unwrap_or_else(|| "the trainer".into()));
    replay_run::run_and_report(&site, &loaded.settings, &args.read, options, destination, context, &shutdown).await
}

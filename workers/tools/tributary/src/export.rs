//! `tributary export`: answered images into a folder or a WebDataset archive.

use std::path::PathBuf;

use anyhow::bail;
use replay::ReplayDestination;
use runtime::Shutdown;
use runtime::settings::LoadedSettings;

use crate::replay_run::{self, ReadArgs};
use crate::replay_summary::SummaryContext;
use crate::selection::{FILTER_HELP, READ_HELP, SelectionArgs};
use crate::settings::Settings;
use crate::site_target;

const EXAMPLES: &str = "\
A folder gets the images as they were published and an index.csv with label, answer, confidence, route and release of \
each: `tributary train` reads it. A .tar is a WebDataset archive.";

const COMMANDS: &str = "\
Examples:
  tributary export --to ./set                       every image with its final answer
  tributary export --since 7d --where 'hard and labelled' --to hard.tar
  tributary export --where 'confidence < 60% or label in (shark, ray)' --sample per-class \\
      --limit 2000 --to ./set
  tributary export --pinned spawning --to ./spawning";

fn help() -> String {
    [EXAMPLES, READ_HELP, FILTER_HELP, COMMANDS].join("\n\n")
}

/// Export answered images to a folder or a WebDataset archive, with labels and answers.
#[derive(clap::Args, Debug)]
#[command(after_help = help())]
pub(crate) struct ExportArgs {
    /// Folder, or FILE.tar for a WebDataset archive.
    #[arg(long, value_name = "DIR|FILE.tar")]
    to: PathBuf,
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    read: ReadArgs,
}

/// Exports images.
pub(crate) async fn command(
    loaded: &LoadedSettings<Settings>,
    args: &ExportArgs,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let destination = match args.to.extension().and_then(|extension| extension.to_str()) {
        Some("tar") => ReplayDestination::Tar(args.to.clone()),
        Some("csv") => bail!("--to {}: `tributary evaluate --to FILE.csv` writes a table", args.to.display()),
        _ => ReplayDestination::Folder(args.to.clone()),
    };
    // Wrong flags are reported before anything is waited for.
    args.selection.options("")?;
    let site = site_target::open(loaded, "export").await?;
    let options = args.selection.options(&format!("export --site {} --to {}", site.name, args.to.display()))?;
    let context = SummaryContext::Exported(args.to.clone());
    replay_run::run_and_report(&site, &loaded.settings, &args.read, options, destination, context, &shutdown).await
}

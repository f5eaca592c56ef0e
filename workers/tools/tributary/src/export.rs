//! `tributary export`: answered images into a folder, one with COCO annotations, or a WebDataset archive.

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
each: `tributary train` reads it. A .tar is a WebDataset archive; objects are in the JSON beside each image.

--format coco writes a folder with images/ and annotations.json, for tools that draw boxes: what a person drew, else \
what the cloud found, else what the site found (source in each image says which). Sizes and boxes are those of the \
upright picture. `tributary label --from` takes the corrected annotations back.";

const COMMANDS: &str = "\
Examples:
  tributary export --to ./set                       every image with its final answer
  tributary export --since 7d --where 'hard and labelled' --to hard.tar
  tributary export --where 'confidence < 60% or label in (shark, ray)' --sample per-class \\
      --limit 2000 --to ./set
  tributary export --where 'any(confidence < 0.4)' --format coco --to ./review
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
    /// Format of the folder: index (images and an index.csv) or coco (images and COCO annotations) [default: index].
    #[arg(long, value_name = "FORMAT", value_enum)]
    format: Option<ExportFormat>,
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum ExportFormat {
    Index,
    Coco,
}

/// Exports images.
pub(crate) async fn command(
    loaded: &LoadedSettings<Settings>,
    args: &ExportArgs,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let extension = args.to.extension().and_then(|extension| extension.to_str());
    let destination = match (extension, args.format) {
        (Some("csv"), _) => bail!("--to {}: `tributary evaluate --to FILE.csv` writes a table", args.to.display()),
        (Some("tar"), None) => ReplayDestination::Tar(args.to.clone()),
        (Some("tar"), Some(_)) => {
            bail!("--to {}: --format is that of a folder; a .tar is always a WebDataset archive", args.to.display())
        }
        (_, Some(ExportFormat::Coco)) => ReplayDestination::Coco(args.to.clone()),
        (_, None | Some(ExportFormat::Index)) => ReplayDestination::Folder(args.to.clone()),
    };
    let format = match destination {
        ReplayDestination::Coco(_) => " --format coco",
        _ => "",
    };
    // Wrong flags are reported before anything is waited for.
    args.selection.options("")?;
    let site = site_target::open(loaded, "export").await?;
    let options = args.selection.options(&format!("export --site {} --to {}{format}", site.name, args.to.display()))?;
    let context = SummaryContext::Exported(args.to.clone());
    replay_run::run_and_report(&site, &loaded.settings, &args.read, options, destination, context, &shutdown).await
}

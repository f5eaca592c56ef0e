//! `tributary retrain`: export → train → release import, in one command.

use std::path::PathBuf;

use anyhow::{Context, bail};
use replay::ReplayDestination;
use runtime::Shutdown;
use runtime::settings::LoadedSettings;
use schemas::ModelName;
use vision::Model;

use crate::replay_run;
use crate::selection::{FILTER_HELP, SelectionArgs};
use crate::settings::Settings;
use crate::train::{self, TrainingArgs};
use crate::{format, release, site_target, stdout};

const ABOUT: &str = "\
Exports the selected images that a person, the publisher or the cloud labelled into --data, trains a copy of the model \
on them and writes it to --out. A model that does not improve on the holdout by more than chance is neither written \
nor imported. --import makes the new model a candidate, which the releaser canaries.";

const COMMANDS: &str = "\
Examples:
  tributary retrain --since 7d --out ./better       from the model that `up` was given
  tributary retrain --where 'hard or wrong' --sample per-class --limit 5000 --out ./better --import
  tributary retrain --pinned spawning --model ./model --out ./better --trainable head --epochs 20

The same in three commands:
  tributary export --since 7d --where labelled --to ./set
  tributary train --model ./model --data ./set --out ./better
  tributary release import ./better";

fn help() -> String {
    [ABOUT, FILTER_HELP, COMMANDS].join("\n\n")
}

/// Export labelled images, train a model on them, and import the result as a release.
#[derive(clap::Args)]
#[command(after_help = help())]
pub(crate) struct RetrainArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Folder of the model to start from [default: recognizer.model].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder for the exported images, which is kept [default: OUT.set].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder for the new model; it must be empty or not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Import the new model as a candidate.
    #[arg(long)]
    import: bool,
    #[command(flatten)]
    how: TrainingArgs,
}

impl RetrainArgs {
    /// The settings that the flags override.
    pub(crate) fn flags(&self) -> Vec<(String, serde_json::Value)> {
        self.how.flags()
    }
}

/// Exports, trains, imports.
pub(crate) async fn command(
    loaded: &LoadedSettings<Settings>,
    args: &RetrainArgs,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    training::folder::check(&args.out)?;
    let site = site_target::open(loaded, "retrain").await?;
    let is_chosen = site_target::is_set(loaded, "recognizer.model");
    let of_up = site.up.as_ref().filter(|_| !is_chosen).map(|up| up.model.clone());
    let of_up = of_up.filter(|folder| !folder.as_os_str().is_empty());
    let folder = args.model.clone().or(of_up).unwrap_or_else(|| settings.recognizer.model.clone());
    let model =
        Model::load(&folder).context("the model to start from cannot be loaded (name another one with --model)")?;
    let data = args.data.clone().unwrap_or_else(|| args.out.with_added_extension("set"));
    let mut options = args.selection.options(&format!("retrain --site {}", site.name))?;
    options.only = Some(model.labels.clone());
    let summary = replay_run::run(&site, settings, options, ReplayDestination::Folder(data.clone()), &shutdown).await?;
    if summary.interrupted {
        bail!("interrupted during the export: run the same command again to continue");
    }
    let unknown: u64 = summary.unknown.values().sum();
    stdout::print_note(format_args!(
        "exported {} to {}, {} more in an earlier run; omitted {} without a label, {} labelled with boxes and {unknown} with a label unknown to the model{}",
        replay_run::images(&summary),
        data.display(),
        summary.before,
        summary.unlabelled,
        summary.boxed,
        match &summary.unknown.keys().take(5).map(|label| format::plain_text(label)).collect::<Vec<_>>()[..] {
            [] => String::new(),
            labels => format!(" ({})", labels.join(", ")),
        }
    ));
    let is_written = train::train_folder(settings, &folder, &data, &args.out, &args.how, shutdown).await?;
    match args.import && is_written {
        true => release::import(loaded, ModelName::from_name(&model.description.name), &args.out, args.how.json).await,
        false => Ok(()),
    }
}

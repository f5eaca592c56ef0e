//! `tributary retrain`: replay → train → release import, in one command.

use std::path::PathBuf;

use ::replay::ReplayDestination;
use anyhow::{Context, bail};
use runtime::Shutdown;
use runtime::settings::LoadedSettings;
use schemas::ModelName;
use vision::Model;

use crate::replay::{self, SelectionArgs};
use crate::settings::Settings;
use crate::train::{self, TrainingArgs};
use crate::{format, release, site_target, stdout};

const EXAMPLES: &str = "\
Images of which a person, the publisher or the cloud said what they show are exported into --data (kept, and gone on
with if it was interrupted), a model learns from them, and --import makes a candidate of it, which the releaser lets
out by canary. A model that is not better on the images held out by more than chance is not written, and not imported.

Examples:
  tributary retrain --since 7d --out ./better                     from the model that `up` was given
  tributary retrain --where 'hard or wrong' --sample per-class --limit 5000 --out ./better --import
  tributary retrain --pinned spawning --model ./model --out ./better --trainable head --epochs 20

The same in three commands:
  tributary replay --since 7d --where labelled --to ./set
  tributary train --model ./model --data ./set --out ./better
  tributary release import ./better";

/// Learn from what was replayed: export labelled images, train on them, and make a release of the result.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RetrainArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Folder of the model to start from; without it, that of recognizer.model.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder for the images; without it, OUT.set beside the new model.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder for the new model; must not exist, or be empty.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Make a candidate of it at once.
    #[arg(long)]
    import: bool,
    #[command(flatten)]
    how: TrainingArgs,
}

impl RetrainArgs {
    /// Settings that its flags stand for.
    pub fn flags(&self) -> Vec<(String, serde_json::Value)> {
        self.how.flags()
    }
}

/// Replays, trains, imports.
pub async fn command(loaded: &LoadedSettings<Settings>, args: &RetrainArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    training::folder::check(&args.out)?;
    let site = site_target::open(loaded, "retrain").await?;
    let is_chosen = site_target::is_set(loaded, "recognizer.model");
    let of_up = site.up.as_ref().filter(|_| !is_chosen).map(|up| up.model.clone());
    let of_up = of_up.filter(|folder| !folder.as_os_str().is_empty());
    let folder = args.model.clone().or(of_up).unwrap_or_else(|| settings.recognizer.model.clone());
    let model = Model::load(&folder).context("the model to begin with cannot be used (--model names another one)")?;
    let data = args.data.clone().unwrap_or_else(|| args.out.with_added_extension("set"));
    let mut options =
        args.selection.options(format!("retrain --site {} {}", site.name, args.selection.command_line()))?;
    options.only = Some(model.labels.clone());
    let summary = replay::run(&site, settings, options, ReplayDestination::Folder(data.clone()), &shutdown).await?;
    if summary.interrupted {
        bail!("interrupted while images were replayed: the same command goes on where it stopped");
    }
    let unknown: u64 = summary.unknown.values().sum();
    stdout::print_note(format_args!(
        "{} to {}, {} from before; {} left out without a label, {unknown} with one that the model does not know{}",
        replay::images(&summary),
        data.display(),
        summary.before,
        summary.unlabelled,
        match &summary.unknown.keys().take(5).map(|label| format::plain_number(label)).collect::<Vec<_>>()[..] {
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

//! `tributary evaluate`: another model's answers to the same images, compared with those that were given.

use std::path::{Path, PathBuf};

use anyhow::Context;
use replay::ReplayDestination;
use runtime::Shutdown;
use runtime::settings::LoadedSettings;
use vision::{InferencePool, Model, OnnxRuntime};

use crate::replay_run::{self, ReadArgs};
use crate::replay_summary::SummaryContext;
use crate::selection::{FILTER_HELP, READ_HELP, SelectionArgs};
use crate::settings::Settings;
use crate::site_target;

const ABOUT: &str = "\
Runs on idle processor time only. Prints how many answers stay the same, accuracy before and after where the true \
label is known, the label pairs that change most, and the cost of an image. Answers of detectors are the same, and \
correct, if their objects are: matched by label at an overlap of half their union, F1 at least 0.9. Where persons drew \
boxes, mAP and F1 are printed, too; they are of the objects that answers list, so what a model finds below its own \
threshold does not count.";

const COMMANDS: &str = "\
Examples:
  tributary evaluate --model ./new-model --since 1d
  tributary evaluate --model ./new-model --where labelled --to both.csv
  tributary evaluate --model ./new-model --pinned spawning --json";

fn help() -> String {
    [ABOUT, READ_HELP, FILTER_HELP, COMMANDS].join("\n\n")
}

/// Run answered images through another model, and compare the answers.
#[derive(clap::Args, Debug)]
#[command(after_help = help())]
pub(crate) struct EvaluateArgs {
    /// Folder of the model to evaluate.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Also write both answers to every image into this table.
    #[arg(long, value_name = "FILE.csv", value_parser = table)]
    to: Option<PathBuf>,
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    read: ReadArgs,
}

fn table(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().is_some_and(|extension| extension == "csv") {
        true => Ok(path),
        false => Err("the table is a CSV file: name it FILE.csv".into()),
    }
}

/// Evaluates a model.
pub(crate) async fn command(
    loaded: &LoadedSettings<Settings>,
    args: &EvaluateArgs,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    args.selection.options("")?;
    let site = site_target::open(loaded, "evaluate").await?;
    let to = args.to.as_ref().map(|table| format!(" --to {}", table.display())).unwrap_or_default();
    let request = format!("evaluate --site {} --model {}{to}", site.name, args.model.display());
    let options = args.selection.options(&request)?;
    let infer = load(&loaded.settings, &args.model).await?;
    let destination = ReplayDestination::Model { infer, table: args.to.clone() };
    let context = SummaryContext::Evaluated(args.to.clone());
    replay_run::run_and_report(&site, &loaded.settings, &args.read, options, destination, context, &shutdown).await
}

async fn load(settings: &Settings, folder: &Path) -> anyhow::Result<InferencePool> {
    let (onnxruntime, infer, folder) =
        (settings.onnxruntime.clone(), settings.recognizer.infer.clone(), folder.to_owned());
    let loading = move || -> anyhow::Result<InferencePool> {
        let model = Model::load(&folder).with_context(|| format!("model {}", folder.display()))?;
        let onnx = OnnxRuntime::find_and_load(onnxruntime.as_deref())?;
        InferencePool::start(&onnx, &model, &infer).with_context(|| format!("model {}", folder.display()))
    };
    tokio::task::spawn_blocking(loading).await?
}

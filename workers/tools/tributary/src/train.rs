//! `tributary train`: trains a model on a folder of labelled images.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use runtime::Shutdown;
use schemas::ModelAccuracy;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use training::{Epoch, Examples, TrainContext, TrainedModel, TrainingPace};
use vision::{Model, OnnxRuntime};

use crate::settings::Settings;
use crate::{format, stdout};

const EXAMPLES: &str = "\
Trains any ONNX classifier that `tributary model check` reports as trainable; needs no Python. The data folder holds \
an index.csv (columns file or path, label or class_name, split) or one folder per label. Split val is the holdout that \
decides whether the model improved, split test is measured once at the end; without splits, a tenth is the holdout. \
Other settings are in [trainer].

Examples:
  tributary train --model fixtures/models/fashion-light --data fixtures/images/fashion \\
      --out ./better
  tributary train --model ./model --data ./photos --out ./better --trainable head --epochs 20
  tributary train --model ./model --data ./photos --out ./better --set trainer.augment.mirror=true \\
      --set trainer.optimizer.kind=adam --learning-rate 0.001";

/// Train a model on a folder of labelled images, and write a new model folder.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TrainArgs {
    /// Folder of the model to start from, which is not changed.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Folder of labelled images.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Folder for the new model; it must be empty or not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    how: TrainingArgs,
}

/// Training options of `train` and `retrain`.
#[derive(clap::Args)]
pub(crate) struct TrainingArgs {
    /// Weights to train: auto (the last layers only, if the model is good and images are few), all, head, `last N`
    /// layers, or comma-separated name patterns.
    #[arg(long, value_name = "WHICH", help_heading = "Training")]
    pub trainable: Option<String>,
    /// Number of passes over the images.
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub epochs: Option<u32>,
    /// Images per training step.
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub batch: Option<u16>,
    /// Peak learning rate [default: found by trying a few].
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub learning_rate: Option<f32>,
    /// Threads per training step.
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub threads: Option<u16>,
    /// Write the best epoch even if it does not improve on the holdout by more than chance.
    #[arg(long, help_heading = "Training")]
    pub keep_without_gain: bool,
    /// Print the results as JSON.
    #[arg(long)]
    pub json: bool,
}

impl TrainArgs {
    /// The settings that the flags override.
    pub(crate) fn flags(&self) -> Vec<(String, serde_json::Value)> {
        self.how.flags()
    }
}

impl TrainingArgs {
    /// The settings that the flags override.
    pub(crate) fn flags(&self) -> Vec<(String, serde_json::Value)> {
        let flags = [
            ("trainer.trainable", self.trainable.as_ref().map(|value| json!(value))),
            ("trainer.epochs", self.epochs.map(|value| json!(value))),
            ("trainer.batch", self.batch.map(|value| json!(value))),
            ("trainer.optimizer.learning_rate", self.learning_rate.map(|value| json!(value))),
            ("trainer.threads", self.threads.map(|value| json!(value))),
        ];
        flags.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}

/// Trains a model.
pub(crate) async fn command(settings: &Settings, args: &TrainArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    train_folder(settings, &args.model, &args.data, &args.out, &args.how, shutdown).await?;
    Ok(())
}

/// Trains a model on a folder, and writes a new one if it improved; returns whether it did.
pub(crate) async fn train_folder(
    settings: &Settings,
    model: &Path,
    data: &Path,
    new: &Path,
    how: &TrainingArgs,
    shutdown: Shutdown,
) -> anyhow::Result<bool> {
    let stop = CancellationToken::new();
    let stopper = stop.clone();
    let watching = tokio::spawn(async move {
        shutdown.wait_for_request().await;
        stopper.cancel();
    });
    let (train, onnxruntime) = (settings.trainer.training(), settings.onnxruntime.clone());
    let memory_max_mib = settings.trainer.limits.memory_max_mib;
    let (folder, data, out) = (model.to_owned(), data.to_owned(), new.to_owned());
    let bar = progress(train.epochs);
    let shown = bar.clone();
    let keep_without_gain = how.keep_without_gain;
    let work = move || -> anyhow::Result<(TrainedModel, Option<Model>)> {
        training::folder::check(&out)?;
        let runtime = OnnxRuntime::find_and_load(onnxruntime.as_deref())?;
        let model = Model::load(&folder)?;
        training::trainable_model::check_task(&model)?;
        let examples = Examples::read(&data, &model.labels, train.holdout_ratio)?;
        let around =
            TrainContext { stop: &stop, pace: Arc::new(TrainingPace::unlimited(memory_max_mib)), checkpoints: None };
        let trained = training::train_model(&runtime, &model, &examples, &train, around, |epoch| shown.over(epoch))?;
        if !keep_without_gain && trained.has_no_gain().is_some() {
            return Ok((trained, None));
        }
        let written = training::folder::write(&model, &trained.onnx, &trained.values(), &out)?;
        Ok((trained, Some(written)))
    };
    let (trained, written) = tokio::task::spawn_blocking(work).await.context("training crashed")??;
    watching.abort();
    bar.bar.finish_and_clear();
    if how.json {
        let test = trained.test.map(|(before, after)| json!({ "before": before, "after": after }));
        stdout::json(&json!({
            "epochs": trained.epochs,
            "best_epoch": trained.best_epoch,
            "learning_rate": trained.learning_rate,
            "nothing_gained": trained.has_no_gain(),
            "test": test,
            "parameters": trained.parameters,
            "last_layers": trained.layers,
            "unreadable": trained.unreadable,
            "features_cached": trained.features_cached,
            "written": written.as_ref().map(|_| new.display().to_string()),
            "release": written.as_ref().map(|model| model.release.to_string()),
        }))?;
    } else {
        stdout::print_line(text(&trained, written.as_ref()))?;
    }
    if let Some(why) = trained.has_no_gain().filter(|_| written.is_none()) {
        stdout::print_note(format_args!(
            "{why}; nothing was written (write the best epoch anyway with --keep-without-gain)"
        ));
    }
    Ok(written.is_some())
}

/// Progress on standard error, one line per epoch.
#[derive(Clone)]
struct EpochPrinter {
    bar: ProgressBar,
    epochs: u32,
}

fn progress(epochs: u32) -> EpochPrinter {
    let bar = ProgressBar::new(epochs.into());
    let style = ProgressStyle::with_template("{bar:30} epoch {pos}/{len}, {eta} left").ok();
    style.into_iter().for_each(|style| bar.set_style(style));
    EpochPrinter { bar, epochs }
}

impl EpochPrinter {
    fn over(&self, epoch: &Epoch) {
        let line = match epoch.learned_loss {
            None => format!("before: {}", measured(&epoch.held_out)),
            Some(loss) => format!(
                "epoch {}/{}: loss {loss:.3}; {}; {:.1} s",
                epoch.number,
                self.epochs,
                measured(&epoch.held_out),
                epoch.took.as_secs_f64()
            ),
        };
        self.bar.set_position(epoch.number.into());
        if self.bar.is_hidden() { stdout::print_note(line) } else { self.bar.println(line) }
    }
}

fn measured(measured: &ModelAccuracy) -> String {
    let right = format::percent(measured.accuracy_ratio);
    format!("holdout of {}: accuracy {right}, loss {:.3}", measured.images, measured.loss)
}

fn text(trained: &TrainedModel, written: Option<&Model>) -> String {
    let mut lines = vec![format!("trained  {} parameters", trained.parameters)];
    if let Some(layers) = trained.layers {
        let layers = if layers == 1 { "layer".into() } else { format!("{layers} layers") };
        lines.push(format!(
            "         the last {layers} only, because images are few (--trainable all trains every layer)"
        ));
    }
    let right = |measured: &ModelAccuracy| format::percent(measured.accuracy_ratio);
    let (before, after) = trained.held_out();
    lines.push(format!(
        "holdout  accuracy {} before, {} after epoch {}, {} images; learning rate {}",
        right(&before),
        right(&after),
        trained.best_epoch,
        after.images,
        trained.learning_rate
    ));
    if let Some((before, after)) = &trained.test {
        lines.push(format!(
            "test     accuracy {} before, {} after, {} images",
            right(before),
            right(after),
            after.images
        ));
    }
    if trained.unreadable > 0 {
        lines.push(format!("skipped  {} reads of unusable images (-v names them)", trained.unreadable));
    }
    if let Some(model) = written {
        lines.push(format!("written  {}, release {}", model.folder.display(), model.release.short()));
        lines.push("The gate keeps the temperature and thresholds of the old model.".into());
    }
    lines.join("\n")
}

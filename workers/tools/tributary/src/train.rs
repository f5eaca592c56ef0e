//! `tributary train`: a better model from a folder of labelled images.

use std::path::{Path, PathBuf};

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
The model is any ONNX classifier that `tributary model check` calls fit for training; no Python is needed. The
folder holds an index.csv (columns file or path, label or class_name, and split), or a folder for each label.
Images of split val are held out to measure by, images of split test are only measured at the end; without a
split a tenth is held out. Settings are those of [trainer] in tributary.toml.

Examples:
  tributary train --model fixtures/models/fashion-light --data fixtures/images/fashion --out ./better
  tributary train --model ./model --data ./photos --out ./better --trainable head --epochs 20
  tributary train --model ./model --data ./photos --out ./better --set trainer.augment.mirror=true \\
      --set trainer.optimizer.kind=adam --learning-rate 0.001";

/// Train a model on a folder of labelled images and write a new model folder.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct TrainArgs {
    /// Folder of the model to start from; it is not changed.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Folder of labelled images.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Folder for the new model; must not exist, or be empty.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    how: TrainingArgs,
}

/// How a model is trained; shared by the commands that train.
#[derive(clap::Args)]
pub struct TrainingArgs {
    /// Which weights: auto (all, or of a good model the last layers alone where images are few), all, head, `last N` (layers),
    /// or patterns of names with commas between them.
    #[arg(long, value_name = "WHICH")]
    pub trainable: Option<String>,
    /// How often every image is seen.
    #[arg(long, value_name = "N")]
    pub epochs: Option<u32>,
    /// Images in a step.
    #[arg(long, value_name = "N")]
    pub batch: Option<u16>,
    /// Learning rate at the highest; without it, found by trying a few.
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f32>,
    /// Threads of one step.
    #[arg(long, value_name = "N")]
    pub threads: Option<u16>,
    /// Write the best epoch even if it is not better on the images held out by more than chance.
    #[arg(long)]
    pub anyway: bool,
    /// Print what was measured as JSON.
    #[arg(long)]
    pub json: bool,
}

impl TrainArgs {
    /// Settings that its flags stand for.
    pub fn flags(&self) -> Vec<(String, serde_json::Value)> {
        self.how.flags()
    }
}

impl TrainingArgs {
    /// Settings that its flags stand for.
    pub fn flags(&self) -> Vec<(String, serde_json::Value)> {
        let given = [
            ("trainer.trainable", self.trainable.as_ref().map(|value| json!(value))),
            ("trainer.epochs", self.epochs.map(|value| json!(value))),
            ("trainer.batch", self.batch.map(|value| json!(value))),
            ("trainer.optimizer.learning_rate", self.learning_rate.map(|value| json!(value))),
            ("trainer.threads", self.threads.map(|value| json!(value))),
        ];
        given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}

/// Trains.
pub async fn command(settings: &Settings, args: &TrainArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    train_folder(settings, &args.model, &args.data, &args.out, &args.how, shutdown).await?;
    Ok(())
}

/// Trains a model on a folder, and writes a new one if it is better; whether it did.
pub async fn train_folder(
    settings: &Settings,
    model: &Path,
    data: &Path,
    new: &Path,
    how: &TrainingArgs,
    shutdown: Shutdown,
) -> anyhow::Result<bool> {
    let stop = CancellationToken::new();
    let told = stop.clone();
    let watching = tokio::spawn(async move {
        shutdown.wait_for_request().await;
        told.cancel();
    });
    let (train, onnxruntime) = (settings.trainer.training(), settings.onnxruntime.clone());
    let memory_max_mib = settings.trainer.limits.memory_max_mib;
    let (folder, data, out) = (model.to_owned(), data.to_owned(), new.to_owned());
    let bar = progress(train.epochs);
    let shown = bar.clone();
    let anyway = how.anyway;
    let work = move || -> anyhow::Result<(TrainedModel, Option<Model>)> {
        training::folder::check(&out)?;
        let runtime = OnnxRuntime::find_and_load(onnxruntime.as_deref())?;
        let model = Model::load(&folder)?;
        let examples = Examples::read(&data, &model.labels, train.holdout_ratio)?;
        let around = TrainContext { stop: &stop, pace: TrainingPace::unlimited(memory_max_mib), checkpoints: None };
        let trained = training::train_model(&runtime, &model, &examples, &train, around, |epoch| shown.over(epoch))?;
        if !anyway && trained.has_no_gain().is_some() {
            return Ok((trained, None));
        }
        let written = training::folder::write(&model, &trained.onnx, &trained.values(), &out)?;
        Ok((trained, Some(written)))
    };
    let (trained, written) = tokio::task::spawn_blocking(work).await.context("training broke off")??;
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
        stdout::print_note(format_args!("{why}; nothing was written (--anyway writes the best epoch all the same)"));
    }
    Ok(written.is_some())
}

/// Says what happens on standard error: a line an epoch.
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
    format!("of {} held out {right} right, loss {:.3}", measured.images, measured.loss)
}

fn text(trained: &TrainedModel, written: Option<&Model>) -> String {
    let mut lines = vec![format!("trained  {} numbers", trained.parameters)];
    if let Some(layers) = trained.layers {
        let layers = if layers == 1 { "layer".into() } else { format!("{layers} layers") };
        lines
            .push(format!("         the last {layers} alone, for images are few (--trainable all trains every layer)"));
    }
    let right = |measured: &ModelAccuracy| format::percent(measured.accuracy_ratio);
    let (before, after) = trained.held_out();
    lines.push(format!(
        "held out {} right before, {} after epoch {}, of {} images; at a learning rate of {}",
        right(&before),
        right(&after),
        trained.best_epoch,
        after.images,
        trained.learning_rate
    ));
    if let Some((before, after)) = &trained.test {
        lines.push(format!(
            "test     {} right before, {} after, of {} images",
            right(before),
            right(after),
            after.images
        ));
    }
    if trained.unreadable > 0 {
        lines.push(format!("passed over {} times a picture that cannot be used (-v says which)", trained.unreadable));
    }
    if let Some(model) = written {
        lines.push(format!("written  {}, release {}", model.folder.display(), model.release));
        lines.push("The gate's temperature and thresholds are those of the old model.".into());
    }
    lines.join("\n")
}

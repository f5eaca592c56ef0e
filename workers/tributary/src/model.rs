//! `tributary model`: try a model before anything depends on it.

use std::path::PathBuf;

use anyhow::{Context, Error};
use autograd::report::Report;
use serde_json::json;
use training::TrainError;
use vision::{CheckError, Model, ModelReport, Onnx};

use crate::settings::Settings;
use crate::{form, out};

const EXAMPLES: &str = "\
A folder holds model.toml, graph.onnx and labels.txt, or a Hugging Face export as its exporter wrote it
(model.onnx, config.json, preprocessor_config.json). What is wrong with it is named with file, line and key.

Examples:
  tributary model check fixtures/models/fashion-light
  tributary model check ./model --image photo.jpg     what it says about a picture
  tributary model check ./model --json";

/// Try a model before anything depends on it.
#[derive(clap::Subcommand)]
pub enum ModelCommand {
    /// Read a model's folder, load it, run it once and measure what one image costs.
    #[command(after_help = EXAMPLES)]
    Check(CheckArgs),
}

/// Which model, on what.
#[derive(clap::Args)]
pub struct CheckArgs {
    /// Its folder.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Run it on this picture instead of a generated one, and say what it sees.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Tries a model.
pub async fn command(settings: &Settings, command: ModelCommand) -> anyhow::Result<()> {
    let ModelCommand::Check(CheckArgs { folder, image, json }) = command;
    let onnxruntime = settings.onnxruntime.clone();
    type Checked = (ModelReport, Result<Report, TrainError>);
    let checking = move || -> anyhow::Result<Checked> {
        let unreadable = |path: &PathBuf| format!("image {} cannot be read", path.display());
        let name = image.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let bytes = image.as_ref().map(|path| std::fs::read(path).with_context(|| unreadable(path))).transpose()?;
        let onnx = Onnx::find_and_load(onnxruntime.as_deref())?;
        let report = vision::check(&folder, &onnx, bytes.as_deref()).map_err(|error| match error {
            CheckError::Infer(error) if error.is_the_images_fault() => {
                Error::new(error).context(format!("image {name}"))
            }
            error => error.into(),
        })?;
        let training =
            Model::load(&folder).map_err(TrainError::from).and_then(|model| training::probe::report(&onnx, &model));
        Ok((report, training))
    };
    let (report, training) = tokio::task::spawn_blocking(checking).await??;
    if json {
        let mut whole = serde_json::to_value(&report)?;
        whole["training"] = match &training {
            Ok(Report { layers, trainable_layers, weights, parameters, unsupported }) => json!({
                "layers": layers,
                "trainable_layers": trainable_layers,
                "weights": weights,
                "parameters": parameters,
                "unsupported": unsupported,
            }),
            Err(error) => json!({ "refused": error.to_string() }),
        };
        return out::json(&whole);
    }
    out::line(text(&report))?;
    out::line(trainable(&training))?;
    out::line("This model is fit for use.")
}

/// How much of it can be trained.
fn trainable(training: &Result<Report, TrainError>) -> String {
    match training {
        Err(error) => format!("training cannot be done: {error}"),
        Ok(report) => {
            let numbers = format!("{} numbers in {} weights", report.parameters, report.weights);
            let in_the_way = report.unsupported.iter().map(|what| format!("\n         in the way: {what}"));
            match report.unsupported.is_empty() {
                true => format!("training all {} layers, {numbers}", report.layers),
                false => format!(
                    "training the last {} of {} layers, {numbers}{}",
                    report.trainable_layers,
                    report.layers,
                    in_the_way.collect::<String>()
                ),
            }
        }
    }
}

fn text(report: &ModelReport) -> String {
    let ModelReport { name, release, files, size_bytes, runtime, input, output, labels, .. } = report;
    let (channels, layout) = (form::word(&input.channels), form::word(&input.layout));
    let features = output.features.map(|count| format!(", and {count} features")).unwrap_or_default();
    let at_most = report.graph_batch.map(|most| format!(", at most {most} at once")).unwrap_or_default();
    let cost = form::span(report.cost_ms);
    let mut lines = vec![
        format!("model    {name}, {} in {}", form::size(*size_bytes), files.join(", ")),
        format!("release  {release}"),
        format!("runtime  {runtime}"),
        format!(
            "input    {}: {}x{} px, {channels}, {layout}, fitted by {}",
            input.name,
            input.width_px,
            input.height_px,
            form::word(&input.resize)
        ),
        format!("output   {}: {} of {labels} labels{features}", output.name, form::word(&output.kind)),
        format!("cost     {cost} an image on one thread, in batches of {}{at_most}", report.best_batch),
    ];
    lines.extend(report.top.iter().enumerate().map(|(place, best)| {
        let heading = if place == 0 { "sees" } else { "" };
        format!("{heading:8} {:>7}  {}", form::percent(best.confidence_ratio), form::plain(&best.label))
    }));
    lines.join("\n")
}

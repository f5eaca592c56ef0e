//! `tributary model`: describe, check and calibrate a model before it is used.

use std::path::{Path, PathBuf};

use anyhow::{Context, Error, bail};
use autograd::report::TrainabilityReport;
use serde_json::json;
use training::TrainError;
use vision::{
    CheckError, DraftNote, FitReport, Model, ModelReport, NoveltySource, OnnxRuntime, TrialImage, TrialReport, TrialRow,
};

use crate::settings::Settings;
use crate::{format, stdout};

const CHECK_EXAMPLES: &str = "\
A model folder holds model.toml, one ONNX file and labels.txt or labels.json, or a Hugging Face export (config.json, \
preprocessor_config.json, model.onnx), whose model.toml is optional and needs only what differs. Errors name file, \
line and key. `tributary model init` drafts a model.toml.

With --images the model also runs under descriptions that are often confused (red and blue swapped, other value \
ranges); if one of them gives clearly more correct answers, it is named.

Examples:
  tributary model check fixtures/models/fashion-light
  tributary model check ./model --image photo.jpg
  tributary model check ./model --images ./photos --labels-from-folders
  tributary model check ./detector --image photo.jpg --draw boxes.png
  tributary model check ./model --json";

const INIT_EXAMPLES: &str = "\
Reads the graph (sizes, names, last operator), the files beside it (config.json of Hugging Face and timm, labels, \
texts with one class per line) and the metadata of exporters (ultralytics, Custom Vision). Whatever is not known is \
guessed and marked as a guess. Existing files are not changed.

A detector is described by the preset of its exporter, recognized where its outputs are clear; otherwise name it with \
--preset. rt-detr also stands for D-FINE, yolov8 for YOLO11, yolov10 for YOLO26; hf- are Hugging Face's exports.

Examples:
  tributary model init best.onnx
  tributary model init ./model
  tributary model init yolox_s.onnx --preset yolox
  tributary model check ./model --images ./photos --labels-from-folders
                                                  then: are the answers right?";

const NOVELTY_EXAMPLES: &str = "\
The novelty score is the distance of an image's features from the nearest class mean, as the share of known images \
that are closer: 0.99 is further away than 99 of 100. Use images as the site's cameras take them; they need no labels. \
Then recognizer.gate.max_novelty = 0.99 escalates stranger images to the cloud.

The score is written to novelty.json in the model's folder. That makes it another release: give the same folder to the \
sites and to the cloud. It holds for these weights only; run the command again on a release that training made. A \
model without a features output is measured by its logits.

Examples:
  tributary model novelty ./model --images ./photos
  tributary model novelty ./model --images ./photos --outliers ./others
                                                  how well it tells the two apart
  tributary model novelty ./model --images ./photos --json";

/// Most rows of the table of answers; JSON has all.
const MOST_ROWS: usize = 30;

/// Describe, check and calibrate a model before it is used.
#[derive(clap::Subcommand)]
pub(crate) enum ModelCommand {
    /// Draft the model.toml of an ONNX file, with the source of each value.
    #[command(after_help = INIT_EXAMPLES)]
    Init(InitArgs),
    /// Load a model, run it, and measure its cost per image.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArgs),
    /// Fit a novelty score: how unlike the known images an image is.
    #[command(after_help = NOVELTY_EXAMPLES)]
    Novelty(NoveltyArgs),
}

/// The model, and the images to fit its novelty score on.
#[derive(clap::Args)]
pub(crate) struct NoveltyArgs {
    /// Folder of the model.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Folder of known images, at least 100; of more than 20,000, an even selection is used.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Folder of outliers: measure how well the score tells them from known images.
    #[arg(long, value_name = "DIR")]
    outliers: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// The model to describe.
#[derive(clap::Args)]
pub(crate) struct InitArgs {
    /// ONNX file, or the folder it is in.
    #[arg(value_name = "FILE|DIR")]
    path: PathBuf,
    /// The model is a detector of this form: yolov5, yolov8, yolov10, yolox, rt-detr, rf-detr, hf-detr, hf-rt-detr,
    /// ssd-tensorflow, custom-vision or torchvision.
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
}

/// The model, and the images to run it on.
#[derive(clap::Args)]
pub(crate) struct CheckArgs {
    /// Folder of the model.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Run the model on this image instead of a generated one, and show its answer.
    #[arg(long, value_name = "FILE", conflicts_with = "images")]
    image: Option<PathBuf>,
    /// With --image and a detector: write the image with its objects drawn into it to this PNG file.
    #[arg(long, value_name = "FILE", requires = "image")]
    draw: Option<PathBuf>,
    /// Run the model on the images of this folder, and compare its answers with their labels.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Use the name of an image's folder as its label, unless an index.csv gives one.
    #[arg(long, requires = "images")]
    labels_from_folders: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Describes, checks or calibrates a model.
pub(crate) async fn command(settings: &Settings, command: ModelCommand) -> anyhow::Result<()> {
    match command {
        ModelCommand::Init(InitArgs { path, preset }) => init(&path, preset.as_deref()),
        ModelCommand::Check(args) => check(settings, args).await,
        ModelCommand::Novelty(args) => novelty(settings, args).await,
    }
}

fn init(path: &Path, preset: Option<&str>) -> anyhow::Result<()> {
    if !path.exists() {
        bail!("{} does not exist: name an ONNX file or the folder it is in", path.display());
    }
    let (folder, graph) = match path.is_dir() {
        true => (path.to_owned(), None),
        false => {
            let folder = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
            (folder.to_owned(), path.file_name().map(|name| name.to_string_lossy().into_owned()))
        }
    };
    let description = folder.join("model.toml");
    if description.exists() {
        bail!("{} already exists: remove it to draft a new one", description.display());
    }
    let draft = vision::draft(&folder, graph.as_deref(), preset)?;
    let text = draft.toml().context("the draft cannot be written as TOML")?;
    let write = |path: &Path, text: &str| {
        std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
    };
    if let Some(labels) = &draft.labels {
        write(&folder.join("labels.txt"), &(labels.join("\n") + "\n"))?;
    }
    write(&description, &text)?;
    let rows = draft.notes.iter().map(|DraftNote { key, why, is_guess }| {
        let source = if *is_guess { "guess" } else { "known" };
        format!("{source:8} {key:16} {}", format::plain_text(why))
    });
    stdout::print_line(rows.collect::<Vec<_>>().join("\n"))?;
    let labels = if draft.labels.is_some() { " and labels.txt" } else { "" };
    let guesses = draft.notes.iter().filter(|note| note.is_guess).count();
    let advice = match guesses {
        0 => "",
        _ => " Check the guesses in it.",
    };
    let trial = match draft.description.output.boxes {
        None => "--images DIR --labels-from-folders",
        Some(_) => "--image FILE --draw boxes.png",
    };
    stdout::print_line(format!(
        "\nWrote {}{labels}.{advice} Then test it on images you know:\n  tributary model check {} {trial}",
        description.display(),
        folder.display()
    ))
}

async fn check(settings: &Settings, args: CheckArgs) -> anyhow::Result<()> {
    let CheckArgs { folder, image, draw, images, labels_from_folders, json } = args;
    let onnxruntime = settings.onnxruntime.clone();
    let trial = match images {
        None => None,
        Some(images) => {
            let mut publisher = settings.publisher.clone();
            if labels_from_folders {
                publisher.labels = publish::LabelOrigin::Folder;
            }
            let (found, others) = publish::list_images(vec![images.clone()], &publisher).await?;
            others.iter().for_each(|other| tracing::warn!(other, "image skipped"));
            if found.is_empty() {
                bail!("{} contains no image files", images.display());
            }
            let found = found.into_iter().map(|(path, label)| TrialImage { path, label });
            Some((images, found.collect::<Vec<_>>()))
        }
    };
    type ModelCheckResult = (ModelReport, Option<(PathBuf, TrialReport)>, Result<TrainabilityReport, TrainError>);
    let checking = move || -> anyhow::Result<ModelCheckResult> {
        let unreadable = |path: &PathBuf| format!("image {} cannot be read", path.display());
        let name = image.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let bytes = image.as_ref().map(|path| std::fs::read(path).with_context(|| unreadable(path))).transpose()?;
        let onnx = OnnxRuntime::find_and_load(onnxruntime.as_deref())?;
        let report = vision::check(&folder, &onnx, bytes.as_deref()).map_err(|error| match error {
            CheckError::Infer(error) if error.is_the_images_fault() => {
                Error::new(error).context(format!("image {name}"))
            }
            error => error.into(),
        })?;
        if let (Some(path), Some(bytes)) = (&draw, &bytes) {
            let objects = report.objects.as_deref();
            let objects = objects.context("--draw is for detectors; this model classifies images")?;
            let png = vision::detection::draw_objects(bytes, objects)?;
            std::fs::write(path, png).with_context(|| format!("{} cannot be written", path.display()))?;
        }
        let model = Model::load(&folder)?;
        let trial = trial.map(|(root, images)| anyhow::Ok((root, vision::try_on(&onnx, &model, &images)?)));
        Ok((report, trial.transpose()?, training::trainable_model::report(&onnx, &model)))
    };
    let (report, trial, training) = tokio::task::spawn_blocking(checking).await??;
    if json {
        let mut whole = serde_json::to_value(&report)?;
        let trainability = match &training {
            Ok(TrainabilityReport { layers, trainable_layers, weights, parameters, unsupported }) => json!({
                "layers": layers,
                "trainable_layers": trainable_layers,
                "weights": weights,
                "parameters": parameters,
                "unsupported": unsupported,
            }),
            Err(error) => json!({ "refused": error.to_string() }),
        };
        stdout::set_field(&mut whole, "training", trainability);
        if let Some((_, trial)) = &trial {
            stdout::set_field(&mut whole, "images", serde_json::to_value(trial)?);
        }
        return stdout::json(&whole);
    }
    stdout::print_line(text(&report))?;
    stdout::print_line(trainable(&training))?;
    let Some((root, trial)) = trial else { return stdout::print_line("The model is ready for use.") };
    stdout::print_line(format!("\n{}", side_by_side(&root, &trial)))?;
    match trial.findings.is_empty() {
        true => stdout::print_line("The model is ready for use, and its description fits the images."),
        false => {
            let findings = trial.findings.iter().map(|finding| format!("- {}", format::plain_text(finding)));
            stdout::print_line(format!("The description is doubtful:\n{}", findings.collect::<Vec<_>>().join("\n")))
        }
    }
}

async fn novelty(settings: &Settings, args: NoveltyArgs) -> anyhow::Result<()> {
    let NoveltyArgs { folder, images, outliers, json } = args;
    let pictures = list(settings, images).await?;
    let others = match outliers {
        Some(folder) => list(settings, folder).await?,
        None => Vec::new(),
    };
    let onnxruntime = settings.onnxruntime.clone();
    let fitting = move || -> anyhow::Result<(Model, FitReport)> {
        let onnx = OnnxRuntime::find_and_load(onnxruntime.as_deref())?;
        let model = Model::load(&folder)?;
        let (novelty, report) = vision::novelty::fit::fit_novelty(&onnx, &model, &pictures, &others)?;
        Ok((vision::novelty::fit::save_novelty(&novelty, &model)?, report))
    };
    let (model, report) = tokio::task::spawn_blocking(fitting).await??;
    if json {
        let mut whole = serde_json::to_value(&report)?;
        stdout::set_field(&mut whole, "release", json!(model.release.to_string()));
        return stdout::json(&whole);
    }
    stdout::print_line(novelty_text(&model, &report))
}

/// The image files of a folder.
async fn list(settings: &Settings, folder: PathBuf) -> anyhow::Result<Vec<PathBuf>> {
    let (found, others) = publish::list_images(vec![folder.clone()], &settings.publisher).await?;
    others.iter().for_each(|other| tracing::warn!(other, "image skipped"));
    match found.is_empty() {
        true => bail!("{} contains no image files", folder.display()),
        false => Ok(found.into_iter().map(|(path, _)| path).collect()),
    }
}

fn novelty_text(model: &Model, report: &FitReport) -> String {
    let FitReport { source, pictures, held_out, unreadable, against } = report;
    let source = match source {
        NoveltySource::Features => "the features output",
        NoveltySource::Logits => "the logits, because model.toml names no features output",
    };
    let mut lines = vec![
        format!("fitted on    {pictures} images by {source}; {held_out} of them for calibration"),
        format!("written to   {}", model.folder.join(vision::novelty::FILE).display()),
        format!("release      {}; give the same folder to the sites and to the cloud", model.release.short()),
    ];
    if let Some(first) = unreadable.first() {
        lines.push(format!(
            "skipped      {}, the first: {}",
            format::count(unreadable.len() as u64, "image"),
            format::plain_text(first)
        ));
    }
    if let Some(against) = against {
        let percent = |ratio: f64| format::percent(ratio);
        lines.push(format!(
            "outliers     {}; area under the ROC curve: {:.3} by novelty, {:.3} by confidence, {:.3} by energy",
            format::count(against.pictures as u64, "image"),
            against.novelty_auroc,
            against.confidence_auroc,
            against.energy_auroc
        ));
        lines.push(format!(
            "doubtful     {} of the outliers with max_novelty = 0.95, {} with 0.99",
            percent(against.above_95_ratio),
            percent(against.above_99_ratio)
        ));
    }
    lines.push(
        "Use it with recognizer.gate.max_novelty = 0.99 in the settings, or max_novelty under [gate] in model.toml."
            .into(),
    );
    lines.join("\n")
}

/// The model's answers beside the labels, wrong ones first.
fn side_by_side(root: &Path, trial: &TrialReport) -> String {
    let is_wrong = |row: &&TrialRow| row.expected.is_some() && row.expected != row.label;
    let (wrong, others): (Vec<&TrialRow>, Vec<&TrialRow>) = trial.images.iter().partition(is_wrong);
    let rows: Vec<Vec<String>> = wrong
        .into_iter()
        .chain(others)
        .take(MOST_ROWS)
        .map(|row| {
            let file = row.path.strip_prefix(root).unwrap_or(&row.path).display().to_string();
            let answer = match (&row.label, &row.fault) {
                (Some(_), _) if row.objects.is_some() => {
                    format::summarize_objects(row.objects.as_deref().unwrap_or_default())
                }
                (Some(label), _) => format::plain_text(label),
                (None, fault) => {
                    format!("cannot be read: {}", format::plain_text(fault.as_deref().unwrap_or_default()))
                }
            };
            let expected = row.expected.as_deref().map(format::plain_text).unwrap_or_default();
            vec![
                format::plain_text(&file),
                expected,
                answer,
                row.confidence_ratio.map(format::percent).unwrap_or_default(),
            ]
        })
        .collect();
    let mut text = format::table(&["image", "label", "answer", "confidence"], &rows);
    if trial.images.len() > rows.len() {
        text.push_str(&format!("\n… and {} more; --json lists all", trial.images.len() - rows.len()));
    }
    if trial.labelled > 0 {
        let share = trial.right as f32 / trial.labelled as f32;
        text.push_str(&format!(
            "\n\n{} of {} labelled images are correct, {}",
            trial.right,
            trial.labelled,
            format::percent(share)
        ));
    }
    for (label, count) in trial.unknown_labels.iter().take(5) {
        text.push_str(&format!("\n{count} with label {}, which the model does not have", format::plain_text(label)));
    }
    text
}

/// How much of the model can be trained.
fn trainable(training: &Result<TrainabilityReport, TrainError>) -> String {
    match training {
        Err(error) => format!("training impossible: {error}"),
        Ok(report) => {
            let numbers = format!("{} parameters in {} tensors", report.parameters, report.weights);
            let blockers = report.unsupported.iter().map(|what| format!("\n         not trainable: {what}"));
            match report.unsupported.is_empty() {
                true => format!("training all {} layers, {numbers}", report.layers),
                false => format!(
                    "training the last {} of {} layers, {numbers}{}",
                    report.trainable_layers,
                    report.layers,
                    blockers.collect::<String>()
                ),
            }
        }
    }
}

fn text(report: &ModelReport) -> String {
    let ModelReport { name, release, files, size_bytes, runtime, input, output, labels, .. } = report;
    let (channels, layout) = (format::wire_word(&input.channels), format::wire_word(&input.layout));
    let features = output.features.map(|count| format!(", and {count} features")).unwrap_or_default();
    let at_most = report.graph_batch.map(|most| format!(", at most {most} per batch")).unwrap_or_default();
    let cost = format::format_span(report.cost_ms);
    let mut lines = vec![
        format!("model    {name}, {} in {}", format::format_size(*size_bytes), files.join(", ")),
        format!("release  {}", format::shorten_digests(release)),
        format!("runtime  {runtime}"),
        format!(
            "input    {}: {}x{} px, {channels}, {layout}, resized by {}",
            input.name,
            input.width_px,
            input.height_px,
            format::wire_word(&input.resize)
        ),
        format!("output   {}: {} of {labels} labels{features}", output.name, format::wire_word(&output.kind)),
        format!("cost     {cost} per image on one thread, in batches of {}{at_most}", report.best_batch),
    ];
    lines.extend(report.top.iter().enumerate().map(|(place, best)| {
        let heading = if place == 0 { "answer" } else { "" };
        format!("{heading:8} {:>7}  {}", format::percent(best.confidence_ratio), format::plain_text(&best.label))
    }));
    if let Some(objects) = &report.objects {
        lines.push(format!("found    {}", format::summarize_objects(objects)));
        let rows: Vec<Vec<String>> = objects.iter().take(MOST_ROWS).map(format::object_row).collect();
        if !rows.is_empty() {
            lines.push(format::table(&["confidence", "label", "left top right bottom, %"], &rows));
        }
        if objects.len() > rows.len() {
            lines.push(format!("… and {} more; --json lists all", objects.len() - rows.len()));
        }
    }
    if report.not_finite > 0 {
        let numbers = report.not_finite;
        lines.push(format!(
            "left out {numbers} scores or boxes that are not finite; the model or its description is wrong"
        ));
    }
    if report.cut > 0 {
        let candidates = report.cut;
        lines.push(format!(
            "left out {candidates} candidates beyond the best; output.threshold is low, or output.boxes wrong"
        ));
    }
    lines.join("\n")
}

//! `tributary model`: describe a model and try it before anything depends on it.

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
A folder holds model.toml, one ONNX file and labels.txt or labels.json, or a Hugging Face export as its exporter
wrote it (config.json, preprocessor_config.json, model.onnx); a model.toml beside the latter needs to say only what is
different. What is wrong is named with file, line and key. `tributary model init` drafts a model.toml.

With --images the model is also run under descriptions that are often mistaken for each other (red and blue
exchanged, other ranges of numbers), and one under which clearly more pictures are right is named.

Examples:
  tributary model check fixtures/models/fashion-light
  tributary model check ./model --image photo.jpg     what it says about a picture
  tributary model check ./model --images ./photos --labels-from-folders
  tributary model check ./model --json";

const INIT_EXAMPLES: &str = "\
Takes what the graph says (sizes, names, its last operator), what stands beside it (config.json of Hugging Face and
timm, labels, other texts with a line a class) and what exporters write into it (ultralytics, Custom Vision); guesses the
rest and says so. Nothing that is there is changed.

Examples:
  tributary model init best.onnx
  tributary model init ./model
  tributary model check ./model --images ./photos --labels-from-folders     then: does it see what you see?";

const NOVELTY_EXAMPLES: &str = "\
The score says how far a picture's features lie from the nearest class mean, as the share of held-out pictures that
lie nearer: 0.99 is further than 99 in 100. It is written into the folder as novelty.json and belongs to the release,
whose name changes: give the same folder to the sites and to the cloud. It holds for these weights alone; a release that
training makes of them has none until this command is run on it. A model that names no features output is
measured by its logits.

Use pictures as the site's cameras take them; they need no labels. Then recognizer.gate.max_novelty = 0.99 sends stranger ones to the
cloud.

Examples:
  tributary model novelty ./model --images ./photos
  tributary model novelty ./model --images ./photos --against ./others    how well the two kinds are told apart
  tributary model novelty ./model --images ./photos --json";

/// Rows of a side-by-side that are printed; JSON has all.
const MOST_ROWS: usize = 30;

/// Describe a model, and try it before anything depends on it.
#[derive(clap::Subcommand)]
pub enum ModelCommand {
    /// Draft the model.toml of an ONNX file, and say where each value is from.
    #[command(after_help = INIT_EXAMPLES)]
    Init(InitArgs),
    /// Read a model's folder, load it, run it and measure what one image costs.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArgs),
    /// Teach a model's folder how strange a picture is to the model, from pictures it shall know.
    #[command(after_help = NOVELTY_EXAMPLES)]
    Novelty(NoveltyArgs),
}

/// Which model, by which pictures.
#[derive(clap::Args)]
pub struct NoveltyArgs {
    /// Its folder.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Pictures of the kind the model shall know, at least 100; of more than 20,000, as many are taken evenly.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Measure how well pictures of another kind, in this folder, are told apart.
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Which model.
#[derive(clap::Args)]
pub struct InitArgs {
    /// An ONNX file, or the folder it lies in.
    #[arg(value_name = "FILE|DIR")]
    path: PathBuf,
}

/// Which model, on what.
#[derive(clap::Args)]
pub struct CheckArgs {
    /// Its folder.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Run it on this picture instead of a generated one, and say what it sees.
    #[arg(long, value_name = "FILE", conflicts_with = "images")]
    image: Option<PathBuf>,
    /// Run it on the pictures of this folder and hold what it says against their labels.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// The label of a picture is the name of the folder it lies in, unless an index.csv names one.
    #[arg(long, requires = "images")]
    labels_from_folders: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Describes or tries a model.
pub async fn command(settings: &Settings, command: ModelCommand) -> anyhow::Result<()> {
    match command {
        ModelCommand::Init(InitArgs { path }) => init(&path),
        ModelCommand::Check(args) => check(settings, args).await,
        ModelCommand::Novelty(args) => novelty(settings, args).await,
    }
}

fn init(path: &Path) -> anyhow::Result<()> {
    if !path.exists() {
        bail!("{} does not exist; name an ONNX file or the folder it lies in", path.display());
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
        bail!("{} is there already; remove it to have a new one drafted", description.display());
    }
    let draft = vision::draft(&folder, graph.as_deref())?;
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
        format!("{source:8} {key:16} {}", format::plain_number(why))
    });
    stdout::print_line(rows.collect::<Vec<_>>().join("\n"))?;
    let labels = if draft.labels.is_some() { " and labels.txt" } else { "" };
    let guesses = draft.notes.iter().filter(|note| note.is_guess).count();
    let advice = match guesses {
        0 => "",
        _ => " Correct the guesses in it where you know better.",
    };
    stdout::print_line(format!(
        "\nWrote {}{labels}.{advice} Then hold it against pictures you know:\n  tributary model check {} --images PICTURES \
         --labels-from-folders",
        description.display(),
        folder.display()
    ))
}

async fn check(settings: &Settings, args: CheckArgs) -> anyhow::Result<()> {
    let CheckArgs { folder, image, images, labels_from_folders, json } = args;
    let onnxruntime = settings.onnxruntime.clone();
    let trial = match images {
        None => None,
        Some(images) => {
            let mut publisher = settings.publisher.clone();
            if labels_from_folders {
                publisher.labels = publish::LabelOrigin::Folder;
            }
            let (found, others) = publish::list_images(vec![images.clone()], &publisher).await?;
            others.iter().for_each(|note| tracing::warn!(note, "files passed over"));
            if found.is_empty() {
                bail!("{} holds no image files", images.display());
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
        let model = Model::load(&folder)?;
        let trial = trial.map(|(root, images)| anyhow::Ok((root, vision::try_on(&onnx, &model, &images)?)));
        Ok((report, trial.transpose()?, training::trainable_model::report(&onnx, &model)))
    };
    let (report, trial, training) = tokio::task::spawn_blocking(checking).await??;
    if json {
        let mut whole = serde_json::to_value(&report)?;
        whole["training"] = match &training {
            Ok(TrainabilityReport { layers, trainable_layers, weights, parameters, unsupported }) => json!({
                "layers": layers,
                "trainable_layers": trainable_layers,
                "weights": weights,
                "parameters": parameters,
                "unsupported": unsupported,
            }),
            Err(error) => json!({ "refused": error.to_string() }),
        };
        if let Some((_, trial)) = &trial {
            whole["images"] = serde_json::to_value(trial)?;
        }
        return stdout::json(&whole);
    }
    stdout::print_line(text(&report))?;
    stdout::print_line(trainable(&training))?;
    let Some((root, trial)) = trial else { return stdout::print_line("This model is fit for use.") };
    stdout::print_line(format!("\n{}", side_by_side(&root, &trial)))?;
    match trial.findings.is_empty() {
        true => stdout::print_line("This model is fit for use, and nothing speaks against its description."),
        false => {
            let findings = trial.findings.iter().map(|finding| format!("- {}", format::plain_number(finding)));
            stdout::print_line(format!("Its description is doubtful:\n{}", findings.collect::<Vec<_>>().join("\n")))
        }
    }
}

async fn novelty(settings: &Settings, args: NoveltyArgs) -> anyhow::Result<()> {
    let NoveltyArgs { folder, images, against, json } = args;
    let pictures = list(settings, images).await?;
    let others = match against {
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
        whole["release"] = json!(model.release.to_string());
        return stdout::json(&whole);
    }
    stdout::print_line(novelty_text(&model, &report))
}

/// The image files of a folder.
async fn list(settings: &Settings, folder: PathBuf) -> anyhow::Result<Vec<PathBuf>> {
    let (found, others) = publish::list_images(vec![folder.clone()], &settings.publisher).await?;
    others.iter().for_each(|note| tracing::warn!(note, "files passed over"));
    match found.is_empty() {
        true => bail!("{} holds no image files", folder.display()),
        false => Ok(found.into_iter().map(|(path, _)| path).collect()),
    }
}

fn novelty_text(model: &Model, report: &FitReport) -> String {
    let FitReport { source, pictures, held_out, unreadable, against } = report;
    let source = match source {
        NoveltySource::Features => "its features output",
        NoveltySource::Logits => "its logits, for model.toml names no features output",
    };
    let mut lines = vec![
        format!("made from    {pictures} pictures by {source}; {held_out} of them calibrate it"),
        format!("written to   {}", model.folder.join(vision::novelty::FILE).display()),
        format!("release      {}; give the same folder to the sites and to the cloud", model.release),
    ];
    if let Some(first) = unreadable.first() {
        lines.push(format!(
            "passed over  {}, the first: {}",
            format::count(unreadable.len() as u64, "picture"),
            format::plain_number(first)
        ));
    }
    if let Some(against) = against {
        let percent = |ratio: f64| format::percent(ratio);
        lines.push(format!(
            "told apart   from {} of another kind (area under the ROC curve): {:.3} by novelty, {:.3} by confidence, {:.3} by \
             energy",
            format::count(against.pictures as u64, "picture"),
            against.novelty_auroc,
            against.confidence_auroc,
            against.energy_auroc
        ));
        lines.push(format!(
            "doubtful     {} of those with max_novelty = 0.95, {} with 0.99",
            percent(against.above_95_ratio),
            percent(against.above_99_ratio)
        ));
    }
    lines.push("Ask for it with recognizer.gate.max_novelty = 0.99 in the settings, or max_novelty under [gate] in model.toml.".into());
    lines.join("\n")
}

/// What the model says beside what is expected, what is wrong first.
fn side_by_side(root: &Path, trial: &TrialReport) -> String {
    let is_wrong = |row: &&TrialRow| row.expected.is_some() && row.expected != row.label;
    let (wrong, others): (Vec<&TrialRow>, Vec<&TrialRow>) = trial.images.iter().partition(is_wrong);
    let rows: Vec<Vec<String>> = wrong
        .into_iter()
        .chain(others)
        .take(MOST_ROWS)
        .map(|row| {
            let file = row.path.strip_prefix(root).unwrap_or(&row.path).display().to_string();
            let said = match (&row.label, &row.fault) {
                (Some(label), _) => format::plain_number(label),
                (None, fault) => {
                    format!("cannot be read: {}", format::plain_number(fault.as_deref().unwrap_or_default()))
                }
            };
            let expected = row.expected.as_deref().map(format::plain_number).unwrap_or_default();
            vec![
                format::plain_number(&file),
                expected,
                said,
                row.confidence_ratio.map(format::percent).unwrap_or_default(),
            ]
        })
        .collect();
    let mut text = format::table(&["image", "expected", "says", "sure"], &rows);
    if trial.images.len() > rows.len() {
        text.push_str(&format!("\n… and {} more; --json has all", trial.images.len() - rows.len()));
    }
    if trial.labelled > 0 {
        let share = trial.right as f32 / trial.labelled as f32;
        text.push_str(&format!(
            "\n\n{} of {} labelled pictures are right, {}",
            trial.right,
            trial.labelled,
            format::percent(share)
        ));
    }
    for (label, count) in trial.unknown_labels.iter().take(5) {
        text.push_str(&format!("\n{count} of label {}, which the model does not have", format::plain_number(label)));
    }
    text
}

/// How much of it can be trained.
fn trainable(training: &Result<TrainabilityReport, TrainError>) -> String {
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
    let (channels, layout) = (format::wire_word(&input.channels), format::wire_word(&input.layout));
    let features = output.features.map(|count| format!(", and {count} features")).unwrap_or_default();
    let at_most = report.graph_batch.map(|most| format!(", at most {most} at once")).unwrap_or_default();
    let cost = format::format_span(report.cost_ms);
    let mut lines = vec![
        format!("model    {name}, {} in {}", format::format_size(*size_bytes), files.join(", ")),
        format!("release  {release}"),
        format!("runtime  {runtime}"),
        format!(
            "input    {}: {}x{} px, {channels}, {layout}, fitted by {}",
            input.name,
            input.width_px,
            input.height_px,
            format::wire_word(&input.resize)
        ),
        format!("output   {}: {} of {labels} labels{features}", output.name, format::wire_word(&output.kind)),
        format!("cost     {cost} an image on one thread, in batches of {}{at_most}", report.best_batch),
    ];
    lines.extend(report.top.iter().enumerate().map(|(place, best)| {
        let heading = if place == 0 { "sees" } else { "" };
        format!("{heading:8} {:>7}  {}", format::percent(best.confidence_ratio), format::plain_number(&best.label))
    }));
    lines.join("\n")
}

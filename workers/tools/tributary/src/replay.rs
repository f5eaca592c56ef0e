//! `tributary replay`: images that were answered, once more: into a folder, an archive, a stream, the trainer, a model.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use replay::fetch::ImageOrigin;
use replay::select::TaskStage;
use replay::{
    Expression, ReplayDestination, ReplayOptions, ReplayProgress, ReplaySpacing, ReplaySummary, TaskQuery,
    TaskSampling, replay, timestamp,
};
use runtime::settings::LoadedSettings;
use runtime::{Shutdown, clock};
use schemas::{CameraName, SetName};
use vision::{InferencePool, Model, OnnxRuntime};

use crate::settings::Settings;
use crate::site_target::{self, SiteTarget};
use crate::{format, stdout};

mod backtest;
mod text;

const EXAMPLES: &str = "\
What is replayed stays where it is, and live work goes first: while the site's recognizers work, no more than
replayer.busy_mib_per_s is read. Interrupted, or stopped by a full disk, the same command goes on where it was.

--where compares fields of a task with values, joined by and, or, not and parentheses:
  text          site camera task stage route reason label truth person edge_label release    = != in like
  numbers       confidence margin edge_confidence novelty sequence published latency_ms    = != < <= > >=
  true or not   hard (the site was in doubt)  wrong (a person or the publisher says otherwise)  labelled

Examples:
  tributary replay --to ./set                                    every image with its final answer
  tributary replay --since 7d --where 'hard and labelled' --to hard.tar
  tributary replay --where 'confidence < 60% or label in (shark, ray)' --sample per-class --limit 2000 --to ./set
  tributary replay --camera cam-1 --pace original --to 'subject:image.lab.{camera}'
  tributary replay --where wrong --to trainer                    the site's trainer learns from them again
  tributary replay --since 1d --with ./new-model                 what another model says of the same images
  tributary replay --since 1d --policy paper --policy edge-only --gate strict.toml
                                                 what other settings would have decided, side by side
  tributary replay --since 2026-11-01 --until 2026-11-08 --pin spawning
  tributary replay --pinned spawning --to ./spawning";

/// Which tasks are meant.
#[derive(clap::Args, Clone, Debug)]
pub struct SelectionArgs {
    /// Only of this camera; may be repeated.
    #[arg(long, value_name = "NAME", help_heading = "Which images")]
    camera: Vec<CameraName>,
    /// Stored then or later: a date, a time (2026-11-25T10:30:00Z), or how long ago (90m, 2h, 7d).
    #[arg(long, value_name = "TIME", help_heading = "Which images")]
    since: Option<String>,
    /// Stored before then.
    #[arg(long, value_name = "TIME", help_heading = "Which images")]
    until: Option<String>,
    /// From this sequence in the stream of images.
    #[arg(long, value_name = "N", help_heading = "Which images")]
    from_sequence: Option<u64>,
    /// Up to this sequence, itself included.
    #[arg(long, value_name = "N", help_heading = "Which images")]
    to_sequence: Option<u64>,
    /// Those with a final answer, those with a provisional one and no final (provisional), or those given up (dead).
    #[arg(long, value_name = "STAGE", help_heading = "Which images", default_value = "final", value_parser = stage)]
    stage: TaskStage,
    /// What must hold of them, as said below.
    #[arg(long = "where", value_name = "CONDITION", help_heading = "Which images")]
    condition: Option<String>,
    /// Of a pinned set instead of the site's archive.
    #[arg(long, value_name = "NAME", help_heading = "Which images")]
    pinned: Option<SetName>,
    /// So many at the most.
    #[arg(long, value_name = "N", help_heading = "Which images")]
    limit: Option<usize>,
    /// Which, if there are more: first, last, random, per-class, or hard (what the site was wrong about, then what it was
    /// least sure of).
    #[arg(long, value_name = "HOW", help_heading = "Which images", default_value = "first", requires = "limit",
          value_parser = <TaskSampling as FromStr>::from_str)]
    sample: TaskSampling,
    /// Another sample of the same kind.
    #[arg(long, value_name = "N", help_heading = "Which images", default_value_t = 1)]
    seed: u64,
}

fn stage(text: &str) -> Result<TaskStage, String> {
    match text {
        "final" => Ok(TaskStage::Final),
        "provisional" => Ok(TaskStage::Provisional),
        "dead" => Ok(TaskStage::Dead),
        _ => Err("use final, provisional or dead".into()),
    }
}

impl SelectionArgs {
    /// The flags that say it, in a line that tells it from others.
    pub fn command_line(&self) -> String {
        let mut said: Vec<String> = self.camera.iter().map(|camera| format!("--camera {camera}")).collect();
        let mut flag =
            |name: &str, value: Option<String>| said.extend(value.map(|value| format!("--{name} {value:?}")));
        flag("since", self.since.clone());
        flag("until", self.until.clone());
        flag("from-sequence", self.from_sequence.map(|sequence| sequence.to_string()));
        flag("to-sequence", self.to_sequence.map(|sequence| sequence.to_string()));
        flag("stage", (self.stage != TaskStage::Final).then(|| format!("{:?}", self.stage)));
        flag("where", self.condition.clone());
        flag("pinned", self.pinned.as_ref().map(SetName::to_string));
        flag("limit", self.limit.map(|limit| limit.to_string()));
        flag("sample", (self.sample != TaskSampling::First).then(|| format!("{:?}", self.sample)));
        flag("seed", (self.seed != 1).then(|| self.seed.to_string()));
        if said.is_empty() { "all".into() } else { said.join(" ") }
    }

    /// What is meant. `asked` tells it from others, in a line.
    pub fn options(&self, asked: String) -> anyhow::Result<ReplayOptions> {
        let now_ms = Some(clock::now_ms());
        let moment = |flag: &str, text: &Option<String>| {
            let read = text.as_deref().map(|text| timestamp::parse_timestamp(text, now_ms)).transpose();
            read.map_err(|why| anyhow::anyhow!("--{flag}: {why}"))
        };
        let (since_ms, until_ms) = (moment("since", &self.since)?, moment("until", &self.until)?);
        if let (Some(since_ms), Some(until_ms)) = (since_ms, until_ms) {
            ensure!(since_ms < until_ms, "--since is not before --until, so nothing lies between them");
        }
        let condition = self.condition.as_deref().map(Expression::parse).transpose();
        Ok(ReplayOptions {
            query: TaskQuery {
                cameras: self.camera.clone(),
                since_ms,
                until_ms,
                from_sequence: self.from_sequence,
                to_sequence: self.to_sequence,
                at: self.stage,
                condition: condition.map_err(|error| anyhow::anyhow!("--where: {error}"))?,
            },
            from: self.pinned.clone().map_or(ImageOrigin::Images, ImageOrigin::Pinned),
            only: None,
            sample: self.sample,
            limit: self.limit,
            seed: self.seed,
            most_mib_per_s: None,
            asked,
        })
    }
}

/// Replay images that were answered: export them, publish them again, learn from them, or ask another model.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ReplayArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// A folder (images and an index.csv), FILE.tar (WebDataset), subject:SUBJECT (published again, marked as replayed;
    /// {site} and {camera} stand for where each came from) or trainer (their labels, for the site's trainer); with --with
    /// FILE.csv.
    #[arg(long, value_name = "WHERE", help_heading = "Where to")]
    to: Option<String>,
    /// Keep them whatever their age, in a set of this name.
    #[arg(long, value_name = "NAME", help_heading = "Where to", conflicts_with_all = ["to", "with", "pinned"])]
    pin: Option<SetName>,
    /// Show them to the model in this folder, and hold its answers against theirs; with --to FILE.csv each beside the other.
    #[arg(long, value_name = "MODEL_DIR", help_heading = "Where to")]
    with: Option<PathBuf>,
    /// What another policy would have decided: a name such as paper, or a TOML file with keys of recognizer.policy (or with
    /// [policy], [gate] and [verify]); may be repeated.
    #[arg(long, value_name = "NAME|FILE", help_heading = "Other settings", conflicts_with_all = ["to", "with", "pin", "pinned"])]
    policy: Vec<String>,
    /// What another gate would have decided: a TOML file with keys of recognizer.gate; may be repeated.
    #[arg(long, value_name = "FILE", help_heading = "Other settings", conflicts_with_all = ["to", "with", "pin", "pinned"])]
    gate: Vec<String>,
    /// How images follow one another on a subject: max, original (as they did at first), or so many a second.
    #[arg(long, value_name = "PACE", default_value = "max", value_parser = spacing)]
    pace: ReplaySpacing,
    /// Read no more than this, MiB a second, also when nothing else is to do.
    #[arg(long, value_name = "MIB")]
    mib_per_s: Option<f64>,
    /// Print what came of it as JSON.
    #[arg(long)]
    json: bool,
}

fn spacing(text: &str) -> Result<ReplaySpacing, String> {
    match text {
        "max" => Ok(ReplaySpacing::Fast),
        "original" => Ok(ReplaySpacing::Original),
        rate => match rate.parse::<f64>() {
            Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(ReplaySpacing::Rate(rate)),
            _ => Err("use max, original, or images a second".into()),
        },
    }
}

impl ReplayArgs {
    /// Whether images go through a model.
    pub fn compares_model(&self) -> bool {
        self.with.is_some()
    }

    async fn destination(&self, settings: &Settings) -> anyhow::Result<ReplayDestination> {
        if let Some(set) = &self.pin {
            return Ok(ReplayDestination::Pin(set.clone()));
        }
        if let Some(folder) = &self.with {
            let table = self.to.as_ref().map(PathBuf::from);
            if let Some(path) = &table {
                let csv = path.extension().is_some_and(|extension| extension == "csv");
                ensure!(csv, "--with writes a table: name it --to FILE.csv, not {}", path.display());
            }
            return Ok(ReplayDestination::Model { infer: load(settings, folder).await?, table });
        }
        match self.to.as_deref() {
            Some("trainer") => Ok(ReplayDestination::Trainer),
            Some(to) => match to.strip_prefix("subject:") {
                Some(template) => Ok(ReplayDestination::Subject { template: template.into(), spacing: self.pace }),
                None if to.ends_with(".tar") => Ok(ReplayDestination::Tar(to.into())),
                None if to.ends_with(".csv") => bail!("--to {to}: a table is written by --with MODEL_DIR"),
                None => Ok(ReplayDestination::Folder(to.into())),
            },
            None => bail!(
                "where to? name a folder, FILE.tar, subject:SUBJECT or trainer with --to, a model with --with, or a set with --pin"
            ),
        }
    }
}

async fn load(settings: &Settings, folder: &std::path::Path) -> anyhow::Result<InferencePool> {
    let (onnxruntime, infer, folder) =
        (settings.onnxruntime.clone(), settings.recognizer.infer.clone(), folder.to_owned());
    let loading = move || -> anyhow::Result<InferencePool> {
        let model = Model::load(&folder).with_context(|| format!("model {}", folder.display()))?;
        let onnx = OnnxRuntime::find_and_load(onnxruntime.as_deref())?;
        InferencePool::start(&onnx, &model, &infer).with_context(|| format!("model {}", folder.display()))
    };
    tokio::task::spawn_blocking(loading).await?
}

/// Replays.
pub async fn command(loaded: &LoadedSettings<Settings>, args: &ReplayArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    let spaced = args.pace != ReplaySpacing::Fast;
    let to_subject = args.to.as_deref().is_some_and(|to| to.starts_with("subject:"));
    ensure!(
        !spaced || to_subject,
        "--pace says how images follow one another on a subject: use it with --to subject:…"
    );
    if let Some(rate) = args.mib_per_s {
        ensure!(rate.is_finite() && rate > 0.0, "--mib-per-s {rate}: use more than 0");
    }
    let to = args.to.as_deref().unwrap_or("-");
    let with = args.with.as_ref().map(|model| format!(" --with {}", model.display())).unwrap_or_default();
    let asked = |site: &SiteTarget| format!("--site {} --to {to}{with} {}", site.name, args.selection.command_line());
    // Said before anything is waited for.
    args.selection.options(String::new())?;
    let candidates = backtest::candidates(args)?;
    let site = site_target::open(loaded, "replay").await?;
    if !candidates.is_empty() {
        return backtest::command(&site, &loaded.settings.replayer, args, &candidates).await;
    }
    let mut options = args.selection.options(asked(&site))?;
    options.most_mib_per_s = args.mib_per_s;
    let destination = args.destination(settings).await?;
    let summary = run(&site, settings, options, destination, &shutdown).await?;
    let place = args.to.as_deref().map(PathBuf::from);
    match args.json {
        true => stdout::json(&summary)?,
        false => stdout::print_line(text::summary(&summary, &site.name, args, place.as_deref()))?,
    }
    match summary.interrupted {
        true => bail!("interrupted: the same command goes on where it stopped"),
        false => Ok(()),
    }
}

/// Replays, with its progress on standard error.
pub async fn run(
    site: &SiteTarget,
    settings: &Settings,
    options: ReplayOptions,
    destination: ReplayDestination,
    shutdown: &Shutdown,
) -> anyhow::Result<ReplaySummary> {
    let bar = ProgressBar::new(0);
    let style =
        |template: &str| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let gathering = style("reading answers {bar:30} {pos}/{len}");
    let replaying = style("{bar:30} {pos}/{len} images, {msg}, {per_sec}, {eta} left");
    bar.set_style(gathering);
    let mut begun = false;
    let on = |progress: ReplayProgress| match progress {
        ReplayProgress::Gathering(read, all) => {
            bar.set_length(all);
            bar.set_position(read);
        }
        ReplayProgress::Replaying(through, all, bytes) => {
            if !std::mem::replace(&mut begun, true) {
                bar.reset();
                bar.set_style(replaying.clone());
                bar.set_length(all);
            }
            bar.set_position(through);
            bar.set_message(HumanBytes(bytes).to_string());
        }
    };
    let ended = replay(&site.bus, &site.name, &settings.replayer, options, destination, on, shutdown).await;
    bar.finish_and_clear();
    Ok(ended?)
}

/// How many images a summary is about, for people.
pub fn images(summary: &ReplaySummary) -> String {
    format!(
        "{} ({}) in {}",
        format::count(summary.through, "image"),
        format::format_size(summary.bytes),
        format::format_span(summary.elapsed_ms as f64)
    )
}

//! `tributary publish`: images into a site's stream.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use publish::{
    AcknowledgedTask, CameraNaming, ImageSource, JournalLocation, PublishFailure, PublishOptions, PublishProgress,
    PublishSummary, RESUME_HELP, RunHeaders,
};
use runtime::Shutdown;
use runtime::settings::LoadedSettings;
use schemas::CameraName;
use serde::Serialize;
use serde_json::Value;
use streams::PublishOutcome;
use tokio::sync::mpsc;

use crate::settings::Settings;
use crate::site_target::{self, SiteTarget};
use crate::{format, stdout};

/// Acknowledged tasks that may wait to be printed; publishing waits when there are more.
const PRINT_AHEAD: usize = 1024;

const EXAMPLES: &str = "\
Labels are for measuring and training; no answer depends on them. An index.csv with the columns file and label
beside the images is found by itself. Give --labels-from-folders where each folder is named as what is in it.

Examples:
  tributary publish ./photos --camera cam-1           a folder, with all folders in it
  tributary publish --watch /var/spool/cam --camera cam-1
                                                      what is there and what comes, until interrupted
  find . -name '*.jpg' | tributary publish --stdin-paths --camera cam-1 --print-ids
  tributary publish ./photos --camera load --rate 200 --poisson --duration 60
                                                      a load: the same images over and over, as new tasks
  tributary publish scan.tif --camera lab --tile 512 --overlap 64";

/// Publish images to a site.
///
/// Returns when the site's server has stored every image, which then gets exactly one final answer. The
/// exit status tells whether all of them were stored.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{RESUME_HELP}"))]
pub struct PublishArgs {
    /// Files, and folders with all images below them.
    #[arg(value_name = "PATHS", required_unless_present_any = ["stdin", "stdin_paths"])]
    paths: Vec<PathBuf>,
    /// The camera the images are said to come from.
    #[arg(long, value_name = "NAME", required_unless_present = "camera_from_folders")]
    camera: Option<CameraName>,
    /// Each folder directly below PATHS is a camera of its name.
    #[arg(long, conflicts_with_all = ["camera", "stdin", "stdin_paths"])]
    camera_from_folders: bool,

    /// Go on with what is written into the one folder named, until interrupted.
    #[arg(long, help_heading = "Where images come from", conflicts_with_all = ["stdin", "stdin_paths", "rate"])]
    watch: bool,
    /// One image on standard input.
    #[arg(long, help_heading = "Where images come from", conflicts_with_all = ["paths", "stdin_paths", "rate"])]
    stdin: bool,
    /// Paths on standard input, one a line.
    #[arg(long, help_heading = "Where images come from", conflicts_with_all = ["paths", "rate"])]
    stdin_paths: bool,

    /// Publish only files in folders that match PATTERN, whatever their extension (`*` any text, `?` one character; with a
    /// slash about the path, without one about the name); repeatable.
    #[arg(long, help_heading = "Where images come from", value_name = "PATTERN")]
    include: Vec<String>,
    /// Pass over files and folders that match PATTERN, besides what `publisher.exclude` says (@eaDir, lastsnap.*, …);
    /// repeatable.
    #[arg(long, help_heading = "Where images come from", value_name = "PATTERN")]
    exclude: Vec<String>,
    /// With --watch: list the folder every SECONDS instead of waiting for the system's events, as network shares need.
    #[arg(long, help_heading = "Where images come from", value_name = "SECONDS", requires = "watch")]
    poll: Option<u64>,
    /// With --watch: take a file that its writer keeps open when it has not changed for this long, milliseconds [default:
    /// 1000].
    #[arg(long, help_heading = "Where images come from", value_name = "MS", requires = "watch")]
    settle: Option<u64>,

    /// A load instead: the same images over and over as new tasks, so many a second on average.
    #[arg(long, help_heading = "As a load", value_name = "R")]
    rate: Option<f64>,
    /// Random times between images (a Poisson process) instead of equal ones.
    #[arg(long, help_heading = "As a load", requires = "rate")]
    poisson: bool,
    /// Seed of the random times.
    #[arg(long, help_heading = "As a load", value_name = "N", default_value_t = 1, requires = "poisson")]
    seed: u64,
    /// End after so many images.
    #[arg(long, help_heading = "As a load", value_name = "N", requires = "rate")]
    count: Option<u64>,
    /// End after so long.
    #[arg(long, help_heading = "As a load", value_name = "SECONDS", requires = "rate")]
    duration: Option<u64>,

    /// Pages of a TIFF that become tasks: the first, or all, each a task of its own.
    #[arg(long, help_heading = "Scans", value_name = "WHICH", value_parser = ["first", "all"])]
    pages: Option<String>,
    /// Cut images larger than this into tiles with such sides, pixels; each tile is a task.
    #[arg(long, help_heading = "Scans", value_name = "PX")]
    tile: Option<u32>,
    /// How far neighbouring tiles overlap at least, pixels.
    #[arg(long, help_heading = "Scans", value_name = "PX", requires = "tile")]
    overlap: Option<u32>,

    /// The true label of every image for which no index.csv names one.
    #[arg(long, help_heading = "What is said about each", value_name = "L", conflicts_with = "labels_from_folders")]
    label: Option<String>,
    /// The true label of an image is the name of the folder it lies in, unless an index.csv names one.
    #[arg(long, help_heading = "What is said about each")]
    labels_from_folders: bool,
    /// A final answer is of use for so long after publishing, milliseconds; then the site's own stands.
    #[arg(long, help_heading = "What is said about each", value_name = "MS")]
    deadline_ms: Option<u64>,
    /// From 0 (bulk) to 9 (first); 5 without it.
    #[arg(long, help_heading = "What is said about each", value_name = "0-9", value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,

    /// Publish what was published before once more, as new tasks that NAME tells from others.
    #[arg(long, value_name = "NAME")]
    again: Option<String>,
    /// Print the id of each task that was stored, and its file; the summary goes to standard error.
    #[arg(long)]
    print_ids: bool,
    /// Print the summary as JSON, in one line; ids too, one object a line.
    #[arg(long)]
    json: bool,
}

impl PublishArgs {
    /// The settings these flags stand for.
    pub fn flags(&self) -> Vec<(String, Value)> {
        let flag = |key: &str, value: Option<Value>| value.map(|value| (format!("publisher.{key}"), value));
        [
            flag("tile.tile_px", self.tile.map(Value::from)),
            flag("tile.overlap_px", self.overlap.map(Value::from)),
            flag("include", (!self.include.is_empty()).then(|| self.include.clone().into())),
            flag("poll_s", self.poll.map(Value::from)),
            flag("settle_ms", self.settle.map(Value::from)),
            flag("pages", self.pages.clone().map(Value::from)),
            flag("labels", self.labels_from_folders.then(|| "folder".into())),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn source(&self) -> anyhow::Result<ImageSource> {
        let images = self.paths.clone();
        match (&self.paths[..], self.rate) {
            _ if self.stdin => Ok(ImageSource::Stdin),
            _ if self.stdin_paths => Ok(ImageSource::StdinPaths),
            ([folder], _) if self.watch => Ok(ImageSource::Watch(folder.clone())),
            (several, _) if self.watch => bail!("--watch takes one folder and was given {}", several.len()),
            (_, Some(rate_per_s)) => Ok(ImageSource::Generator {
                images,
                rate_per_s,
                poisson: self.poisson,
                seed: self.seed,
                count: self.count,
                duration: self.duration.map(Duration::from_secs),
            }),
            _ => Ok(ImageSource::Paths(images)),
        }
    }
}

/// Publishes images and says what became of them.
pub async fn command(loaded: &LoadedSettings<Settings>, args: &PublishArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let site = site_target::open(loaded, "publish").await?;
    let source = args.source()?;
    let (acknowledged, printing) = printer(args);
    let options = PublishOptions {
        again: args.again.clone(),
        journal: JournalLocation::of_user(&server(&site, &loaded.settings)),
        progress: if args.print_ids { PublishProgress::hidden() } else { PublishProgress::on_terminal() },
        mark: RunHeaders { label: args.label.clone(), deadline_ms: args.deadline_ms, priority: args.priority },
        acknowledged,
    };
    let mut settings = loaded.settings.publisher.clone();
    settings.exclude.extend(args.exclude.iter().cloned());
    let cameras = args.camera.clone().map_or(CameraNaming::FromFolders, CameraNaming::One);
    let stop = shutdown.clone();
    let publishing = publish::publish_images(&site.bus, &site.name, cameras, source, &settings, options, &shutdown);
    let printing = async {
        let printed = printing.await;
        if printed.is_err() {
            // Nobody reads the ids any more: whoever asked for them has seen enough.
            stop.request();
        }
        printed
    };
    let (ended, printed) = tokio::join!(publishing, printing);
    site.bus.flush_published().await;
    printed?;
    report(ended, args)
}

/// What tells the server's journals from others. The port of an `up` is another one each time.
fn server(site: &SiteTarget, settings: &Settings) -> String {
    let store = site.store(settings).and_then(|store| store.canonicalize().ok());
    store.map_or_else(|| streams::connect::without_credentials(&site.nats.url), |store| store.display().to_string())
}

fn printer(
    args: &PublishArgs,
) -> (Option<mpsc::Sender<AcknowledgedTask>>, impl Future<Output = anyhow::Result<()>> + use<>) {
    let (sender, mut receiver) = mpsc::channel(PRINT_AHEAD);
    let (wanted, json) = (args.print_ids, args.json);
    let printing = async move {
        while let Some(acknowledged) = receiver.recv().await {
            if json {
                stdout::json_line(&PublishedTask::from(acknowledged))
            } else {
                stdout::print_line(told(&acknowledged))
            }?;
        }
        Ok(())
    };
    (wanted.then_some(sender), printing)
}

fn told(acknowledged: &AcknowledgedTask) -> String {
    let path = format::plain_number(&acknowledged.path.display().to_string());
    let page = acknowledged.page.map(|page| format!("\tpage {page}")).unwrap_or_default();
    let tile = acknowledged.tile.as_ref().map(|tile| format!("\t{},{}", tile.x_px, tile.y_px)).unwrap_or_default();
    format!("{}\t{path}{page}{tile}", acknowledged.task)
}

/// An acknowledged task for programs.
#[derive(Serialize)]
struct PublishedTask {
    task: String,
    path: String,
    page: Option<u32>,
    tile: Option<schemas::Tile>,
    label: Option<String>,
    sequence: Option<u64>,
    duplicate: bool,
    size_bytes: u64,
    elapsed_ms: f64,
}

impl From<AcknowledgedTask> for PublishedTask {
    fn from(acknowledged: AcknowledgedTask) -> Self {
        let AcknowledgedTask { task, placed, path, page, tile, label, size_bytes, elapsed } = acknowledged;
        let (sequence, duplicate) = match placed {
            PublishOutcome::Stored(sequence) => (Some(sequence), false),
            PublishOutcome::Duplicate(sequence) => (Some(sequence), true),
            PublishOutcome::Taken => (None, true),
        };
        let (path, elapsed_ms) = (path.display().to_string(), elapsed.as_secs_f64() * 1000.0);
        Self { task: task.to_string(), path, page, tile, label, sequence, duplicate, size_bytes, elapsed_ms }
    }
}

fn report(ended: Result<PublishSummary, PublishFailure>, args: &PublishArgs) -> anyhow::Result<()> {
    let summary = match &ended {
        Ok(summary) => Some(summary),
        Err(failure) => failure.summary(),
    };
    if let Some(summary) = summary {
        print(summary, args)?;
    }
    let summary = ended?;
    match summary.refused_files {
        0 if summary.interrupted => bail!("interrupted before all was published"),
        0 => Ok(()),
        refused => bail!("{} refused (reasons above); the others are published", format::count(refused, "file")),
    }
}

fn print(summary: &PublishSummary, args: &PublishArgs) -> anyhow::Result<()> {
    match (args.json, args.print_ids) {
        (true, _) => stdout::json_line(summary),
        (false, true) => {
            stdout::print_note(summary);
            Ok(())
        }
        (false, false) => stdout::print_line(summary),
    }
}

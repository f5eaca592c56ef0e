//! `tributary publish`: publishes images to a site.

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

use crate::label::known_labels::unknown_labels;
use crate::settings::Settings;
use crate::site_target::{self, SiteTarget};
use crate::{format, stdout};

/// Acknowledged tasks waiting to be printed; when there are more, publishing waits.
const PRINT_AHEAD: usize = 1024;

const EXAMPLES: &str = "\
Labels are for measuring and training only; answers do not depend on them. An index.csv with the columns file and \
label, beside the images, is read by itself.

Examples:
  tributary publish ./photos --camera cam-1       a folder and its subfolders
  tributary publish --watch /var/spool/cam --camera cam-1
                                                  and new files, until interrupted
  find . -name '*.jpg' | tributary publish --stdin-paths --camera cam-1 --print-ids
  tributary publish ./photos --camera load --rate 200 --poisson --duration 60
                                                  a load test: the same images as new tasks
  tributary publish scan.tif --camera lab --tile 512 --overlap 64";

/// Publish images to a site.
///
/// Returns when the site's server has stored every image; each stored image gets exactly one final answer. Fails if one
/// was not stored.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{RESUME_HELP}"))]
pub(crate) struct PublishArgs {
    /// Image files, and folders to search for them.
    #[arg(value_name = "PATHS", required_unless_present_any = ["stdin", "stdin_paths"])]
    paths: Vec<PathBuf>,
    /// Camera that the images come from.
    #[arg(long, value_name = "NAME", required_unless_present = "camera_from_folders")]
    camera: Option<CameraName>,
    /// Use the name of each folder directly below PATHS as the camera.
    #[arg(long, conflicts_with_all = ["camera", "stdin", "stdin_paths"])]
    camera_from_folders: bool,

    /// Also publish files as they are written to the folder, until interrupted.
    #[arg(long, help_heading = "Source", conflicts_with_all = ["stdin", "stdin_paths", "rate"])]
    watch: bool,
    /// Read one image from standard input.
    #[arg(long, help_heading = "Source", conflicts_with_all = ["paths", "stdin_paths", "rate"])]
    stdin: bool,
    /// Read paths from standard input, one per line.
    #[arg(long, help_heading = "Source", conflicts_with_all = ["paths", "rate"])]
    stdin_paths: bool,

    /// Publish only files that match PATTERN, with any extension; repeatable.
    ///
    /// `*` matches any text and `?` one character. A pattern with a slash matches the path below the folder, one
    /// without it the file's name.
    #[arg(long, help_heading = "Source", value_name = "PATTERN")]
    include: Vec<String>,
    /// Skip files and folders that match PATTERN, besides those of publisher.exclude; repeatable.
    #[arg(long, help_heading = "Source", value_name = "PATTERN")]
    exclude: Vec<String>,
    /// With --watch: list the folder every SECONDS instead of using file events; needed on network shares.
    #[arg(long, help_heading = "Source", value_name = "SECONDS", requires = "watch")]
    poll: Option<u64>,
    /// With --watch: milliseconds without a change after which a file that is still open is published [default: 1000].
    #[arg(long, help_heading = "Source", value_name = "MS", requires = "watch")]
    settle: Option<u64>,

    /// Publish the same images repeatedly as new tasks, at R images per second on average.
    #[arg(long, help_heading = "Load generator", value_name = "R")]
    rate: Option<f64>,
    /// Use random intervals (a Poisson process) instead of equal ones.
    #[arg(long, help_heading = "Load generator", requires = "rate")]
    poisson: bool,
    /// Random seed for --poisson.
    #[arg(long, help_heading = "Load generator", value_name = "N", default_value_t = 1, requires = "poisson")]
    seed: u64,
    /// Stop after N images.
    #[arg(long, help_heading = "Load generator", value_name = "N", requires = "rate")]
    count: Option<u64>,
    /// Stop after SECONDS.
    #[arg(long, help_heading = "Load generator", value_name = "SECONDS", requires = "rate")]
    duration: Option<u64>,

    /// Pages of a TIFF to publish: first or all, each as a task [default: first].
    #[arg(long, help_heading = "Scans", value_name = "WHICH", value_parser = ["first", "all"])]
    pages: Option<String>,
    /// Cut larger images into square tiles of PX pixels, each as a task.
    #[arg(long, help_heading = "Scans", value_name = "PX")]
    tile: Option<u32>,
    /// Minimum overlap of neighbouring tiles in pixels.
    #[arg(long, help_heading = "Scans", value_name = "PX", requires = "tile")]
    overlap: Option<u32>,

    /// True label of every image that has none in an index.csv.
    #[arg(long, help_heading = "Metadata", value_name = "L", conflicts_with = "labels_from_folders")]
    label: Option<String>,
    /// Use the name of an image's folder as its true label, unless an index.csv gives one.
    #[arg(long, help_heading = "Metadata")]
    labels_from_folders: bool,
    /// Deadline for the final answer in milliseconds; a later answer says by how much it is late.
    #[arg(long, help_heading = "Metadata", value_name = "MS")]
    deadline_ms: Option<u64>,
    /// Priority from 0 (bulk) to 9 (first) [default: 5].
    #[arg(long, help_heading = "Metadata", value_name = "0-9", value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,

    /// Publish the same files again as new tasks; NAME makes their ids differ.
    #[arg(long, value_name = "NAME")]
    run_id: Option<String>,
    /// Print the task id and file of each stored image; the summary goes to standard error.
    #[arg(long)]
    print_ids: bool,
    /// Print the summary as one line of JSON; ids too, one object per line.
    #[arg(long)]
    json: bool,
}

impl PublishArgs {
    /// The settings that the flags override.
    pub(crate) fn flags(&self) -> Vec<(String, Value)> {
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
            (several, _) if self.watch => bail!("--watch takes one folder; {} were given", several.len()),
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

/// Publishes images and reports the result.
pub(crate) async fn command(
    loaded: &LoadedSettings<Settings>,
    args: &PublishArgs,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let site = site_target::open(loaded, "publish").await?;
    let source = args.source()?;
    let (acknowledged, printing) = printer(args);
    let options = PublishOptions {
        run_id: args.run_id.clone(),
        journal: JournalLocation::of_user(&server(&site, &loaded.settings)),
        progress: if args.print_ids { PublishProgress::hidden() } else { PublishProgress::on_terminal() },
        mark: RunHeaders { label: args.label.clone(), deadline_ms: args.deadline_ms, priority: args.priority },
        acknowledged,
    };
    let mut settings = loaded.settings.publisher.clone();
    settings.exclude.extend(args.exclude.iter().cloned());
    let cameras = args.camera.clone().map_or(CameraNaming::FromFolders, CameraNaming::One);
    let folders = if args.labels_from_folders { subfolders(&args.paths) } else { Vec::new() };
    let labels = args.label.iter().chain(&folders).map(String::as_str).collect();
    if let Some(why) = unknown_labels(&loaded.settings, labels).await {
        stdout::print_note(format_args!(
            "warning: {why}. Images with other labels are published, but not learned from"
        ));
    }
    if let ImageSource::Watch(folder) = &source {
        stdout::print_note(format_args!("watching {}; Ctrl-C stops", folder.display()));
    }
    let stop = shutdown.clone();
    let publishing = publish::publish_images(&site.bus, &site.name, cameras, source, &settings, options, &shutdown);
    let printing = async {
        let printed = printing.await;
        if printed.is_err() {
            // Nobody reads the ids any more.
            stop.request();
        }
        printed
    };
    let (ended, printed) = tokio::join!(publishing, printing);
    site.bus.flush_published().await;
    printed?;
    report(ended, args)
}

/// Names of the folders directly below these.
fn subfolders(paths: &[PathBuf]) -> Vec<String> {
    let entries = paths.iter().filter_map(|path| path.read_dir().ok()).flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.filter_map(|folder| folder.file_name().into_string().ok()).collect()
}

/// Identifies the server for the journal: by its store where known, because the port of an `up` changes.
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
                stdout::print_line(task_line(&acknowledged))
            }?;
        }
        Ok(())
    };
    (wanted.then_some(sender), printing)
}

fn task_line(acknowledged: &AcknowledgedTask) -> String {
    let path = format::plain_text(&acknowledged.path.display().to_string());
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
        0 if summary.interrupted => {
            bail!("interrupted before everything was published: run the same command again to continue")
        }
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

//! `tributary-bench loop`: runs the loop infer → learn → release → infer on this machine.
//!
//! Starts the roles of `tributary up --sites 2 --train --merge` and opens rounds as `tributary round open` does. Sites
//! do not see the true labels of their images; labels only measure accuracy. [`pictures`] divides the images, [`setup`]
//! makes the first models, [`quick_settings`] holds the settings, [`flow`] publishes a site's images, [`round`] runs one
//! turn of the loop, [`model_standing`] reads rounds and releases, [`label_accuracy`] evaluates models, and [`results`]
//! reports.

mod flow;
mod label_accuracy;
mod model_standing;
mod pictures;
mod quick_settings;
mod results;
mod round;
mod setup;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::camera::CameraStyle;
use anyhow::{Context, bail, ensure};
use runtime::Shutdown;
use schemas::ModelName;
use streams::{Bus, NatsSettings};
use tokio_util::sync::CancellationToken;
use vision::{Model, OnnxRuntime};

use flow::SiteFlow;
use label_accuracy::LabelAccuracy;
use model_standing::ModelStanding;
use pictures::{ModelImages, PictureDivision};
use results::LoopResult;
use round::LoopContext;
use setup::{LoopFolders, ModelSources, START_IMAGES_PER_CLASS};
use tributary::settings::Settings;
use tributary::site_target::RunningUp;
use tributary::{format, stdout, up};

const LIGHT: &str = "fixtures/models/fashion-light";
const HEAVY: &str = "fixtures/models/fashion-heavy";
const PICTURES: &str = "fixtures/images/fashion";
const INITIAL: &str = "fixtures/models/fashion-initial";
/// Number of classes of the project's own images that the start model has never seen.
const UNSEEN_CLASSES: usize = 4;
const SITES: u16 = 2;
const ROUNDS: u32 = 4;
/// Maximum number of new images per site and turn.
const MAX_IMAGES_PER_SITE: usize = 150;
/// Minimum number of new images per site and turn for a meaningful measurement.
const MIN_IMAGES_PER_SITE: usize = 20;
const STOPPED: &str = "stopped before the end";

const EXAMPLES: &str = "\
Two sites start with a model that has never seen some classes. The cloud verifies doubtful images; the sites' trainers \
learn from the verdicts; rounds merge the updates into releases, which are canaried and swapped in without losing an \
image. If all goes well, each round sends fewer images up and is more accurate. The command fails if an image is lost or \
the sites end on different releases.

With your own images (--data), split test is the test set and never used for training; if there is none, a random \
fifth is. Models that you do not name are made from the other images: the cloud's from half of them (at most 200 per \
class), the sites' from 30 per class without the rarest third of the classes.

Examples:
  tributary-bench loop
  tributary-bench loop --rounds 8 --json loop.json
  tributary-bench loop --dark-cameras             a good model, after it gets dark
  tributary-bench loop --data ./photos
  tributary-bench loop --data ./fish --groups track
                                                  keeps images of a track together
  tributary-bench loop --data ./photos --model ./site --cloud-model ./cloud";

/// Options of `tributary-bench loop`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LoopArgs {
    /// Number of rounds of training, merging and releasing [default: 4].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: Option<u32>,
    /// Folder of your own labelled images, with an index.csv (columns file, label, split) or one folder per label.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Column of the index.csv that groups images, such as a video track; a group is never divided.
    #[arg(long, value_name = "COLUMN", requires = "data")]
    groups: Option<String>,
    /// Folder of the model that sites start with [default: made from some of the images].
    #[arg(long, value_name = "DIR", requires = "data")]
    model: Option<PathBuf>,
    /// Folder of the cloud's model [default: made from half of the images].
    #[arg(long, value_name = "DIR", requires = "data")]
    cloud_model: Option<PathBuf>,
    /// Darken all images to a quarter of their brightness; without --data, sites start with the shipped model, which is
    /// good by day.
    #[arg(long)]
    dark_cameras: bool,
    /// Keep the servers' stores in this folder [default: remove them at the end].
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Write the chart to this file, as SVG.
    #[arg(long, value_name = "FILE", default_value = "tributary-demo/loop.svg")]
    out: PathBuf,
    /// Write all results to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("could not write {}", path.display()))
}

/// Runs `tributary-bench loop`.
pub(crate) async fn command(settings: &Settings, args: &LoopArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let started = Instant::now();
    let rounds = args.rounds.unwrap_or(ROUNDS);
    let (temporary, store) = match &args.keep {
        Some(folder) => (None, folder.clone()),
        None => {
            let folder = tempfile::tempdir().context("could not create a temporary folder for the stores")?;
            let path = folder.path().to_owned();
            (Some(folder), path)
        }
    };
    let data = args.data.clone().unwrap_or_else(|| PICTURES.into());
    let setup = prepare_loop(settings, args, &data, &store, &shutdown).await?;
    let settings = quick_settings::loop_settings(settings, &setup.start, &store);
    settings.check()?;
    let wider_margins = quick_settings::describe_wider_margins(&settings.releaser.canary);
    let per_turn = setup.division.sites.iter().map(Vec::len).min().unwrap_or(0) / (rounds as usize + 1);
    let images_per_site = MAX_IMAGES_PER_SITE.min(per_turn);
    ensure!(
        images_per_site >= MIN_IMAGES_PER_SITE,
        "{per_turn} new images per site and round are too few (at least {MIN_IMAGES_PER_SITE}): use fewer --rounds"
    );
    stdout::print_line(intro(&setup.division, &wider_margins, &settings, images_per_site))?;

    let completed = run_loop(&settings, rounds, images_per_site, &setup, &shutdown).await?;
    drop(temporary);
    let result = LoopResult {
        name: data.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        turns: completed.turns,
        unseen: setup.division.unseen.clone(),
        cloud: setup.cloud,
        images: completed.images,
        duration_s: started.elapsed().as_secs_f64(),
        wider_margins,
    };
    write_file(&args.out, &result.chart().svg()?)?;
    if let Some(path) = &args.json {
        write_file(path, &(serde_json::to_string_pretty(&result.json())? + "\n"))?;
    }
    stdout::print_line(format_args!("\n{}\n", result.table()))?;
    stdout::print_line(outro(&result, &args.out))
}

/// Models and images that the loop starts with.
struct LoopSetup {
    onnx: OnnxRuntime,
    division: PictureDivision,
    start: LoopFolders,
    /// Accuracy of the cloud's model on the test images.
    cloud: LabelAccuracy,
}

/// Divides the images, makes missing models, and prints the accuracy of both.
async fn prepare_loop(
    settings: &Settings,
    args: &LoopArgs,
    data: &Path,
    store: &Path,
    shutdown: &Shutdown,
) -> anyhow::Result<LoopSetup> {
    let own = args.data.is_none();
    let dark = args.dark_cameras;
    let sources = ModelSources {
        start: if own && dark { Some(LIGHT.into()) } else { args.model.clone() },
        untrained: own.then(|| INITIAL.into()),
        cloud: if own { Some(HEAVY.into()) } else { args.cloud_model.clone() },
    };
    let model_images = match (own, &sources.start, &sources.cloud) {
        (_, Some(_), Some(_)) => ModelImages::None,
        (true, ..) => ModelImages::PerSeenClass(START_IMAGES_PER_CLASS),
        (false, ..) => ModelImages::Half,
    };
    let (data, groups, store) = (data.to_owned(), args.groups.clone(), store.to_owned());
    let library = settings.onnxruntime.clone();
    let stop = CancellationToken::new();
    let stop_signal = stop.clone();
    let preparation = tokio::task::spawn_blocking(move || -> anyhow::Result<LoopSetup> {
        let pictures = pictures::read_pictures(&data, groups.as_deref()).with_context(|| {
            format!(
                "could not read images in {}: run this in a checkout of the project, or name a folder with --data",
                data.display()
            )
        })?;
        let labels: std::collections::BTreeSet<&str> = pictures.iter().map(|picture| picture.label.as_str()).collect();
        let unseen = match (&sources.start, own) {
            // Which classes a given model has seen is unknown.
            (Some(_), _) => 0,
            (None, true) => UNSEEN_CLASSES,
            (None, false) => (labels.len() / 3).max(1),
        };
        let mut division = pictures::divide_pictures(pictures, &model_images, unseen, SITES.into())?;
        let onnx = OnnxRuntime::find_and_load(library.as_deref())?;
        std::fs::create_dir_all(&store).with_context(|| format!("could not create {}", store.display()))?;
        if dark {
            division.apply_cameras(&[CameraStyle::Dark; 2], &store.join("shown"))?;
        }
        let start = setup::prepare_models(&onnx, &division, &sources, &store, &stop_signal)?;
        let site = LabelAccuracy::evaluate(&onnx, &start.model, &division.test)?;
        let cloud = LabelAccuracy::evaluate(&onnx, &start.cloud, &division.test)?;
        stdout::print_line(accuracy_by_class(&division, &site, &cloud))?;
        Ok(LoopSetup { onnx, division, start, cloud })
    });
    tokio::select! {
        setup = preparation => setup?,
        () = shutdown.wait_for_request() => {
            stop.cancel();
            bail!(STOPPED)
        }
    }
}

/// All turns, and the number of acknowledged images.
struct LoopTurns {
    turns: Vec<round::LoopTurn>,
    images: usize,
}

/// Starts all roles, runs all turns, and stops the roles.
async fn run_loop(
    settings: &Settings,
    rounds: u32,
    images_per_site: usize,
    setup: &LoopSetup,
    shutdown: &Shutdown,
) -> anyhow::Result<LoopTurns> {
    let stop = Shutdown::default();
    let up = tokio::select! {
        up = up::start(settings, Some(SITES), None, stop.clone()) => up?,
        () = shutdown.wait_for_request() => bail!(STOPPED),
    };
    let running = up.running.clone();
    let mut roles = tokio::spawn(up.wait_until_stopped());
    let completed = tokio::select! {
        completed = run_turns(settings, rounds, images_per_site, setup, &running) => completed,
        ended = &mut roles => {
            ended??;
            bail!("all roles stopped unexpectedly");
        }
        () = shutdown.wait_for_request() => Err(anyhow::anyhow!(STOPPED)),
    };
    stop.request();
    roles.await??;
    completed
}

async fn run_turns(
    settings: &Settings,
    rounds: u32,
    images_per_site: usize,
    setup: &LoopSetup,
    running: &RunningUp,
) -> anyhow::Result<LoopTurns> {
    let nats = NatsSettings { url: running.cloud_url.clone(), ..NatsSettings::default() };
    let cloud = Bus::connect(&nats, "demo").await?;
    let model = Model::load(&setup.start.model)?;
    let mut flows = Vec::new();
    for (site, pictures) in running.sites.iter().zip(&setup.division.sites) {
        flows.push(SiteFlow::open(site, &cloud, pictures).await?);
    }
    let standing = ModelStanding {
        cloud,
        model: ModelName::from_name(&model.description.name),
        baseline: model.release,
        sites: running.sites.iter().map(|site| site.site.clone()).collect(),
    };
    let context = LoopContext {
        standing,
        settings: settings.clone(),
        onnx: setup.onnx.clone(),
        test: Arc::new(setup.division.test.clone()),
        unseen: setup.division.unseen.clone(),
        images_per_site,
        known_accuracy: tokio::sync::Mutex::default(),
    };
    context.standing.wait_for_first_orders().await?;
    let mut turns = Vec::new();
    for number in 1..=rounds + 1 {
        turns.push(context.run_turn(&mut flows, number, number > rounds).await?);
    }
    context.standing.wait_for_stable_release().await?;
    Ok(LoopTurns { turns, images: flows.iter().map(SiteFlow::acknowledged).sum() })
}

/// Accuracy of both models by class.
fn accuracy_by_class(division: &PictureDivision, start: &LabelAccuracy, cloud: &LabelAccuracy) -> String {
    let cell = |accuracy: &LabelAccuracy, label: &String| {
        accuracy
            .by_label
            .get(label)
            .map_or_else(String::new, |(correct, count)| format::percent(*correct as f64 / (*count).max(1) as f64))
    };
    let mut rows: Vec<Vec<String>> = division
        .labels
        .iter()
        .map(|label| {
            let unseen = if division.unseen.contains(label) { "never seen" } else { "" };
            vec![format!("  {label}"), cell(start, label), cell(cloud, label), unseen.into()]
        })
        .collect();
    rows.push(vec!["  all".into(), format::percent(start.ratio()), format::percent(cloud.ratio()), String::new()]);
    let count = division.test.len();
    format!(
        "Accuracy on {count} test images, which are never used for training:\n{}",
        format::table(&["  class", "start", "cloud", ""], &rows)
    )
}

fn intro(division: &PictureDivision, wider_margins: &str, settings: &Settings, images_per_site: usize) -> String {
    let counts: Vec<String> = division.sites.iter().map(|site| site.len().to_string()).collect();
    format!(
        "
Two sites and a cloud, all on this machine. Each site sees its own images ({}), with a different mix of classes.
Doubtful images are sent up and get the cloud's verdict, and so does a random sample of {} of the others. Sites learn from
verdicts only. A round collects their updates and merges them; the merged model is tuned and tested on {} public images of
all classes. The releaser canaries the release at one site; then all sites get it, or none.

Each round starts with {images_per_site} images per site that no model has seen; the figures are about these. While sites train and
a release is canaried, earlier images are sent again, {} per second and site. A canary therefore also sees images that
the release was trained on, and judges it more kindly than in production.
Canaries are less strict than by default (in parentheses), because they see few images in a minute: {wider_margins}.",
        counts.join(" and "),
        format::percent(settings.recognizer.verify.sample_ratio),
        division.public.len(),
        flow::IMAGES_PER_S
    )
}

fn outro(result: &LoopResult, chart: &Path) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "tributary-bench".into());
    let (first, last) = (result.turns.first(), result.turns.last());
    let summary = first.zip(last).map_or_else(String::new, |(first, last)| {
        format!(
            "Sent up: {} → {}. Accuracy of the sites' model on test images: {} → {} (the cloud's model: {}){}.\n",
            format::percent(first.up_ratio()),
            format::percent(last.up_ratio()),
            format::percent(first.test_accuracy.ratio()),
            format::percent(last.test_accuracy.ratio()),
            format::percent(result.cloud.ratio()),
            if result.unseen.is_empty() {
                String::new()
            } else {
                let unseen = |turn: &round::LoopTurn| turn.test_accuracy.percent_of(&result.unseen);
                let (first, last) = (unseen(first), unseen(last));
                format!("; on unseen classes: {first} → {last}")
            },
        )
    });
    let tests = match result.unseen.is_empty() {
        true => "Test: accuracy on the test images.",
        false => {
            "Test and unseen: accuracy on all\ntest images, and on those of classes that the start model has never seen."
        }
    };
    format!(
        "\
Sent up, sites alone and with cloud: on the new images. {tests}
Updates, release and canary: the round that follows.

{summary}{} images were acknowledged, each has a final answer, and both sites run the stable release; {:.0} s in total.

Chart: {}

Try next:
  {program} loop --rounds 8
      more rounds
  {program} loop --set recognizer.gate.min_confidence_ratio=0.9
      send more images up: more verdicts to learn from
  {program} loop --set releaser.canary.escalation_margin_ratio=0.05
      stricter canaries: more releases are withdrawn or stay undecided
  {program} loop --dark-cameras
      a good model, after it gets dark
  {program} loop --data DIR
      your own images; both models are made from them
  tributary up --sites 2 --train --merge --model DIR --cloud-model DIR
      the same roles, kept running; then `tributary round open` and `tributary status`",
        result.images,
        result.duration_s,
        chart.display()
    )
}

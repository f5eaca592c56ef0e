//! `tributary-bench loop`: infer → learn → release → infer, by itself, on this machine.
//!
//! Runs what `tributary up --sites 2 --train --merge` runs, and opens rounds as `tributary round open` does; only the
//! labels, by which accuracy is measured, would be missing in production. [`pictures`] divides the images, [`setup`]
//! makes the first models, [`quick_settings`] holds the settings, [`flow`] publishes a site's images, [`round`] is one
//! turn of the loop, [`model_standing`] reads rounds and releases, [`results`] reports.

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
use label_accuracy::Right;
use model_standing::ModelStanding;
use pictures::{PictureDivision, PictureProvenance};
use results::LoopResult;
use round::LoopContext;
use setup::{LoopFolders, ModelSources, START_OF_CLASS};
use tributary::settings::Settings;
use tributary::site_target::RunningUp;
use tributary::{format, stdout, up};

const LIGHT: &str = "fixtures/models/fashion-light";
const HEAVY: &str = "fixtures/models/fashion-heavy";
const PICTURES: &str = "fixtures/images/fashion";
const INITIAL: &str = "fixtures/models/fashion-initial";
/// Number of classes that the start model for the project's own images has never seen.
const UNSEEN: usize = 4;
const SITES: u16 = 2;
const ROUNDS: u32 = 4;
/// New images per site and turn, if there are enough.
const IMAGES_PER_SITE: usize = 150;
/// Fewest images per site and turn that give a measurement.
const MIN_IMAGES_PER_SITE: usize = 20;
const STOPPED: &str = "stopped before the end";

const EXAMPLES: &str = "\
Two sites start with a model that has never seen some classes. The cloud verifies what they doubt; their trainers learn \
from the verdicts; rounds merge the updates into releases, which are canaried and swapped in without losing an image. If \
it goes well, each round sends less up and gets more right. It fails if an image is lost or the sites end on different \
releases.

With your own images (--data), split test, or else a fifth, is never learned from. Models that you do not name are \
made: the cloud's from half of the other images (at most 200 per class), the sites' from 30 images per class without \
the rarest third of the classes.

Examples:
  tributary-bench loop
  tributary-bench loop --rounds 8 --json loop.json
  tributary-bench loop --dark-cameras             a good model, after it gets dark
  tributary-bench loop --data ./photos
  tributary-bench loop --data ./fish --groups track
                                                  keeps images of a track together
  tributary-bench loop --data ./photos --model ./site --cloud-model ./cloud";

/// Options of the loop.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LoopArgs {
    /// Rounds of learning, merging and releasing [default: 4].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: Option<u32>,
    /// Folder of your own labelled images: an index.csv (columns file, label, split), or one folder per label.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Column of the index.csv that groups images, such as a video track; groups are never split.
    #[arg(long, value_name = "COLUMN", requires = "data")]
    groups: Option<String>,
    /// Model that sites start with [default: made from some of the images].
    #[arg(long, value_name = "DIR", requires = "data")]
    model: Option<PathBuf>,
    /// The cloud's model [default: made from half of the images].
    #[arg(long, value_name = "DIR", requires = "data")]
    cloud_model: Option<PathBuf>,
    /// Darken all images to a quarter; without --data, sites start with the shipped model, which is good by day.
    #[arg(long)]
    dark_cameras: bool,
    /// Keep the servers' stores in this folder [default: remove them at the end].
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// File for the chart.
    #[arg(long, value_name = "FILE", default_value = "tributary-demo/loop.svg")]
    out: PathBuf,
    /// Write all results to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be created", folder.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}

/// Runs the loop.
pub(crate) async fn command(settings: &Settings, args: &LoopArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let begun = Instant::now();
    let rounds = args.rounds.unwrap_or(ROUNDS);
    let (temporary, store) = match &args.keep {
        Some(folder) => (None, folder.clone()),
        None => {
            let folder = tempfile::tempdir().context("a folder for the stores cannot be created")?;
            let path = folder.path().to_owned();
            (Some(folder), path)
        }
    };
    let data = args.data.clone().unwrap_or_else(|| PICTURES.into());
    let made = begin(settings, args, &data, &store, &shutdown).await?;
    let settings = quick_settings::settings(settings, &made.start, &store);
    settings.check()?;
    let widened = quick_settings::widened(&settings.releaser.canary);
    let per_turn = made.divided.sites.iter().map(Vec::len).min().unwrap_or(0) / (rounds as usize + 1);
    let of_site = IMAGES_PER_SITE.min(per_turn);
    ensure!(
        of_site >= MIN_IMAGES_PER_SITE,
        "{per_turn} new images per site and round are too few (at least {MIN_IMAGES_PER_SITE}): use fewer --rounds"
    );
    stdout::print_line(intro(&made.divided, &widened, &settings, of_site))?;

    let turned = through(&settings, rounds, of_site, &made, &shutdown).await?;
    drop(temporary);
    let found = LoopResult {
        name: data.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        turns: turned.turns,
        unseen: made.divided.unseen.clone(),
        cloud: made.cloud,
        images: turned.images,
        took_s: begun.elapsed().as_secs_f64(),
        widened,
    };
    write(&args.out, &found.chart().svg()?)?;
    if let Some(path) = &args.json {
        write(path, &(serde_json::to_string_pretty(&found.json())? + "\n"))?;
    }
    stdout::print_line(format_args!("\n{}\n", found.table()))?;
    stdout::print_line(outro(&found, &args.out))
}

/// What the loop starts with.
struct LoopSetup {
    onnx: OnnxRuntime,
    divided: PictureDivision,
    start: LoopFolders,
    /// Accuracy of the cloud's model on the test images.
    cloud: Right,
}

/// Divides the images, makes missing models, and reports their accuracy.
async fn begin(
    settings: &Settings,
    args: &LoopArgs,
    data: &Path,
    store: &Path,
    shutdown: &Shutdown,
) -> anyhow::Result<LoopSetup> {
    let own = args.data.is_none();
    let dark = args.dark_cameras;
    let given = ModelSources {
        start: if own && dark { Some(LIGHT.into()) } else { args.model.clone() },
        blank: own.then(|| INITIAL.into()),
        cloud: if own { Some(HEAVY.into()) } else { args.cloud_model.clone() },
    };
    let makers = match (own, &given.start, &given.cloud) {
        (_, Some(_), Some(_)) => PictureProvenance::Nobody,
        (true, ..) => PictureProvenance::OfClass(START_OF_CLASS),
        (false, ..) => PictureProvenance::Half,
    };
    let (data, groups, store) = (data.to_owned(), args.groups.clone(), store.to_owned());
    let library = settings.onnxruntime.clone();
    let stop = CancellationToken::new();
    let stopper = stop.clone();
    let work = tokio::task::spawn_blocking(move || -> anyhow::Result<LoopSetup> {
        let pictures = pictures::read(&data, groups.as_deref()).with_context(|| {
            format!("images in {}: run it in a checkout of the project, or name a folder with --data", data.display())
        })?;
        let labels: std::collections::BTreeSet<&str> = pictures.iter().map(|picture| picture.label.as_str()).collect();
        let unseen = match (&given.start, own) {
            // What a given model has seen is unknown.
            (Some(_), _) => 0,
            (None, true) => UNSEEN,
            (None, false) => (labels.len() / 3).max(1),
        };
        let mut divided = pictures::divide(pictures, &makers, unseen, SITES.into())?;
        let onnx = OnnxRuntime::find_and_load(library.as_deref())?;
        std::fs::create_dir_all(&store).with_context(|| format!("{} cannot be created", store.display()))?;
        if dark {
            divided.show(&[CameraStyle::Dark; 2], &store.join("shown"))?;
        }
        let start = setup::make(&onnx, &divided, &given, &store, &stopper)?;
        let right = Right::of(&onnx, &start.model, &divided.test)?;
        let cloud = Right::of(&onnx, &start.cloud, &divided.test)?;
        stdout::print_line(by_class(&divided, &right, &cloud))?;
        Ok(LoopSetup { onnx, divided, start, cloud })
    });
    tokio::select! {
        made = work => made?,
        () = shutdown.wait_for_request() => {
            stop.cancel();
            bail!(STOPPED)
        }
    }
}

/// All turns, and the number of images published.
struct LoopTurns {
    turns: Vec<round::LoopTurn>,
    images: usize,
}

/// Starts everything, runs all rounds, stops everything.
async fn through(
    settings: &Settings,
    rounds: u32,
    of_site: usize,
    made: &LoopSetup,
    shutdown: &Shutdown,
) -> anyhow::Result<LoopTurns> {
    let stop = Shutdown::default();
    let up = tokio::select! {
        up = up::start(settings, Some(SITES), stop.clone()) => up?,
        () = shutdown.wait_for_request() => bail!(STOPPED),
    };
    let running = up.running.clone();
    let mut roles = tokio::spawn(up.wait_until_stopped());
    let turned = tokio::select! {
        turned = turns(settings, rounds, of_site, made, &running) => turned,
        ended = &mut roles => {
            ended??;
            bail!("all roles stopped unexpectedly");
        }
        () = shutdown.wait_for_request() => Err(anyhow::anyhow!(STOPPED)),
    };
    stop.request();
    roles.await??;
    turned
}

async fn turns(
    settings: &Settings,
    rounds: u32,
    of_site: usize,
    made: &LoopSetup,
    running: &RunningUp,
) -> anyhow::Result<LoopTurns> {
    let nats = NatsSettings { url: running.cloud_url.clone(), ..NatsSettings::default() };
    let cloud = Bus::connect(&nats, "demo").await?;
    let model = Model::load(&made.start.model)?;
    let mut flows = Vec::new();
    for (site, pictures) in running.sites.iter().zip(&made.divided.sites) {
        flows.push(SiteFlow::open(site, &cloud, pictures).await?);
    }
    let stands = ModelStanding {
        cloud,
        model: ModelName::from_name(&model.description.name),
        first: model.release,
        sites: running.sites.iter().map(|site| site.site.clone()).collect(),
    };
    let closed = LoopContext {
        stands,
        settings: settings.clone(),
        onnx: made.onnx.clone(),
        test: Arc::new(made.divided.test.clone()),
        unseen: made.divided.unseen.clone(),
        of_site,
        tested: tokio::sync::Mutex::default(),
    };
    closed.stands.all_have_orders().await?;
    let mut turns = Vec::new();
    for number in 1..=rounds + 1 {
        turns.push(closed.run_turn(&mut flows, number, number > rounds).await?);
    }
    closed.stands.all_run_stable().await?;
    Ok(LoopTurns { turns, images: flows.iter().map(SiteFlow::acknowledged).sum() })
}

/// Accuracy of both models by class.
fn by_class(divided: &PictureDivision, start: &Right, cloud: &Right) -> String {
    let cell = |right: &Right, label: &String| {
        right
            .of_label
            .get(label)
            .map_or_else(String::new, |(right, count)| format::percent(*right as f64 / (*count).max(1) as f64))
    };
    let mut rows: Vec<Vec<String>> = divided
        .labels
        .iter()
        .map(|label| {
            let unseen = if divided.unseen.contains(label) { "never seen" } else { "" };
            vec![format!("  {label}"), cell(start, label), cell(cloud, label), unseen.into()]
        })
        .collect();
    rows.push(vec!["  all".into(), format::percent(start.ratio()), format::percent(cloud.ratio()), String::new()]);
    let count = divided.test.len();
    format!(
        "Accuracy on {count} test images, which nobody learns from:\n{}",
        format::table(&["  class", "start", "cloud", ""], &rows)
    )
}

fn intro(divided: &PictureDivision, widened: &str, settings: &Settings, of_site: usize) -> String {
    let counts: Vec<String> = divided.sites.iter().map(|site| site.len().to_string()).collect();
    format!(
        "
Two sites and a cloud, all on this machine. Each site sees its own images ({}), with another mix of classes than the
other site. Images that its model doubts go up and get the cloud's verdict, and so does a random sample of {} of the
others. Sites learn from verdicts only. A round asks them for updates and merges them; the merged model is tuned and
tested on {} public images of all classes. The releaser canaries the release at one site; then all sites get it, or none.

Each round starts with {of_site} images per site that no model has seen; the figures are about these. While sites learn and
a release is canaried, earlier images come again, {} per second at each site, so a canary sees more images than there
are: it judges what was learned from them more kindly than production would.
Canaries are less strict than by default (in parentheses), because a minute shows few images: {widened}.",
        counts.join(" and "),
        format::percent(settings.recognizer.verify.sample_ratio),
        divided.public.len(),
        flow::PER_S
    )
}

fn outro(found: &LoopResult, chart: &Path) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "tributary-bench".into());
    let (first, last) = (found.turns.first(), found.turns.last());
    let sum = first.zip(last).map_or_else(String::new, |(first, last)| {
        format!(
            "Sent up: {} → {}. Accuracy of the sites' model on test images: {} → {} (the cloud's model: {}){}.\n",
            format::percent(first.up_ratio()),
            format::percent(last.up_ratio()),
            format::percent(first.test.ratio()),
            format::percent(last.test.ratio()),
            format::percent(found.cloud.ratio()),
            if found.unseen.is_empty() {
                String::new()
            } else {
                let (first, last) = (first.test.percent_of(&found.unseen), last.test.percent_of(&found.unseen));
                format!("; on unseen classes: {first} → {last}")
            },
        )
    });
    let tests = match found.unseen.is_empty() {
        true => "Test: accuracy on images that nobody learns from.",
        false => {
            "Test and unseen: accuracy on images that nobody learns from, all and\nthose of classes that the start model had \
             never seen."
        }
    };
    format!(
        "\
Sent up, sites alone and with cloud: on the new images. {tests}
Updates, release and canary: of the round that follows.

{sum}{} images were acknowledged, each has its final answer, and both sites run the stable release; {:.0} s in all.

Chart: {}

Try next:
  {program} loop --rounds 8
      more rounds
  {program} loop --set recognizer.gate.min_confidence_ratio=0.9
      ask the cloud more often: more verdicts to learn from
  {program} loop --set releaser.canary.escalation_margin_ratio=0.05
      stricter canaries: more releases are withdrawn, or not decided in time
  {program} loop --dark-cameras
      a good model, after it gets dark
  {program} loop --data DIR
      with your own images; both models are made from them
  tributary up --sites 2 --train --merge --model DIR --cloud-model DIR
      the same roles, kept running; then `{program} round open` and `{program} status`",
        found.images,
        found.took_s,
        chart.display()
    )
}

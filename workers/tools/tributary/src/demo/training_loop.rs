//! `tributary demo --loop`: infer → learn → release → infer, by itself, on this machine.
//!
//! Everything that runs is what `tributary up --sites 2 --train --merge` runs, and a round is opened as `tributary round
//! open` does; only the labels, by which is measured what was right, would be missing in real life. [`pictures`] says who
//! sees what, [`start`] makes the models it begins with, [`quick`] holds the settings, [`flow`] is a site's images, [`round`]
//! one turn of the loop, [`stands`] reads how rounds and releases stand, [`found`] what came of it.

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

use anyhow::{Context, bail, ensure};
use bench::camera::CameraStyle;
use runtime::Shutdown;
use schemas::ModelName;
use streams::{Bus, NatsSettings};
use tokio_util::sync::CancellationToken;
use vision::{Model, OnnxRuntime};

use super::{HEAVY, LIGHT, PICTURES};
use crate::settings::Settings;
use crate::site_target::RunningUp;
use crate::{format, stdout, up};
use flow::SiteFlow;
use label_accuracy::Right;
use model_standing::ModelStanding;
use pictures::{PictureDivision, PictureProvenance};
use results::Found;
use round::LoopContext;
use setup::{LoopFolders, ModelSources, START_OF_CLASS};

const INITIAL: &str = "fixtures/models/fashion-initial";
/// Classes of the project's own pictures that the start model has never seen.
const UNSEEN: usize = 4;
const SITES: u16 = 2;
const ROUNDS: u32 = 4;
/// New pictures of a site in each turn, if there are as many.
const OF_SITE: usize = 150;
/// With fewer, nothing can be measured.
const LEAST_OF_SITE: usize = 20;
const STOPPED: &str = "stopped before it was through";

/// The loop's own options.
#[derive(clap::Args)]
pub struct LoopArgs {
    /// Close the loop: sites whose model has never seen some classes learn them, round by round, from the cloud's verdicts.
    #[arg(long = "loop")]
    pub looped: bool,
    /// With --loop: rounds of learning, merging and releasing; 4 if absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: Option<u32>,
    /// With --loop: labelled pictures of your own, a folder with an index.csv (columns file, label, split), or with a folder for each label.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Column of the index whose pictures belong together, such as the track of a video: they stay on one side.
    #[arg(long, value_name = "COLUMN", requires = "data")]
    groups: Option<String>,
    /// The model that sites begin with; made from some of the pictures if absent.
    #[arg(long, value_name = "DIR", requires = "data")]
    model: Option<PathBuf>,
    /// The cloud's model; made from half of the pictures if absent.
    #[arg(long, value_name = "DIR", requires = "data")]
    cloud_model: Option<PathBuf>,
    /// With --loop: it has grown dark, and cameras show all pictures a quarter as bright. Without --data sites begin with the
    /// model that is shipped, which is good by day.
    #[arg(long)]
    dark_cameras: bool,
}

impl LoopArgs {
    /// An option that means nothing without --loop, if one was given.
    pub fn unused_option(&self) -> Option<&'static str> {
        let given = [
            ("--rounds", self.rounds.is_some()),
            ("--data", self.data.is_some()),
            ("--dark-cameras", self.dark_cameras),
        ];
        given.into_iter().find(|(_, given)| *given && !self.looped).map(|(name, _)| name)
    }
}

/// Where results go.
pub struct LoopOutput<'a> {
    /// The picture.
    pub chart: &'a Path,
    /// All numbers.
    pub json: Option<&'a Path>,
    /// Everything that is written while it runs is kept here.
    pub keep: Option<&'a Path>,
}

/// Runs the loop.
pub async fn command(
    settings: &Settings,
    args: &LoopArgs,
    into: LoopOutput<'_>,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let rounds = args.rounds.unwrap_or(ROUNDS);
    let (temporary, store) = match into.keep {
        Some(folder) => (None, folder.to_owned()),
        None => {
            let folder = tempfile::tempdir().context("no folder for the stores can be made")?;
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
    let of_site = OF_SITE.min(per_turn);
    ensure!(of_site >= LEAST_OF_SITE, "{per_turn} new pictures a site and round are too few: use fewer --rounds");
    stdout::print_line(intro(&made.divided, &widened, &settings, of_site))?;

    let turned = through(&settings, rounds, of_site, &made, &shutdown).await?;
    drop(temporary);
    let found = Found {
        name: data.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        turns: turned.turns,
        unseen: made.divided.unseen.clone(),
        cloud: made.cloud,
        images: turned.images,
        took_s: begun.elapsed().as_secs_f64(),
        widened,
    };
    super::write(into.chart, &found.chart().svg()?)?;
    if let Some(path) = into.json {
        super::write(path, &(serde_json::to_string_pretty(&found.json())? + "\n"))?;
    }
    stdout::print_line(format_args!("\n{}\n", found.table()))?;
    stdout::print_line(outro(&found, into.chart))
}

/// What it begins with.
struct LoopSetup {
    onnx: OnnxRuntime,
    divided: PictureDivision,
    start: LoopFolders,
    /// The cloud's model on the test pictures.
    cloud: Right,
}

/// Divides the pictures, makes what models are missing, and says how right they are.
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
    let told = stop.clone();
    let work = tokio::task::spawn_blocking(move || -> anyhow::Result<LoopSetup> {
        let pictures = pictures::read(&data, groups.as_deref()).with_context(|| {
            format!("pictures in {}: run this in a checkout of the project, or name --data", data.display())
        })?;
        let labels: std::collections::BTreeSet<&str> = pictures.iter().map(|picture| picture.label.as_str()).collect();
        let unseen = match (&given.start, own) {
            // What a model has seen that is given is not known.
            (Some(_), _) => 0,
            (None, true) => UNSEEN,
            (None, false) => (labels.len() / 3).max(1),
        };
        let mut divided = pictures::divide(pictures, &makers, unseen, SITES.into())?;
        let onnx = OnnxRuntime::find_and_load(library.as_deref())?;
        std::fs::create_dir_all(&store).with_context(|| format!("{} cannot be made", store.display()))?;
        if dark {
            divided.show(&[CameraStyle::Dark; 2], &store.join("shown"))?;
        }
        let start = setup::make(&onnx, &divided, &given, &store, &told)?;
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

/// All turns, and how many images they took.
struct LoopTurns {
    turns: Vec<round::LoopTurn>,
    images: usize,
}

/// Starts everything, goes through all rounds, stops everything.
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
            bail!("everything stopped by itself");
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

/// How right both models are, class by class.
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
        "right of {count} test pictures, which nobody learns from:\n{}",
        format::table(&["  class", "start", "cloud", ""], &rows)
    )
}

fn intro(divided: &PictureDivision, widened: &str, settings: &Settings, of_site: usize) -> String {
    let counts: Vec<String> = divided.sites.iter().map(|site| site.len().to_string()).collect();
    format!(
        "
Two sites and a cloud, all on this machine. Each site sees pictures of its own ({}), of other classes more often than the
other site. A picture that its model is in doubt about goes up and gets the cloud's verdict, and so do, by lot, {} of those
it is sure of. Sites learn from verdicts alone. A round asks them for what they learned and merges it; the merged model is
fitted and tried on {} public pictures of all classes. The releaser tries the release at one site, and then all sites have
it or none.

Each round begins with {of_site} pictures a site that no model has seen, which the numbers are about. While sites learn and a
release is tried, pictures that came before come again, {} a second at each site, so that a trial sees more images than
there are pictures: it is kinder to what was learned from them than life would be.
Trials are less strict than by default (in brackets), for a minute shows few images: {widened}.",
        counts.join(" and "),
        format::percent(settings.recognizer.verify.sample_ratio),
        divided.public.len(),
        flow::PER_S
    )
}

fn outro(found: &Found, chart: &Path) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "tributary".into());
    let (first, last) = (found.turns.first(), found.turns.last());
    let sum = first.zip(last).map_or_else(String::new, |(first, last)| {
        format!(
            "Sent up: {} → {}. Test pictures that the sites' model is right about: {} → {} (the cloud's model: {}){}.\n",
            format::percent(first.up_ratio()),
            format::percent(last.up_ratio()),
            format::percent(first.test.ratio()),
            format::percent(last.test.ratio()),
            format::percent(found.cloud.ratio()),
            if found.unseen.is_empty() {
                String::new()
            } else {
                let (first, last) = (first.test.percent_of(&found.unseen), last.test.percent_of(&found.unseen));
                format!("; of unseen classes: {first} → {last}")
            },
        )
    });
    let tests = match found.unseen.is_empty() {
        true => "Test: of the pictures that nobody learns from.",
        false => {
            "Test and unseen: of the pictures that nobody learns from, all and\nthose of classes that the start model had \
             never seen."
        }
    };
    format!(
        "\
Sent up, sites alone and with cloud: of the new pictures. {tests}
Updates, what they make and its trial: of the round that follows.

{sum}{} images were acknowledged, each has its final answer, and both sites run the stable release; {:.0} s in all.

Picture: {}

Try next:
  {program} demo --loop --rounds 8
      go on longer
  {program} demo --loop --set recognizer.gate.min_confidence_ratio=0.9
      ask the cloud more often: more verdicts to learn from
  {program} demo --loop --set releaser.canary.escalation_margin_ratio=0.05
      try releases more strictly: more of them are taken back, or not decided in time
  {program} demo --loop --dark-cameras
      from a model that is good, when it has grown dark
  {program} demo --loop --data DIR
      with pictures of your own; both models are made from them
  {program} up --sites 2 --train --merge --model DIR --cloud-model DIR
      the same roles, kept running; then `{program} round open` and `{program} status`",
        found.images,
        found.took_s,
        chart.display()
    )
}

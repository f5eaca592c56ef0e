//! `tributary demo`: labelled pictures through a site and a cloud on this machine, and what came of it.
//!
//! The servers, the roles and the path are those of `tributary up --sites 1`; only the labels, which make
//! it possible to say what was right, would be missing in real life.

mod results;
mod run;
mod training_loop;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use dataset::{DatasetRow, read_dataset};
use runtime::Shutdown;
use vision::{InferenceSettings, Model, OnnxRuntime, Replica, softmax};

use crate::settings::{Settings, UpSettings};
use crate::stdout;
use results::DemoResult;

const LIGHT: &str = "fixtures/models/fashion-light";
const HEAVY: &str = "fixtures/models/fashion-heavy";
const PICTURES: &str = "fixtures/images/fashion";

const EXAMPLES: &str = "\
Without --loop: pictures go through one site and a cloud once, and what came of it is printed.

With --loop: two sites begin with a model that has never seen some classes. Pictures that it is in
doubt about are verified by the cloud's model; the sites' trainers learn from the verdicts; a round
merges what they learned into a release; the releaser tries it at one site, and then all have it or
none; sites swap without losing an image. Round by round less is sent up and more is right, if it
goes well. It ends with an error if an image was lost, or if sites do not all run what is stable.

Of pictures of your own, a part is never learned from (split test, or a fifth). Two models are made
if none is named: the cloud's from half of the others (of frequent classes at most 200), the sites'
from 30 of each class but the rarest third.

Examples:
  tributary demo
  tributary demo --loop
  tributary demo --loop --rounds 8 --json loop.json
  tributary demo --loop --dark-cameras                   from the shipped model, when it has grown dark
  tributary demo --loop --data ./photos
  tributary demo --loop --data ./fish --groups track     pictures of one track stay on one side
  tributary demo --loop --data ./photos --model ./site --cloud-model ./cloud";

/// Publish labelled pictures through sites and a cloud on this machine, and print what came of it.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DemoArgs {
    /// How many of the 2,000 test pictures are published.
    #[arg(long, value_name = "N", default_value_t = 2000, conflicts_with = "looped", value_parser = clap::value_parser!(u32).range(10..=2000))]
    images: u32,
    /// Keep the store of the servers in this folder; without it, it is removed at the end.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    closed: training_loop::LoopArgs,
    /// Where the picture goes: tributary-demo/accuracy.svg, accuracy against the share sent up; with --loop
    /// tributary-demo/loop.svg, both by round.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write all numbers into this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl DemoArgs {
    fn out(&self) -> &Path {
        let usual = if self.closed.looped { "tributary-demo/loop.svg" } else { "tributary-demo/accuracy.svg" };
        self.out.as_deref().unwrap_or(Path::new(usual))
    }
}

/// A picture with its true label.
struct DemoPicture {
    bytes: Vec<u8>,
    label: String,
}

/// Runs the demonstration.
pub async fn command(settings: &Settings, args: &DemoArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    if let Some(name) = args.closed.unused_option() {
        anyhow::bail!("{name} is for the loop: write --loop as well");
    }
    if args.closed.looped {
        let into =
            training_loop::LoopOutput { chart: args.out(), json: args.json.as_deref(), keep: args.keep.as_deref() };
        return training_loop::command(settings, &args.closed, into, shutdown).await;
    }
    let pictures = pictures(args.images as usize)?;
    let (temporary, store) = match &args.keep {
        Some(folder) => (None, folder.clone()),
        None => {
            let folder = tempfile::tempdir().context("no folder for the servers' stores can be made")?;
            let path = folder.path().to_owned();
            (Some(folder), path)
        }
    };
    let mut settings = settings.clone();
    settings.recognizer.model = LIGHT.into();
    settings.recognizer.verify.enabled = true;
    settings.verifier.model = Some(HEAVY.into());
    settings.up = UpSettings { store, port: 0, mqtt_port: None, ..settings.up };
    stdout::print_line(intro(pictures.len()))?;

    let pictures = Arc::new(pictures);
    let walked = run::run_pictures(&settings, pictures.clone(), &shutdown).await?;
    drop(temporary);
    let (library, again) = (settings.onnxruntime.clone(), pictures.clone());
    let cloud = tokio::task::spawn_blocking(move || cloud_labels(library.as_deref(), &again)).await??;
    let found = DemoResult::of(&pictures, walked, &cloud, settings.up.durability)?;

    let drawn = found.chart().svg()?;
    write(args.out(), &drawn)?;
    if let Some(path) = &args.json {
        write(path, &(serde_json::to_string_pretty(&found.json())? + "\n"))?;
    }
    stdout::print_line(found.text())?;
    stdout::print_line(outro(args))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}

/// So many of the labelled test pictures, of all labels alike.
fn pictures(count: usize) -> anyhow::Result<Vec<DemoPicture>> {
    let folder = Path::new(PICTURES);
    ensure!(folder.is_dir(), "{PICTURES} is not here: run this in a checkout of the project");
    let mut dataset = read_dataset(folder, None)?;
    dataset.keep_test_split();
    let read = |row: &DatasetRow| {
        let path = dataset.path(row);
        let bytes = std::fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        Ok(DemoPicture { bytes, label: row.label.clone() })
    };
    dataset.spread(count).map(read).collect()
}

/// The cloud model's label for every picture, as if all had been sent up.
fn cloud_labels(library: Option<&Path>, pictures: &[DemoPicture]) -> anyhow::Result<Vec<String>> {
    let onnx = OnnxRuntime::find_and_load(library)?;
    let model = Model::load(Path::new(HEAVY))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let share = |pictures: &[DemoPicture]| -> anyhow::Result<Vec<String>> {
        let mut replica = Replica::open(&onnx, &model, &InferenceSettings::default())?;
        let label = |picture: &DemoPicture| {
            let ratios = softmax(&replica.predict(&picture.bytes)?.logits, 1.0);
            Ok(vision::prediction(&model, &ratios).context("the cloud's model gave no scores")?.label)
        };
        pictures.iter().map(label).collect()
    };
    std::thread::scope(|scope| {
        let parts = pictures.chunks(pictures.len().div_ceil(cores).max(1));
        let working: Vec<_> = parts.map(|part| scope.spawn(|| share(part))).collect();
        let mut labels = Vec::with_capacity(pictures.len());
        for thread in working {
            labels.extend(thread.join().map_err(|_| anyhow::anyhow!("recognizing broke off"))??);
        }
        Ok(labels)
    })
}

fn intro(count: usize) -> String {
    format!(
        "\
{count} labelled pictures of clothes go through a site and a cloud, both on this machine.

The site has a small, fast model, the cloud a larger, better one. The site recognizes every picture. When it
is sure, its answer is final. When it is not, it gives a provisional answer at once and sends the picture up;
the cloud's verdict becomes the final answer. Each picture is kept on the disk until that has happened.
"
    )
}

fn outro(args: &DemoArgs) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "tributary".into());
    let kept = match &args.keep {
        Some(folder) => format!("The store was kept: {program} up --store {} goes on with it.\n\n", folder.display()),
        None => String::new(),
    };
    format!(
        "\
Picture: {}
It shows how many answers are right for each share of pictures sent up, this run marked on it.

{kept}Try next:
  {program} demo --set recognizer.gate.min_confidence_ratio=0.95
      ask the cloud more often: more right answers, more bytes
  {program} up --model {LIGHT} --cloud-model {HEAVY}
      the same, kept running for pictures of your own
  {program} publish {PICTURES}/bag --camera cam-1
      from another terminal, while that runs; then `{program} answers`",
        args.out().display()
    )
}

//! `tributary demo`: labelled images through a site and a cloud on this machine, with a report.
//!
//! Servers, roles and path are those of `tributary up --sites 1`; only the labels, by which accuracy is measured, would
//! be missing in production.

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
Without --loop, labelled images go once through a site and a cloud, both on this machine.

With --loop, two sites start with a model that has never seen some classes. The cloud verifies what they doubt; their \
trainers learn from the verdicts; rounds merge the updates into releases, which are canaried and swapped in without \
losing an image. If it goes well, each round sends less up and gets more right. It fails if an image is lost or the \
sites end on different releases.

With your own images (--data), split test, or else a fifth, is never learned from. Models that you do not name are \
made: the cloud's from half of the other images (at most 200 per class), the sites' from 30 images per class without \
the rarest third of the classes.

Examples:
  tributary demo
  tributary demo --loop
  tributary demo --loop --rounds 8 --json loop.json
  tributary demo --loop --dark-cameras            a good model, after it gets dark
  tributary demo --loop --data ./photos
  tributary demo --loop --data ./fish --groups track
                                                  keeps images of a track together
  tributary demo --loop --data ./photos --model ./site --cloud-model ./cloud";

/// Run labelled images through sites and a cloud on this machine, with a report.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DemoArgs {
    /// Number of test images to publish.
    #[arg(long, value_name = "N", default_value_t = 2000, conflicts_with = "looped", value_parser = clap::value_parser!(u32).range(10..=2000))]
    images: u32,
    /// Keep the servers' stores in this folder [default: remove them at the end].
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    closed: training_loop::LoopArgs,
    /// File for the chart [default: tributary-demo/accuracy.svg, with --loop tributary-demo/loop.svg].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write all results to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl DemoArgs {
    fn out(&self) -> &Path {
        let usual = if self.closed.looped { "tributary-demo/loop.svg" } else { "tributary-demo/accuracy.svg" };
        self.out.as_deref().unwrap_or(Path::new(usual))
    }
}

/// An image with its true label.
struct DemoPicture {
    bytes: Vec<u8>,
    label: String,
}

/// Runs the demo.
pub async fn command(settings: &Settings, args: &DemoArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    if let Some(name) = args.closed.unused_option() {
        anyhow::bail!("{name} is for the loop: add --loop");
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
            let folder = tempfile::tempdir().context("a folder for the servers' stores cannot be created")?;
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
    let run = run::run_pictures(&settings, pictures.clone(), &shutdown).await?;
    drop(temporary);
    let (library, again) = (settings.onnxruntime.clone(), pictures.clone());
    let cloud = tokio::task::spawn_blocking(move || cloud_labels(library.as_deref(), &again)).await??;
    let found = DemoResult::of(&pictures, run, &cloud, settings.up.durability)?;

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
        std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be created", folder.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}

/// Reads a number of labelled test images, evenly over the labels.
fn pictures(count: usize) -> anyhow::Result<Vec<DemoPicture>> {
    let folder = Path::new(PICTURES);
    ensure!(folder.is_dir(), "{PICTURES} is missing: run the demo in a checkout of the project");
    let mut dataset = read_dataset(folder, None)?;
    dataset.keep_test_split();
    let read = |row: &DatasetRow| {
        let path = dataset.path(row);
        let bytes = std::fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        Ok(DemoPicture { bytes, label: row.label.clone() })
    };
    dataset.spread(count).map(read).collect()
}

/// The cloud model's label for every image, as if all had been sent up.
fn cloud_labels(library: Option<&Path>, pictures: &[DemoPicture]) -> anyhow::Result<Vec<String>> {
    let onnx = OnnxRuntime::find_and_load(library)?;
    let model = Model::load(Path::new(HEAVY))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let share = |pictures: &[DemoPicture]| -> anyhow::Result<Vec<String>> {
        let mut replica = Replica::open(&onnx, &model, &InferenceSettings::default())?;
        let label = |picture: &DemoPicture| {
            let ratios = softmax(&replica.predict(&picture.bytes)?.logits, 1.0);
            Ok(vision::prediction(&model, &ratios).context("the cloud's model returned no scores")?.label)
        };
        pictures.iter().map(label).collect()
    };
    std::thread::scope(|scope| {
        let parts = pictures.chunks(pictures.len().div_ceil(cores).max(1));
        let working: Vec<_> = parts.map(|part| scope.spawn(|| share(part))).collect();
        let mut labels = Vec::with_capacity(pictures.len());
        for thread in working {
            labels.extend(thread.join().map_err(|_| anyhow::anyhow!("inference crashed"))??);
        }
        Ok(labels)
    })
}

fn intro(count: usize) -> String {
    format!(
        "\
{count} labelled images of clothes go through a site and a cloud, both on this machine.

The site has a small, fast model, the cloud a larger, better one. The site recognizes every image. If it is
confident, its answer is final. If not, it gives a provisional answer at once and sends the image up; the
cloud's verdict becomes the final answer. Each image is kept on disk until then.
"
    )
}

fn outro(args: &DemoArgs) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "tributary".into());
    let kept = match &args.keep {
        Some(folder) => format!("The store was kept; continue with it: {program} up --store {}\n\n", folder.display()),
        None => String::new(),
    };
    format!(
        "\
Chart: {}
Accuracy against the share of images sent up, with this run marked.

{kept}Try next:
  {program} demo --set recognizer.gate.min_confidence_ratio=0.95
      ask the cloud more often: higher accuracy, more traffic
  {program} up --model {LIGHT} --cloud-model {HEAVY}
      the same, kept running for your own images
  {program} publish {PICTURES}/bag --camera cam-1
      from another terminal while it runs; then `{program} answers`",
        args.out().display()
    )
}

//! `tributary demo`: labelled images through a site and a cloud on this machine, with a report.
//!
//! Servers, roles and path are those of `tributary up --sites 1`; only the labels, by which accuracy is measured, would
//! be missing in production.

pub mod answer_listener;
mod curve;
pub mod latency;
mod results;
mod run;

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
Examples:
  tributary demo
  tributary demo --images 200 --json demo.json
  tributary demo --set recognizer.gate.min_confidence_ratio=0.95";

/// Run labelled images through a site and a cloud on this machine, with a report.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DemoArgs {
    /// Number of test images to publish.
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(10..=2000))]
    images: u32,
    /// Keep the servers' stores in this folder [default: remove them at the end].
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Write all results to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// An image with its true label.
struct DemoPicture {
    bytes: Vec<u8>,
    label: String,
}

/// Runs the demo.
pub async fn command(settings: &Settings, args: &DemoArgs, shutdown: Shutdown) -> anyhow::Result<()> {
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

    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&found.json())? + "\n";
        std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    stdout::print_line(found.text())?;
    stdout::print_line(outro(args))
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
{kept}Try next:
  {program} demo --set recognizer.gate.min_confidence_ratio=0.95
      ask the cloud more often: higher accuracy, more traffic
  {program} up --model {LIGHT} --cloud-model {HEAVY}
      the same, kept running for your own images
  {program} publish {PICTURES}/bag --camera cam-1
      from another terminal while it runs; then `{program} answers`"
    )
}

//! Prepares what the loop starts with: a model that has never seen some classes, the cloud's model, and the public set.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::train::network::BenchNetwork;
use crate::train::write_model;
use anyhow::{Context, ensure};
use tokio_util::sync::CancellationToken;
use training::examples::Example;
use training::settings::{AugmentSettings, OptimizerSettings};
use training::{Epoch, ExampleSplit, Examples, TrainContext, TrainSettings, TrainingPace};
use vision::{Model, OnnxRuntime};

use super::pictures::{LoopPicture, PictureDivision};
use tributary::{format, stdout};

/// Input side of new networks, pixels.
const SIDE_PX: i64 = 32;
/// Maximum images per class for the start model; few, so that the sites can improve it.
pub(super) const START_IMAGES_PER_CLASS: usize = 30;
const START_EPOCHS: u32 = 15;
const CLOUD_EPOCHS: u32 = 24;
/// Epochs between progress lines.
const PROGRESS_EPOCHS: u32 = 6;
/// Label smoothing, so that a model is less confident about new classes.
pub(super) const LABEL_SMOOTHING: f32 = 0.1;
/// One in this many images goes to the holdout.
const HOLDOUT_STEP: usize = 10;

/// Folders of given models, and of the network to make a missing start model from.
pub(super) struct ModelSources {
    /// The start model; made if absent.
    pub start: Option<PathBuf>,
    /// A network with random weights to make the start model from; a small default network if absent.
    pub untrained: Option<PathBuf>,
    /// The cloud's model; made if absent.
    pub cloud: Option<PathBuf>,
}

/// Folders that the roles use.
pub(super) struct LoopFolders {
    /// Model that the sites start with.
    pub model: PathBuf,
    /// The cloud's model.
    pub cloud: PathBuf,
    /// The public set.
    pub public: PathBuf,
}

/// Makes missing models and the public set, as subfolders of `folder`.
pub(super) fn prepare_models(
    onnx: &OnnxRuntime,
    division: &PictureDivision,
    sources: &ModelSources,
    folder: &Path,
    stop: &CancellationToken,
) -> anyhow::Result<LoopFolders> {
    let model = match &sources.start {
        Some(model) => model.clone(),
        None => make_start_model(onnx, division, sources.untrained.as_deref(), folder, stop)?,
    };
    let cloud = match &sources.cloud {
        Some(cloud) => cloud.clone(),
        None => make_cloud_model(onnx, division, folder, stop)?,
    };
    let name = |folder: &Path| anyhow::Ok(Model::load(folder)?.description.name);
    let own = name(&model)?;
    // Releases belong to a model name, so the two names must differ.
    ensure!(
        own != name(&cloud)?,
        "the sites' model and the cloud's model are both named {own}: change the name in one model.toml"
    );
    Ok(LoopFolders { model, cloud, public: write_public_set(division, &folder.join("public"))? })
}

fn make_start_model(
    onnx: &OnnxRuntime,
    division: &PictureDivision,
    untrained: Option<&Path>,
    folder: &Path,
    stop: &CancellationToken,
) -> anyhow::Result<PathBuf> {
    let untrained = match untrained {
        Some(folder) => Model::load(folder)?,
        None => write_model(
            &BenchNetwork::learner(3, SIDE_PX, division.labels.len() as i64),
            &division.labels,
            &folder.join("blank"),
        )?,
    };
    let mut taken = std::collections::BTreeMap::<&str, usize>::new();
    let images = division.models.iter().filter(|picture| {
        let count = taken.entry(&picture.label).or_default();
        *count += 1;
        !division.unseen.contains(&picture.label) && *count <= START_IMAGES_PER_CLASS
    });
    let images: Vec<&LoopPicture> = images.collect();
    let classes = division.labels.len() - division.unseen.len();
    stdout::print_line(format_args!("making the start model from {} images of {classes} classes", images.len()))?;
    train_model(onnx, &untrained, &images, (START_EPOCHS, AugmentSettings::default()), &folder.join("start"), stop)
}

fn make_cloud_model(
    onnx: &OnnxRuntime,
    division: &PictureDivision,
    folder: &Path,
    stop: &CancellationToken,
) -> anyhow::Result<PathBuf> {
    let net = BenchNetwork::judge(3, SIDE_PX, division.labels.len() as i64);
    let untrained = write_model(&net, &division.labels, &folder.join("cloud-blank"))?;
    let images: Vec<&LoopPicture> = division.models.iter().collect();
    stdout::print_line(format_args!(
        "making the cloud's model from {} images of all {} classes, {CLOUD_EPOCHS} epochs; this takes a while",
        images.len(),
        division.labels.len()
    ))?;
    let augment = AugmentSettings { mirror: true, shift_ratio: 0.06, ..AugmentSettings::default() };
    train_model(onnx, &untrained, &images, (CLOUD_EPOCHS, augment), &folder.join("cloud"), stop)
}

/// Trains a network and writes it to the folder `into`.
fn train_model(
    onnx: &OnnxRuntime,
    untrained: &Model,
    pictures: &[&LoopPicture],
    (epochs, augment): (u32, AugmentSettings),
    into: &Path,
    stop: &CancellationToken,
) -> anyhow::Result<PathBuf> {
    let optimizer =
        OptimizerSettings { learning_rate: Some(0.03), clip_norm: Some(5.0), ..OptimizerSettings::default() };
    let settings = TrainSettings {
        epochs,
        augment,
        optimizer,
        label_smoothing_ratio: LABEL_SMOOTHING,
        ..TrainSettings::default()
    };
    let example = |(number, picture): (usize, &&LoopPicture)| {
        let class = untrained.labels.iter().position(|label| *label == picture.label)?;
        let split = if number % HOLDOUT_STEP == 0 { ExampleSplit::Holdout } else { ExampleSplit::Train };
        Some(Example { path: picture.path.clone(), class, split, hard: false, times: 1.0 })
    };
    let examples = Examples { all: pictures.iter().enumerate().filter_map(example).collect() };
    let mut print_error: Option<anyhow::Error> = None;
    let context = TrainContext { stop, pace: Arc::new(TrainingPace::unlimited(None)), checkpoints: None };
    let trained = training::train_model(onnx, untrained, &examples, &settings, context, |epoch| {
        print_error = print_error.take().or(print_epoch(epoch, epochs).err())
    })?;
    print_error.map_or(Ok(()), Err)?;
    Ok(training::folder::write(untrained, &trained.onnx, &trained.values(), into)?.folder)
}

fn print_epoch(epoch: &Epoch, epochs: u32) -> anyhow::Result<()> {
    if epoch.number == 0 || !epoch.number.is_multiple_of(PROGRESS_EPOCHS) && epoch.number != epochs {
        return Ok(());
    }
    let accuracy = format::percent(epoch.held_out.accuracy_ratio);
    stdout::print_line(format_args!(
        "  epoch {} of {epochs}: accuracy {accuracy} on a holdout of {} images",
        epoch.number, epoch.held_out.images
    ))
}

/// Writes the public set: an index.csv, and links to the images.
fn write_public_set(division: &PictureDivision, folder: &Path) -> anyhow::Result<PathBuf> {
    let index = folder.join("index.csv");
    let write_context = || format!("could not write {}", index.display());
    std::fs::create_dir_all(folder).with_context(write_context)?;
    let mut rows = csv::Writer::from_path(&index).with_context(write_context)?;
    rows.write_record(["file", "label"])?;
    for (number, picture) in division.public.iter().enumerate() {
        let path = std::fs::canonicalize(&picture.path)
            .with_context(|| format!("could not read {}", picture.path.display()))?;
        let name = number.to_string();
        std::os::unix::fs::symlink(path, folder.join(&name)).with_context(write_context)?;
        rows.write_record([name.as_str(), &picture.label])?;
    }
    rows.flush().with_context(write_context)?;
    Ok(folder.to_owned())
}

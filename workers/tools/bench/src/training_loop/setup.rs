//! What the loop starts with: a model that has never seen some classes, the cloud's model, and the public set.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::train::network::BenchNetwork;
use crate::train::write_net;
use anyhow::{Context, ensure};
use tokio_util::sync::CancellationToken;
use training::examples::Example;
use training::settings::{AugmentSettings, OptimizerSettings};
use training::{Epoch, ExampleSplit, Examples, TrainContext, TrainSettings, TrainingPace};
use vision::{Model, OnnxRuntime};

use super::pictures::{LoopPicture, PictureDivision};
use tributary::{format, stdout};

/// Input side of the networks made here, pixels.
const SIDE_PX: i64 = 32;
/// Most images per class for the start model: the sites should have more to learn.
pub(super) const START_OF_CLASS: usize = 30;
const START_EPOCHS: u32 = 15;
const CLOUD_EPOCHS: u32 = 24;
/// Epochs between two progress lines.
const PRINT_EVERY: u32 = 6;
/// Label smoothing, so that a model is less confident about new classes.
pub(super) const SMOOTHING: f32 = 0.1;
/// One in this many images is in the holdout.
const HOLDOUT_EVERY: usize = 10;

/// Given models, and what missing ones are made from.
pub(super) struct ModelSources {
    /// The start model, if given; used as it is.
    pub start: Option<PathBuf>,
    /// A model with random weights to make it from; absent, a small network.
    pub blank: Option<PathBuf>,
    /// The cloud's model, if given.
    pub cloud: Option<PathBuf>,
}

/// Folders of models, and of the public set.
pub(super) struct LoopFolders {
    /// Baseline model of the sites.
    pub model: PathBuf,
    /// The cloud's model.
    pub cloud: PathBuf,
    /// The public set.
    pub public: PathBuf,
}

/// Makes missing models and the public set in a folder.
pub(super) fn make(
    onnx: &OnnxRuntime,
    divided: &PictureDivision,
    given: &ModelSources,
    folder: &Path,
    stop: &CancellationToken,
) -> anyhow::Result<LoopFolders> {
    let model = match &given.start {
        Some(model) => model.clone(),
        None => start_model(onnx, divided, given.blank.as_deref(), folder, stop)?,
    };
    let cloud = match &given.cloud {
        Some(cloud) => cloud.clone(),
        None => cloud_model(onnx, divided, folder, stop)?,
    };
    let name = |folder: &Path| anyhow::Ok(Model::load(folder)?.description.name);
    let own = name(&model)?;
    // Releases go by the model's name, so the two must differ.
    ensure!(
        own != name(&cloud)?,
        "the sites' model and the cloud's are both named {own}: change the name in one model.toml"
    );
    Ok(LoopFolders { model, cloud, public: public(divided, &folder.join("public"))? })
}

fn start_model(
    onnx: &OnnxRuntime,
    divided: &PictureDivision,
    blank: Option<&Path>,
    folder: &Path,
    stop: &CancellationToken,
) -> anyhow::Result<PathBuf> {
    let blank = match blank {
        Some(blank) => Model::load(blank)?,
        None => write_net(
            &BenchNetwork::learner(3, SIDE_PX, divided.labels.len() as i64),
            &divided.labels,
            &folder.join("blank"),
        )?,
    };
    let mut taken = std::collections::BTreeMap::<&str, usize>::new();
    let known = divided.makers.iter().filter(|picture| {
        let count = taken.entry(&picture.label).or_default();
        *count += 1;
        !divided.unseen.contains(&picture.label) && *count <= START_OF_CLASS
    });
    let known: Vec<&LoopPicture> = known.collect();
    let classes = divided.labels.len() - divided.unseen.len();
    stdout::print_line(format_args!("making the start model from {} images of {classes} classes", known.len()))?;
    train(onnx, &blank, &known, (START_EPOCHS, AugmentSettings::default()), &folder.join("start"), stop)
}

fn cloud_model(
    onnx: &OnnxRuntime,
    divided: &PictureDivision,
    folder: &Path,
    stop: &CancellationToken,
) -> anyhow::Result<PathBuf> {
    let net = BenchNetwork::judge(3, SIDE_PX, divided.labels.len() as i64);
    let blank = write_net(&net, &divided.labels, &folder.join("cloud-blank"))?;
    let all: Vec<&LoopPicture> = divided.makers.iter().collect();
    stdout::print_line(format_args!(
        "making the cloud's model from {} images of all {} classes, {CLOUD_EPOCHS} epochs: this takes a while",
        all.len(),
        divided.labels.len()
    ))?;
    let changed = AugmentSettings { mirror: true, shift_ratio: 0.06, ..AugmentSettings::default() };
    train(onnx, &blank, &all, (CLOUD_EPOCHS, changed), &folder.join("cloud"), stop)
}

fn train(
    onnx: &OnnxRuntime,
    blank: &Model,
    pictures: &[&LoopPicture],
    (epochs, augment): (u32, AugmentSettings),
    into: &Path,
    stop: &CancellationToken,
) -> anyhow::Result<PathBuf> {
    let optimizer =
        OptimizerSettings { learning_rate: Some(0.03), clip_norm: Some(5.0), ..OptimizerSettings::default() };
    let settings =
        TrainSettings { epochs, augment, optimizer, label_smoothing_ratio: SMOOTHING, ..TrainSettings::default() };
    let example = |(number, picture): (usize, &&LoopPicture)| {
        let class = blank.labels.iter().position(|label| *label == picture.label)?;
        let split = if number % HOLDOUT_EVERY == 0 { ExampleSplit::Holdout } else { ExampleSplit::Train };
        Some(Example { path: picture.path.clone(), class, split, hard: false, times: 1.0 })
    };
    let examples = Examples { all: pictures.iter().enumerate().filter_map(example).collect() };
    let mut print_error: Option<anyhow::Error> = None;
    let around = TrainContext { stop, pace: Arc::new(TrainingPace::unlimited(None)), checkpoints: None };
    let trained = training::train_model(onnx, blank, &examples, &settings, around, |epoch| {
        print_error = print_error.take().or(print_epoch(epoch, epochs).err())
    })?;
    print_error.map_or(Ok(()), Err)?;
    Ok(training::folder::write(blank, &trained.onnx, &trained.values(), into)?.folder)
}

fn print_epoch(epoch: &Epoch, epochs: u32) -> anyhow::Result<()> {
    if epoch.number == 0 || !epoch.number.is_multiple_of(PRINT_EVERY) && epoch.number != epochs {
        return Ok(());
    }
    let right = format::percent(epoch.held_out.accuracy_ratio);
    stdout::print_line(format_args!(
        "  epoch {} of {epochs}: accuracy {right} on a holdout of {}",
        epoch.number, epoch.held_out.images
    ))
}

/// A folder with an index.csv and links to the images, which stay where they are.
fn public(divided: &PictureDivision, folder: &Path) -> anyhow::Result<PathBuf> {
    let index = folder.join("index.csv");
    let written = || format!("{} cannot be written", index.display());
    std::fs::create_dir_all(folder).with_context(written)?;
    let mut rows = csv::Writer::from_path(&index).with_context(written)?;
    rows.write_record(["file", "label"])?;
    for (number, picture) in divided.public.iter().enumerate() {
        let path = std::fs::canonicalize(&picture.path)
            .with_context(|| format!("{} cannot be read", picture.path.display()))?;
        let name = number.to_string();
        std::os::unix::fs::symlink(path, folder.join(&name)).with_context(written)?;
        rows.write_record([name.as_str(), &picture.label])?;
    }
    rows.flush().with_context(written)?;
    Ok(folder.to_owned())
}

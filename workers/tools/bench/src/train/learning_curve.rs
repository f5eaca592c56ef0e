//! How right a small network gets, epoch by epoch, from the same random weights, pictures and order: here, and trained by
//! PyTorch.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use training::settings::OptimizerSettings;
use training::train::example_indices;
use training::{ExampleSplit, Examples, TrainContext, TrainSettings, TrainingPace};
use vision::{DecodeSettings, Model, OnnxRuntime, decode, tensor};

use super::network::BenchNetwork;
use crate::chart::{Chart, ChartLine};
use crate::error::BenchError;
use crate::labelled_images;

const PEER: &str = include_str!("learner.py");
/// The project's own images and the network that knows nothing of them, in a checkout.
const OWN: (&str, &str) = ("fixtures/images/fashion", "fixtures/models/fashion-initial");
/// Side of pictures of other folders, pixels.
const SIDE_PX: i64 = 32;

/// How right it was after each epoch.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LearningCurve {
    /// Name of the folder of images.
    pub data: String,
    /// Images to learn from, held out, and to test with.
    pub images: [usize; 3],
    /// Share of those held out, before training and after each epoch.
    pub ours: Vec<f64>,
    /// The same by PyTorch; empty without it.
    pub peer: Vec<f64>,
    /// Share of those to test with at the end.
    pub test: f64,
    /// The same by PyTorch.
    pub peer_test: Option<f64>,
}

#[derive(Deserialize)]
struct PeerEpochs {
    held_out: f64,
    test: f64,
}

/// Trains on a folder of labelled images; on the project's own if absent.
pub(crate) fn learn(
    runtime: &OnnxRuntime,
    data: Option<&Path>,
    python: &Path,
    epochs: u32,
) -> Result<LearningCurve, BenchError> {
    let place = tempfile::tempdir().map_err(BenchError::file("a folder for temporary files"))?;
    let (folder, net, model) = match data {
        None => (Path::new(OWN.0), BenchNetwork::learner(1, 28, 10), Model::load(Path::new(OWN.1))?),
        Some(folder) => {
            let labels = labelled_images::labels(folder)?;
            let net = BenchNetwork::learner(3, SIDE_PX, labels.len() as i64);
            (folder, net.clone(), write(&net, &labels, &place.path().join("model"))?)
        }
    };
    let settings = TrainSettings {
        epochs,
        balanced: false,
        optimizer: OptimizerSettings { learning_rate: Some(0.02), ..OptimizerSettings::default() },
        ..TrainSettings::default()
    };
    let examples = Examples::read(folder, &model.labels, settings.holdout_ratio)?;
    let [learned, held_out, test] =
        [ExampleSplit::Train, ExampleSplit::Holdout, ExampleSplit::Test].map(|split| example_indices(&examples, split));
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    eprintln!("bench: learning from {} images of {name}, {epochs} epochs", learned.len());
    let stop = CancellationToken::new();
    let around = TrainContext { stop: &stop, pace: Arc::new(TrainingPace::unlimited(None)), checkpoints: None };
    let trained = training::train_model(runtime, &model, &examples, &settings, around, |_| {})?;
    let said = peer(runtime, &net, &model, &examples, &settings, python, place.path())?;
    Ok(LearningCurve {
        data: name,
        images: [learned.len(), held_out.len(), test.len()],
        ours: trained.epochs.iter().map(|epoch| epoch.held_out.accuracy_ratio).collect(),
        peer: said.iter().map(|said| said.held_out).collect(),
        test: trained.test.map_or(f64::NAN, |(_, after)| after.accuracy_ratio),
        peer_test: said.last().map(|said| said.test),
    })
}

/// A folder with a network of random weights.
pub(crate) fn write(net: &BenchNetwork, labels: &[String], folder: &Path) -> Result<Model, BenchError> {
    std::fs::create_dir_all(folder).map_err(BenchError::file(folder))?;
    let side = net.side_px;
    let description = format!(
        "name = \"{}\"\nversion = 1\n[input]\nname = \"images\"\nwidth_px = {side}\nheight_px = {side}\n\
         channels = \"rgb\"\nlayout = \"nchw\"\nscale = 0.00392156862745098\nmean = [0.485, 0.456, 0.406]\n\
         std = [0.229, 0.224, 0.225]\nresize = \"stretch\"\nfilter = \"bilinear\"\n[output]\nname = \"scores\"\nkind = \"logits\"\n",
        net.name
    );
    for (file, bytes) in [
        ("model.toml", description.into_bytes()),
        ("labels.txt", labels.iter().map(|label| format!("{label}\n")).collect::<String>().into_bytes()),
        // Of batches of any size: it is to be run as well as to be trained.
        ("graph.onnx", BenchNetwork { batch: -1, ..net.clone() }.onnx().encode()),
    ] {
        let path = folder.join(file);
        std::fs::write(&path, bytes).map_err(BenchError::file(&path))?;
    }
    Ok(Model::load(folder)?)
}

/// The same by PyTorch; nothing without it.
fn peer(
    runtime: &OnnxRuntime,
    net: &BenchNetwork,
    model: &Model,
    examples: &Examples,
    settings: &TrainSettings,
    python: &Path,
    place: &Path,
) -> Result<Vec<PeerEpochs>, BenchError> {
    if !super::has_torch(python) {
        return Ok(Vec::new());
    }
    let input = &model.description.input;
    let mut scratch = tensor::Scratch::default();
    let (images, weights) = (place.join("images"), place.join("weights"));
    let mut file = std::io::BufWriter::new(std::fs::File::create(&images).map_err(BenchError::file(&images))?);
    let mut values = vec![0.0; tensor::len(input)];
    for example in &examples.all {
        let unusable = |why: String| BenchError::NoImages { folder: example.path.clone(), why };
        let bytes = std::fs::read(&example.path).map_err(BenchError::file(&example.path))?;
        let pixels = decode(&bytes, &DecodeSettings::default()).map_err(|error| unusable(error.to_string()))?;
        tensor::write(&pixels, input, &mut scratch, &mut values).map_err(|error| unusable(error.to_string()))?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        file.write_all(&bytes).map_err(BenchError::file(&images))?;
    }
    file.flush().map_err(BenchError::file(&images))?;
    let ready = training::trainable_model::prepare_model(runtime, model, 1)?;
    let step = ready.prepared.step(&ready.known, &autograd::TrainableSelection::All)?;
    let mut flat = Vec::new();
    for weight in &step.weights {
        flat.extend(ready.onnx.weight(&weight.name)?.iter().flat_map(|value| value.to_le_bytes()));
    }
    std::fs::write(&weights, flat).map_err(BenchError::file(&weights))?;
    let learned = example_indices(examples, ExampleSplit::Train);
    let classes: Vec<usize> = learned.iter().map(|place| examples.all[*place].class).collect();
    let orders = (1..=settings.epochs).map(|epoch| {
        let mut random = StdRng::seed_from_u64(training::train::seed_of(settings, epoch));
        let order = training::batches::order(&classes, settings.balanced, &mut random);
        order.into_iter().map(|at| learned[at]).collect::<Vec<_>>()
    });
    let asked = json!({
        "net": net,
        "images": images,
        "weights": weights,
        "labels": examples.all.iter().map(|example| example.class).collect::<Vec<_>>(),
        "held_out": example_indices(examples, ExampleSplit::Holdout),
        "test": example_indices(examples, ExampleSplit::Test),
        "orders": orders.collect::<Vec<_>>(),
        "epochs": settings.epochs,
        "batch": settings.batch,
        "learning_rate": settings.optimizer.learning_rate,
        "momentum": settings.optimizer.momentum_ratio,
    });
    let failed = BenchError::file(python);
    let mut command = Command::new(python);
    command.args(["-c", PEER]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = command.spawn().map_err(failed)?;
    if let Some(mut asks) = process.stdin.take() {
        // Who does not listen says nothing either.
        let _ = asks.write_all(asked.to_string().as_bytes());
    }
    let says = process.stdout.take().map(BufReader::new);
    let said = says.into_iter().flat_map(BufRead::lines).map_while(Result::ok);
    let said = said.filter_map(|line| serde_json::from_str(&line).ok()).collect();
    let _ = process.wait();
    Ok(said)
}

/// Both curves.
pub(crate) fn chart(learned: &LearningCurve) -> Chart {
    let line = |name: &str, shares: &[f64]| ChartLine {
        name: name.into(),
        points: shares.iter().enumerate().map(|(epoch, share)| (epoch as f64, share * 100.0)).collect(),
    };
    let lines = [line("Tributary", &learned.ours), line("PyTorch", &learned.peer)];
    Chart {
        title: format!("Learning from {} images of {}", learned.images[0], learned.data),
        x_label: "epochs".into(),
        y_label: format!("% right of {} held out", learned.images[1]),
        lines: lines.into_iter().filter(|line| !line.points.is_empty()).collect(),
        marks: Vec::new(),
    }
}

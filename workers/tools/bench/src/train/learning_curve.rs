//! Accuracy of a small network, epoch by epoch, trained by Tributary and by PyTorch from the same random weights with the
//! same pictures in the same order.

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

/// The script that trains the same network with PyTorch.
const PYTORCH_SCRIPT: &str = include_str!("learner.py");
/// The project's own images and an untrained network, in a checkout.
const OWN: (&str, &str) = ("fixtures/images/fashion", "fixtures/models/fashion-initial");
/// Input side for other folders, pixels.
const SIDE_PX: i64 = 32;

/// Accuracy after each epoch.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LearningCurve {
    /// Name of the folder of images.
    pub data: String,
    /// Number of images for training, holdout and test.
    pub images: [usize; 3],
    /// Accuracy on the holdout, 0 to 1, before training and after each epoch.
    pub ours: Vec<f64>,
    /// The same with PyTorch; empty without it.
    pub peer: Vec<f64>,
    /// Accuracy on the test images at the end, 0 to 1.
    pub test: f64,
    /// The same with PyTorch; absent without it.
    pub peer_test: Option<f64>,
}

/// Accuracy after an epoch of PyTorch, 0 to 1.
#[derive(Deserialize)]
struct PeerEpochs {
    holdout: f64,
    test: f64,
}

/// Trains on a folder of labelled images; on the project's own if absent.
pub(crate) fn measure_learning(
    runtime: &OnnxRuntime,
    data: Option<&Path>,
    python: &Path,
    epochs: u32,
) -> Result<LearningCurve, BenchError> {
    let scratch_folder = tempfile::tempdir().map_err(BenchError::file(std::env::temp_dir()))?;
    let (folder, net, model) = match data {
        None => (Path::new(OWN.0), BenchNetwork::learner(1, 28, 10), Model::load(Path::new(OWN.1))?),
        Some(folder) => {
            let labels = labelled_images::labels(folder)?;
            let net = BenchNetwork::learner(3, SIDE_PX, labels.len() as i64);
            (folder, net.clone(), write_model(&net, &labels, &scratch_folder.path().join("model"))?)
        }
    };
    let settings = TrainSettings {
        epochs,
        balanced: false,
        optimizer: OptimizerSettings { learning_rate: Some(0.02), ..OptimizerSettings::default() },
        ..TrainSettings::default()
    };
    let examples = Examples::read(folder, &model.labels, settings.holdout_ratio)?;
    let [train, holdout, test] =
        [ExampleSplit::Train, ExampleSplit::Holdout, ExampleSplit::Test].map(|split| example_indices(&examples, split));
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    eprintln!("bench: training on {} images of {name}, {epochs} epochs", train.len());
    let stop = CancellationToken::new();
    let context = TrainContext { stop: &stop, pace: Arc::new(TrainingPace::unlimited(None)), checkpoints: None };
    let trained = training::train_model(runtime, &model, &examples, &settings, context, |_| {})?;
    let peer = train_with_pytorch(runtime, &net, &model, &examples, &settings, python, scratch_folder.path())?;
    Ok(LearningCurve {
        data: name,
        images: [train.len(), holdout.len(), test.len()],
        ours: trained.epochs.iter().map(|epoch| epoch.held_out.accuracy_ratio).collect(),
        peer: peer.iter().map(|epoch| epoch.holdout).collect(),
        test: trained.test.map_or(f64::NAN, |(_, after)| after.accuracy_ratio),
        peer_test: peer.last().map(|epoch| epoch.test),
    })
}

/// Writes a model folder with a network of random weights.
pub(crate) fn write_model(net: &BenchNetwork, labels: &[String], folder: &Path) -> Result<Model, BenchError> {
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
        // Any batch size, because the model is used for inference as well as for training.
        ("graph.onnx", BenchNetwork { batch: -1, ..net.clone() }.onnx().encode()),
    ] {
        let path = folder.join(file);
        std::fs::write(&path, bytes).map_err(BenchError::file(&path))?;
    }
    Ok(Model::load(folder)?)
}

/// Trains the same network with PyTorch; returns nothing without it.
fn train_with_pytorch(
    runtime: &OnnxRuntime,
    net: &BenchNetwork,
    model: &Model,
    examples: &Examples,
    settings: &TrainSettings,
    python: &Path,
    scratch_folder: &Path,
) -> Result<Vec<PeerEpochs>, BenchError> {
    if !super::has_torch(python) {
        return Ok(Vec::new());
    }
    let input = &model.description.input;
    let mut scratch = tensor::Scratch::default();
    let (images, weights) = (scratch_folder.join("images"), scratch_folder.join("weights"));
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
    let trainable = training::trainable_model::prepare_model(runtime, model, 1)?;
    let step = trainable.prepared.step(&trainable.known, &autograd::TrainableSelection::All)?;
    let mut flat = Vec::new();
    for weight in &step.weights {
        flat.extend(trainable.onnx.weight(&weight.name)?.iter().flat_map(|value| value.to_le_bytes()));
    }
    std::fs::write(&weights, flat).map_err(BenchError::file(&weights))?;
    let train = example_indices(examples, ExampleSplit::Train);
    let classes: Vec<usize> = train.iter().map(|index| examples.all[*index].class).collect();
    let orders = (1..=settings.epochs).map(|epoch| {
        let mut random = StdRng::seed_from_u64(training::train::seed_of(settings, epoch));
        let order = training::batches::order(&classes, settings.balanced, &mut random);
        order.into_iter().map(|position| train[position]).collect::<Vec<_>>()
    });
    let request = json!({
        "net": net,
        "images": images,
        "weights": weights,
        "labels": examples.all.iter().map(|example| example.class).collect::<Vec<_>>(),
        "holdout": example_indices(examples, ExampleSplit::Holdout),
        "test": example_indices(examples, ExampleSplit::Test),
        "orders": orders.collect::<Vec<_>>(),
        "epochs": settings.epochs,
        "batch": settings.batch,
        "learning_rate": settings.optimizer.learning_rate,
        "momentum": settings.optimizer.momentum_ratio,
    });
    let start_error = BenchError::file(python);
    let mut command = Command::new(python);
    command.args(["-c", PYTORCH_SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = command.spawn().map_err(start_error)?;
    if let Some(mut stdin) = process.stdin.take() {
        // Fails only if the script has exited, and then it writes nothing either.
        let _ = stdin.write_all(request.to_string().as_bytes());
    }
    let stdout = process.stdout.take().map(BufReader::new);
    let lines = stdout.into_iter().flat_map(BufRead::lines).map_while(Result::ok);
    let epochs = lines.filter_map(|line| serde_json::from_str(&line).ok()).collect();
    let _ = process.wait();
    Ok(epochs)
}

/// Chart of both curves.
pub(crate) fn chart(curve: &LearningCurve) -> Chart {
    let line = |name: &str, ratios: &[f64]| ChartLine {
        name: name.into(),
        points: ratios.iter().enumerate().map(|(epoch, ratio)| (epoch as f64, ratio * 100.0)).collect(),
    };
    let lines = [line("Tributary", &curve.ours), line("PyTorch", &curve.peer)];
    Chart {
        title: format!("Training on {} images of {}", curve.images[0], curve.data),
        x_label: "epochs".into(),
        y_label: format!("accuracy on {} holdout images, %", curve.images[1]),
        lines: lines.into_iter().filter(|line| !line.points.is_empty()).collect(),
        marks: Vec::new(),
    }
}

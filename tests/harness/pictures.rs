//! The labelled test pictures, with each model's prediction computed here: an answer must equal it.

use std::fs;
use std::sync::OnceLock;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use vision::{InferenceSettings, Model, OnnxRuntime, Replica, prediction, softmax};

use crate::program::fixture;

/// The edge's model.
pub const LIGHT: &str = "models/fashion-light";
/// The edge's model before any training.
pub const INITIAL: &str = "models/fashion-initial";
/// The cloud's model.
pub const HEAVY: &str = "models/fashion-heavy";
/// Every 16th picture of the index is used, which includes all labels.
const STRIDE: usize = 16;

/// A labelled picture with the models' predictions.
#[derive(Debug)]
pub struct TestPicture {
    /// Its path among the fixtures.
    pub file: String,
    /// Its bytes.
    pub bytes: Bytes,
    /// Its true label.
    pub truth: String,
    /// Prediction of the edge's model.
    pub light: TestPrediction,
    /// Prediction of the cloud's model.
    pub heavy: TestPrediction,
    /// Whether the edge's model is confident enough to answer it alone.
    pub confident: bool,
}

/// A model's prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct TestPrediction {
    /// The best class.
    pub label: String,
    /// Its calibrated probability, 0 to 1.
    pub confidence: f32,
}

/// A few hundred pictures of all labels, with both models' predictions.
pub fn pictures() -> anyhow::Result<&'static [TestPicture]> {
    static PICTURES: OnceLock<Result<Vec<TestPicture>, String>> = OnceLock::new();
    let pictures = PICTURES.get_or_init(|| load().map_err(|error| format!("{error:#}")));
    pictures.as_deref().map_err(|why| anyhow!("{why}"))
}

/// The first picture about which the edge's model is confident, or is not.
pub fn first_picture(confident: bool) -> anyhow::Result<&'static TestPicture> {
    nth_picture(confident, 0)
}

/// A picture by number, counted among those about which the edge's model is confident, or is not.
pub fn nth_picture(confident: bool, number: usize) -> anyhow::Result<&'static TestPicture> {
    let matching = pictures()?.iter().filter(|picture| picture.confident == confident);
    matching.cycle().nth(number).context("no such picture")
}

/// JPEGs of a few thousand bytes for [`cameras`](crate::cameras), each different.
pub fn jpegs() -> anyhow::Result<Vec<Bytes>> {
    let files = ["jpeg-whole.jpg", "jpeg-flat.jpg", "jpeg-scans-apart-420.jpg"];
    let read = |file: &&str| fs::read(fixture("images/field").join(file)).with_context(|| (*file).to_owned());
    files.iter().map(|file| Ok(read(file)?.into())).collect()
}

fn load() -> anyhow::Result<Vec<TestPicture>> {
    let index = fixture("images/fashion/index.csv");
    let index = fs::read_to_string(&index).with_context(|| format!("{}", index.display()))?;
    let onnx = OnnxRuntime::find_and_load(None)?;
    let (mut light, mut heavy) = (PredictingModel::open(&onnx, LIGHT)?, PredictingModel::open(&onnx, HEAVY)?);
    let gate = light.model.description.gate.min_confidence_ratio.context("the light model has no gate")?;
    let mut pictures = Vec::new();
    for line in index.lines().skip(1).step_by(STRIDE) {
        let (file, truth) = line.split_once(',').context("index.csv: a row must be file,label,split")?;
        let truth = truth.split(',').next().unwrap_or_default().to_owned();
        let bytes = fs::read(fixture("images/fashion").join(file)).with_context(|| file.to_owned())?;
        let (light, heavy) = (light.predict(&bytes)?, heavy.predict(&bytes)?);
        let confident = light.confidence >= gate;
        pictures.push(TestPicture { file: file.into(), bytes: bytes.into(), truth, confident, light, heavy });
    }
    Ok(pictures)
}

struct PredictingModel {
    model: Model,
    replica: Replica,
}

impl PredictingModel {
    fn open(onnx: &OnnxRuntime, path: &str) -> anyhow::Result<Self> {
        let model = Model::load(&fixture(path))?;
        let replica = Replica::open(onnx, &model, &InferenceSettings::default())?;
        Ok(Self { model, replica })
    }

    fn predict(&mut self, bytes: &[u8]) -> anyhow::Result<TestPrediction> {
        let output = self.replica.predict(bytes)?;
        let ratios = softmax(&output.logits, self.model.description.gate.temperature.unwrap_or(1.0));
        let prediction = prediction(&self.model, &ratios).context("the model has no classes")?;
        Ok(TestPrediction { label: prediction.label, confidence: prediction.confidence })
    }
}

//! The labelled pictures, and what each model says about each of them when run right here: what an
//! answer must say.

use std::fs;
use std::sync::OnceLock;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use vision::{InferenceSettings, Model, OnnxRuntime, Replica, prediction, softmax};

use crate::program::fixture;

/// The edge's model.
pub const LIGHT: &str = "models/fashion-light";
/// The edge's model before it learned anything.
pub const INITIAL: &str = "models/fashion-initial";
/// The cloud's model.
pub const HEAVY: &str = "models/fashion-heavy";
/// Every so many pictures of the index are used, so that all labels are among them.
const EVERY: usize = 16;

/// One picture.
#[derive(Debug)]
pub struct TestPicture {
    /// Its path among the fixtures.
    pub file: String,
    /// Its bytes.
    pub bytes: Bytes,
    /// Its true label.
    pub truth: String,
    /// What the edge's model says.
    pub light: TestPrediction,
    /// What the cloud's model says.
    pub heavy: TestPrediction,
    /// Whether the edge's model is confident about it.
    pub confident: bool,
}

/// What a model says.
#[derive(Debug, Clone, PartialEq)]
pub struct TestPrediction {
    /// The best class.
    pub label: String,
    /// Its calibrated probability, 0 to 1.
    pub confidence: f32,
}

/// A few hundred pictures of every label, each with what both models say about it.
pub fn pictures() -> anyhow::Result<&'static [TestPicture]> {
    static PICTURES: OnceLock<Result<Vec<TestPicture>, String>> = OnceLock::new();
    let pictures = PICTURES.get_or_init(|| load().map_err(|error| format!("{error:#}")));
    pictures.as_deref().map_err(|why| anyhow!("{why}"))
}

/// The first picture that the edge's model is confident about, or not.
pub fn one(confident: bool) -> anyhow::Result<&'static TestPicture> {
    some(confident, 0)
}

/// The picture of this number among those the edge's model is confident about, or not.
pub fn some(confident: bool, number: usize) -> anyhow::Result<&'static TestPicture> {
    let of_kind = pictures()?.iter().filter(|picture| picture.confident == confident);
    of_kind.cycle().nth(number).context("no picture of that kind")
}

fn load() -> anyhow::Result<Vec<TestPicture>> {
    let index = fixture("images/fashion/index.csv");
    let index = fs::read_to_string(&index).with_context(|| format!("{}", index.display()))?;
    let onnx = OnnxRuntime::find_and_load(None)?;
    let (mut light, mut heavy) = (PredictingModel::open(&onnx, LIGHT)?, PredictingModel::open(&onnx, HEAVY)?);
    let gate = light.model.description.gate.min_confidence_ratio.context("the light model has a gate")?;
    let mut pictures = Vec::new();
    for line in index.lines().skip(1).step_by(EVERY) {
        let (file, truth) = line.split_once(',').context("index.csv: file,label,split")?;
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
        let seen = self.replica.predict(bytes)?;
        let ratios = softmax(&seen.logits, self.model.description.gate.temperature.unwrap_or(1.0));
        let opinion = prediction(&self.model, &ratios).context("a model without classes")?;
        Ok(TestPrediction { label: opinion.label, confidence: opinion.confidence })
    }
}

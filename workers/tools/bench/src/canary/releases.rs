//! The candidate releases, and the prediction of each for every picture.
//!
//! All use the graph of fashion-light with its weights as inputs, so that no model folder is written. The verdicts come
//! from fashion-heavy.

use std::path::Path;

use aggregator::public_set::PublicSet;
use aggregator::score::{ModelScorer, ScoringModel, Tuning};
use autograd::TrainableSelection;
use offload::gate::{Gate, GateSettings, TestedScores};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use schemas::Reason;
use serde::Serialize;
use training::Examples;
use training::examples::ExampleSplit;
use vision::{Model, OnnxRuntime, softmax, top};

use crate::error::BenchError;

const PICTURES: &str = "fixtures/images/fashion";
const LIGHT: &str = "fixtures/models/fashion-light";
const HEAVY: &str = "fixtures/models/fashion-heavy";
/// Memory limit for the pictures, bytes; they need less.
const MAX_SET_BYTES: usize = 1 << 30;
/// Training of the good candidate.
const TUNING: Tuning = Tuning { passes: 12, rate: 0.02, proximal: 0.0 };
/// Bisection steps to find the noise that lowers agreement to the target.
const STEPS: usize = 14;

/// Kind of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CandidateKind {
    /// The stable release, trained further.
    Good,
    /// Identical to the stable release.
    Equal,
    /// Agrees with verdicts on 2 percentage points fewer images.
    Slightly,
    /// Agrees with verdicts on 20 percentage points fewer images.
    Bad,
    /// The stable release at twice the cost.
    Slow,
    /// The stable release, failing on one image in 200 and crashing its worker on one in 1,000.
    Crashing,
}

/// All kinds.
pub(super) const KINDS: [CandidateKind; 6] = [
    CandidateKind::Good,
    CandidateKind::Equal,
    CandidateKind::Slightly,
    CandidateKind::Bad,
    CandidateKind::Slow,
    CandidateKind::Crashing,
];

impl CandidateKind {
    /// Name in tables.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Equal => "equal",
            Self::Slightly => "slightly worse",
            Self::Bad => "bad",
            Self::Slow => "slow",
            Self::Crashing => "crashing",
        }
    }

    /// Whether it should be promoted.
    pub(super) fn is_good(self) -> bool {
        matches!(self, Self::Good | Self::Equal)
    }

    /// Loss of agreement with verdicts, as a ratio.
    fn agreement_loss(self) -> f64 {
        match self {
            Self::Slightly => 0.02,
            Self::Bad => 0.20,
            _ => 0.0,
        }
    }
}

/// A release's prediction for one picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CanaryPrediction {
    /// Confidence, 0 to 1.
    pub confidence: f64,
    /// Whether the gate doubts it.
    pub doubtful: bool,
    /// Whether the verdict agrees.
    pub agrees: bool,
}

/// A candidate release.
#[derive(Debug, Clone)]
pub(super) struct CanaryCandidate {
    /// Its kind.
    pub kind: CandidateKind,
    /// One prediction per picture.
    pub predictions: Vec<CanaryPrediction>,
    /// Share of pictures on which the verdict agrees.
    pub agreement_ratio: f64,
    /// Share of pictures that the gate doubts.
    pub doubtful_ratio: f64,
}

impl CanaryCandidate {
    fn new(kind: CandidateKind, predictions: Vec<CanaryPrediction>) -> Self {
        let share = |matches: &dyn Fn(&CanaryPrediction) -> bool| {
            predictions.iter().filter(|one| matches(one)).count() as f64 / predictions.len().max(1) as f64
        };
        let (agreement_ratio, doubtful_ratio) = (share(&|one| one.agrees), share(&|one| one.doubtful));
        Self { kind, agreement_ratio, doubtful_ratio, predictions }
    }
}

/// All candidates, and the stable release that they are compared with.
pub(super) struct CanaryCandidates {
    /// Pictures of each class, as indices into `predictions`.
    pub classes: Vec<Vec<usize>>,
    /// The stable release.
    pub stable: CanaryCandidate,
    /// One of each kind.
    pub candidates: Vec<CanaryCandidate>,
}

/// Scores weights on the pictures.
struct CandidateScorer {
    model: Model,
    scoring: ScoringModel,
    judge: ModelScorer,
    public: PublicSet,
}

impl CandidateScorer {
    fn open(runtime: &OnnxRuntime, folder: &str) -> Result<Self, BenchError> {
        let folder = Path::new(folder);
        if !folder.is_dir() {
            return Err(BenchError::NoModel { looked_for: folder.into() });
        }
        let model = Model::load(folder)?;
        let scoring = ScoringModel::for_model(runtime, &model, &TrainableSelection::All, &[])?;
        let judge = ModelScorer::new(runtime, &scoring, 1)?;
        let public = PublicSet::read(Path::new(PICTURES), &model, usize::MAX, MAX_SET_BYTES)?;
        if let Some(first) = public.unreadable.first() {
            return Err(BenchError::NoImages {
                folder: PICTURES.into(),
                why: format!("has unreadable pictures: {first}"),
            });
        }
        Ok(Self { model, scoring, judge, public })
    }

    /// Uncalibrated class probabilities for these pictures.
    fn score_pictures(&mut self, row: &[f32], of: &[usize]) -> Result<Vec<f32>, BenchError> {
        Ok(self.judge.score(row, &self.public, of)?.probabilities)
    }

    /// Predictions of these weights for pictures with known verdicts.
    fn predict(&mut self, row: &[f32], of: &[usize], verdicts: &[usize]) -> Result<Vec<CanaryPrediction>, BenchError> {
        let gate = Gate::new(&GateSettings::default(), &self.model.description.gate);
        let (labels, probabilities) = (self.model.labels.clone(), self.score_pictures(row, of)?);
        let rows = probabilities.chunks_exact(labels.len()).zip(verdicts);
        Ok(rows
            .map(|(row, verdict)| {
                // Logits up to a constant, which softmax ignores.
                let logits: Vec<f32> = row.iter().map(|share| share.max(1e-12).ln()).collect();
                let ratios = softmax(&logits, gate.temperature);
                let (class, confidence) = top(&ratios, 1).first().copied().unwrap_or_default();
                let label = labels.get(class).map(String::as_str).unwrap_or_default();
                let doubtful = gate.decide(&TestedScores::of(&ratios), label) != Reason::Confident;
                CanaryPrediction { confidence: confidence.into(), doubtful, agrees: class == *verdict }
            })
            .collect())
    }
}

impl CanaryCandidates {
    /// Creates and scores all candidates.
    pub(super) fn create(runtime: &OnnxRuntime) -> Result<Self, BenchError> {
        let (mut light, mut heavy) = (CandidateScorer::open(runtime, LIGHT)?, CandidateScorer::open(runtime, HEAVY)?);
        let examples = Examples::read(Path::new(PICTURES), &light.model.labels, 0.5)?;
        let everything: Vec<usize> = (0..examples.all.len()).collect();
        let test: Vec<usize> =
            everything.iter().copied().filter(|place| examples.all[*place].split == ExampleSplit::Test).collect();
        let row = heavy.scoring.base.clone();
        let teacher = heavy.score_pictures(&row, &everything)?;
        let count = light.model.labels.len();
        let best = |place: &usize| top(&teacher[place * count..(place + 1) * count], 1).first().map_or(0, |top| top.0);
        let verdicts: Vec<usize> = test.iter().map(best).collect();
        let base = light.scoring.base.clone();
        let stable = CanaryCandidate::new(CandidateKind::Equal, light.predict(&base, &test, &verdicts)?);
        let mut candidates = Vec::new();
        for kind in KINDS {
            let predictions = match kind {
                CandidateKind::Equal | CandidateKind::Slow | CandidateKind::Crashing => stable.predictions.clone(),
                CandidateKind::Good => {
                    let row = light.judge.tune_model(&base, &light.public, &everything, Some(&teacher), TUNING, 1)?;
                    light.predict(&row, &test, &verdicts)?
                }
                CandidateKind::Slightly | CandidateKind::Bad => {
                    make_worse(&mut light, &base, stable.agreement_ratio - kind.agreement_loss(), &test, &verdicts)?
                }
            };
            candidates.push(CanaryCandidate::new(kind, predictions));
        }
        let of_class = |class: usize| {
            let matching = test.iter().enumerate().filter(|(_, place)| examples.all[**place].class == class);
            matching.map(|(number, _)| number).collect()
        };
        Ok(Self { classes: (0..count).map(of_class).collect(), stable, candidates })
    }
}

/// Predictions of the model with as much weight noise as brings its agreement closest to `target`.
fn make_worse(
    scorer: &mut CandidateScorer,
    base: &[f32],
    target: f64,
    test: &[usize],
    verdicts: &[usize],
) -> Result<Vec<CanaryPrediction>, BenchError> {
    let noise = weight_noise(scorer, base);
    let (mut low, mut high, mut nearest) = (0.0_f32, 2.0_f32, (f64::INFINITY, Vec::new()));
    for _ in 0..STEPS {
        let scale = (low + high) / 2.0;
        let row: Vec<f32> = base.iter().zip(&noise).map(|(weight, noise)| weight + scale * noise).collect();
        let predictions = scorer.predict(&row, test, verdicts)?;
        let agreement = CanaryCandidate::new(CandidateKind::Bad, predictions.clone()).agreement_ratio;
        if (agreement - target).abs() < nearest.0 {
            nearest = ((agreement - target).abs(), predictions);
        }
        if agreement > target { low = scale } else { high = scale }
    }
    Ok(nearest.1)
}

/// Random noise with the root mean square of each tensor's weights.
fn weight_noise(scorer: &CandidateScorer, base: &[f32]) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(1);
    let mut noise = vec![0.0; base.len()];
    for place in scorer.scoring.layout.places() {
        let within = place.start..place.start + place.len;
        let squares: f32 = base[within.clone()].iter().map(|weight| weight * weight).sum();
        let size = (squares / place.len.max(1) as f32).sqrt();
        // Uniform, with variance size².
        noise[within].iter_mut().for_each(|noise| *noise = size * random.random_range(-1.0_f32..1.0) * 3_f32.sqrt());
    }
    noise
}

//! The releases that are tried, and what each says of every picture.
//!
//! All have the graph of fashion-light, whose weights are inputs here, so that no folder need be written. The verdicts are
//! fashion-heavy's.

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
/// More than the pictures take, bytes.
const ROOM_BYTES: usize = 1 << 30;
/// How the good one is trained on.
const TUNING: Tuning = Tuning { passes: 12, rate: 0.02, proximal: 0.0 };
/// Steps of the search for how much noise makes a release so much worse.
const STEPS: usize = 14;

/// What a candidate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CandidateKind {
    /// Trained on.
    Good,
    /// The stable one again.
    Equal,
    /// Agrees with verdicts on 2 images of 100 less.
    Slightly,
    /// On 20 of 100 less.
    Bad,
    /// The stable one at twice the cost.
    Slow,
    /// The stable one, but it fails on one image of 200, and ends its worker once in 1,000.
    Crashing,
}

/// Every kind.
pub(super) const KINDS: [CandidateKind; 6] = [
    CandidateKind::Good,
    CandidateKind::Equal,
    CandidateKind::Slightly,
    CandidateKind::Bad,
    CandidateKind::Slow,
    CandidateKind::Crashing,
];

impl CandidateKind {
    /// Its name in the tables.
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

    /// Whether it ought to be promoted.
    pub(super) fn is_good(self) -> bool {
        matches!(self, Self::Good | Self::Equal)
    }

    /// How many points of 100 fewer verdicts agree.
    fn less(self) -> f64 {
        match self {
            Self::Slightly => 0.02,
            Self::Bad => 0.20,
            _ => 0.0,
        }
    }
}

/// What a release says of a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CanaryPrediction {
    /// How sure it is, 0 to 1.
    pub confidence: f64,
    /// Whether the gate is in doubt.
    pub doubtful: bool,
    /// Whether the verdict is the same.
    pub agrees: bool,
}

/// A release that is tried.
#[derive(Debug, Clone)]
pub(super) struct CanaryCandidate {
    /// What it is.
    pub kind: CandidateKind,
    /// What it says of each picture.
    pub said: Vec<CanaryPrediction>,
    /// Share of the pictures on which the verdict is the same.
    pub agreement_ratio: f64,
    /// Share that the gate is in doubt about.
    pub doubtful_ratio: f64,
}

impl CanaryCandidate {
    fn of(kind: CandidateKind, said: Vec<CanaryPrediction>) -> Self {
        let share = |of: &dyn Fn(&CanaryPrediction) -> bool| {
            said.iter().filter(|said| of(said)).count() as f64 / said.len().max(1) as f64
        };
        Self { kind, agreement_ratio: share(&|said| said.agrees), doubtful_ratio: share(&|said| said.doubtful), said }
    }
}

/// Everything that is tried, and what it is held against.
pub(super) struct CanaryCandidates {
    /// Pictures of each class, as numbers in what is said.
    pub classes: Vec<Vec<usize>>,
    /// The stable release.
    pub stable: CanaryCandidate,
    /// One of each kind.
    pub candidates: Vec<CanaryCandidate>,
}

/// Who tries weights.
struct CandidateScorer {
    model: Model,
    ground: ScoringModel,
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
        let ground = ScoringModel::for_model(runtime, &model, &TrainableSelection::All, &[])?;
        let judge = ModelScorer::new(runtime, &ground, 1)?;
        let public = PublicSet::read(Path::new(PICTURES), &model, usize::MAX, ROOM_BYTES)?;
        if let Some(first) = public.unreadable.first() {
            return Err(BenchError::NoImages {
                folder: PICTURES.into(),
                why: format!("has pictures that fail: {first}"),
            });
        }
        Ok(Self { model, ground, judge, public })
    }

    /// Probabilities of every class for these pictures, uncalibrated.
    fn try_out(&mut self, row: &[f32], of: &[usize]) -> Result<Vec<f32>, BenchError> {
        Ok(self.judge.score(row, &self.public, of)?.probabilities)
    }

    /// What weights say of these pictures, whose verdicts are known.
    fn said(&mut self, row: &[f32], of: &[usize], verdicts: &[usize]) -> Result<Vec<CanaryPrediction>, BenchError> {
        let gate = Gate::new(&GateSettings::default(), &self.model.description.gate);
        let (labels, probabilities) = (self.model.labels.clone(), self.try_out(row, of)?);
        let rows = probabilities.chunks_exact(labels.len()).zip(verdicts);
        Ok(rows
            .map(|(row, verdict)| {
                // Logits, but for a constant that no softmax sees.
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
    /// Tries and makes them.
    pub(super) fn make(runtime: &OnnxRuntime) -> Result<Self, BenchError> {
        let (mut light, mut heavy) = (CandidateScorer::open(runtime, LIGHT)?, CandidateScorer::open(runtime, HEAVY)?);
        let examples = Examples::read(Path::new(PICTURES), &light.model.labels, 0.5)?;
        let everything: Vec<usize> = (0..examples.all.len()).collect();
        let test: Vec<usize> =
            everything.iter().copied().filter(|place| examples.all[*place].split == ExampleSplit::Test).collect();
        let row = heavy.ground.base.clone();
        let teacher = heavy.try_out(&row, &everything)?;
        let count = light.model.labels.len();
        let best = |place: &usize| top(&teacher[place * count..(place + 1) * count], 1).first().map_or(0, |top| top.0);
        let verdicts: Vec<usize> = test.iter().map(best).collect();
        let base = light.ground.base.clone();
        let stable = CanaryCandidate::of(CandidateKind::Equal, light.said(&base, &test, &verdicts)?);
        let mut candidates = Vec::new();
        for kind in KINDS {
            let said = match kind {
                CandidateKind::Equal | CandidateKind::Slow | CandidateKind::Crashing => stable.said.clone(),
                CandidateKind::Good => {
                    let row = light.judge.tune_model(&base, &light.public, &everything, Some(&teacher), TUNING, 1)?;
                    light.said(&row, &test, &verdicts)?
                }
                CandidateKind::Slightly | CandidateKind::Bad => {
                    worse(&mut light, &base, stable.agreement_ratio - kind.less(), &test, &verdicts)?
                }
            };
            candidates.push(CanaryCandidate::of(kind, said));
        }
        let of_class = |class: usize| {
            let shows = test.iter().enumerate().filter(|(_, place)| examples.all[**place].class == class);
            shows.map(|(number, _)| number).collect()
        };
        Ok(Self { classes: (0..count).map(of_class).collect(), stable, candidates })
    }
}

/// What the model says with as much noise on its weights as makes its agreement come nearest to an aim.
fn worse(
    bench: &mut CandidateScorer,
    base: &[f32],
    aim: f64,
    test: &[usize],
    verdicts: &[usize],
) -> Result<Vec<CanaryPrediction>, BenchError> {
    let noise = noise(bench, base);
    let (mut low, mut high, mut nearest) = (0.0_f32, 2.0_f32, (f64::INFINITY, Vec::new()));
    for _ in 0..STEPS {
        let scale = (low + high) / 2.0;
        let row: Vec<f32> = base.iter().zip(&noise).map(|(weight, noise)| weight + scale * noise).collect();
        let said = bench.said(&row, test, verdicts)?;
        let agreement = CanaryCandidate::of(CandidateKind::Bad, said.clone()).agreement_ratio;
        if (agreement - aim).abs() < nearest.0 {
            nearest = ((agreement - aim).abs(), said);
        }
        if agreement > aim { low = scale } else { high = scale }
    }
    Ok(nearest.1)
}

/// Chance as large as the weights of each place are on average.
fn noise(bench: &CandidateScorer, base: &[f32]) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(1);
    let mut noise = vec![0.0; base.len()];
    for place in bench.ground.layout.places() {
        let within = place.start..place.start + place.len;
        let squares: f32 = base[within.clone()].iter().map(|weight| weight * weight).sum();
        let size = (squares / place.len.max(1) as f32).sqrt();
        // Uniform, with the variance of size².
        noise[within].iter_mut().for_each(|noise| *noise = size * random.random_range(-1.0_f32..1.0) * 3_f32.sqrt());
    }
    noise
}

//! One experiment: sites learn from their share, what they send is merged by a rule, and so on, round after round.

use aggregator::aggregate::{AggregateContext, SiteContribution, aggregate, is_learning};
use aggregator::public_set::PublicSet;
use aggregator::score::{ModelScore, ModelScorer, ScoringModel, Tuning};
use aggregator::server_optimizer::ServerOptimizerState;
use aggregator::weights_file::WeightRow;
use aggregator::{MergeSettings, ParameterLayout};
use autograd::TrainableSelection;
use autograd::loss::{LabelSmoothing, cross_entropy};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use training::stepper::Stepper;
use vision::OnnxRuntime;

use super::pool::PicturePool;
use super::scheme::{DivisionScheme, SITES, SiteHarm, SitePictures};
use crate::error::BenchError;

/// Rounds.
pub(super) const ROUNDS: usize = 10;
/// Times a site sees its pictures in a round: as often as a trainer does by default.
const EPOCHS: usize = 10;
const BATCH: u16 = 16;
const RATE: f32 = 0.05;
/// The last rounds, over which is averaged.
pub(super) const LAST: usize = 3;

/// What came of an experiment.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ExperimentResult {
    /// How pictures were divided.
    pub scheme: &'static str,
    /// Name of the rule.
    pub rule: String,
    /// Of all chance.
    pub seed: u64,
    /// Share of the test pictures that was right, after each round.
    pub accuracy: Vec<f64>,
    /// The same over the last rounds.
    pub accuracy_ratio: f64,
    /// Mean over the classes of F1, over the last rounds.
    pub macro_f1: f64,
    /// Recall of the class that fares worst, over the last rounds.
    pub weakest_recall: f64,
    /// Which candidate was taken how often, where there was a choice.
    pub taken: Vec<(String, usize)>,
}

/// Who learns and who is tried, for one thread.
pub(super) struct ExperimentRunner<'a> {
    pool: &'a PicturePool,
    ground: &'a ScoringModel,
    judges: Vec<ModelScorer>,
    stepper: Stepper,
    order: Vec<usize>,
    test: PublicSet,
}

impl<'a> ExperimentRunner<'a> {
    /// Loads the graphs.
    pub(super) fn open(
        runtime: &OnnxRuntime,
        pool: &'a PicturePool,
        ground: &'a ScoringModel,
    ) -> Result<Self, BenchError> {
        let ready = training::trainable_model::prepare_model(runtime, &pool.model, BATCH)?;
        let step = ready.prepared.step(&ready.known, &TrainableSelection::All)?;
        let place = |name: &str| ground.layout.places().iter().position(|place| place.name == name);
        let order = step.weights.iter().map(|weight| place(&weight.name).unwrap_or_default()).collect();
        let judges = vec![ModelScorer::new(runtime, ground, 1)?];
        Ok(Self { pool, ground, judges, stepper: Stepper::open(runtime, step, 1)?, order, test: pool.test() })
    }

    /// Plays one experiment. `merge`: `None` learns from the public set alone.
    pub(super) fn run_experiment(
        &mut self,
        scheme: &DivisionScheme,
        rule: &str,
        merge: Option<&MergeSettings>,
        seed: u64,
    ) -> Result<ExperimentResult, BenchError> {
        let pool = self.pool;
        let (public, rest) = pool.public(seed);
        let pictures: Vec<(usize, usize, Option<&str>)> =
            rest.iter().map(|place| (*place, pool.learn[*place].1, pool.learn[*place].2.as_deref())).collect();
        let shares = scheme.divide(&pictures, pool.classes, SITES, seed);
        let mut row = initial_weights(&self.ground.layout, seed);
        let mut memory = ServerOptimizerState::default();
        let (mut tried, mut taken, mut clear) = (Vec::new(), Vec::<(String, usize)>::new(), Vec::new());
        for round in 0..ROUNDS {
            row = match merge {
                None => {
                    let tuning = Tuning { passes: 2, rate: RATE, proximal: 0.0 };
                    self.judges[0].tune_model(&row, &public, &public.all(), None, tuning, seed << 32 | round as u64)?
                }
                Some(settings) => {
                    let sent = self.sites(&row, &shares, scheme.harm, seed, round)?;
                    let sites =
                        sent.iter().zip(&shares).enumerate().map(|(number, (values, share))| SiteContribution {
                            site: site(number),
                            values: WeightRow::Memory(values),
                            base: &row,
                            behind: 0,
                            samples: share.len() as u64,
                            hard: 0,
                            of_class: of_class(share, pool.classes),
                        });
                    let mut around = AggregateContext {
                        layout: &self.ground.layout,
                        public: Some(&public),
                        judges: &mut self.judges,
                        round: round as u64 + 1,
                        is_learning: is_learning(&clear),
                    };
                    match aggregate(&row, sites.collect(), memory.clone(), settings, &mut around) {
                        Ok(derived) => {
                            memory = derived.memory;
                            clear.extend(derived.record.is_clear);
                            if !derived.record.candidates.is_empty() {
                                match taken.iter_mut().find(|(rule, _)| *rule == derived.record.rule) {
                                    Some((_, count)) => *count += 1,
                                    None => taken.push((derived.record.rule, 1)),
                                }
                            }
                            derived.row
                        }
                        // The last release stands.
                        Err(aggregator::aggregate::AggregateError::NotFinite) => row,
                        Err(error) => return Err(error.into()),
                    }
                }
            };
            tried.push(self.judges[0].score(&row, &self.test, &self.test.all())?);
        }
        Ok(played(scheme, rule, seed, &tried, pool.classes, taken))
    }

    /// What every site sends.
    fn sites(
        &mut self,
        row: &[f32],
        shares: &[SitePictures],
        harm: SiteHarm,
        seed: u64,
        round: usize,
    ) -> Result<Vec<Vec<f32>>, BenchError> {
        let mut sent = Vec::with_capacity(SITES);
        for (number, share) in shares.iter().enumerate() {
            let mut random = StdRng::seed_from_u64(seed << 32 | (round * SITES + number) as u64);
            let mut learned = self.learn(row, share, &mut random)?;
            // Neither the largest nor the smallest.
            if number == SITES / 2 {
                match harm {
                    SiteHarm::Flipped => {
                        learned.iter_mut().zip(row).for_each(|(sent, base)| *sent = base - 3.0 * (*sent - base));
                    }
                    SiteHarm::Random => {
                        learned = initial_weights(&self.ground.layout, random.random_range(0..u64::MAX))
                    }
                    SiteHarm::None | SiteHarm::Noisy => {}
                }
            }
            sent.push(learned);
        }
        Ok(sent)
    }

    /// A site learns from its share.
    fn learn(&mut self, row: &[f32], share: &SitePictures, random: &mut StdRng) -> Result<Vec<f32>, BenchError> {
        let (size, length, places) = (usize::from(BATCH), self.pool.length, self.ground.layout.places());
        let slice = |place: &usize| row[places[*place].start..places[*place].start + places[*place].len].to_vec();
        let mut weights: Vec<Vec<f32>> = self.order.iter().map(slice).collect();
        let mut gradients = vec![Vec::new(); weights.len()];
        let mut images = vec![0.0; size * length];
        for _ in 0..EPOCHS {
            let mut seen: Vec<&(usize, usize)> = share.iter().collect();
            seen.shuffle(random);
            for part in seen.chunks(size) {
                let mut labels = vec![None; size];
                images.fill(0.0);
                for ((image, label), (place, class)) in images.chunks_exact_mut(length).zip(&mut labels).zip(part) {
                    image.copy_from_slice(&self.pool.learn[*place].0);
                    *label = Some(*class);
                }
                let targets = cross_entropy(&labels, self.pool.classes, &LabelSmoothing::default());
                self.stepper.learn(&images, &targets, &weights, &mut gradients)?;
                for (weight, gradient) in weights.iter_mut().zip(&gradients) {
                    weight.iter_mut().zip(gradient).for_each(|(weight, by)| *weight -= RATE * by);
                }
            }
        }
        let mut learned = vec![0.0; self.ground.layout.len()];
        for (place, weight) in self.order.iter().zip(weights) {
            learned[places[*place].start..places[*place].start + places[*place].len].copy_from_slice(&weight);
        }
        Ok(learned)
    }
}

/// How many pictures of each class.
fn of_class(share: &SitePictures, classes: usize) -> Vec<u64> {
    let mut counts = vec![0; classes];
    share.iter().for_each(|(_, class)| counts[*class] += 1);
    counts
}

pub(crate) fn site(number: usize) -> schemas::SiteName {
    schemas::SiteName::try_from(format!("site-{number}")).unwrap_or_else(|_| schemas::SiteName::unknown())
}

/// Weights that know nothing: spread as He et al. advise (arXiv 1502.01852); biases are 0.
pub(crate) fn initial_weights(layout: &ParameterLayout, seed: u64) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut row = Vec::with_capacity(layout.len());
    for place in layout.places() {
        let fan_in: usize = place.shape.iter().skip(1).product();
        let reach = if place.shape.len() > 1 { (6.0 / fan_in as f32).sqrt() } else { 0.0 };
        row.extend((0..place.len).map(|_| random.random_range(-1.0_f32..1.0) * reach));
    }
    row
}

fn played(
    scheme: &DivisionScheme,
    rule: &str,
    seed: u64,
    tried: &[ModelScore],
    classes: usize,
    taken: Vec<(String, usize)>,
) -> ExperimentResult {
    let right = |tried: &ModelScore| {
        let right = tried.said.iter().filter(|said| said.class == said.shows).count();
        right as f64 / tried.said.len().max(1) as f64
    };
    let last = &tried[tried.len().saturating_sub(LAST)..];
    let mean = |of: &dyn Fn(&ModelScore) -> f64| last.iter().map(of).sum::<f64>() / last.len().max(1) as f64;
    let recall = |tried: &ModelScore| tried.accuracy.iter().flatten().copied().fold(1.0, f64::min);
    ExperimentResult {
        scheme: scheme.name,
        rule: rule.into(),
        seed,
        accuracy: tried.iter().map(right).collect(),
        accuracy_ratio: mean(&right),
        macro_f1: mean(&|tried| macro_f1(tried, classes)),
        weakest_recall: mean(&recall),
        taken,
    }
}

fn macro_f1(tried: &ModelScore, classes: usize) -> f64 {
    let of = |class: usize| {
        let count = |keep: &dyn Fn(bool, bool) -> bool| {
            tried.said.iter().filter(|said| keep(said.class == class, said.shows == class)).count() as f64
        };
        let (hit, off) = (count(&|said, is| said && is), count(&|said, is| said != is));
        if hit + off > 0.0 { 2.0 * hit / (2.0 * hit + off) } else { 1.0 }
    };
    (0..classes).map(of).sum::<f64>() / classes.max(1) as f64
}

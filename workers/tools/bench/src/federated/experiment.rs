//! One experiment: round after round, sites learn from their pictures and a rule merges their updates.

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

/// Number of rounds.
pub(super) const ROUNDS: usize = 10;
/// Epochs per site and round: the trainer's default.
const EPOCHS: usize = 10;
const BATCH: u16 = 16;
const RATE: f32 = 0.05;
/// Number of final rounds that results are averaged over.
pub(super) const LAST: usize = 3;

/// Result of an experiment.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ExperimentResult {
    /// Name of the division scheme.
    pub scheme: &'static str,
    /// Name of the rule.
    pub rule: String,
    /// Random seed.
    pub seed: u64,
    /// Accuracy on the test pictures after each round, 0 to 1.
    pub accuracy: Vec<f64>,
    /// Mean accuracy over the last rounds.
    pub accuracy_ratio: f64,
    /// Macro F1, mean over the last rounds.
    pub macro_f1: f64,
    /// Recall of the worst class, mean over the last rounds.
    pub weakest_recall: f64,
    /// How often each candidate was chosen, for rules that choose.
    pub taken: Vec<(String, usize)>,
}

/// Trains and scores models; one per thread.
pub(super) struct ExperimentRunner<'a> {
    pool: &'a PicturePool,
    scoring: &'a ScoringModel,
    scorers: Vec<ModelScorer>,
    stepper: Stepper,
    order: Vec<usize>,
    test: PublicSet,
}

impl<'a> ExperimentRunner<'a> {
    /// Prepares the training and scoring graphs.
    pub(super) fn open(
        runtime: &OnnxRuntime,
        pool: &'a PicturePool,
        scoring: &'a ScoringModel,
    ) -> Result<Self, BenchError> {
        let ready = training::trainable_model::prepare_model(runtime, &pool.model, BATCH)?;
        let step = ready.prepared.step(&ready.known, &TrainableSelection::All)?;
        let place = |name: &str| scoring.layout.places().iter().position(|place| place.name == name);
        let order = step.weights.iter().map(|weight| place(&weight.name).unwrap_or_default()).collect();
        let scorers = vec![ModelScorer::new(runtime, scoring, 1)?];
        Ok(Self { pool, scoring, scorers, stepper: Stepper::open(runtime, step, 1)?, order, test: pool.test() })
    }

    /// Runs one experiment. `merge`: `None` learns from the public set only.
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
        let mut row = initial_weights(&self.scoring.layout, seed);
        let mut memory = ServerOptimizerState::default();
        let (mut scores, mut taken, mut clear) = (Vec::new(), Vec::<(String, usize)>::new(), Vec::new());
        for round in 0..ROUNDS {
            row = match merge {
                None => {
                    let tuning = Tuning { passes: 2, rate: RATE, proximal: 0.0 };
                    self.scorers[0].tune_model(&row, &public, &public.all(), None, tuning, seed << 32 | round as u64)?
                }
                Some(settings) => {
                    let sent = self.train_sites(&row, &shares, scheme.harm, seed, round)?;
                    let sites =
                        sent.iter().zip(&shares).enumerate().map(|(number, (values, share))| SiteContribution {
                            site: site(number),
                            values: WeightRow::Memory(values),
                            base: &row,
                            behind: 0,
                            samples: share.len() as u64,
                            hard: 0,
                            of_class: count_classes(share, pool.classes),
                        });
                    let mut context = AggregateContext {
                        layout: &self.scoring.layout,
                        public: Some(&public),
                        judges: &mut self.scorers,
                        round: round as u64 + 1,
                        is_learning: is_learning(&clear),
                    };
                    match aggregate(&row, sites.collect(), memory.clone(), settings, &mut context) {
                        Ok(aggregated) => {
                            memory = aggregated.memory;
                            clear.extend(aggregated.record.is_clear);
                            if !aggregated.record.candidates.is_empty() {
                                match taken.iter_mut().find(|(rule, _)| *rule == aggregated.record.rule) {
                                    Some((_, count)) => *count += 1,
                                    None => taken.push((aggregated.record.rule, 1)),
                                }
                            }
                            aggregated.row
                        }
                        // The previous release stays in use.
                        Err(aggregator::aggregate::AggregateError::NotFinite) => row,
                        Err(error) => return Err(error.into()),
                    }
                }
            };
            scores.push(self.scorers[0].score(&row, &self.test, &self.test.all())?);
        }
        Ok(summarize(scheme, rule, seed, &scores, pool.classes, taken))
    }

    /// Trains every site and returns their weights, including the harmful ones.
    fn train_sites(
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
            // The harmful site is neither the largest nor the smallest.
            if number == SITES / 2 {
                match harm {
                    SiteHarm::Flipped => {
                        learned.iter_mut().zip(row).for_each(|(sent, base)| *sent = base - 3.0 * (*sent - base));
                    }
                    SiteHarm::Random => {
                        learned = initial_weights(&self.scoring.layout, random.random_range(0..u64::MAX))
                    }
                    SiteHarm::None | SiteHarm::Noisy => {}
                }
            }
            sent.push(learned);
        }
        Ok(sent)
    }

    /// Trains one site on its pictures.
    fn learn(&mut self, row: &[f32], share: &SitePictures, random: &mut StdRng) -> Result<Vec<f32>, BenchError> {
        let (size, length, places) = (usize::from(BATCH), self.pool.length, self.scoring.layout.places());
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
        let mut learned = vec![0.0; self.scoring.layout.len()];
        for (place, weight) in self.order.iter().zip(weights) {
            learned[places[*place].start..places[*place].start + places[*place].len].copy_from_slice(&weight);
        }
        Ok(learned)
    }
}

/// Number of pictures per class.
fn count_classes(share: &SitePictures, classes: usize) -> Vec<u64> {
    let mut counts = vec![0; classes];
    share.iter().for_each(|(_, class)| counts[*class] += 1);
    counts
}

pub(crate) fn site(number: usize) -> schemas::SiteName {
    schemas::SiteName::try_from(format!("site-{number}")).unwrap_or_else(|_| schemas::SiteName::unknown())
}

/// Random initial weights, scaled as in He et al. (arXiv 1502.01852); biases are 0.
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

fn summarize(
    scheme: &DivisionScheme,
    rule: &str,
    seed: u64,
    scores: &[ModelScore],
    classes: usize,
    taken: Vec<(String, usize)>,
) -> ExperimentResult {
    let accuracy = |score: &ModelScore| {
        let correct = score.said.iter().filter(|one| one.class == one.shows).count();
        correct as f64 / score.said.len().max(1) as f64
    };
    let last = &scores[scores.len().saturating_sub(LAST)..];
    let mean = |of: &dyn Fn(&ModelScore) -> f64| last.iter().map(of).sum::<f64>() / last.len().max(1) as f64;
    let recall = |score: &ModelScore| score.accuracy.iter().flatten().copied().fold(1.0, f64::min);
    ExperimentResult {
        scheme: scheme.name,
        rule: rule.into(),
        seed,
        accuracy: scores.iter().map(accuracy).collect(),
        accuracy_ratio: mean(&accuracy),
        macro_f1: mean(&|score| macro_f1(score, classes)),
        weakest_recall: mean(&recall),
        taken,
    }
}

fn macro_f1(score: &ModelScore, classes: usize) -> f64 {
    let of = |class: usize| {
        let count = |keep: &dyn Fn(bool, bool) -> bool| {
            score.said.iter().filter(|one| keep(one.class == class, one.shows == class)).count() as f64
        };
        let (hits, errors) =
            (count(&|predicted, actual| predicted && actual), count(&|predicted, actual| predicted != actual));
        if hits + errors > 0.0 { 2.0 * hits / (2.0 * hits + errors) } else { 1.0 }
    };
    (0..classes).map(of).sum::<f64>() / classes.max(1) as f64
}

//! Trains a model on examples: measures, then trains and measures epoch by epoch. Keeps the best epoch by the holdout,
//! which may be the start; finds the learning rate first, unless it is configured.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use autograd::loss::{LabelSmoothing, cross_entropy};
use autograd::onnx::OnnxDocument;
use autograd::trainable::AUTO;
use autograd::{StepSplit, TensorFacts, TrainableSelection, TrainingStep};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use schemas::ModelAccuracy;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use vision::graph::{GraphInput, TensorNumbers};
use vision::{Model, OnnxRuntime};

use crate::batches::{BatchConfig, BatchPacing, BatchSource, FrozenFeatures, order};
use crate::checkpoint::{Checkpoint, CheckpointFolder, Epoch, TrainProgress};
use crate::error::TrainError;
use crate::examples::{Example, ExampleSplit, Examples};
use crate::holdout::{HoldoutComparison, HoldoutScores};
use crate::optimizer::Optimizer;
use crate::pace::TrainingPace;
use crate::settings::{AugmentSettings, OptimizerKind, TrainSettings};
use crate::stepper::Stepper;
use crate::trainable_model::{TrainableModel, prepare_model};
use crate::weights::NamedTensors;

/// Event of the log when a training goes on where its checkpoint says.
pub const TRAINING_RESUMED: &str = "training resumed";

/// Most bytes of all examples' features together; an estimate.
const MAX_FEATURES_BYTES: usize = 256 * 1024 * 1024;

/// Learning rates to try, highest first. The first trains random weights from a few thousand small pictures; a trained
/// model would forget at this rate.
const TRIED_RATES: [f32; 5] = [0.02, 0.006, 0.002, 0.0006, 0.0002];
/// Steps of a trial; enough for momentum to take full effect.
const TRIAL_STEPS: usize = 40;
/// Most images a trial is judged by.
const TRIAL_IMAGES: usize = 512;

/// Mean number of images per class below which only this many last layers of a trained model are trained; above the
/// last entry, all. Our own rule: the last layer captures what few images tell, and earlier ones would only follow
/// their noise.
const LAYERS_BY_IMAGES: [(usize, usize); 2] = [(10, 1), (25, 2)];
/// How strongly a trained model is held to its start, divided by the number of images: the start weighs as much as this
/// many images. The authors of L2-SP (arXiv 1802.01483) tried 0.001 to 0.1.
const ANCHOR_IMAGES: f32 = 10.0;
/// Upper limit of that pull.
const MAX_ANCHOR: f32 = 0.1;

/// A trained model.
#[derive(Debug)]
pub struct TrainedModel {
    /// The model's original graph.
    pub onnx: OnnxDocument,
    /// Weights of the best epoch, by name.
    pub weights: NamedTensors,
    /// All epochs, starting with the measurement before training.
    pub epochs: Vec<Epoch>,
    /// Number of the best epoch by the holdout; 0 if none is better than the start.
    pub best_epoch: u32,
    /// How the best epoch compares with the start.
    pub comparison: HoldoutComparison,
    /// Highest learning rate, as configured or found.
    pub learning_rate: f32,
    /// Score on the examples of split `test`, before and after; absent without any.
    pub test: Option<(ModelAccuracy, ModelAccuracy)>,
    /// Number of trained parameters.
    pub parameters: usize,
    /// How many of the last layers were trained; absent if all requested weights were.
    pub layers: Option<usize>,
    /// Pictures that could not be used.
    pub unreadable: usize,
    /// Whether the output of the frozen part was computed once per picture.
    pub features_cached: bool,
}

impl TrainedModel {
    /// Score on the holdout, before training and in the best epoch.
    pub fn held_out(&self) -> (ModelAccuracy, ModelAccuracy) {
        let measured =
            |number: u32| self.epochs.iter().find(|epoch| epoch.number == number).map(|epoch| epoch.held_out);
        let before = measured(0).unwrap_or_default();
        (before, measured(self.best_epoch).unwrap_or(before))
    }

    /// Why the new weights are not worth using, in one sentence; `None` if they are significantly better.
    pub fn has_no_gain(&self) -> Option<String> {
        let (before, after) = self.held_out();
        let right = |measured: ModelAccuracy| {
            format!("{:.1} % right, loss {:.3}", measured.accuracy_ratio * 100.0, measured.loss)
        };
        let images = before.images;
        match (self.comparison, self.best_epoch) {
            (HoldoutComparison::Better, _) => None,
            (_, 0) => Some(format!(
                "no gain: no epoch does better on the {images} holdout images than the model it started from ({})",
                right(before)
            )),
            (_, epoch) => Some(format!(
                "no gain: the best epoch, {epoch}, is within chance of the start on the {images} holdout images \
                 ({} instead of {})",
                right(after),
                right(before)
            )),
        }
    }

    /// The new weights without their shapes.
    pub fn values(&self) -> BTreeMap<String, Vec<f32>> {
        self.weights.iter().map(|(name, (_, values))| (name.clone(), values.clone())).collect()
    }
}

/// Limits and outputs of a training besides its settings.
pub struct TrainContext<'a> {
    /// Cancels it.
    pub stop: &'a CancellationToken,
    /// CPU and memory limits.
    pub pace: Arc<TrainingPace>,
    /// Where it saves its progress; absent: nowhere.
    pub checkpoints: Option<CheckpointFolder>,
}

/// Trains a model. `see` is called with every finished epoch.
pub fn train_model(
    onnx: &OnnxRuntime,
    model: &Model,
    examples: &Examples,
    settings: &TrainSettings,
    context: TrainContext<'_>,
    mut see: impl FnMut(&Epoch),
) -> Result<TrainedModel, TrainError> {
    settings.check().map_err(TrainError::Settings)?;
    let of = |split| example_indices(examples, split);
    let (held_out, test) = (of(ExampleSplit::Holdout), of(ExampleSplit::Test));
    let layers =
        layers(of(ExampleSplit::Train).len(), model.labels.len()).filter(|_| settings.trainable.trim() == AUTO);
    let begun = Instant::now();
    let mut work = TrainLoop::begin(onnx, model, examples, settings, layers, context)?;
    let mut start = work.measure(&held_out, WeightSnapshot::Start)?;
    if layers.is_some() && !start.knows_more_than_chance(model.labels.len()) {
        // An untrained model has nothing to keep.
        work = TrainLoop::begin(onnx, model, examples, settings, None, work.context)?;
        start = work.measure(&held_out, WeightSnapshot::Start)?;
    }
    if start.knows_more_than_chance(model.labels.len()) {
        let anchor = (ANCHOR_IMAGES / of(ExampleSplit::Train).len().max(1) as f32).min(MAX_ANCHOR);
        work.optimizer = work.optimizer.with_proximal(anchor);
        work.anchor = anchor;
    }
    if work.progress.epochs.is_empty() {
        work.progress.test_before = (!test.is_empty())
            .then(|| work.measure(&test, WeightSnapshot::Start))
            .transpose()?
            .map(|scores| scores.measured());
        work.find_rate(&example_indices(examples, ExampleSplit::Train), &start)?;
        work.finish_epoch(Epoch { number: 0, learned_loss: None, held_out: start.measured(), took: begun.elapsed() })?;
    }
    // After a resume, the same weights give the same scores.
    let mut best =
        if work.progress.best_epoch == 0 { start.clone() } else { work.measure(&held_out, WeightSnapshot::Best)? };
    work.progress.epochs.iter().for_each(&mut see);
    while work.has_next_epoch() {
        let (number, begun) = (work.progress.epoch, Instant::now());
        let mut random = StdRng::seed_from_u64(seed_of(settings, number));
        let learn_from = repeated(examples, settings, &mut random);
        let classes: Vec<usize> = learn_from.iter().map(|place| examples.all[*place].class).collect();
        let order = order(&classes, settings.balanced, &mut random);
        let ordered: Vec<usize> = order.iter().map(|at| learn_from[*at]).collect();
        let learned_loss = Some(work.learn(&ordered)?);
        let scores = work.measure(&held_out, WeightSnapshot::Now)?;
        if scores.is_preferred_to(&best) {
            work.keep_best(number);
            best = scores.clone();
        }
        let epoch = Epoch { number, learned_loss, held_out: scores.measured(), took: begun.elapsed() };
        work.finish_epoch(epoch)?;
        see(&epoch);
    }
    let after = (!test.is_empty()).then(|| work.measure(&test, WeightSnapshot::Best)).transpose()?;
    work.trained(after.map(|scores| scores.measured()), best.judge(&start))
}

/// How many of the last layers of a trained model to train; `None`: all. `images`: number of training images.
fn layers(images: usize, classes: usize) -> Option<usize> {
    let of_class = images / classes.max(1);
    LAYERS_BY_IMAGES.iter().find(|(from, _)| of_class < *from).map(|(_, layers)| *layers)
}

/// Random seed of an epoch.
pub fn seed_of(settings: &TrainSettings, epoch: u32) -> u64 {
    settings.seed.wrapping_add(u64::from(epoch) << 32)
}

/// Indices of the examples of one split.
pub fn example_indices(examples: &Examples, split: ExampleSplit) -> Vec<usize> {
    (0..examples.all.len()).filter(|place| examples.all[*place].split == split).collect()
}

/// The training examples of an epoch, each repeated as examples and settings say; fractions are drawn at random.
fn repeated(examples: &Examples, settings: &TrainSettings, random: &mut StdRng) -> Vec<usize> {
    let mut times = |place: &usize| {
        let example = &examples.all[*place];
        let times = example.times * if example.hard { f64::from(settings.hard_repeats) } else { 1.0 };
        let left = times.fract();
        times as usize + usize::from(left > 0.0 && random.random_bool(left))
    };
    let once = example_indices(examples, ExampleSplit::Train);
    once.iter().flat_map(|place| std::iter::repeat_n(*place, times(place))).collect()
}

/// Least memory of a training: what a step keeps, and for each weight its gradient, its start, its best value and the
/// optimizer's state.
fn needed_bytes(step: &TrainingStep, known: &TensorFacts, settings: &TrainSettings) -> Result<u64, TrainError> {
    let copies = if settings.optimizer.kind == OptimizerKind::Adam { 6 } else { 5 };
    let count: i64 = step.weights.iter().map(|weight| autograd::tensor::count(&weight.shape)).sum();
    Ok(step.kept_bytes(known)? + u64::try_from(count).unwrap_or(0) * 4 * copies)
}

/// Which weights to use.
#[derive(Clone, Copy)]
enum WeightSnapshot {
    Start,
    Best,
    Now,
}

struct TrainLoop<'a> {
    model: &'a Model,
    graph: OnnxDocument,
    examples: &'a [Example],
    settings: &'a TrainSettings,
    context: TrainContext<'a>,
    stepper: Stepper,
    optimizer: Optimizer,
    /// Pull of weights towards their start, unless the settings define it.
    anchor: f32,
    names: Vec<String>,
    /// Requested weights that stay unchanged, with their shapes.
    rest: Vec<(String, Vec<usize>)>,
    /// How many of the last layers are trained; absent if all requested weights are.
    layers: Option<usize>,
    /// Digest of everything that the weights depend on.
    mark: String,
    features: Option<FrozenFeatures>,
    progress: TrainProgress,
    start: Vec<Vec<f32>>,
    best: Vec<Vec<f32>>,
    weights: Vec<Vec<f32>>,
    gradients: Vec<Vec<f32>>,
}

impl<'a> TrainLoop<'a> {
    fn begin(
        onnx: &OnnxRuntime,
        model: &'a Model,
        examples: &'a Examples,
        settings: &'a TrainSettings,
        layers: Option<usize>,
        context: TrainContext<'a>,
    ) -> Result<Self, TrainError> {
        let TrainableModel { onnx: graph, prepared, known } = prepare_model(onnx, model, settings.images_at_a_time())?;
        let whole = prepared.step(&known, &settings.trainable.parse()?)?;
        // A model with fewer separable layers is trained as a whole.
        let last = layers.and_then(|layers| prepared.step(&known, &TrainableSelection::Last(layers)).ok());
        let layers = layers.filter(|_| last.is_some());
        let rest = last.as_ref().map(|last| rest(&whole, last)).unwrap_or_default();
        let step = last.unwrap_or(whole);
        let start: Vec<Vec<f32>> =
            step.weights.iter().map(|weight| graph.weight(&weight.name)).collect::<Result<_, _>>()?;
        context.pace.check_memory(needed_bytes(&step, &known, settings)?)?;
        let names: Vec<String> = step.weights.iter().map(|weight| weight.name.clone()).collect();
        let mark = mark(model, examples, settings);
        let found = context.checkpoints.as_ref().and_then(|checkpoints| checkpoints.read(&mark, &names));
        let fresh = TrainProgress { epoch: 1, ..TrainProgress::default() };
        let optimizer = Optimizer::new(&settings.optimizer, &start);
        let (progress, weights, best, optimizer) = match found {
            None => (fresh, start.clone(), start.clone(), optimizer),
            Some(Checkpoint { progress, weights, best, memory, steps }) => {
                tracing::info!(epoch = progress.epoch, batches = progress.batches, "{TRAINING_RESUMED}");
                (progress, weights, best, optimizer.with_memory(memory, steps))
            }
        };
        let (frozen, step) = match cut(&step, &known, examples, settings)? {
            Some(StepSplit { frozen, tail }) => (Some(frozen), tail),
            None => (None, step),
        };
        let mut work = Self {
            model,
            graph,
            examples: &examples.all,
            settings,
            context,
            stepper: Stepper::open(onnx, step, settings.threads)?,
            optimizer,
            anchor: 0.0,
            names,
            rest,
            layers,
            mark,
            features: None,
            progress,
            gradients: vec![Vec::new(); start.len()],
            start,
            best,
            weights,
        };
        if let Some(frozen) = frozen {
            work.features = Some(work.compute(onnx, &frozen)?);
        }
        Ok(work)
    }

    fn making<'b>(&self, from: BatchSource<'b>, seed: u64) -> BatchConfig<'b>
    where
        'a: 'b,
    {
        let (input, size) = (&self.model.description.input, self.settings.batch.into());
        let (pace, stop) = (&self.context.pace, self.context.stop);
        let images = self.settings.images_at_a_time().into();
        let pacing = pace.has_lower_bound().then(|| BatchPacing { pace: pace.clone(), images, stop });
        BatchConfig { input, size, examples: self.examples, from, seed, pacing }
    }

    /// Computes the frozen part's output for every example.
    fn compute(&mut self, onnx: &OnnxRuntime, frozen: &OnnxDocument) -> Result<FrozenFeatures, TrainError> {
        let mut graph = vision::Graph::open(onnx, "frozen part", &frozen.encode(), self.settings.threads.into())?;
        let images = frozen.input()?.to_owned();
        // As many at a time as the frozen part was made for.
        let size = usize::from(self.settings.images_at_a_time());
        let shape = vision::tensor::shape(&self.model.description.input, size);
        let shape = shape.map(|size| size as i64);
        let step = self.stepper.step();
        let length = usize::try_from(step.images_shape.iter().skip(1).product::<i64>()).unwrap_or_default();
        let mut features = FrozenFeatures { length, ..FrozenFeatures::default() };
        let all: Vec<usize> = (0..self.examples.len()).collect();
        self.progress.unreadable = 0;
        BatchConfig { size, ..self.making(BatchSource::Pictures(None), 0) }.run(&all, 0, |batch| {
            check_stop(self.context.stop)?;
            note_unreadable(&batch.unreadable, &mut self.progress.unreadable, all.len())?;
            let given = [GraphInput { name: &images, shape: &shape, values: &batch.images }];
            graph.run(&given, |came| {
                if let TensorNumbers::Floats(values) = came.numbers {
                    let left = (all.len() - features.usable.len()).min(batch.classes.len());
                    features.values.extend_from_slice(&values[..left * length]);
                    features.usable.extend(batch.classes[..left].iter().map(Option::is_some));
                }
            })?;
            self.context.pace.yield_cpu(self.settings.threads, batch.made_in, self.context.stop)
        })?;
        Ok(features)
    }

    /// Sets the highest learning rate. From random weights, which are no better than chance, it is the highest rate;
    /// otherwise each rate is tried for a few steps from the start, and the one with the lowest loss on training
    /// pictures that the trial did not see is taken. Like a learning rate range test (arXiv 1506.01186, section 3.3) it
    /// needs no holdout; it tries separate rates because the loss of a trained model hardly moves within one run.
    fn find_rate(&mut self, places: &[usize], start: &HoldoutScores) -> Result<(), TrainError> {
        let mut random = StdRng::seed_from_u64(seed_of(self.settings, 0));
        let mut shuffled = places.to_vec();
        shuffled.shuffle(&mut random);
        let (seen, others) = shuffled.split_at(TRIAL_IMAGES.min(shuffled.len() / 5));
        let classes: Vec<usize> = others.iter().map(|place| self.examples[*place].class).collect();
        let most = TRIAL_STEPS * usize::from(self.settings.batch);
        let learned = order(&classes, self.settings.balanced, &mut random).into_iter().take(most);
        let learned: Vec<usize> = learned.map(|at| others[at]).collect();
        let [fastest, .., slowest] = TRIED_RATES;
        let rate = match self.settings.optimizer.learning_rate {
            Some(given) => given,
            None if !start.knows_more_than_chance(self.stepper.step().classes) => fastest,
            // Too few to judge a trial by.
            None if seen.is_empty() => slowest,
            None => {
                tracing::info!(rates = TRIED_RATES.len(), "learning rate search started");
                let mut best: Option<(f32, f64)> = None;
                for rate in TRIED_RATES {
                    let loss = self.try_rate(rate, &learned, seen)?;
                    tracing::debug!(rate, loss, "learning rate tried");
                    best = best.filter(|(_, lowest)| *lowest <= loss || loss.is_nan()).or(Some((rate, loss)));
                }
                best.map_or(slowest, |(rate, _)| rate)
            }
        };
        self.progress.learning_rate = rate;
        self.weights.clone_from(&self.start);
        Ok(())
    }

    /// The loss on `seen` after a few steps over `learned` at this rate, from the start.
    fn try_rate(&mut self, rate: f32, learned: &[usize], seen: &[usize]) -> Result<f64, TrainError> {
        self.weights.clone_from(&self.start);
        let mut optimizer = Optimizer::new(&self.settings.optimizer, &self.start).with_proximal(self.anchor);
        let from = self.features.take();
        let making = self.making(from.as_ref().map_or(BatchSource::Pictures(None), BatchSource::Features), 0);
        let smoothing =
            LabelSmoothing { label_smoothing: self.settings.label_smoothing_ratio, class_weights: Vec::new() };
        let classes = self.stepper.step().classes;
        let tried = making.run(learned, 0, |batch| {
            check_stop(self.context.stop)?;
            let targets = cross_entropy(&batch.classes, classes, &smoothing);
            let between = || rest_between(&self.context, self.settings.threads);
            self.stepper.learn_in_pieces(&batch.images, &targets, &self.weights, &mut self.gradients, between)?;
            optimizer.step(&mut self.weights, &mut self.gradients, &self.start, f64::from(rate));
            self.context.pace.yield_cpu(self.settings.threads, batch.made_in, self.context.stop)
        });
        self.features = from;
        tried?;
        Ok(self.measure(seen, WeightSnapshot::Now)?.measured().loss)
    }

    /// Whether to train another epoch: training stops after half of all epochs without improvement.
    fn has_next_epoch(&self) -> bool {
        let TrainProgress { epoch, best_epoch, .. } = self.progress;
        let since = epoch.saturating_sub(best_epoch).saturating_sub(1);
        epoch <= self.settings.epochs && since < self.settings.epochs.div_ceil(2).max(2)
    }

    /// Records the current weights as the best.
    fn keep_best(&mut self, epoch: u32) {
        self.best.clone_from(&self.weights);
        self.progress.best_epoch = epoch;
    }

    /// Trains on the rest of an epoch; returns the mean loss of its batches.
    fn learn(&mut self, places: &[usize]) -> Result<f64, TrainError> {
        let settings = self.settings;
        let (epoch, learning_rate) = (self.progress.epoch, self.progress.learning_rate);
        let from = self.features.take();
        let images = from.as_ref().map_or(BatchSource::Pictures(Some(settings.augment)), BatchSource::Features);
        let making = self.making(images, seed_of(settings, epoch));
        let smoothing = LabelSmoothing { label_smoothing: settings.label_smoothing_ratio, class_weights: Vec::new() };
        let classes = self.stepper.step().classes;
        let steps = places.len().div_ceil(making.size).max(1) as f64;
        let done = usize::try_from(self.progress.batches).unwrap_or(usize::MAX).saturating_mul(making.size);
        let learned = making.run(places, done, |batch| {
            check_stop(self.context.stop)?;
            note_unreadable(&batch.unreadable, &mut self.progress.unreadable, places.len())?;
            let targets = cross_entropy(&batch.classes, classes, &smoothing);
            let between = || rest_between(&self.context, settings.threads);
            let loss =
                self.stepper.learn_in_pieces(&batch.images, &targets, &self.weights, &mut self.gradients, between)?;
            if !loss.is_finite() {
                return Err(TrainError::Diverged { epoch, learning_rate });
            }
            let done_ratio = (f64::from(epoch - 1) + self.progress.batches as f64 / steps) / f64::from(settings.epochs);
            let rate = f64::from(learning_rate) * settings.schedule.rate_ratio(done_ratio);
            self.optimizer.step(&mut self.weights, &mut self.gradients, &self.start, rate);
            self.progress.losses += f64::from(loss);
            self.progress.batches += 1;
            if self.context.checkpoints.as_ref().is_some_and(CheckpointFolder::are_due) {
                self.save_progress()?;
            }
            self.context.pace.yield_cpu(settings.threads, batch.made_in, self.context.stop)
        });
        self.features = from;
        learned.map(|()| self.progress.losses / (self.progress.batches as f64).max(1.0))
    }

    /// Predictions of these weights on examples.
    fn measure(&mut self, places: &[usize], at: WeightSnapshot) -> Result<HoldoutScores, TrainError> {
        let from = self.features.take();
        let making = self.making(from.as_ref().map_or(BatchSource::Pictures(None), BatchSource::Features), 0);
        let weights = match at {
            WeightSnapshot::Start => &self.start,
            WeightSnapshot::Best => &self.best,
            WeightSnapshot::Now => &self.weights,
        };
        let classes = self.stepper.step().classes;
        let mut scores = HoldoutScores::default();
        let measured = making.run(places, 0, |batch| {
            check_stop(self.context.stop)?;
            let targets = cross_entropy(&batch.classes, classes, &LabelSmoothing::default());
            let between = || rest_between(&self.context, self.settings.threads);
            let gave = self.stepper.measure_in_pieces(&batch.images, &targets, weights, between)?;
            for (class, logits) in batch.classes.iter().zip(gave.scores.chunks_exact(classes)) {
                class.iter().for_each(|class| scores.add(logits, *class));
            }
            self.context.pace.yield_cpu(self.settings.threads, batch.made_in, self.context.stop)
        });
        self.features = from;
        measured.map(|()| scores)
    }

    /// Finishes an epoch and starts the next.
    fn finish_epoch(&mut self, epoch: Epoch) -> Result<(), TrainError> {
        self.progress.epochs.push(epoch);
        self.progress.epoch = epoch.number + 1;
        (self.progress.batches, self.progress.losses) = (0, 0.0);
        self.save_progress()
    }

    fn save_progress(&mut self) -> Result<(), TrainError> {
        match &mut self.context.checkpoints {
            None => Ok(()),
            Some(to) => to.write(&self.mark, &self.names, &self.progress, [&self.weights, &self.best], &self.optimizer),
        }
    }

    fn trained(
        self,
        test_after: Option<ModelAccuracy>,
        comparison: HoldoutComparison,
    ) -> Result<TrainedModel, TrainError> {
        let parameters = self.best.iter().map(Vec::len).sum();
        let shapes = self.stepper.step().weights.iter().map(|weight| &weight.shape);
        let shapes = shapes.map(|shape| shape.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect());
        let features_cached = self.features.is_some();
        let mut weights: NamedTensors = self.names.into_iter().zip(shapes.zip(self.best)).collect();
        for (name, shape) in self.rest {
            let values = self.graph.weight(&name)?;
            weights.insert(name, (shape, values));
        }
        let TrainProgress { epochs, test_before, unreadable, best_epoch, learning_rate, .. } = self.progress;
        let test = test_before.zip(test_after);
        Ok(TrainedModel {
            onnx: self.graph,
            weights,
            epochs,
            best_epoch,
            comparison,
            learning_rate,
            test,
            parameters,
            layers: self.layers,
            unreadable,
            features_cached,
        })
    }
}

/// Weights of a step that a smaller one leaves unchanged, with their shapes.
fn rest(whole: &TrainingStep, last: &TrainingStep) -> Vec<(String, Vec<usize>)> {
    let is_left = |name: &str| last.weights.iter().all(|weight| weight.name != name);
    let shape = |shape: &[i64]| shape.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
    let left = whole.weights.iter().filter(|weight| is_left(&weight.name));
    left.map(|weight| (weight.name.clone(), shape(&weight.shape))).collect()
}

/// Where to split the step so that the frozen part is computed once per picture; `None` if pictures are augmented or
/// the result would not fit into memory.
fn cut(
    step: &TrainingStep,
    known: &TensorFacts,
    examples: &Examples,
    settings: &TrainSettings,
) -> Result<Option<StepSplit>, TrainError> {
    if settings.augment != AugmentSettings::default() {
        return Ok(None);
    }
    let Some(cut) = step.split(known)? else { return Ok(None) };
    let length: i64 = cut.tail.images_shape.iter().skip(1).product();
    let bytes = usize::try_from(length).unwrap_or(usize::MAX).saturating_mul(4 * examples.all.len());
    Ok(Some(cut).filter(|_| bytes <= MAX_FEATURES_BYTES))
}

/// Digest of everything that the weights depend on.
fn mark(model: &Model, examples: &Examples, settings: &TrainSettings) -> String {
    let mut digest = Sha256::new();
    digest.update(model.release.as_str());
    digest.update(serde_json::to_vec(settings).unwrap_or_default());
    for example in &examples.all {
        let name = example.path.file_name().unwrap_or_default();
        digest.update(name.as_encoded_bytes());
        digest.update(format!("/{}/{:?}/{}/{}\n", example.class, example.split, example.hard, example.times));
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Between two pieces of a step: stops, or rests as long as the bounds require.
fn rest_between(context: &TrainContext<'_>, threads: u16) -> Result<(), TrainError> {
    check_stop(context.stop)?;
    context.pace.yield_cpu(threads, Duration::ZERO, context.stop)
}

fn check_stop(stop: &CancellationToken) -> Result<(), TrainError> {
    if stop.is_cancelled() { Err(TrainError::Stopped) } else { Ok(()) }
}

/// Skips a few unreadable pictures; if most are unreadable, something else is wrong.
fn note_unreadable(unreadable: &[String], so_far: &mut usize, count: usize) -> Result<(), TrainError> {
    for why in unreadable {
        tracing::warn!(image = why, "image skipped");
    }
    *so_far += unreadable.len();
    match (unreadable.first(), *so_far * 2 > count) {
        (Some(first), true) => Err(TrainError::Unreadable { unreadable: *so_far, count, first: first.clone() }),
        _ => Ok(()),
    }
}

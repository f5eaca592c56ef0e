//! Trains a model on examples: measure, then epoch by epoch learn and measure again.

use std::collections::BTreeMap;
use std::time::Instant;

use autograd::loss::{Smoothing, cross_entropy};
use autograd::onnx::Onnx as Graph;
use autograd::{Known, Split as Cut, Step};
use rand::SeedableRng;
use rand::rngs::StdRng;
use schemas::Measured;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use vision::graph::{Given, Numbers};
use vision::{Model, Onnx};

use crate::batches::{Features, From, Making, order};
use crate::checkpoint::{Checkpoints, Epoch, Found, Progress};
use crate::error::TrainError;
use crate::examples::{Example, Examples, Split};
use crate::optimizer::Optimizer;
use crate::pace::Pace;
use crate::probe::{Ready, ready};
use crate::settings::{AugmentSettings, OptimizerKind, TrainSettings};
use crate::stepper::Stepper;
use crate::weights::Tensors;

/// Features of all examples together may take so much memory, bytes; a guess.
const MOST_FEATURES_BYTES: usize = 256 * 1024 * 1024;

/// A trained model.
#[derive(Debug)]
pub struct Trained {
    /// The model's graph as it was.
    pub onnx: Graph,
    /// The new weights, by name.
    pub weights: Tensors,
    /// Every epoch, the one before training first.
    pub epochs: Vec<Epoch>,
    /// On the examples of split `test`, before and after; absent without any.
    pub test: Option<(Measured, Measured)>,
    /// Numbers that were trained.
    pub parameters: usize,
    /// Pictures that could not be used.
    pub unreadable: usize,
    /// Whether what is not trained was computed once for each picture.
    pub features_cached: bool,
}

impl Trained {
    /// Why the new weights should not be used, if so: a loss on the examples held out that is no number, or higher than
    /// before.
    pub fn worse(&self) -> Option<String> {
        let (before, after) = (self.epochs.first()?.held_out, self.epochs.last()?.held_out);
        (!after.loss.is_finite() || after.loss > before.loss).then(|| {
            format!(
                "the new model is worse on the images held out: loss {:.3} instead of {:.3}",
                after.loss, before.loss
            )
        })
    }

    /// Whether the loss on the examples held out is a number.
    pub fn is_finite(&self) -> bool {
        self.epochs.last().is_some_and(|epoch| epoch.held_out.loss.is_finite())
    }

    /// The new weights without their shapes.
    pub fn values(&self) -> BTreeMap<String, Vec<f32>> {
        self.weights.iter().map(|(name, (_, values))| (name.clone(), values.clone())).collect()
    }
}

/// What a training must heed besides its settings.
pub struct Around<'a> {
    /// Ends it.
    pub stop: &'a CancellationToken,
    /// How fast it may go, and how much memory it may take.
    pub pace: Pace,
    /// Where it writes down how far it is, if anywhere.
    pub checkpoints: Option<Checkpoints>,
}

/// Trains a model. `see` is told of every epoch when it is over.
pub fn train(
    onnx: &Onnx,
    model: &Model,
    examples: &Examples,
    settings: &TrainSettings,
    around: Around<'_>,
    mut see: impl FnMut(&Epoch),
) -> Result<Trained, TrainError> {
    settings.check().map_err(TrainError::Settings)?;
    let mut work = Work::begin(onnx, model, examples, settings, around)?;
    let of = |split| places(examples, split);
    let (learn_from, held_out, test) = (repeated(examples, settings), of(Split::HeldOut), of(Split::Test));
    if work.progress.epochs.is_empty() {
        let begun = Instant::now();
        work.progress.test_before = (!test.is_empty()).then(|| work.measure(&test)).transpose()?;
        let held_out = work.measure(&held_out)?;
        work.over(Epoch { number: 0, learned_loss: None, held_out, took: begun.elapsed() })?;
    }
    work.progress.epochs.iter().for_each(&mut see);
    let classes: Vec<usize> = learn_from.iter().map(|place| examples.all[*place].class).collect();
    while work.progress.epoch <= settings.epochs {
        let (number, begun) = (work.progress.epoch, Instant::now());
        let mut random = StdRng::seed_from_u64(seed_of(settings, number));
        let order = order(&classes, settings.balanced, &mut random);
        let ordered: Vec<usize> = order.iter().map(|at| learn_from[*at]).collect();
        let learned_loss = Some(work.learn(&ordered)?);
        let held_out = work.measure(&held_out)?;
        let epoch = Epoch { number, learned_loss, held_out, took: begun.elapsed() };
        work.over(epoch)?;
        see(&epoch);
    }
    let after = (!test.is_empty()).then(|| work.measure(&test)).transpose()?;
    Ok(work.trained(after))
}

/// Of all chance in an epoch.
pub fn seed_of(settings: &TrainSettings, epoch: u32) -> u64 {
    settings.seed.wrapping_add(u64::from(epoch) << 32)
}

/// Places of the examples of one split.
pub fn places(examples: &Examples, split: Split) -> Vec<usize> {
    (0..examples.all.len()).filter(|place| examples.all[*place].split == split).collect()
}

/// The examples to learn from, hard ones as often as the settings say.
fn repeated(examples: &Examples, settings: &TrainSettings) -> Vec<usize> {
    let times = |place: &usize| if examples.all[*place].hard { settings.collect.hard_repeats } else { 1 };
    let once = places(examples, Split::Train);
    once.iter().flat_map(|place| std::iter::repeat_n(*place, times(place) as usize)).collect()
}

/// The least memory a training takes: what a step keeps, and each weight with its gradient, where it started, and what the
/// optimizer remembers.
fn needed_bytes(step: &Step, known: &Known, settings: &TrainSettings) -> Result<u64, TrainError> {
    let copies = if settings.optimizer.kind == OptimizerKind::Adam { 5 } else { 4 };
    let count: i64 = step.weights.iter().map(|weight| autograd::tensor::count(&weight.shape)).sum();
    Ok(step.kept_bytes(known)? + u64::try_from(count).unwrap_or(0) * 4 * copies)
}

struct Work<'a> {
    model: &'a Model,
    graph: Graph,
    examples: &'a [Example],
    settings: &'a TrainSettings,
    around: Around<'a>,
    stepper: Stepper,
    optimizer: Optimizer,
    names: Vec<String>,
    /// A digest of everything that the weights depend on.
    mark: String,
    features: Option<Features>,
    progress: Progress,
    start: Vec<Vec<f32>>,
    weights: Vec<Vec<f32>>,
    gradients: Vec<Vec<f32>>,
}

impl<'a> Work<'a> {
    fn begin(
        onnx: &Onnx,
        model: &'a Model,
        examples: &'a Examples,
        settings: &'a TrainSettings,
        around: Around<'a>,
    ) -> Result<Self, TrainError> {
        let Ready { onnx: graph, prepared, known } = ready(onnx, model, settings.batch)?;
        let step = prepared.step(&known, &settings.trainable.parse()?)?;
        let start: Vec<Vec<f32>> =
            step.weights.iter().map(|weight| graph.weight(&weight.name)).collect::<Result<_, _>>()?;
        around.pace.allow(needed_bytes(&step, &known, settings)?)?;
        let names: Vec<String> = step.weights.iter().map(|weight| weight.name.clone()).collect();
        let mark = mark(model, examples, settings);
        let found = around.checkpoints.as_ref().and_then(|checkpoints| checkpoints.read(&mark, &names));
        let fresh = Progress { epoch: 1, ..Progress::default() };
        let optimizer = Optimizer::new(&settings.optimizer, &start);
        let (progress, weights, optimizer) = match found {
            None => (fresh, start.clone(), optimizer),
            Some(Found { progress, weights, memory, steps }) => {
                tracing::info!(epoch = progress.epoch, batches = progress.batches, "goes on where it was left");
                (progress, weights, optimizer.remembering(memory, steps))
            }
        };
        let (frozen, step) = match cut(&step, &known, examples, settings)? {
            Some(Cut { frozen, tail }) => (Some(frozen), tail),
            None => (None, step),
        };
        let mut work = Self {
            model,
            graph,
            examples: &examples.all,
            settings,
            around,
            stepper: Stepper::open(onnx, step, settings.threads)?,
            optimizer,
            names,
            mark,
            features: None,
            progress,
            gradients: vec![Vec::new(); start.len()],
            start,
            weights,
        };
        if let Some(frozen) = frozen {
            work.features = Some(work.compute(onnx, &frozen)?);
        }
        Ok(work)
    }

    fn making<'b>(&self, from: From<'b>, seed: u64) -> Making<'b>
    where
        'a: 'b,
    {
        let (input, size) = (&self.model.description.input, self.settings.batch.into());
        Making { input, size, examples: self.examples, from, seed }
    }

    /// What the part that is not trained gives for every example.
    fn compute(&mut self, onnx: &Onnx, frozen: &Graph) -> Result<Features, TrainError> {
        let mut graph = vision::Graph::open(onnx, "frozen part", &frozen.encode(), self.settings.threads.into())?;
        let images = frozen.input()?.to_owned();
        let shape = vision::tensor::shape(&self.model.description.input, self.settings.batch.into());
        let shape = shape.map(|size| size as i64);
        let step = self.stepper.step();
        let length = usize::try_from(step.images_shape.iter().skip(1).product::<i64>()).unwrap_or_default();
        let mut features = Features { length, ..Features::default() };
        let all: Vec<usize> = (0..self.examples.len()).collect();
        self.progress.unreadable = 0;
        self.making(From::Pictures(None), 0).run(&all, 0, |batch| {
            heed(self.around.stop)?;
            note_unreadable(&batch.unreadable, &mut self.progress.unreadable, all.len())?;
            let given = [Given { name: &images, shape: &shape, values: &batch.images }];
            graph.run(&given, |came| {
                if let Numbers::Floats(values) = came.numbers {
                    let left = (all.len() - features.usable.len()).min(batch.classes.len());
                    features.values.extend_from_slice(&values[..left * length]);
                    features.usable.extend(batch.classes[..left].iter().map(Option::is_some));
                }
            })?;
            self.around.pace.rest(self.settings.threads, batch.made_in, self.around.stop)
        })?;
        Ok(features)
    }

    /// What is left of an epoch; the mean loss of its batches.
    fn learn(&mut self, places: &[usize]) -> Result<f64, TrainError> {
        let settings = self.settings;
        let epoch = self.progress.epoch;
        let from = self.features.take();
        let images = from.as_ref().map_or(From::Pictures(Some(settings.augment)), From::Features);
        let making = self.making(images, seed_of(settings, epoch));
        let smoothing = Smoothing { label_smoothing: settings.label_smoothing_ratio, class_weights: Vec::new() };
        let classes = self.stepper.step().classes;
        let steps = places.len().div_ceil(making.size).max(1) as f64;
        let done = usize::try_from(self.progress.batches).unwrap_or(usize::MAX).saturating_mul(making.size);
        let learned = making.run(places, done, |batch| {
            heed(self.around.stop)?;
            note_unreadable(&batch.unreadable, &mut self.progress.unreadable, places.len())?;
            let targets = cross_entropy(&batch.classes, classes, &smoothing);
            let loss = self.stepper.learn(&batch.images, &targets, &self.weights, &mut self.gradients)?;
            if !loss.is_finite() {
                return Err(TrainError::Diverged { epoch, learning_rate: settings.optimizer.learning_rate });
            }
            let done_ratio = (f64::from(epoch - 1) + self.progress.batches as f64 / steps) / f64::from(settings.epochs);
            let rate_ratio = settings.schedule.rate_ratio(done_ratio);
            self.optimizer.step(&mut self.weights, &mut self.gradients, &self.start, rate_ratio);
            self.progress.losses += f64::from(loss);
            self.progress.batches += 1;
            if self.around.checkpoints.as_ref().is_some_and(Checkpoints::are_due) {
                self.write_down()?;
            }
            self.around.pace.rest(settings.threads, batch.made_in, self.around.stop)
        });
        self.features = from;
        learned.map(|()| self.progress.losses / (self.progress.batches as f64).max(1.0))
    }

    fn measure(&mut self, places: &[usize]) -> Result<Measured, TrainError> {
        let from = self.features.take();
        let making = self.making(from.as_ref().map_or(From::Pictures(None), From::Features), 0);
        let classes = self.stepper.step().classes;
        let (mut images, mut right, mut loss) = (0, 0_u64, 0.0);
        let measured = making.run(places, 0, |batch| {
            heed(self.around.stop)?;
            let targets = cross_entropy(&batch.classes, classes, &Smoothing::default());
            let gave = self.stepper.measure(&batch.images, &targets, &self.weights)?;
            let usable = batch.classes.iter().flatten().count();
            loss += f64::from(gave.loss) * usable as f64;
            images += usable as u64;
            for (class, scores) in batch.classes.iter().zip(gave.scores.chunks_exact(classes)) {
                let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(place, _)| place);
                right += u64::from(class.is_some() && *class == best);
            }
            self.around.pace.rest(self.settings.threads, batch.made_in, self.around.stop)
        });
        self.features = from;
        measured?;
        let count = images.max(1) as f64;
        Ok(Measured { images, accuracy_ratio: right as f64 / count, loss: loss / count })
    }

    /// An epoch is over: the next one begins.
    fn over(&mut self, epoch: Epoch) -> Result<(), TrainError> {
        self.progress.epochs.push(epoch);
        self.progress.epoch = epoch.number + 1;
        (self.progress.batches, self.progress.losses) = (0, 0.0);
        self.write_down()
    }

    fn write_down(&mut self) -> Result<(), TrainError> {
        match &mut self.around.checkpoints {
            None => Ok(()),
            Some(to) => to.write(&self.mark, &self.names, &self.progress, &self.weights, &self.optimizer),
        }
    }

    fn trained(self, test_after: Option<Measured>) -> Trained {
        let parameters = self.weights.iter().map(Vec::len).sum();
        let shapes = self.stepper.step().weights.iter().map(|weight| &weight.shape);
        let shapes = shapes.map(|shape| shape.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect());
        let features_cached = self.features.is_some();
        let weights = self.names.into_iter().zip(shapes.zip(self.weights)).collect();
        let Progress { epochs, test_before, unreadable, .. } = self.progress;
        let test = test_before.zip(test_after);
        Trained { onnx: self.graph, weights, epochs, test, parameters, unreadable, features_cached }
    }
}

/// Where the step is cut, if what is not trained need be computed only once: when pictures stay as they are, and what
/// is kept of them has room.
fn cut(step: &Step, known: &Known, examples: &Examples, settings: &TrainSettings) -> Result<Option<Cut>, TrainError> {
    if settings.augment != AugmentSettings::default() {
        return Ok(None);
    }
    let Some(cut) = step.split(known)? else { return Ok(None) };
    let length: i64 = cut.tail.images_shape.iter().skip(1).product();
    let bytes = usize::try_from(length).unwrap_or(usize::MAX).saturating_mul(4 * examples.all.len());
    Ok(Some(cut).filter(|_| bytes <= MOST_FEATURES_BYTES))
}

/// A digest of everything that the weights depend on.
fn mark(model: &Model, examples: &Examples, settings: &TrainSettings) -> String {
    let mut digest = Sha256::new();
    digest.update(model.release.as_str());
    digest.update(serde_json::to_vec(settings).unwrap_or_default());
    for example in &examples.all {
        let name = example.path.file_name().unwrap_or_default();
        digest.update(name.as_encoded_bytes());
        digest.update(format!("/{}/{:?}/{}\n", example.class, example.split, example.hard));
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn heed(stop: &CancellationToken) -> Result<(), TrainError> {
    if stop.is_cancelled() { Err(TrainError::Stopped) } else { Ok(()) }
}

/// A few pictures that cannot be read are passed over; if most cannot, something else is wrong.
fn note_unreadable(unreadable: &[String], so_far: &mut usize, count: usize) -> Result<(), TrainError> {
    for why in unreadable {
        tracing::warn!(image = why, "passed over");
    }
    *so_far += unreadable.len();
    match (unreadable.first(), *so_far * 2 > count) {
        (Some(first), true) => Err(TrainError::Unreadable { unreadable: *so_far, count, first: first.clone() }),
        _ => Ok(()),
    }
}

//! Trains a model on examples: measure, then epoch by epoch learn and measure again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use autograd::loss::{Smoothing, cross_entropy};
use autograd::onnx::Onnx as Graph;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use vision::{Model, Onnx};

use crate::batches::{Making, order};
use crate::error::TrainError;
use crate::examples::{Example, Examples, Split};
use crate::optimizer::Optimizer;
use crate::probe::{Ready, ready};
use crate::settings::TrainSettings;
use crate::stepper::Stepper;

/// How right a model is on examples.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Measured {
    /// Examples.
    pub images: usize,
    /// Of those, how many it is right about, 0 to 1.
    pub accuracy_ratio: f64,
    /// Mean cross-entropy.
    pub loss: f64,
}

/// One epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Epoch {
    /// From 1; 0 is the model before any training.
    pub number: u32,
    /// Mean loss of the batches; absent before any training.
    pub learned_loss: Option<f64>,
    /// On the examples held out.
    pub held_out: Measured,
    /// How long it took, measuring included.
    pub took: Duration,
}

/// A trained model.
#[derive(Debug)]
pub struct Trained {
    /// The model's graph as it was.
    pub onnx: Graph,
    /// The new weights, by name.
    pub weights: BTreeMap<String, Vec<f32>>,
    /// Every epoch, the one before training first.
    pub epochs: Vec<Epoch>,
    /// On the examples of split `test`, before and after; absent without any.
    pub test: Option<(Measured, Measured)>,
    /// Numbers that were trained.
    pub parameters: usize,
    /// Pictures that could not be used.
    pub unreadable: usize,
}

/// Trains a model. `see` is told of every epoch when it is over, and `stop` ends it.
pub fn train(
    runtime: &Onnx,
    model: &Model,
    examples: &Examples,
    settings: &TrainSettings,
    stop: &CancellationToken,
    mut see: impl FnMut(&Epoch),
) -> Result<Trained, TrainError> {
    settings.check().map_err(TrainError::Settings)?;
    let trainable = settings.trainable.parse()?;
    let Ready { onnx, prepared, known } = ready(runtime, model, settings.batch)?;
    let step = prepared.step(&known, &trainable)?;
    let weights: Vec<Vec<f32>> =
        step.weights.iter().map(|weight| onnx.weight(&weight.name)).collect::<Result<_, _>>()?;
    let mut work = Work {
        model,
        settings,
        stop,
        stepper: Stepper::open(runtime, step, settings.threads)?,
        optimizer: Optimizer::new(&settings.optimizer, &weights),
        start: weights.clone(),
        gradients: vec![Vec::new(); weights.len()],
        weights,
        unreadable: 0,
    };
    let of = |split| examples.of(split).collect::<Vec<_>>();
    let (learn_from, held_out, test) = (of(Split::Train), of(Split::HeldOut), of(Split::Test));
    let begun = Instant::now();
    let before = (!test.is_empty()).then(|| work.measure(&test)).transpose()?;
    let mut epochs =
        vec![Epoch { number: 0, learned_loss: None, held_out: work.measure(&held_out)?, took: begun.elapsed() }];
    epochs.iter().for_each(&mut see);
    let mut random = StdRng::seed_from_u64(settings.seed);
    let classes: Vec<usize> = learn_from.iter().map(|example| example.class).collect();
    for number in 1..=settings.epochs {
        let begun = Instant::now();
        let order = order(&classes, settings.balanced, &mut random);
        let ordered: Vec<&Example> = order.iter().map(|place| learn_from[*place]).collect();
        let learned_loss = work.learn(&ordered, number)?;
        let held_out = work.measure(&held_out)?;
        let epoch = Epoch { number, learned_loss: Some(learned_loss), held_out, took: begun.elapsed() };
        see(&epoch);
        epochs.push(epoch);
    }
    let after = (!test.is_empty()).then(|| work.measure(&test)).transpose()?;
    let names = work.stepper.step().weights.iter().map(|weight| weight.name.clone());
    let parameters = work.weights.iter().map(Vec::len).sum();
    let weights = names.zip(work.weights).collect();
    Ok(Trained { onnx, weights, epochs, test: before.zip(after), parameters, unreadable: work.unreadable })
}

struct Work<'a> {
    model: &'a Model,
    settings: &'a TrainSettings,
    stop: &'a CancellationToken,
    stepper: Stepper,
    optimizer: Optimizer,
    start: Vec<Vec<f32>>,
    weights: Vec<Vec<f32>>,
    gradients: Vec<Vec<f32>>,
    unreadable: usize,
}

impl Work<'_> {
    /// One epoch; the mean loss of its batches.
    fn learn(&mut self, examples: &[&Example], epoch: u32) -> Result<f64, TrainError> {
        let settings = self.settings;
        let making = Making {
            input: &self.model.description.input,
            size: settings.batch.into(),
            augment: Some(settings.augment),
            seed: settings.seed.wrapping_add(u64::from(epoch) << 32),
        };
        let smoothing = Smoothing { label_smoothing: settings.label_smoothing_ratio, class_weights: Vec::new() };
        let classes = self.stepper.step().classes;
        let steps = examples.len().div_ceil(making.size).max(1) as f64;
        let (mut sum, mut batches) = (0.0, 0.0);
        making.run(examples, |batch| {
            if self.stop.is_cancelled() {
                return Err(TrainError::Stopped);
            }
            self.note_unreadable(&batch.unreadable, examples.len())?;
            let targets = cross_entropy(&batch.classes, classes, &smoothing);
            let loss = self.stepper.learn(&batch.images, &targets, &self.weights, &mut self.gradients)?;
            if !loss.is_finite() {
                return Err(TrainError::Diverged { epoch, learning_rate: settings.optimizer.learning_rate });
            }
            let done_ratio = (f64::from(epoch - 1) + batches / steps) / f64::from(settings.epochs);
            let rate_ratio = settings.schedule.rate_ratio(done_ratio);
            self.optimizer.step(&mut self.weights, &mut self.gradients, &self.start, rate_ratio);
            sum += f64::from(loss);
            batches += 1.0;
            Ok(())
        })?;
        Ok(sum / batches.max(1.0))
    }

    fn measure(&mut self, examples: &[&Example]) -> Result<Measured, TrainError> {
        let making =
            Making { input: &self.model.description.input, size: self.settings.batch.into(), augment: None, seed: 0 };
        let classes = self.stepper.step().classes;
        let (mut images, mut right, mut loss) = (0, 0, 0.0);
        making.run(examples, |batch| {
            if self.stop.is_cancelled() {
                return Err(TrainError::Stopped);
            }
            let targets = cross_entropy(&batch.classes, classes, &Smoothing::default());
            let gave = self.stepper.measure(&batch.images, &targets, &self.weights)?;
            let usable = batch.classes.iter().flatten().count();
            loss += f64::from(gave.loss) * usable as f64;
            images += usable;
            for (class, scores) in batch.classes.iter().zip(gave.scores.chunks_exact(classes)) {
                let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(place, _)| place);
                right += usize::from(class.is_some() && *class == best);
            }
            Ok(())
        })?;
        let count = images.max(1) as f64;
        Ok(Measured { images, accuracy_ratio: right as f64 / count, loss: loss / count })
    }

    /// A few pictures that cannot be read are passed over; if most cannot, something else is wrong.
    fn note_unreadable(&mut self, unreadable: &[String], count: usize) -> Result<(), TrainError> {
        for why in unreadable {
            tracing::warn!(image = why, "passed over");
        }
        self.unreadable += unreadable.len();
        match (unreadable.first(), self.unreadable * 2 > count) {
            (Some(first), true) => {
                Err(TrainError::Unreadable { unreadable: self.unreadable, count, first: first.clone() })
            }
            _ => Ok(()),
        }
    }
}

//! Runs the training step: a batch and the weights in, the loss and the gradients out. Also runs the same graph without
//! gradients, for measuring.

use autograd::TrainingStep;
use autograd::loss::Targets;
use autograd::training_step::{LOSS, SCALE, TARGET};
use vision::graph::{GraphInput, TensorNumbers};
use vision::{Graph, OnnxRuntime};

use crate::error::TrainError;

/// A training step in the ONNX Runtime.
pub struct Stepper {
    step: TrainingStep,
    learning: Graph,
    measuring: Graph,
}

/// Output of a run without gradients.
#[derive(Debug, Clone, Default)]
pub struct StepOutput {
    /// Loss of the batch.
    pub loss: f32,
    /// Scores, one row of classes per image.
    pub scores: Vec<f32>,
}

impl Stepper {
    /// Loads a step. `threads`: per step.
    pub fn open(runtime: &OnnxRuntime, step: TrainingStep, threads: u16) -> Result<Self, TrainError> {
        let learning = Graph::open(runtime, "training step", &step.graph.encode(), threads.into())?;
        let measuring = Graph::open(runtime, "measuring step", &step.measuring()?.encode(), threads.into())?;
        Ok(Self { step, learning, measuring })
    }

    /// The loaded step.
    pub fn step(&self) -> &TrainingStep {
        &self.step
    }

    /// Loss and gradients of a batch; gradients are written in the order of their weights.
    pub fn learn(
        &mut self,
        images: &[f32],
        targets: &Targets,
        weights: &[impl AsRef<[f32]>],
        gradients: &mut [Vec<f32>],
    ) -> Result<f32, TrainError> {
        self.learn_in_pieces(images, targets, weights, gradients, || Ok(()))
    }

    /// The same for a batch of any size: one of more images than the step takes is computed in pieces, whose gradients
    /// are added up. `between` is called between two of them.
    pub fn learn_in_pieces(
        &mut self,
        images: &[f32],
        targets: &Targets,
        weights: &[impl AsRef<[f32]>],
        gradients: &mut [Vec<f32>],
        between: impl FnMut() -> Result<(), TrainError>,
    ) -> Result<f32, TrainError> {
        let mut loss = 0.0;
        let Self { step, learning, .. } = self;
        let mut is_first = true;
        in_pieces(step, images, targets, between, |images, targets| {
            run(step, learning, images, targets, weights, |name, values| {
                if name == LOSS {
                    loss += values.first().copied().unwrap_or(f32::NAN);
                } else if let Some(place) = step.weights.iter().position(|weight| weight.gradient == name) {
                    if is_first {
                        gradients[place].clear();
                        gradients[place].extend_from_slice(values);
                    } else {
                        gradients[place].iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                    }
                }
            })?;
            is_first = false;
            Ok(())
        })?;
        Ok(loss)
    }

    /// Loss and scores of a batch.
    pub fn measure(
        &mut self,
        images: &[f32],
        targets: &Targets,
        weights: &[impl AsRef<[f32]>],
    ) -> Result<StepOutput, TrainError> {
        self.measure_in_pieces(images, targets, weights, || Ok(()))
    }

    /// The same for a batch of any size, in pieces.
    pub fn measure_in_pieces(
        &mut self,
        images: &[f32],
        targets: &Targets,
        weights: &[impl AsRef<[f32]>],
        between: impl FnMut() -> Result<(), TrainError>,
    ) -> Result<StepOutput, TrainError> {
        let mut gave = StepOutput::default();
        let Self { step, measuring, .. } = self;
        in_pieces(step, images, targets, between, |images, targets| {
            run(step, measuring, images, targets, weights, |name, values| {
                if name == LOSS {
                    gave.loss += values.first().copied().unwrap_or(f32::NAN);
                } else {
                    gave.scores.extend_from_slice(values);
                }
            })
        })?;
        gave.scores.truncate(targets.values.len());
        Ok(gave)
    }
}

/// Calls `compute` for as many images at a time as the step takes; the last piece is padded with images that do not
/// count.
fn in_pieces(
    step: &TrainingStep,
    images: &[f32],
    targets: &Targets,
    mut between: impl FnMut() -> Result<(), TrainError>,
    mut compute: impl FnMut(&[f32], &Targets) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let length = |shape: &[i64]| usize::try_from(shape.iter().product::<i64>()).unwrap_or(1).max(1);
    let of_piece = length(step.images_shape.get(..1).unwrap_or_default());
    let of_images = length(&step.images_shape);
    if images.len() <= of_images {
        return compute(images, targets);
    }
    let of_targets = of_piece * step.classes.max(1);
    let pieces = images.chunks(of_images).zip(targets.values.chunks(of_targets));
    for (number, (images, values)) in pieces.enumerate() {
        if number > 0 {
            between()?;
        }
        let mut own = Targets { values: values.to_vec(), scale: targets.scale };
        if images.len() == of_images {
            compute(images, &own)?;
            continue;
        }
        let mut padded = images.to_vec();
        padded.resize(of_images, 0.0);
        own.values.resize(of_targets, 0.0);
        compute(&padded, &own)?;
    }
    Ok(())
}

fn run(
    step: &TrainingStep,
    graph: &mut Graph,
    images: &[f32],
    targets: &Targets,
    weights: &[impl AsRef<[f32]>],
    mut see: impl FnMut(&str, &[f32]),
) -> Result<(), TrainError> {
    let (scale, classes) = ([targets.scale], step.classes as i64);
    let shape = [step.images_shape.first().copied().unwrap_or(1), classes];
    let mut given = Vec::with_capacity(3 + weights.len());
    given.push(GraphInput { name: &step.images, shape: &step.images_shape, values: images });
    given.push(GraphInput { name: TARGET, shape: &shape, values: &targets.values });
    given.push(GraphInput { name: SCALE, shape: &[], values: &scale });
    let own = step.weights.iter().zip(weights);
    given.extend(own.map(|(weight, values)| {
        let values = values.as_ref();
        GraphInput { name: &weight.name, shape: &weight.shape, values }
    }));
    graph.run(&given, |came| {
        if let TensorNumbers::Floats(values) = came.numbers {
            see(came.name, values);
        }
    })?;
    Ok(())
}

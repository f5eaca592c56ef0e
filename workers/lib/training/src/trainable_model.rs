//! Runs a prepared model once to learn every tensor's shape for the training step.

use autograd::report::TrainabilityReport;
use autograd::tensor_facts::TensorConstants;
use autograd::training_step::PreparedModel;
use autograd::{AutogradError, TensorFacts, onnx};
use vision::graph::{GraphInput, GraphOutput, TensorNumbers};
use vision::{Graph, Model, OnnxRuntime};

use crate::error::TrainError;

/// A model prepared for training, with facts about its tensors.
pub struct TrainableModel {
    /// The model with its weights.
    pub onnx: onnx::OnnxDocument,
    /// The model prepared for training.
    pub prepared: PreparedModel,
    /// Tensor facts for the requested batch size.
    pub known: TensorFacts,
}

/// Reports how much of a model can be trained.
pub fn report(runtime: &OnnxRuntime, model: &Model) -> Result<TrainabilityReport, TrainError> {
    // Two images, to reveal shapes that only hold for one.
    let TrainableModel { prepared, known, .. } = prepare_model(runtime, model, 2)?;
    Ok(autograd::report::report(&prepared, &known)?)
}

/// Refuses a model whose task cannot be trained, before any example of it is read.
pub fn check_task(model: &Model) -> Result<(), TrainError> {
    match model.description.output.kind.is_detector() {
        true => Err(TrainError::Detector { model: model.description.name.clone() }),
        false => Ok(()),
    }
}

/// Prepares a model for batches of this size.
pub fn prepare_model(runtime: &OnnxRuntime, model: &Model, batch: u16) -> Result<TrainableModel, TrainError> {
    check_task(model)?;
    let onnx = onnx::read(&model.graph)?;
    let input = &model.description.input;
    let shape = vision::tensor::shape(input, batch.into()).map(|size| size as i64);
    let output = &model.description.output;
    let (prepared, known) = prepare(runtime, &onnx, &output.name, &shape)?;
    if output.kind == schemas::model::OutputKind::Probabilities && prepared.scores() == output.name {
        return Err(TrainError::NoLogits { output: output.name.clone() });
    }
    let scores = known.shape(prepared.scores())?.iter().skip(1).product::<i64>();
    let (scores, labels) = (usize::try_from(scores).unwrap_or_default(), model.labels.len());
    if output.kind.is_multi_label() || scores != labels {
        let output_name = output.name.clone();
        return Err(TrainError::OtherTask { output: output_name, kind: output.kind.as_str(), scores, labels });
    }
    Ok(TrainableModel { onnx, prepared, known })
}

/// Prepares a graph for batches of this shape and returns its tensor facts; a graph exported for a single image is
/// widened if possible.
pub fn prepare(
    runtime: &OnnxRuntime,
    onnx: &onnx::OnnxDocument,
    output: &str,
    shape: &[i64],
) -> Result<(PreparedModel, TensorFacts), TrainError> {
    let prepared = PreparedModel::new(onnx, output, shape)?;
    let batch = shape.first().copied().unwrap_or(1);
    match onnx.declared_batch() {
        Some(1) if batch > 1 => widened(runtime, onnx, prepared, shape),
        declared => {
            let known = known(runtime, &prepared, shape).map_err(|error| match (error, declared) {
                (TrainError::Session(_), Some(found)) if found != batch => {
                    AutogradError::FixedBatch { found, why: format!("it does not run with {batch} images") }.into()
                }
                (error, _) => error,
            })?;
            Ok((prepared, known))
        }
    }
}

/// Prepares a model exported for a single image for several. If it does not provably work image by image, it must at
/// least run as it is and give a row for each image.
fn widened(
    runtime: &OnnxRuntime,
    onnx: &onnx::OnnxDocument,
    prepared: PreparedModel,
    shape: &[i64],
) -> Result<(PreparedModel, TensorFacts), TrainError> {
    let one: Vec<i64> = [1].into_iter().chain(shape.iter().skip(1).copied()).collect();
    let single = PreparedModel::new(onnx, prepared.scores(), &one)?;
    let images = shape.first().copied().unwrap_or(1);
    match single.widened(&known(runtime, &single, &one)?, images) {
        Ok(wide) => {
            let known = known(runtime, &wide, shape)?;
            Ok((wide, known))
        }
        Err(refusal @ AutogradError::FixedBatch { .. }) => match known(runtime, &prepared, shape) {
            Ok(known) if known.shape(prepared.scores())?.first() == shape.first() => Ok((prepared, known)),
            _ => Err(refusal.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// Runs the probe of a model prepared for batches of this shape.
pub fn known(runtime: &OnnxRuntime, prepared: &PreparedModel, shape: &[i64]) -> Result<TensorFacts, TrainError> {
    let mut known = prepared.known()?;
    let probe = prepared.probe()?;
    let mut graph = Graph::open(runtime, "probe", &probe.encode(), 1)?;
    let count: i64 = shape.iter().product();
    let nothing = vec![0.0; usize::try_from(count).unwrap_or_default()];
    let given = [GraphInput { name: probe.input()?, shape, values: &nothing }];
    graph.run(&given, |came: GraphOutput<'_>| {
        let values = match came.numbers {
            TensorNumbers::Floats(values) => TensorConstants::Floats(values.to_vec()),
            TensorNumbers::Ints(values) => TensorConstants::Ints(values.to_vec()),
            TensorNumbers::Other => TensorConstants::Other,
        };
        known.add(came.name, came.shape.to_vec(), values);
    })?;
    Ok(known)
}

//! Runs a prepared model once, so that a training step knows every tensor's shape.

use autograd::known::Values;
use autograd::report::Report;
use autograd::step::Prepared;
use autograd::{Known, onnx};
use vision::graph::{Came, Given, Numbers};
use vision::{Graph, Model, Onnx};

use crate::error::TrainError;

/// A model made ready to be trained, and what is known of its tensors.
pub struct Ready {
    /// The model with its weights.
    pub onnx: onnx::Onnx,
    /// Made ready.
    pub prepared: Prepared,
    /// For batches of the size asked for.
    pub known: Known,
}

/// How much of a model can be trained.
pub fn report(runtime: &Onnx, model: &Model) -> Result<Report, TrainError> {
    // Two images: shapes that hold for one alone show.
    let Ready { prepared, known, .. } = ready(runtime, model, 2)?;
    Ok(autograd::report::report(&prepared, &known)?)
}

/// Makes a model ready for batches of so many images.
pub fn ready(runtime: &Onnx, model: &Model, batch: u16) -> Result<Ready, TrainError> {
    let onnx = onnx::read(&model.graph)?;
    let input = &model.description.input;
    let shape = vision::tensor::shape(input, batch.into()).map(|size| size as i64);
    let output = &model.description.output;
    let prepared = Prepared::new(&onnx, &output.name, &shape)?;
    if output.kind == schemas::model::OutputKind::Probabilities && prepared.scores() == output.name {
        return Err(TrainError::NoLogits { output: output.name.clone() });
    }
    let known = known(runtime, &prepared, &shape)?;
    Ok(Ready { onnx, prepared, known })
}

/// Runs the probe of a model made ready for batches of this shape.
pub fn known(runtime: &Onnx, prepared: &Prepared, shape: &[i64]) -> Result<Known, TrainError> {
    let mut known = prepared.known()?;
    let probe = prepared.probe()?;
    let mut graph = Graph::open(runtime, "probe", &probe.encode(), 1)?;
    let count: i64 = shape.iter().product();
    let nothing = vec![0.0; usize::try_from(count).unwrap_or_default()];
    let given = [Given { name: probe.input()?, shape, values: &nothing }];
    graph.run(&given, |came: Came<'_>| {
        let values = match came.numbers {
            Numbers::Floats(values) => Values::Floats(values.to_vec()),
            Numbers::Ints(values) => Values::Ints(values.to_vec()),
            Numbers::Other => Values::Other,
        };
        known.add(came.name, came.shape.to_vec(), values);
    })?;
    Ok(known)
}

//! The training step of a model: read ─▶ prepare ─▶ probe ─▶ choose ─▶ differentiate.

use std::collections::{HashMap, HashSet};

use crate::batch;
use crate::composite;
use crate::error::AutogradError;
use crate::fold;
use crate::gradient_tape::{AttributeValue, GradientRefusal, GradientTape};
use crate::loss;
use crate::onnx::{OnnxDocument, declared, named};
use crate::proto::{GraphProto, NodeProto, OperatorSetIdProto, TensorProto};
use crate::rules::{self, OutputGradients};
use crate::tensor_facts::{self, TensorFacts};
use crate::trainable::{self, TrainableSelection};
use crate::unfold;
use crate::upgrade::{self, STEP_OPSET};

/// Name of the step's target input, `[batch, classes]`.
pub const TARGET: &str = "tributary/target";
/// Name of the step's input with the factor of the loss, one number.
pub const SCALE: &str = "tributary/scale";
/// Name of the step's loss output, one number.
pub const LOSS: &str = "tributary/loss";

/// A trained weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    /// Its name in the model, which is an input of the step.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Name of the step's output with its gradient.
    pub gradient: String,
}

/// A training step.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingStep {
    /// The graph. Inputs: the images, [`TARGET`], [`SCALE`] and every weight; outputs: [`LOSS`], the scores and every
    /// gradient.
    pub graph: OnnxDocument,
    /// Name of the image input.
    pub images: String,
    /// Shape of the image input, including the batch size.
    pub images_shape: Vec<i64>,
    /// Name of the score output, `[batch, classes]`, before any softmax.
    pub scores: String,
    /// Number of classes.
    pub classes: usize,
    /// The trained weights.
    pub weights: Vec<Weight>,
}

impl TrainingStep {
    /// Least memory of a step in bytes: results of the forward pass that a gradient needs must exist at the same time.
    /// Without weights and gradients.
    pub fn kept_bytes(&self, known: &TensorFacts) -> Result<u64, AutogradError> {
        let gradients =
            self.graph.graph()?.node.iter().filter(|node| !node.output.iter().any(|name| known.is_initializer(name)));
        let kept: HashSet<&String> = gradients.flat_map(|node| &node.input).collect();
        let is_weight = |name: &str| self.weights.iter().any(|weight| weight.name == name);
        let bytes = kept.iter().filter(|name| !is_weight(name)).map(|name| known.float_bytes(name));
        Ok(bytes.fold(0, u64::saturating_add))
    }

    /// The same graph without gradients: loss and scores, for measuring.
    pub fn measuring(&self) -> Result<OnnxDocument, AutogradError> {
        let mut measuring = self.graph.cut(LOSS)?;
        let shape = [self.images_shape.first().copied().unwrap_or(1), self.classes as i64];
        let graph = measuring.graph_mut()?;
        graph.output = vec![declared(LOSS, Some(&[])), declared(&self.scores, Some(&shape))];
        Ok(measuring)
    }
}

/// A model prepared for training: upgraded to the step's opset, without its softmax.
#[derive(Debug, Clone, PartialEq)]
pub struct PreparedModel {
    pub(crate) onnx: OnnxDocument,
    /// The graph before it was rewritten, without weight values: what weights are chosen from.
    pub(crate) plain: GraphProto,
    pub(crate) scores: String,
    images_shape: Vec<i64>,
}

impl PreparedModel {
    /// Prepares a model, given its score output and the shape of a batch of images. Refuses models that cannot be
    /// trained.
    pub fn new(onnx: &OnnxDocument, output: &str, images_shape: &[i64]) -> Result<Self, AutogradError> {
        onnx.check()?;
        let before_softmax = onnx
            .graph()?
            .node
            .iter()
            .find(|node| node.op_type() == "Softmax" && node.output.first().is_some_and(|name| name == output));
        let scores = before_softmax.and_then(|node| node.input.first()).map_or(output, String::as_str).to_owned();
        let mut ready = onnx.cut(&scores)?;
        let plain = without_values(ready.graph()?);
        let opset = ready.opset();
        let graph = ready.graph_mut()?;
        if opset < STEP_OPSET {
            upgrade::upgrade(graph);
        }
        if opset < STEP_OPSET {
            ready.model.opset_import.retain(|opset| !matches!(opset.domain(), "" | "ai.onnx"));
            let standard = OperatorSetIdProto { domain: Some(String::new()), version: Some(STEP_OPSET) };
            ready.model.opset_import.push(standard);
            ready.model.ir_version = Some(ready.model.ir_version().max(8));
        }
        Ok(Self { onnx: ready, plain, scores, images_shape: images_shape.to_vec() })
    }

    /// The model for several images, from one prepared for a single image. `known`: with all results of its probe.
    /// Refuses models that do not provably work image by image.
    pub fn widened(&self, known: &TensorFacts, images: i64) -> Result<Self, AutogradError> {
        let mut wide = self.clone();
        let input = self.onnx.input()?.to_owned();
        batch::widen_batch(wide.onnx.graph_mut()?, &input, &self.scores, known, images)?;
        wide.images_shape.iter_mut().take(1).for_each(|size| *size = images);
        Ok(wide)
    }

    /// Name of the score output: the model's own, or the input of its softmax.
    pub fn scores(&self) -> &str {
        &self.scores
    }

    /// The model with every tensor as an output, to be run once on any input.
    pub fn probe(&self) -> Result<OnnxDocument, AutogradError> {
        tensor_facts::probe_tensors(&self.onnx, &self.images_shape)
    }

    /// Facts known before the probe is run.
    pub fn known(&self) -> Result<TensorFacts, AutogradError> {
        TensorFacts::new(&self.onnx, &self.images_shape)
    }

    /// The training step. `known`: with all results of the probe.
    pub fn step(&self, known: &TensorFacts, trainable: &TrainableSelection) -> Result<TrainingStep, AutogradError> {
        let weights = trainable::choose(&self.plain, trainable)?;
        let (mut rewritten, mut known) = (self.onnx.clone(), known.clone());
        fold::fold(rewritten.graph_mut()?, &mut known);
        let by_images =
            trainable::dependent_tensors(&rewritten.graph()?.node, &[self.onnx.input()?.to_owned()], &known);
        let needed = trainable::dependent_tensors(&rewritten.graph()?.node, &weights, &known);
        let left = composite::write_out(rewritten.graph_mut()?, &needed, &by_images, &mut known)?;
        let needed = trainable::dependent_tensors(&rewritten.graph()?.node, &weights, &known);
        unfold::unfold(rewritten.graph_mut()?, &needed, &mut known);
        let (graph, known) = (rewritten.graph()?, &known);
        let needed = trainable::dependent_tensors(&graph.node, &weights, known);
        let shape = known.shape(&self.scores)?;
        let [rows, classes] = shape else {
            let why = format!("the scores have shape {shape:?} instead of [images, classes]");
            return Err(AutogradError::Tensor { tensor: self.scores.clone(), why });
        };
        let images = self.images_shape.first().copied().unwrap_or(1);
        if *rows != images {
            let why = format!("its scores have shape {shape:?} for {images}");
            return Err(AutogradError::FixedBatch { found: *rows, why });
        }
        let mut tape = GradientTape::new(known, &needed);
        let by_scores = loss::write(&mut tape, &self.scores, TARGET, SCALE, LOSS);
        tape.add_gradient(&self.scores, by_scores);
        let refused = differentiate(&mut tape, &graph.node, &left)?;
        if !refused.is_empty() {
            return Err(AutogradError::Unsupported {
                unsupported: refused,
                remedy: "train fewer layers (`head`, or `last N`); `model check` names the largest N".into(),
            });
        }
        let weights = outputs(&mut tape, &weights)?;
        self.assemble(rewritten.clone(), tape, &needed, weights, *classes)
    }

    fn assemble(
        &self,
        mut step: OnnxDocument,
        tape: GradientTape<'_>,
        needed: &HashSet<String>,
        weights: Vec<Weight>,
        classes: i64,
    ) -> Result<TrainingStep, AutogradError> {
        let (images, batch) = (self.onnx.input()?.to_owned(), self.images_shape.first().copied().unwrap_or(1));
        let GraphProto { node, initializer, input, output, value_info, .. } = step.graph_mut()?;
        node.iter_mut().for_each(|node| remember_places(node, needed));
        node.extend(tape.nodes);
        initializer.retain(|tensor| !weights.iter().any(|weight| weight.name == tensor.name()));
        initializer.extend(tape.constants);
        let with_shape = |name: &str, shape: &[i64]| declared(name, Some(shape));
        *input = vec![
            with_shape(&images, &self.images_shape),
            with_shape(TARGET, &[batch, classes]),
            with_shape(SCALE, &[]),
        ];
        input.extend(weights.iter().map(|weight| with_shape(&weight.name, &weight.shape)));
        *output = vec![with_shape(LOSS, &[]), with_shape(&self.scores, &[batch, classes])];
        output.extend(weights.iter().map(|weight| declared(&weight.gradient, None)));
        value_info.clear();
        Ok(TrainingStep {
            graph: step,
            images,
            images_shape: self.images_shape.clone(),
            scores: self.scores.clone(),
            classes: usize::try_from(classes).unwrap_or_default(),
            weights,
        })
    }
}

fn without_values(graph: &GraphProto) -> GraphProto {
    let bare = |tensor: &TensorProto| TensorProto {
        name: tensor.name.clone(),
        dims: tensor.dims.clone(),
        data_type: tensor.data_type,
        ..TensorProto::default()
    };
    let initializer = graph.initializer.iter().map(bare).collect();
    GraphProto { node: graph.node.clone(), input: graph.input.clone(), initializer, ..GraphProto::default() }
}

/// Differentiates the operators from last to first; returns those without a rule, in words. `left`: why some compound
/// operators were not written out.
fn differentiate(
    tape: &mut GradientTape<'_>,
    nodes: &[NodeProto],
    left: &HashMap<String, String>,
) -> Result<Vec<String>, AutogradError> {
    let mut refused = Vec::new();
    for node in nodes.iter().rev() {
        let mut gradients = node.output.iter().map(|name| tape.gradient(name).map(str::to_owned));
        let (first, others) = (gradients.next().flatten(), gradients.collect::<Vec<_>>());
        if !tape.depends(node) || (first.is_none() && others.iter().all(Option::is_none)) {
            continue;
        }
        let first = match first {
            Some(first) => first,
            None => tape.zeros(&node.output[0])?,
        };
        let rule = rules::rule(node.op_type()).filter(|_| upgrade::is_standard(node));
        let given = match rule {
            Some(rule) => rule(tape, node, &OutputGradients { first, others }),
            None => Err(GradientRefusal::Unsupported(match node.op_type() {
                "If" | "Loop" | "Scan" => "export the model without branches and loops (traced, not scripted)".into(),
                _ => left.get(&node.output[0]).cloned().unwrap_or_else(|| "no rule".into()),
            })),
        };
        match given {
            Ok(()) => {}
            Err(GradientRefusal::Unsupported(why)) => refused.push(format!("{} ({why})", named(node))),
            Err(GradientRefusal::Broken(error)) => return Err(error),
        }
    }
    refused.reverse();
    Ok(refused)
}

/// Names every gradient like its output. Only its values matter, so a final change of shape, which would copy them, is
/// dropped.
fn outputs(tape: &mut GradientTape<'_>, weights: &[String]) -> Result<Vec<Weight>, AutogradError> {
    let mut outputs = Vec::new();
    for name in weights {
        let Some(gradient) = tape.gradient(name).map(str::to_owned) else {
            let why = format!("the scores do not depend on {name}");
            return Err(AutogradError::NothingTrainable { why });
        };
        let (shape, output) = (tape.shape(name)?.to_vec(), format!("gradient of {name}"));
        if !tape.rename(&gradient, &output) {
            // Another node reads it too, or it is one of the model's own tensors.
            tape.op_into("Identity", &[&gradient], &[] as &[AttributeValue<'_>], &output);
        }
        outputs.push(Weight { name: name.clone(), shape, gradient: output });
    }
    Ok(outputs)
}

/// Makes a differentiated MaxPool output the position of each maximum.
fn remember_places(node: &mut NodeProto, needed: &HashSet<String>) {
    let wanted = node.op_type() == "MaxPool" && node.input.first().is_some_and(|name| needed.contains(name));
    if wanted && node.output.len() == 1 {
        node.output.push(rules::places_of(node));
    }
}

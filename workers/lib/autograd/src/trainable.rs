//! Which weights are trained, and what must be differentiated for it. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::str::FromStr;

use wildmatch::WildMatch;

use crate::error::AutogradError;
use crate::onnx::{depends, int};
use crate::proto::{GraphProto, NodeProto};
use crate::tensor;
use crate::tensor_facts::TensorFacts;

/// The word for all weights, from which the trainer may exclude the first layers.
pub const AUTO: &str = "auto";

/// Which weights are trained.
#[derive(Debug, Clone, PartialEq)]
pub enum TrainableSelection {
    /// All that can be.
    All,
    /// Those of the last layers (operators with a matrix or a kernel), and everything after them.
    Last(usize),
    /// Those whose names match one of the patterns (`*`: anything, `?`: one character).
    Named(Vec<String>),
}

impl TrainableSelection {
    /// The last layer alone.
    pub const HEAD: TrainableSelection = TrainableSelection::Last(1);
}

impl FromStr for TrainableSelection {
    type Err = AutogradError;

    /// Parses `all`, `auto` (the trainer may exclude the first layers), `head`, `last 3`, or comma-separated name
    /// patterns.
    fn from_str(text: &str) -> Result<Self, AutogradError> {
        let unreadable = || AutogradError::Choice { text: text.into() };
        match text.trim() {
            "" => Err(unreadable()),
            "all" | AUTO => Ok(TrainableSelection::All),
            "head" => Ok(TrainableSelection::HEAD),
            other => match other.strip_prefix("last ") {
                Some(count) => match count.trim().parse() {
                    Ok(count) if count > 0 => Ok(TrainableSelection::Last(count)),
                    _ => Err(unreadable()),
                },
                None => Ok(TrainableSelection::Named(other.split(',').map(|name| name.trim().to_owned()).collect())),
            },
        }
    }
}

/// Whether a name matches one of the patterns (`*`: anything, `?`: one character).
pub fn is_named(name: &str, patterns: &[String]) -> bool {
    patterns.iter().any(|pattern| WildMatch::new(pattern).matches(name))
}

/// Whether it is a layer: an operator with a matrix or a kernel.
fn is_layer(node: &NodeProto) -> bool {
    matches!(
        node.op_type(),
        "Conv" | "ConvTranspose" | "Gemm" | "MatMul" | "Einsum" | "FusedConv" | "FusedGemm" | "FusedMatMul"
    )
}

/// Which inputs of an operator are trainable weights, if they are initializers. Not those of `Sub` and `Div`, which are
/// the mean and deviation of the pictures and belong to the input.
fn slots(node: &NodeProto) -> &'static [usize] {
    match node.op_type() {
        // In training mode it standardizes weights, and its addend is not part of that.
        "BatchNormalization" if int(node, "training_mode").unwrap_or(0) != 0 => &[0, 1],
        "Conv"
        | "ConvTranspose"
        | "BatchNormalization"
        | "LayerNormalization"
        | "InstanceNormalization"
        | "GroupNormalization"
        | "FusedConv" => &[1, 2],
        "SkipLayerNormalization" => &[2, 3, 4],
        "PRelu" | "BiasGelu" | "FastGelu" => &[1],
        "Attention" => &[3],
        "Gemm" | "FusedGemm" => &[0, 1, 2],
        "MatMul" | "FusedMatMul" | "Add" | "Mul" | "Einsum" => &[0, 1],
        "Concat" => &[0, 1, 2, 3],
        "Expand" | "Tile" | "Transpose" | "Gather" | "Unsqueeze" | "Reshape" => &[0],
        _ => &[],
    }
}

/// Names of the weights an operator could train.
fn candidates<'a>(graph: &'a GraphProto, node: &'a NodeProto) -> impl Iterator<Item = &'a str> {
    let weight = |name: &str| {
        let found = graph.initializer.iter().find(|tensor| tensor.name() == name)?;
        // A single number is a constant of the architecture.
        (found.data_type() == tensor::FLOAT && tensor::count(&found.dims) > 1).then_some(found.name())
    };
    let slots = if is_passed_to_difference(graph, node) { &[] } else { slots(node) };
    slots.iter().filter_map(|slot| node.input.get(*slot)).filter_map(move |name| weight(name))
}

/// Whether an operator only shapes an input of `Sub` or `Div`.
fn is_passed_to_difference(graph: &GraphProto, node: &NodeProto) -> bool {
    let takes = |other: &&NodeProto| node.output.first().is_some_and(|output| other.input.contains(output));
    matches!(node.op_type(), "Unsqueeze" | "Reshape")
        && graph.node.iter().filter(takes).any(|other| matches!(other.op_type(), "Sub" | "Div"))
}

/// For each tensor that does not depend on the images, the weights it is made of: weights that operators take through
/// others which shape or standardize them.
fn made_of(graph: &GraphProto) -> HashMap<&str, Vec<&str>> {
    let is_weight = |name: &str| graph.initializer.iter().any(|tensor| tensor.name() == name);
    let inputs = graph.input.iter().map(|input| input.name().to_owned()).filter(|name| !is_weight(name));
    let mut by_images: HashSet<String> = inputs.collect();
    let mut made: HashMap<&str, Vec<&str>> = HashMap::new();
    for node in &graph.node {
        if depends(node, &by_images) {
            by_images.extend(node.output.iter().cloned());
            continue;
        }
        let weights: Vec<&str> = taken(&made, node).chain(candidates(graph, node)).collect();
        if !weights.is_empty() {
            made.extend(node.output.iter().map(|output| (output.as_str(), weights.clone())));
        }
    }
    made
}

/// Weights that an operator takes through others.
fn taken<'a>(made: &HashMap<&str, Vec<&'a str>>, node: &NodeProto) -> impl Iterator<Item = &'a str> {
    node.input.iter().filter_map(|name| made.get(name.as_str())).flatten().copied()
}

/// Indices of the layers that have weights.
fn places(graph: &GraphProto, made: &HashMap<&str, Vec<&str>>) -> Vec<usize> {
    let has_weights = |node: &NodeProto| taken(made, node).chain(candidates(graph, node)).next().is_some();
    let nodes = graph.node.iter().enumerate();
    nodes.filter(|(_, node)| is_layer(node) && has_weights(node)).map(|(place, _)| place).collect()
}

/// Number of layers.
pub(crate) fn layers(graph: &GraphProto) -> usize {
    places(graph, &made_of(graph)).len()
}

/// Names of the trained weights, in the order of the graph.
pub(crate) fn choose(graph: &GraphProto, trainable: &TrainableSelection) -> Result<Vec<String>, AutogradError> {
    let made = made_of(graph);
    let first = match trainable {
        TrainableSelection::Last(count) => {
            let places = places(graph, &made);
            places.len().checked_sub(*count).map_or(0, |skipped| places.get(skipped).copied().unwrap_or(usize::MAX))
        }
        TrainableSelection::All | TrainableSelection::Named(_) => 0,
    };
    let patterns: Vec<WildMatch> = match trainable {
        TrainableSelection::Named(patterns) => patterns.iter().map(|pattern| WildMatch::new(pattern)).collect(),
        TrainableSelection::All | TrainableSelection::Last(_) => vec![WildMatch::new("*")],
    };
    let mut seen = BTreeSet::new();
    let mut chosen = Vec::new();
    for node in graph.node.iter().skip(first) {
        for name in taken(&made, node).chain(candidates(graph, node)) {
            if patterns.iter().any(|pattern| pattern.matches(name)) && seen.insert(name) {
                chosen.push(name.to_owned());
            }
        }
    }
    if chosen.is_empty() {
        let all: Vec<&str> = graph.node.iter().flat_map(|node| candidates(graph, node)).collect();
        let some = all.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        let why = match (trainable, all.is_empty()) {
            (_, true) => "the model has no weights that can be trained".to_owned(),
            (TrainableSelection::Named(patterns), _) => {
                format!(
                    "no weight matches {}; the model has {some} and others, {} in total",
                    patterns.join(" or "),
                    all.len()
                )
            }
            _ => "the last layers have no weights that can be trained".to_owned(),
        };
        return Err(AutogradError::NothingTrainable { why });
    }
    Ok(chosen)
}

/// Every tensor that depends on a trained weight, including the weights: what must be differentiated.
pub(crate) fn dependent_tensors(nodes: &[NodeProto], weights: &[String], known: &TensorFacts) -> HashSet<String> {
    let mut needed: HashSet<String> = weights.iter().cloned().collect();
    for node in nodes {
        if depends(node, &needed) {
            needed.extend(node.output.iter().filter(|name| known.is_float(name)).cloned());
        }
    }
    needed
}

//! Which weights are trained, and what must be differentiated for it. Pure.

use std::collections::{BTreeSet, HashSet};
use std::str::FromStr;

use wildmatch::WildMatch;

use crate::error::AutogradError;
use crate::known::Known;
use crate::proto::{GraphProto, NodeProto};
use crate::tensor;

/// Which weights are trained.
#[derive(Debug, Clone, PartialEq)]
pub enum Trainable {
    /// All that can be.
    All,
    /// Those of the last so many layers: operators with a matrix or a kernel, and what comes after them.
    Last(usize),
    /// Those whose names match one of the patterns (`*`: anything, `?`: one character).
    Named(Vec<String>),
}

impl Trainable {
    /// The last layer alone.
    pub const HEAD: Trainable = Trainable::Last(1);
}

impl FromStr for Trainable {
    type Err = AutogradError;

    /// `all`, `head`, `last 3`, or patterns of names with commas between them.
    fn from_str(text: &str) -> Result<Self, AutogradError> {
        let unreadable = || AutogradError::Choice { text: text.into() };
        match text.trim() {
            "" => Err(unreadable()),
            "all" => Ok(Trainable::All),
            "head" => Ok(Trainable::HEAD),
            other => match other.strip_prefix("last ") {
                Some(count) => match count.trim().parse() {
                    Ok(count) if count > 0 => Ok(Trainable::Last(count)),
                    _ => Err(unreadable()),
                },
                None => Ok(Trainable::Named(other.split(',').map(|name| name.trim().to_owned()).collect())),
            },
        }
    }
}

/// Whether a name matches one of the patterns (`*`: anything, `?`: one character).
pub fn is_named(name: &str, patterns: &[String]) -> bool {
    patterns.iter().any(|pattern| WildMatch::new(pattern).matches(name))
}

/// A layer: an operator with a matrix or a kernel.
fn is_layer(node: &NodeProto) -> bool {
    matches!(node.op_type(), "Conv" | "ConvTranspose" | "Gemm" | "MatMul")
}

/// Which inputs of an operator are weights that can be trained, if they are initializers. Not those of `Sub` and
/// `Div`: they take the mean and the deviation of the pictures, which belong to the input.
fn slots(node: &NodeProto) -> &'static [usize] {
    match node.op_type() {
        "Conv" | "ConvTranspose" | "BatchNormalization" | "LayerNormalization" | "InstanceNormalization" => &[1, 2],
        "PRelu" => &[1],
        "Gemm" => &[0, 1, 2],
        "MatMul" | "Add" | "Mul" => &[0, 1],
        "Concat" => &[0, 1, 2, 3],
        "Expand" | "Transpose" | "Gather" | "Unsqueeze" => &[0],
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

/// Whether an operator does no more than shape what `Sub` or `Div` takes.
fn is_passed_to_difference(graph: &GraphProto, node: &NodeProto) -> bool {
    let takes = |other: &&NodeProto| node.output.first().is_some_and(|output| other.input.contains(output));
    node.op_type() == "Unsqueeze"
        && graph.node.iter().filter(takes).any(|other| matches!(other.op_type(), "Sub" | "Div"))
}

/// How many layers there are.
pub(crate) fn layers(graph: &GraphProto) -> usize {
    let has_weights = |node: &&NodeProto| is_layer(node) && candidates(graph, node).next().is_some();
    graph.node.iter().filter(has_weights).count()
}

/// Names of the weights that are trained, in the order of the graph.
pub(crate) fn choose(graph: &GraphProto, trainable: &Trainable) -> Result<Vec<String>, AutogradError> {
    let first = match trainable {
        Trainable::Last(count) => {
            let has_weights = |node: &NodeProto| is_layer(node) && candidates(graph, node).next().is_some();
            let places: Vec<usize> = (0..graph.node.len()).filter(|place| has_weights(&graph.node[*place])).collect();
            places.len().checked_sub(*count).map_or(0, |skipped| places.get(skipped).copied().unwrap_or(usize::MAX))
        }
        Trainable::All | Trainable::Named(_) => 0,
    };
    let patterns: Vec<WildMatch> = match trainable {
        Trainable::Named(patterns) => patterns.iter().map(|pattern| WildMatch::new(pattern)).collect(),
        Trainable::All | Trainable::Last(_) => vec![WildMatch::new("*")],
    };
    let mut seen = BTreeSet::new();
    let mut chosen = Vec::new();
    for node in graph.node.iter().skip(first) {
        for name in candidates(graph, node) {
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
            (Trainable::Named(patterns), _) => {
                format!(
                    "no weight is named {}; there are {some} and so on, {} in all",
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

/// Every tensor that depends on a trained weight, the weights included: what must be differentiated.
pub(crate) fn needed(nodes: &[NodeProto], weights: &[String], known: &Known) -> HashSet<String> {
    let mut needed: HashSet<String> = weights.iter().cloned().collect();
    for node in nodes {
        if node.input.iter().any(|name| needed.contains(name)) {
            needed.extend(node.output.iter().filter(|name| known.is_float(name)).cloned());
        }
    }
    needed
}

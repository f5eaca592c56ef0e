//! Folds a frozen normalization into the preceding convolution: the kernel is multiplied by `gamma / sqrt(variance +
//! epsilon)` before the convolution instead of every pixel after it. That is the same function with the same gradients,
//! and cheaper if the kernel has fewer values than the output.

use std::collections::HashMap;

use crate::onnx::{float, int};
use crate::proto::{GraphProto, NodeProto, TensorProto};
use crate::tensor;
use crate::tensor_facts::{TensorConstants, TensorFacts};

/// Default of `epsilon`.
pub(crate) const EPSILON: f32 = 1e-5;

/// Folds every `BatchNormalization` whose input is a convolution without other readers, where it is cheaper. Adds facts
/// about the new tensors.
pub(crate) fn fold(graph: &mut GraphProto, known: &mut TensorFacts) {
    let mut readers: HashMap<String, usize> = HashMap::new();
    for name in graph.node.iter().flat_map(|node| &node.input) {
        *readers.entry(name.clone()).or_default() += 1;
    }
    graph.output.iter().for_each(|output| *readers.entry(output.name().to_owned()).or_default() += 1);
    let weights: HashMap<String, TensorProto> =
        graph.initializer.iter().map(|tensor| (tensor.name().to_owned(), tensor.clone())).collect();
    let mut makers: HashMap<String, usize> = HashMap::new();
    let mut nodes: Vec<NodeProto> = Vec::new();
    for node in std::mem::take(&mut graph.node) {
        let before = node.input.first().and_then(|input| makers.get(input).copied());
        let folded = before.and_then(|place| {
            let only_reader = readers.get(&node.input[0]) == Some(&1);
            let kernel = nodes[place].input.get(1).is_some_and(|kernel| weights.contains_key(kernel));
            let fits = nodes[place].op_type() == "Conv" && only_reader && kernel && pays(&nodes[place], known);
            fits.then(|| folding(&nodes[place], &node, &weights)).flatten().map(|parts| (place, parts))
        });
        match folded {
            Some((place, parts)) => {
                graph.initializer.extend(parts.constants);
                for (name, shape) in parts.shapes {
                    known.add(&name, shape, TensorConstants::Floats(Vec::new()));
                }
                let output = node.output[0].clone();
                // The convolution moves to the place of the normalization, where everything it reads is available.
                nodes[place] = NodeProto { op_type: Some("Identity".into()), ..NodeProto::default() };
                nodes.extend(parts.nodes);
                makers.insert(output, nodes.len() - 1);
            }
            None => {
                makers.extend(node.output.iter().map(|output| (output.clone(), nodes.len())));
                nodes.push(node);
            }
        }
    }
    nodes.retain(|node| !node.output.is_empty());
    graph.node = nodes;
}

struct NormalizationParts {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    /// Shapes of all new tensors.
    shapes: Vec<(String, Vec<i64>)>,
}

/// Whether a convolution's kernel has fewer values than its output.
fn pays(conv: &NodeProto, known: &TensorFacts) -> bool {
    let count = |name: Option<&String>| name.and_then(|name| known.shape(name).ok()).map(tensor::count);
    match (count(conv.input.get(1)), count(conv.output.first())) {
        (Some(kernel), Some(output)) => kernel < output,
        _ => false,
    }
}

/// `Conv(x, kernel, bias)` followed by a normalization, as one convolution with a scaled kernel.
fn folding(conv: &NodeProto, norm: &NodeProto, weights: &HashMap<String, TensorProto>) -> Option<NormalizationParts> {
    if norm.op_type() != "BatchNormalization" || int(norm, "training_mode").unwrap_or(0) != 0 {
        return None;
    }
    let [_, gamma, beta, mean, variance] = norm.input.as_slice() else { return None };
    let read = |name: &String| weights.get(name).and_then(|tensor| tensor::read_floats(tensor).ok());
    let (mean, variance) = (read(mean)?, read(variance)?);
    let epsilon = float(norm, "epsilon").unwrap_or(EPSILON);
    let inverse: Vec<f32> = variance.iter().map(|variance| 1.0 / (variance + epsilon).sqrt()).collect();
    let channels = inverse.len() as i64;
    let kernel = conv.input.get(1)?;
    let dims = weights.get(kernel)?.dims.clone();
    let rank = dims.len();
    let output = norm.output.first()?;
    let name = |what: &str| format!("{output}/{what}");
    let mut column = vec![1; rank];
    column[0] = channels;
    let constants = vec![
        tensor::floats(&name("inverse"), &[channels], &inverse),
        tensor::floats(&name("mean"), &[channels], &mean),
        tensor::ints(&name("column"), &[rank as i64], &column),
    ];
    let row = |what: &str| (name(what), vec![channels]);
    let mut shapes = vec![(name("scale_column"), column), (name("kernel"), dims)];
    shapes.extend(["inverse", "mean", "scale", "shift", "scaled_shift", "bias"].map(row));
    let node = |op: &str, inputs: &[&str], what: &str| NodeProto {
        op_type: Some(op.into()),
        name: Some(name(what)),
        input: inputs.iter().map(|input| (*input).to_owned()).collect(),
        output: vec![name(what)],
        ..NodeProto::default()
    };
    let mut nodes = vec![
        node("Mul", &[gamma, &name("inverse")], "scale"),
        node("Reshape", &[&name("scale"), &name("column")], "scale_column"),
        node("Mul", &[kernel, &name("scale_column")], "kernel"),
    ];
    // bias = beta + (bias - mean) · scale
    match conv.input.get(2).filter(|bias| !bias.is_empty()) {
        Some(bias) => {
            nodes.push(node("Sub", &[bias, &name("mean")], "shift"));
            nodes.push(node("Mul", &[&name("shift"), &name("scale")], "scaled_shift"));
            nodes.push(node("Add", &[beta, &name("scaled_shift")], "bias"));
        }
        None => {
            nodes.push(node("Mul", &[&name("mean"), &name("scale")], "scaled_shift"));
            nodes.push(node("Sub", &[beta, &name("scaled_shift")], "bias"));
        }
    }
    let mut one = conv.clone();
    one.input = vec![conv.input[0].clone(), name("kernel"), name("bias")];
    one.output = vec![output.clone()];
    nodes.push(one);
    Some(NormalizationParts { nodes, constants, shapes })
}

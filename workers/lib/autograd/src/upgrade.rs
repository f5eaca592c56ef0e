//! Rewrites operators to a later opset: gradients need some that version 13 does not have (`ScatterElements` with
//! addition), and a graph has one version for all of its operators.

use crate::onnx::{attribute, ints};
use crate::proto::{GraphProto, NodeProto};
use crate::tensor;

/// The opset of steps, if the model's is older.
pub(crate) const STEP_OPSET: i64 = 18;

/// Rewrites a graph of opset 13 to 17 as opset 18.
pub(crate) fn upgrade(graph: &mut GraphProto) {
    let mut constants = Vec::new();
    for (place, node) in graph.node.iter_mut().enumerate() {
        match node.op_type() {
            // Axes became an input in 18; those of ReduceSum did in 13.
            "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL1" | "ReduceL2" | "ReduceLogSum"
            | "ReduceLogSumExp" | "ReduceSumSquare" => {
                if let Some(axes) = ints(node, "axes") {
                    let name = format!("axes_of_{place}");
                    constants.push(tensor::ints(&name, &[axes.len() as i64], &axes));
                    node.attribute.retain(|attribute| attribute.name() != "axes");
                    node.input.push(name);
                }
            }
            // Since 18, equal parts are requested by their number.
            "Split" if node.input.len() < 2 && attribute(node, "num_outputs").is_none() => {
                let parts = crate::gradient_tape::AttributeValue::Int("num_outputs", node.output.len() as i64);
                node.attribute.push((&parts).into());
            }
            _ => {}
        }
    }
    graph.initializer.extend(constants);
}

/// Whether an operator is of the standard domain.
pub(crate) fn is_standard(node: &NodeProto) -> bool {
    matches!(node.domain(), "" | "ai.onnx")
}

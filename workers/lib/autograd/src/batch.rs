//! Widens models that were exported for a single image to several: wherever the batch size is written into the graph as
//! a number, it is replaced. Only if every operator provably works image by image; nothing is guessed.

use std::collections::{HashMap, HashSet};

use crate::error::AutogradError;
use crate::onnx::{OnnxDocument, depends, int, ints, named};
use crate::proto::tensor_shape_proto::dimension::Value as Size;
use crate::proto::type_proto::Value as Kind;
use crate::proto::{GraphProto, NodeProto, TensorProto};
use crate::rules::{from_front, input};
use crate::tensor;
use crate::tensor_facts::TensorFacts;

/// Operators that process each index of the first axis separately.
const BY_IMAGE: [&str; 11] = [
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "InstanceNormalization",
    "GroupNormalization",
    "LRN",
    "DepthToSpace",
    "SpaceToDepth",
];

impl OnnxDocument {
    /// The batch size that the model declares; `None` if it is open.
    pub fn declared_batch(&self) -> Option<i64> {
        let name = self.input().ok()?;
        let declared = self.graph().ok()?.input.iter().find(|input| input.name() == name)?;
        let Some(Kind::TensorType(tensor)) = &declared.r#type.as_ref()?.value else { return None };
        match tensor.shape.as_ref()?.dim.first()?.value {
            Some(Size::DimValue(size)) => Some(size),
            _ => None,
        }
    }
}

/// Rewrites a graph for one image as one for several. `known`: facts about all tensors, for one image.
pub(crate) fn widen_batch(
    graph: &mut GraphProto,
    images: &str,
    scores: &str,
    known: &TensorFacts,
    count: i64,
) -> Result<(), AutogradError> {
    let refused = |why: String| AutogradError::FixedBatch { found: 1, why };
    let mut widening = BatchAxis {
        known,
        count,
        axes: HashMap::from([(images.to_owned(), 0)]),
        by_images: HashSet::from([images.to_owned()]),
        nodes: Vec::with_capacity(graph.node.len()),
        constants: Vec::new(),
    };
    for mut node in std::mem::take(&mut graph.node) {
        if depends(&node, &widening.by_images) {
            widening.by_images.extend(node.output.iter().cloned());
            // Integers describe shapes; a node that uses one as a shape gets a new one.
            if node.output.iter().all(|output| known.ints(output).is_none()) {
                let axis = widening.axis_of(&mut node);
                let axis = axis.ok_or_else(|| refused(format!("{} cannot take more", named(&node))))?;
                widening.axes.extend(node.output.iter().map(|output| (output.clone(), axis)));
            }
        }
        widening.nodes.push(node);
    }
    if widening.axes.get(scores) != Some(&0) || known.shape(scores)?.first() != Some(&1) {
        return Err(refused(format!("its scores {scores} have no row for each image")));
    }
    graph.node = widening.nodes;
    graph.initializer.extend(widening.constants);
    Ok(())
}

/// Follows the batch axis through a graph. It may be merged with others, as in `[images · heads, ..]`: the entries of
/// one image are then adjacent.
struct BatchAxis<'a> {
    known: &'a TensorFacts,
    count: i64,
    axes: HashMap<String, usize>,
    by_images: HashSet<String>,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl BatchAxis<'_> {
    fn shape(&self, name: &str) -> Option<&[i64]> {
        self.known.shape(name).ok()
    }

    /// The batch axis of a node's output, if the node works image by image. Numbers in it that give the batch size are
    /// replaced.
    fn axis_of(&mut self, node: &mut NodeProto) -> Option<usize> {
        let first = self.axes.get(input(node, 0)).copied();
        let rank = self.shape(input(node, 0))?.len();
        let rest_is_constant = node.input.iter().skip(1).all(|name| !self.by_images.contains(name));
        match node.op_type() {
            "Relu" | "LeakyRelu" | "Elu" | "Selu" | "Celu" | "Sigmoid" | "HardSigmoid" | "HardSwish" | "Tanh"
            | "Softplus" | "Softsign" | "Mish" | "Gelu" | "QuickGelu" | "Erf" | "Exp" | "Log" | "Sqrt" | "Neg"
            | "Abs" | "Reciprocal" | "Sin" | "Cos" | "Clip" | "Identity" | "Dropout" | "Cast" | "Not" => {
                first.filter(|_| rest_is_constant)
            }
            op if BY_IMAGE.contains(&op) => first.filter(|axis| *axis == 0 && rest_is_constant),
            // In training mode, each image changes the others.
            "BatchNormalization" if int(node, "training_mode").unwrap_or(0) == 0 => {
                first.filter(|axis| *axis == 0 && rest_is_constant)
            }
            "Resize" => {
                let axis = first.filter(|axis| *axis == 0)?;
                if !input(node, 3).is_empty() {
                    self.resize(node, 3, axis)?;
                }
                Some(axis)
            }
            "Softmax" | "LogSoftmax" => {
                let over = from_front(int(node, "axis").unwrap_or(-1), rank) as usize;
                first.filter(|axis| *axis != over)
            }
            "LayerNormalization" => {
                let from = from_front(int(node, "axis").unwrap_or(-1), rank) as usize;
                first.filter(|axis| *axis < from && rest_is_constant)
            }
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Min" | "Max" | "Sum" | "Mean" | "PRelu" | "Where" | "Equal"
            | "Greater" | "Less" | "And" | "Or" => {
                let rank = self.shape(&node.output[0])?.len();
                self.aligned(node, rank)
            }
            "MatMul" => {
                let full = self.shape(&node.output[0])?.len();
                let are_matrices = (0..2).all(|place| self.shape(input(node, place)).is_some_and(|s| s.len() > 1));
                // Rows of the first may be images if the second is one matrix for all of them.
                let rows = rank == full && rest_is_constant && first.is_some_and(|axis| axis + 2 == rank);
                match are_matrices {
                    true if rows => first,
                    true => self.aligned(node, full).filter(|axis| axis + 2 < full),
                    false => None,
                }
            }
            "Gemm" => {
                let added = self.shape(input(node, 2)).map_or(&[][..], |shape| shape);
                let fits = int(node, "transA").unwrap_or(0) == 0 && (added.len() < 2 || added[0] == 1);
                first.filter(|axis| *axis == 0 && rest_is_constant && fits)
            }
            "Attention" => {
                let pictures = (0..3).all(|place| self.axes.get(input(node, place)) == Some(&0));
                let mask = self.shape(input(node, 3)).map_or(&[][..], |shape| shape);
                let fits = node.input.iter().skip(3).all(|name| !self.by_images.contains(name));
                (pictures && fits && (mask.len() < 4 || mask[0] == 1)).then_some(0)
            }
            "Transpose" => {
                let order = ints(node, "perm").unwrap_or_else(|| (0..rank as i64).rev().collect());
                let axis = first?;
                order.iter().position(|from| *from == axis as i64)
            }
            "Concat" => self.concat(node),
            "Split" => {
                let along = from_front(int(node, "axis").unwrap_or(0), rank) as usize;
                first.filter(|axis| *axis != along)
            }
            "Slice" => {
                let starts = self.known.ints(input(node, 1))?.len() as i64;
                let axes = match input(node, 3) {
                    "" => (0..starts).collect(),
                    name => self.known.ints(name)?.to_vec(),
                };
                first.filter(|axis| axes.iter().all(|along| from_front(*along, rank) as usize != *axis))
            }
            "Pad" => {
                let pads = self.known.ints(input(node, 1)).filter(|pads| pads.len() == 2 * rank)?;
                first.filter(|axis| pads[*axis] == 0 && pads[rank + *axis] == 0 && input(node, 3).is_empty())
            }
            "Gather" => {
                let along = from_front(int(node, "axis").unwrap_or(0), rank) as usize;
                let places = self.shape(input(node, 1))?.len();
                let axis = first.filter(|axis| *axis != along && rest_is_constant)?;
                if axis < along { Some(axis) } else { (axis + places).checked_sub(1) }
            }
            "Unsqueeze" => {
                let rank = self.shape(&node.output[0])?.len();
                let added: Vec<i64> = self.known.ints(input(node, 1))?.iter().map(|at| from_front(*at, rank)).collect();
                (0..rank).filter(|axis| !added.contains(&(*axis as i64))).nth(first?)
            }
            "Squeeze" => {
                let axes = self.known.ints(input(node, 1)).filter(|axes| !axes.is_empty())?;
                self.without(first?, rank, axes)
            }
            "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL1" | "ReduceL2"
            | "ReduceSumSquare" | "ReduceLogSumExp" => {
                let axes = self.known.ints(input(node, 1)).filter(|axes| !axes.is_empty())?;
                let left = self.without(first?, rank, axes)?;
                if int(node, "keepdims").unwrap_or(1) != 0 { first } else { Some(left) }
            }
            "Flatten" => {
                let from = from_front(int(node, "axis").unwrap_or(1), rank);
                first.filter(|axis| *axis == 0 && from > 0)
            }
            "Reshape" => {
                let from = self.shape(input(node, 0))?;
                let to = self.shape(&node.output[0])?;
                let outer = tensor::count(&from[..first?]);
                let axis = (0..to.len()).find(|axis| tensor::count(&to[..*axis]) == outer)?;
                self.resize(node, 1, axis)?;
                Some(axis)
            }
            "Expand" => {
                let (from, to) = (self.shape(input(node, 0))?, self.shape(&node.output[0])?);
                let axis = first? + to.len().checked_sub(from.len())?;
                if from.get(first?) != to.get(axis) {
                    return None;
                }
                self.resize(node, 1, axis)?;
                Some(axis)
            }
            _ => None,
        }
    }

    /// An axis' index after others are removed; `None` if it is removed itself.
    fn without(&self, axis: usize, rank: usize, gone: &[i64]) -> Option<usize> {
        let gone: Vec<usize> = gone.iter().map(|at| from_front(*at, rank) as usize).collect();
        (!gone.contains(&axis)).then(|| axis - gone.iter().filter(|at| **at < axis).count())
    }

    /// The batch axis of inputs that are broadcast together, if it is the same for all and constants have one row for
    /// all images.
    fn aligned(&self, node: &NodeProto, rank: usize) -> Option<usize> {
        let mut found: Option<(usize, i64)> = None;
        for name in &node.input {
            let shape = self.shape(name)?;
            if let Some(axis) = self.axes.get(name) {
                let own = (axis + rank.checked_sub(shape.len())?, shape[*axis]);
                if found.is_some_and(|found| found != own) {
                    return None;
                }
                found = Some(own);
            }
        }
        let (axis, _) = found?;
        let fits = node.input.iter().filter(|name| !self.axes.contains_key(*name)).all(|name| {
            let shape = self.shape(name).unwrap_or_default();
            let own = (axis + shape.len()).checked_sub(rank);
            !self.by_images.contains(name) && own.is_none_or(|own| shape.get(own) == Some(&1))
        });
        fits.then_some(axis)
    }

    /// Repeats for each image what is concatenated once, such as a class token.
    fn concat(&mut self, node: &mut NodeProto) -> Option<usize> {
        let rank = self.shape(&node.output[0])?.len();
        let along = from_front(int(node, "axis").unwrap_or(0), rank) as usize;
        let axis = self.aligned(node, rank).filter(|axis| *axis != along)?;
        for place in 0..node.input.len() {
            let name = input(node, place).to_owned();
            if !self.axes.contains_key(&name) {
                let mut shape = self.shape(&name)?.to_vec();
                *shape.get_mut(axis)? *= self.count;
                let repeated = format!("{}/repeated_{place}", node.output[0]);
                let sizes = self.sizes(&repeated, &shape);
                self.nodes.push(NodeProto {
                    op_type: Some("Expand".into()),
                    name: Some(repeated.clone()),
                    input: vec![name, sizes],
                    output: vec![repeated.clone()],
                    ..NodeProto::default()
                });
                node.input[place] = repeated;
            }
        }
        Some(axis)
    }

    /// Writes the output shape of a node, with all images along an axis.
    fn resize(&mut self, node: &mut NodeProto, place: usize, axis: usize) -> Option<()> {
        let mut shape = self.shape(&node.output[0])?.to_vec();
        if shape.contains(&0) {
            return None;
        }
        *shape.get_mut(axis)? *= self.count;
        let sizes = self.sizes(&node.output[0], &shape);
        *node.input.get_mut(place)? = sizes;
        Some(())
    }

    fn sizes(&mut self, of: &str, shape: &[i64]) -> String {
        let name = format!("{of}/sizes_of_batch");
        self.constants.push(tensor::ints(&name, &[shape.len() as i64], shape));
        name
    }
}

#[cfg(test)]
mod tests {
    use crate::build::Builder;
    use crate::gradient_tape::AttributeValue;
    use crate::tensor_facts::TensorConstants;
    use crate::training_step::PreparedModel;

    #[test]
    fn operators_that_may_mix_images_are_refused_by_name() {
        let refused = |op: &str, attributes: &[AttributeValue<'_>]| {
            let mut model = Builder::new("images", &[1, 3]);
            model.weight("weight", &[3, 2], &[0.5; 6]);
            model.node(op, &["images"], "mixed", attributes);
            model.node("MatMul", &["mixed", "weight"], "scores", &[]);
            let model = model.finish("scores", &[1, 2]);
            assert_eq!(model.declared_batch(), Some(1));
            let single = PreparedModel::new(&model, "scores", &[1, 3]).unwrap();
            let mut known = single.known().unwrap();
            known.add("mixed", vec![1, 3], TensorConstants::Floats(Vec::new()));
            known.add("scores", vec![1, 2], TensorConstants::Floats(Vec::new()));
            single.widened(&known, 4).err().map(|error| error.to_string())
        };
        assert_eq!(refused("Relu", &[]), None);
        assert_eq!(refused("Softmax", &[AttributeValue::Int("axis", 1)]), None);
        let error = refused("Softmax", &[AttributeValue::Int("axis", 0)]).unwrap();
        assert!(error.contains("Softmax \"mixed\"") && error.ends_with("export it with a dynamic batch"), "{error}");
        assert!(refused("CumSum", &[]).is_some());
    }
}

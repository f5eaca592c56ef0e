//! Records what is written while gradients are derived: new operators, constants, and which tensor holds whose
//! gradient.

use std::collections::{HashMap, HashSet};

use crate::error::AutogradError;
use crate::onnx;
use crate::proto::attribute_proto::AttributeType;
use crate::proto::{AttributeProto, NodeProto, TensorProto};
use crate::tensor;
use crate::tensor_facts::TensorFacts;

/// Why an operator's gradient cannot be derived.
#[derive(Debug)]
pub enum GradientRefusal {
    /// There is no rule, or not for this use.
    Unsupported(String),
    /// The model contradicts itself.
    Broken(AutogradError),
}

impl From<AutogradError> for GradientRefusal {
    fn from(error: AutogradError) -> Self {
        GradientRefusal::Broken(error)
    }
}

/// A refusal with this reason.
pub(crate) fn unsupported<T>(why: impl Into<String>) -> Result<T, GradientRefusal> {
    Err(GradientRefusal::Unsupported(why.into()))
}

/// New operators, constants and gradients.
pub struct GradientTape<'a> {
    known: &'a TensorFacts,
    needed: &'a HashSet<String>,
    pub(crate) nodes: Vec<NodeProto>,
    pub(crate) constants: Vec<TensorProto>,
    gradients: HashMap<String, String>,
    written: usize,
}

/// An attribute to write.
pub enum AttributeValue<'a> {
    /// An integer.
    Int(&'a str, i64),
    /// A float.
    Float(&'a str, f32),
    /// Integers.
    Ints(&'a str, &'a [i64]),
    /// A string.
    Text(&'a str, &'a str),
}

impl From<&AttributeValue<'_>> for AttributeProto {
    fn from(attr: &AttributeValue<'_>) -> Self {
        let kind = |name: &str, kind: AttributeType| AttributeProto {
            name: Some(name.into()),
            r#type: Some(kind as i32),
            ..AttributeProto::default()
        };
        match attr {
            AttributeValue::Int(name, value) => AttributeProto { i: Some(*value), ..kind(name, AttributeType::Int) },
            AttributeValue::Float(name, value) => {
                AttributeProto { f: Some(*value), ..kind(name, AttributeType::Float) }
            }
            AttributeValue::Ints(name, values) => {
                AttributeProto { ints: values.to_vec(), ..kind(name, AttributeType::Ints) }
            }
            AttributeValue::Text(name, text) => {
                AttributeProto { s: Some(text.as_bytes().to_vec()), ..kind(name, AttributeType::String) }
            }
        }
    }
}

impl<'a> GradientTape<'a> {
    /// An empty tape.
    pub fn new(known: &'a TensorFacts, needed: &'a HashSet<String>) -> Self {
        let (nodes, constants, gradients) = (Vec::new(), Vec::new(), HashMap::new());
        Self { known, needed, nodes, constants, gradients, written: 0 }
    }

    /// Facts about the model's own tensors.
    pub fn known(&self) -> &'a TensorFacts {
        self.known
    }

    /// The shape of one of the model's own tensors.
    pub fn shape(&self, name: &str) -> Result<&'a [i64], AutogradError> {
        self.known.shape(name)
    }

    /// Whether a tensor's gradient is needed.
    pub fn needs(&self, name: &str) -> bool {
        self.needed.contains(name)
    }

    /// Whether a node reads a tensor whose gradient is needed.
    pub(crate) fn depends(&self, node: &NodeProto) -> bool {
        onnx::depends(node, self.needed)
    }

    fn fresh(&mut self, what: &str) -> String {
        self.written += 1;
        format!("gradient/{what}_{}", self.written)
    }

    /// Writes an operator with one output and returns the output's name.
    pub fn op(&mut self, op: &str, inputs: &[&str], attributes: &[AttributeValue<'_>]) -> String {
        let output = self.fresh(op);
        self.op_into(op, inputs, attributes, &output);
        output
    }

    /// Writes an operator with several outputs and returns their names.
    pub fn ops(&mut self, op: &str, inputs: &[&str], attributes: &[AttributeValue<'_>], outputs: usize) -> Vec<String> {
        let outputs: Vec<String> = (0..outputs).map(|_| self.fresh(op)).collect();
        self.node(op, inputs, attributes, outputs.clone());
        outputs
    }

    /// Writes an operator whose output has this name.
    pub fn op_into(&mut self, op: &str, inputs: &[&str], attributes: &[AttributeValue<'_>], output: &str) {
        self.node(op, inputs, attributes, vec![output.to_owned()]);
    }

    fn node(&mut self, op: &str, inputs: &[&str], attributes: &[AttributeValue<'_>], outputs: Vec<String>) {
        self.nodes.push(NodeProto {
            op_type: Some(op.into()),
            name: outputs.first().cloned(),
            input: inputs.iter().map(|input| (*input).to_owned()).collect(),
            output: outputs,
            attribute: attributes.iter().map(AttributeProto::from).collect(),
            ..NodeProto::default()
        });
    }

    /// Writes a float constant and returns its name.
    pub fn floats(&mut self, shape: &[i64], values: &[f32]) -> String {
        let name = self.fresh("constant");
        self.constants.push(tensor::floats(&name, shape, values));
        name
    }

    /// Writes a single number and returns its name.
    pub fn number(&mut self, value: f32) -> String {
        self.floats(&[], &[value])
    }

    /// Writes a row of integers and returns its name.
    pub fn ints(&mut self, values: &[i64]) -> String {
        let name = self.fresh("constant");
        self.constants.push(tensor::ints(&name, &[values.len() as i64], values));
        name
    }

    /// Adds to a tensor's gradient; ignored if its gradient is not needed.
    pub fn add_gradient(&mut self, name: &str, gradient: String) {
        if !self.needs(name) {
            return;
        }
        let sum = match self.gradients.get(name).cloned() {
            Some(other) => self.op("Add", &[&other, &gradient], &[]),
            None => gradient,
        };
        self.gradients.insert(name.to_owned(), sum);
    }

    /// The tensor with another tensor's gradient.
    pub fn gradient(&self, name: &str) -> Option<&str> {
        self.gradients.get(name).map(String::as_str)
    }

    /// Renames a tensor written here, or its input if it only changes the shape; false if another node reads it.
    pub fn rename(&mut self, tensor: &str, name: &str) -> bool {
        let reads = |nodes: &[NodeProto], tensor: &str| nodes.iter().any(|node| node.input.iter().any(|i| i == tensor));
        let made =
            |nodes: &[NodeProto], tensor: &str| nodes.iter().position(|node| node.output.iter().any(|o| o == tensor));
        if reads(&self.nodes, tensor) {
            return false;
        }
        let mut tensor = tensor.to_owned();
        while let Some(place) = made(&self.nodes, &tensor)
            && self.nodes[place].op_type() == "Reshape"
            && let Some(before) = made(&self.nodes, &self.nodes[place].input[0])
            && self.nodes[before].output.len() == 1
        {
            let reshape = self.nodes.remove(place);
            if reads(&self.nodes, &reshape.input[0]) {
                self.nodes.insert(place, reshape);
                break;
            }
            tensor.clone_from(&reshape.input[0]);
        }
        let Some(place) = made(&self.nodes, &tensor) else { return false };
        self.nodes[place]
            .output
            .iter_mut()
            .filter(|output| **output == tensor)
            .for_each(|output| *output = name.into());
        true
    }

    // Steps that many rules share.

    /// The same values in another shape.
    pub fn reshape(&mut self, tensor: &str, shape: &[i64]) -> String {
        let shape = self.ints(shape);
        self.op("Reshape", &[tensor, &shape], &[])
    }

    /// The axes in another order.
    pub fn transpose(&mut self, tensor: &str, order: &[i64]) -> String {
        self.op("Transpose", &[tensor], &[AttributeValue::Ints("perm", order)])
    }

    /// Zeros in the shape of one of the model's own tensors.
    pub fn zeros(&mut self, name: &str) -> Result<String, AutogradError> {
        let shape = self.ints(self.shape(name)?);
        Ok(self.op("ConstantOfShape", &[&shape], &[]))
    }

    /// The sum over axes.
    pub fn sum(&mut self, tensor: &str, axes: &[i64], keep: bool) -> String {
        let axes = self.ints(axes);
        self.op("ReduceSum", &[tensor, &axes], &[AttributeValue::Int("keepdims", keep.into())])
    }

    /// The product of two tensors.
    pub fn mul(&mut self, a: &str, b: &str) -> String {
        self.op("Mul", &[a, b], &[])
    }

    /// Every value times a number.
    pub fn scale(&mut self, tensor: &str, by: f32) -> String {
        let by = self.number(by);
        self.mul(tensor, &by)
    }

    /// Adds zeros at both ends of every axis, or removes values where negative: first all begins, then all ends.
    pub fn pad(&mut self, tensor: &str, pads: &[i64]) -> String {
        if pads.iter().all(|pad| *pad == 0) {
            return tensor.to_owned();
        }
        let pads = self.ints(pads);
        self.op("Pad", &[tensor, &pads], &[])
    }

    /// A range of some axes, with steps.
    pub fn slice(&mut self, tensor: &str, starts: &[i64], ends: &[i64], axes: &[i64], steps: &[i64]) -> String {
        let (starts, ends, axes, steps) = (self.ints(starts), self.ints(ends), self.ints(axes), self.ints(steps));
        self.op("Slice", &[tensor, &starts, &ends, &axes, &steps], &[])
    }

    /// The gradient of a broadcast tensor: summed over the axes along which it was repeated.
    pub fn unbroadcast(&mut self, gradient: &str, from: &[i64], to: &[i64]) -> String {
        if from == to {
            return gradient.to_owned();
        }
        let missing = from.len() - to.len().min(from.len());
        let repeated = |axis: &usize| *axis < missing || (to[*axis - missing] == 1 && from[*axis] != 1);
        let axes: Vec<i64> = (0..from.len()).filter(repeated).map(|axis| axis as i64).collect();
        let summed = if axes.is_empty() { gradient.to_owned() } else { self.sum(gradient, &axes, true) };
        self.reshape(&summed, to)
    }
}

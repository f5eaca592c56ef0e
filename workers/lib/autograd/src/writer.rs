//! Writes replacements of an operator: others that do the same, constants, and facts about both.

use crate::gradient_tape::AttributeValue;
use crate::proto::{NodeProto, TensorProto};
use crate::tensor;
use crate::tensor_facts::{TensorConstants, TensorFacts};

/// Replacements of an operator. Their tensors are named after its first output.
pub(crate) struct Writer<'a> {
    /// The operator being replaced.
    pub node: &'a NodeProto,
    pub nodes: Vec<NodeProto>,
    pub constants: Vec<TensorProto>,
    pub known: &'a mut TensorFacts,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(node: &'a NodeProto, known: &'a mut TensorFacts) -> Self {
        Self { node, nodes: Vec::new(), constants: Vec::new(), known }
    }

    /// Name of a new tensor.
    pub(crate) fn name(&self, what: &str) -> String {
        let output = self.node.output.first().map(String::as_str).unwrap_or_default();
        format!("{output}/{what}")
    }

    pub(crate) fn ints(&mut self, what: &str, values: &[i64]) -> String {
        let name = self.name(what);
        let shape = [values.len() as i64];
        self.constants.push(tensor::ints(&name, &shape, values));
        self.known.add(&name, shape.to_vec(), TensorConstants::Ints(values.to_vec()));
        name
    }

    pub(crate) fn floats(&mut self, what: &str, shape: &[i64], values: &[f32]) -> String {
        let name = self.name(what);
        self.constants.push(tensor::floats(&name, shape, values));
        self.known.add(&name, shape.to_vec(), TensorConstants::Floats(values.to_vec()));
        name
    }

    pub(crate) fn number(&mut self, what: &str, value: f32) -> String {
        self.floats(what, &[], &[value])
    }

    pub(crate) fn reshape(&mut self, what: &str, tensor: &str, shape: &[i64]) -> String {
        let sizes = self.ints(&format!("{what}_sizes"), shape);
        self.op("Reshape", what, &[tensor, &sizes], &[], shape)
    }

    pub(crate) fn op(
        &mut self,
        op: &str,
        what: &str,
        inputs: &[&str],
        attributes: &[AttributeValue<'_>],
        shape: &[i64],
    ) -> String {
        let output = self.name(what);
        self.op_into(op, &output, inputs, attributes, shape);
        output
    }

    /// Writes the last one, under the name of the replaced operator's output.
    pub(crate) fn finish(&mut self, op: &str, inputs: &[&str], attributes: &[AttributeValue<'_>], shape: &[i64]) {
        let output = self.node.output.first().cloned().unwrap_or_default();
        self.op_into(op, &output, inputs, attributes, shape);
    }

    /// Writes one under any name.
    pub(crate) fn op_into(
        &mut self,
        op: &str,
        output: &str,
        inputs: &[&str],
        attributes: &[AttributeValue<'_>],
        shape: &[i64],
    ) {
        let node = NodeProto {
            op_type: Some(op.into()),
            name: Some(output.into()),
            input: inputs.iter().map(|input| (*input).to_owned()).collect(),
            attribute: attributes.iter().map(Into::into).collect(),
            ..NodeProto::default()
        };
        self.push(node, output, shape);
    }

    /// Adds an existing operator with another output.
    pub(crate) fn push(&mut self, node: NodeProto, output: &str, shape: &[i64]) {
        self.nodes.push(NodeProto { output: vec![output.into()], ..node });
        self.known.add(output, shape.to_vec(), TensorConstants::Floats(Vec::new()));
    }
}

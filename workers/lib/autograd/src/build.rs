//! Builds classifiers from scratch, for measurements and tests.

use crate::gradient_tape::AttributeValue;
use crate::onnx::{OnnxDocument, declared};
use crate::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use crate::tensor;
use crate::upgrade::STEP_OPSET;

/// Builder of a classifier.
#[derive(Debug, Default)]
pub struct Builder {
    graph: GraphProto,
}

impl Builder {
    /// A builder with an image input of this shape.
    pub fn new(images: &str, shape: &[i64]) -> Self {
        let graph = GraphProto {
            name: Some("built".into()),
            input: vec![declared(images, Some(shape))],
            ..GraphProto::default()
        };
        Self { graph }
    }

    /// Adds a weight.
    pub fn weight(&mut self, name: &str, shape: &[i64], values: &[f32]) {
        self.graph.initializer.push(tensor::floats(name, shape, values));
    }

    /// Adds an operator with one output.
    pub fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: &[AttributeValue<'_>]) {
        self.graph.node.push(NodeProto {
            op_type: Some(op.into()),
            name: Some(output.into()),
            input: inputs.iter().map(|input| (*input).to_owned()).collect(),
            output: vec![output.to_owned()],
            attribute: attributes.iter().map(AttributeProto::from).collect(),
            ..NodeProto::default()
        });
    }

    /// Returns the finished classifier.
    pub fn finish(mut self, scores: &str, shape: &[i64]) -> OnnxDocument {
        self.graph.output.push(declared(scores, Some(shape)));
        OnnxDocument::of(ModelProto {
            ir_version: Some(8),
            opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(STEP_OPSET) }],
            graph: Some(self.graph),
            ..ModelProto::default()
        })
    }
}

//! Facts about every tensor of a model for one batch size: its shape, and the values of those that only describe
//! shapes. Shapes are not inferred here: the model is run once with every tensor as an output, by the runtime that
//! knows all operators.

use std::collections::HashMap;

use crate::error::AutogradError;
use crate::onnx::{OnnxDocument, declared};
use crate::proto::ValueInfoProto;
use crate::tensor;

/// Values of larger tensors are not kept, as they do not describe shapes.
const MOST_VALUES: usize = 4096;

/// Facts about a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorFact {
    /// Its shape.
    pub shape: Vec<i64>,
    /// Its values.
    pub values: TensorConstants,
}

/// Values of a tensor, as far as they matter.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorConstants {
    /// 32-bit floats.
    Floats(Vec<f32>),
    /// 64-bit integers.
    Ints(Vec<i64>),
    /// Another type, which no gradient flows through.
    Other,
}

/// Facts about every tensor.
#[derive(Debug, Clone, Default)]
pub struct TensorFacts {
    tensors: HashMap<String, TensorFact>,
}

/// The model with every tensor as an output, for images of exactly this shape. Run it once, and pass every output to
/// [`TensorFacts::add`].
pub fn probe_tensors(onnx: &OnnxDocument, image_shape: &[i64]) -> Result<OnnxDocument, AutogradError> {
    let mut probe = onnx.clone();
    let input = onnx.input()?.to_owned();
    let graph = probe.graph_mut()?;
    graph.input.iter_mut().filter(|value| value.name() == input).for_each(|value| {
        *value = declared(&input, Some(image_shape));
    });
    let outputs: Vec<String> = graph.output.iter().map(|output| output.name().to_owned()).collect();
    // Outputs keep their declarations except for the batch size, which differs.
    for output in &mut graph.output {
        output.r#type = None;
    }
    let inner = graph.node.iter().flat_map(|node| &node.output).filter(|name| !name.is_empty());
    let inner: Vec<String> = inner.filter(|name| !outputs.contains(name)).cloned().collect();
    graph.output.extend(inner.into_iter().map(|name| ValueInfoProto { name: Some(name), ..Default::default() }));
    graph.value_info.clear();
    Ok(probe)
}

impl TensorFacts {
    /// Facts known without running the model: its weights and input.
    pub fn new(onnx: &OnnxDocument, image_shape: &[i64]) -> Result<Self, AutogradError> {
        let mut known = TensorFacts::default();
        for found in &onnx.graph()?.initializer {
            let values = match (tensor::read_ints(found), found.data_type() == tensor::FLOAT) {
                (Some(ints), _) => TensorConstants::Ints(ints),
                (None, true) => TensorConstants::Floats(tensor::read_floats(found)?),
                (None, false) => TensorConstants::Other,
            };
            known.add(found.name(), found.dims.clone(), values);
        }
        known.add(onnx.input()?, image_shape.to_vec(), TensorConstants::Floats(Vec::new()));
        Ok(known)
    }

    /// Adds a tensor that was seen.
    pub fn add(&mut self, name: &str, shape: Vec<i64>, values: TensorConstants) {
        let values = match values {
            TensorConstants::Floats(values) if values.len() > MOST_VALUES => TensorConstants::Floats(Vec::new()),
            TensorConstants::Ints(values) if values.len() > MOST_VALUES => TensorConstants::Ints(Vec::new()),
            values => values,
        };
        self.tensors.insert(name.into(), TensorFact { shape, values });
    }

    fn get(&self, name: &str) -> Result<&TensorFact, AutogradError> {
        self.tensors.get(name).ok_or_else(|| AutogradError::Unknown { tensor: name.into() })
    }

    /// A tensor's shape.
    pub fn shape(&self, name: &str) -> Result<&[i64], AutogradError> {
        self.get(name).map(|seen| seen.shape.as_slice())
    }

    /// Size of a float tensor in bytes; 0 for other types.
    pub(crate) fn float_bytes(&self, name: &str) -> u64 {
        let floats = self.tensors.get(name).filter(|seen| matches!(seen.values, TensorConstants::Floats(_)));
        let count = floats.and_then(|seen| u64::try_from(crate::tensor::count(&seen.shape)).ok());
        count.unwrap_or(0).saturating_mul(4)
    }

    /// Whether it is one of the model's own tensors.
    pub(crate) fn is_initializer(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Whether a gradient can flow through it.
    pub fn is_float(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|seen| matches!(seen.values, TensorConstants::Floats(_)))
    }

    /// The values of a small integer tensor.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match &self.tensors.get(name)?.values {
            TensorConstants::Ints(values) => Some(values),
            TensorConstants::Floats(_) | TensorConstants::Other => None,
        }
    }

    /// The values of a small float tensor.
    pub fn floats(&self, name: &str) -> Option<&[f32]> {
        match &self.tensors.get(name)?.values {
            TensorConstants::Floats(values) if !values.is_empty() => Some(values),
            TensorConstants::Floats(_) | TensorConstants::Ints(_) | TensorConstants::Other => None,
        }
    }
}

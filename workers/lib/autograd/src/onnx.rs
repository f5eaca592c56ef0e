//! Reads, writes, inspects, patches, cuts and fingerprints ONNX models.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use prost::Message;
use sha2::{Digest, Sha256};

use crate::error::AutogradError;
use crate::proto::tensor_proto::{DataLocation, DataType};
use crate::proto::tensor_shape_proto::Dimension;
use crate::proto::tensor_shape_proto::dimension::Value as Size;
use crate::proto::type_proto::{Tensor as TensorType, Value as Kind};
use crate::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
};
use crate::tensor;

/// The oldest opset that can be trained: from 13 on, `ReduceSum` and `Squeeze` take their axes as inputs.
pub const LEAST_OPSET: i64 = 13;

/// From this version of the file format on, weights need not be inputs of the graph.
const LEAST_IR_OF_WEIGHTS: i64 = 4;

/// An ONNX model with all of its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct OnnxDocument {
    pub(crate) model: ModelProto,
    /// External files that its weights were in.
    outside: BTreeSet<String>,
}

/// Reads a model, including weights in external files.
pub fn read(path: &Path) -> Result<OnnxDocument, AutogradError> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| AutogradError::File { path, source }
    };
    let bytes = std::fs::read(path).map_err(file(path))?;
    let mut onnx = OnnxDocument::decode(&bytes)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut files: HashMap<String, Vec<u8>> = HashMap::new();
    for tensor in &mut graph_mut(&mut onnx.model)?.initializer {
        if tensor.data_location() != DataLocation::External {
            continue;
        }
        let entries: HashMap<&str, &str> =
            tensor.external_data.iter().map(|entry| (entry.key(), entry.value())).collect();
        let location = entries.get("location").copied().unwrap_or_default().to_owned();
        let wrong = |why: &str| AutogradError::External {
            tensor: tensor.name().into(),
            location: location.clone(),
            why: why.into(),
        };
        // A model is not trusted to name files outside its folder.
        let inside = Path::new(&location).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if location.is_empty() || !inside {
            return Err(wrong("that is not a file beside the model"));
        }
        if !files.contains_key(&location) {
            let beside = folder.join(&location);
            files.insert(location.clone(), std::fs::read(&beside).map_err(file(&beside))?);
        }
        let number = |key: &str| entries.get(key).map(|text| text.parse::<usize>());
        let bytes = files.get(&location).map(Vec::as_slice).unwrap_or_default();
        let start = number("offset").unwrap_or(Ok(0)).map_err(|_| wrong("their offset is not a number"))?;
        let length = number("length").unwrap_or(Ok(bytes.len().saturating_sub(start)));
        let length = length.map_err(|_| wrong("their length is not a number"))?;
        let end = start.checked_add(length).filter(|end| *end <= bytes.len());
        let end = end.ok_or_else(|| wrong("the file is shorter than that"))?;
        let raw = bytes.get(start..end).ok_or_else(|| wrong("the file is shorter than that"))?.to_vec();
        tensor.raw_data = Some(raw);
        tensor.external_data.clear();
        tensor.data_location = None;
    }
    onnx.outside = files.into_keys().collect();
    Ok(onnx)
}

impl OnnxDocument {
    /// Decodes a model that contains all of its weights.
    pub fn decode(bytes: &[u8]) -> Result<Self, AutogradError> {
        let mut model = ModelProto::decode(bytes).map_err(AutogradError::NotOnnx)?;
        let ir_version = model.ir_version();
        match &mut model.graph {
            Some(graph) if !graph.output.is_empty() => {
                if ir_version >= LEAST_IR_OF_WEIGHTS {
                    take_out_constants(graph);
                }
                Ok(Self::of(model))
            }
            _ => Err(AutogradError::Missing { what: "graph with an output".into() }),
        }
    }

    pub(crate) fn of(model: ModelProto) -> Self {
        Self { model, outside: BTreeSet::new() }
    }

    /// Encodes the model as a file.
    pub fn encode(&self) -> Vec<u8> {
        self.model.encode_to_vec()
    }

    pub(crate) fn graph(&self) -> Result<&GraphProto, AutogradError> {
        self.model.graph.as_ref().ok_or_else(|| AutogradError::Missing { what: "graph".into() })
    }

    pub(crate) fn graph_mut(&mut self) -> Result<&mut GraphProto, AutogradError> {
        graph_mut(&mut self.model)
    }

    /// Whether weights were in this external file; they are inside the model now.
    pub fn was_external(&self, file: &str) -> bool {
        self.outside.contains(file)
    }

    /// Version of the standard operators.
    pub fn opset(&self) -> i64 {
        let standard = self.model.opset_import.iter().find(|opset| matches!(opset.domain(), "" | "ai.onnx"));
        standard.map_or(1, |opset| opset.version())
    }

    /// Name of the image input: the first that is not a weight.
    pub fn input(&self) -> Result<&str, AutogradError> {
        let graph = self.graph()?;
        let is_weight = |name: &str| graph.initializer.iter().any(|tensor| tensor.name() == name);
        let input = graph.input.iter().map(ValueInfoProto::name).find(|name| !is_weight(name));
        input.ok_or_else(|| AutogradError::Missing { what: "input for images".into() })
    }

    /// Names of all inputs.
    pub fn inputs(&self) -> Result<Vec<String>, AutogradError> {
        Ok(self.graph()?.input.iter().map(|input| input.name().to_owned()).collect())
    }

    /// Names and shapes of all 32-bit float weights.
    pub fn floats(&self) -> Result<Vec<(String, Vec<usize>)>, AutogradError> {
        let floats = self.graph()?.initializer.iter().filter(|tensor| tensor.data_type() == tensor::FLOAT);
        let shape = |dims: &[i64]| dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
        Ok(floats.map(|tensor| (tensor.name().to_owned(), shape(&tensor.dims))).collect())
    }

    /// Name of the first output.
    pub fn output(&self) -> Result<&str, AutogradError> {
        let output = self.graph()?.output.first().map(ValueInfoProto::name);
        output.ok_or_else(|| AutogradError::Missing { what: "output".into() })
    }

    /// The values of a weight, last axis first.
    pub fn weight(&self, name: &str) -> Result<Vec<f32>, AutogradError> {
        let tensor = self.graph()?.initializer.iter().find(|tensor| tensor.name() == name);
        tensor::read_floats(tensor.ok_or_else(|| AutogradError::Unknown { tensor: name.into() })?)
    }

    /// Replaces the values of weights. This is the only way of swapping weights that every runtime honours
    /// (optimizations may ignore a session's overridden initializers).
    pub fn patch(&mut self, weights: &BTreeMap<String, Vec<f32>>) -> Result<(), AutogradError> {
        let graph = self.graph_mut()?;
        for (name, values) in weights {
            let found = graph.initializer.iter_mut().find(|tensor| tensor.name() == name);
            let found = found.ok_or_else(|| AutogradError::Unknown { tensor: name.clone() })?;
            if tensor::count(&found.dims) != values.len() as i64 || found.data_type() != tensor::FLOAT {
                let why = format!("it has shape {:?} but got {} values", found.dims, values.len());
                return Err(AutogradError::Tensor { tensor: name.clone(), why });
            }
            let patched = tensor::floats(name, &found.dims, values);
            found.raw_data = patched.raw_data;
            found.float_data.clear();
        }
        Ok(())
    }

    /// The part of the model up to one tensor, which becomes its only output: the frozen part, for example, or a model
    /// without its softmax.
    pub fn cut(&self, output: &str) -> Result<OnnxDocument, AutogradError> {
        let mut cut = self.clone();
        let graph = cut.graph_mut()?;
        let mut wanted: HashSet<String> = [output.to_owned()].into();
        let mut kept = Vec::new();
        for node in graph.node.iter().rev() {
            if node.output.iter().any(|name| wanted.contains(name)) {
                wanted.extend(reads(node));
                kept.push(node.clone());
            }
        }
        kept.reverse();
        if kept.is_empty() {
            return Err(AutogradError::Unknown { tensor: output.into() });
        }
        graph.node = kept;
        graph.initializer.retain(|tensor| wanted.contains(tensor.name()));
        graph.sparse_initializer.clear();
        graph.value_info.clear();
        graph.input.retain(|input| wanted.contains(input.name()));
        graph.output = vec![ValueInfoProto { name: Some(output.into()), ..ValueInfoProto::default() }];
        Ok(cut)
    }

    /// A digest of the operators and of the weights' names, types and shapes: equal for two models that only differ in
    /// the values of their weights.
    pub fn fingerprint(&self) -> Result<[u8; 32], AutogradError> {
        let mut bare = self.model.clone();
        bare.producer_name = None;
        bare.producer_version = None;
        bare.doc_string = None;
        bare.metadata_props.clear();
        for tensor in &mut graph_mut(&mut bare)?.initializer {
            *tensor = TensorProto {
                name: tensor.name.clone(),
                dims: tensor.dims.clone(),
                data_type: tensor.data_type,
                // Integers are shapes and axes: part of the architecture.
                raw_data: tensor.raw_data.clone().filter(|_| tensor.data_type == Some(tensor::INT64)),
                int64_data: tensor.int64_data.clone(),
                ..TensorProto::default()
            };
        }
        Ok(Sha256::digest(bare.encode_to_vec()).into())
    }

    /// Refuses models that cannot be trained whatever their operators are.
    pub fn check(&self) -> Result<(), AutogradError> {
        if self.opset() < LEAST_OPSET {
            return Err(AutogradError::Opset { found: self.opset(), least: LEAST_OPSET });
        }
        let graph = self.graph()?;
        for node in &graph.node {
            let quantized = matches!(
                node.op_type(),
                "QuantizeLinear"
                    | "DequantizeLinear"
                    | "DynamicQuantizeLinear"
                    | "QLinearConv"
                    | "QLinearMatMul"
                    | "ConvInteger"
                    | "MatMulInteger"
            );
            if quantized {
                return Err(AutogradError::Precision { kind: "int8", at: named(node) });
            }
        }
        for tensor in &graph.initializer {
            let kind = match DataType::try_from(tensor.data_type()) {
                Ok(DataType::Float16) => "float16",
                Ok(DataType::Bfloat16) => "bfloat16",
                Ok(DataType::Int8 | DataType::Uint8) if tensor.dims.len() > 1 => "int8",
                Ok(DataType::Double) => "float64",
                _ => continue,
            };
            return Err(AutogradError::Precision { kind, at: tensor.name().into() });
        }
        Ok(())
    }
}

/// Turns float constants into weights if a model keeps all of its weights as constants (Paddle2ONNX does): otherwise
/// they could be neither found nor patched. If there are weights, constants belong to the architecture.
fn take_out_constants(graph: &mut GraphProto) {
    let is_weight = |tensor: &TensorProto| tensor.data_type() == tensor::FLOAT && tensor::count(&tensor.dims) > 1;
    if graph.initializer.iter().any(is_weight) {
        return;
    }
    let held = |node: &mut NodeProto| {
        let ("Constant", [output], [attribute]) =
            (node.op_type.as_deref()?, node.output.as_slice(), node.attribute.as_mut_slice())
        else {
            return None;
        };
        let tensor = attribute.t.as_mut().filter(|tensor| is_weight(tensor))?;
        Some(TensorProto { name: Some(output.clone()), ..std::mem::take(tensor) })
    };
    graph.node.retain_mut(|node| match held(node) {
        Some(weight) => {
            graph.initializer.push(weight);
            false
        }
        None => true,
    });
}

fn graph_mut(model: &mut ModelProto) -> Result<&mut GraphProto, AutogradError> {
    model.graph.as_mut().ok_or_else(|| AutogradError::Missing { what: "graph".into() })
}

/// Every tensor a node reads, including those of nested graphs.
pub(crate) fn reads(node: &NodeProto) -> Vec<String> {
    let mut names = node.input.clone();
    for attribute in &node.attribute {
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            names.extend(graph.node.iter().flat_map(reads));
            names.extend(graph.output.iter().map(|output| output.name().to_owned()));
        }
    }
    names
}

/// Whether a node, or a graph nested in it, reads one of these tensors.
pub(crate) fn depends(node: &NodeProto, on: &HashSet<String>) -> bool {
    let mut inside = node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs));
    node.input.iter().any(|name| on.contains(name))
        || inside.any(|graph| {
            graph.node.iter().any(|node| depends(node, on))
                || graph.output.iter().any(|output| on.contains(output.name()))
        })
}

/// Description of a node, for messages.
pub(crate) fn named(node: &NodeProto) -> String {
    let output = node.output.first().map(String::as_str).unwrap_or_default();
    let name = if node.name().is_empty() { output } else { node.name() };
    format!("{} \"{name}\"", node.op_type())
}

pub(crate) fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name() == name)
}

pub(crate) fn int(node: &NodeProto, name: &str) -> Option<i64> {
    attribute(node, name).map(AttributeProto::i)
}

pub(crate) fn float(node: &NodeProto, name: &str) -> Option<f32> {
    attribute(node, name).map(AttributeProto::f)
}

pub(crate) fn ints(node: &NodeProto, name: &str) -> Option<Vec<i64>> {
    attribute(node, name).map(|attribute| attribute.ints.clone())
}

pub(crate) fn text(node: &NodeProto, name: &str) -> Option<String> {
    attribute(node, name).map(|attribute| String::from_utf8_lossy(attribute.s()).into_owned())
}

/// Declaration of a float input or output; unknown shape if absent. A negative size is open.
pub(crate) fn declared(name: &str, shape: Option<&[i64]>) -> ValueInfoProto {
    let sizes = |shape: &[i64]| TensorShapeProto {
        dim: shape
            .iter()
            .map(|size| if *size < 0 { Size::DimParam("n".into()) } else { Size::DimValue(*size) })
            .map(|size| Dimension { value: Some(size), ..Dimension::default() })
            .collect(),
    };
    let kind = Kind::TensorType(TensorType { elem_type: Some(tensor::FLOAT), shape: shape.map(sizes) });
    let r#type = Some(TypeProto { value: Some(kind), ..TypeProto::default() });
    ValueInfoProto { name: Some(name.into()), r#type, ..ValueInfoProto::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::StringStringEntryProto;

    fn model() -> OnnxDocument {
        read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/gradients/small_cnn/model.onnx")).unwrap()
    }

    fn first_weight(model: &OnnxDocument) -> String {
        model.graph().unwrap().initializer[0].name().to_owned()
    }

    #[test]
    fn what_is_read_is_written_as_it_was() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/gradients/small_cnn/model.onnx");
        assert_eq!(model().encode(), std::fs::read(path).unwrap());
        assert!(matches!(OnnxDocument::decode(b"no model"), Err(AutogradError::NotOnnx(_))));
        assert!(matches!(OnnxDocument::decode(b""), Err(AutogradError::Missing { .. })));
    }

    #[test]
    fn other_weights_are_another_model_of_the_same_fingerprint() {
        let (model, name) = (model(), first_weight(&model()));
        let mut other = model.clone();
        let values: Vec<f32> = model.weight(&name).unwrap().iter().map(|value| value + 1.0).collect();
        other.patch(&[(name.clone(), values.clone())].into()).unwrap();
        assert_eq!(other.weight(&name).unwrap(), values);
        assert_ne!(other.encode(), model.encode());
        assert_eq!(other.fingerprint().unwrap(), model.fingerprint().unwrap());
        assert_ne!(
            other.cut(&model.graph().unwrap().node[0].output[0]).unwrap().fingerprint().unwrap(),
            model.fingerprint().unwrap()
        );
        let short = other.patch(&[(name, vec![1.0])].into()).unwrap_err();
        assert!(short.to_string().contains("got 1 values"), "{short}");
        assert!(matches!(other.patch(&[("none".into(), vec![])].into()), Err(AutogradError::Unknown { .. })));
    }

    #[test]
    fn weights_in_files_beside_the_model_are_read_or_missed_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        let mut outside = model();
        let name = first_weight(&outside);
        let values = outside.weight(&name).unwrap();
        let write = |outside: &mut OnnxDocument, location: &str, offset: &str| {
            let entry =
                |key: &str, value: &str| StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) };
            let tensor = &mut outside.graph_mut().unwrap().initializer[0];
            tensor.raw_data = None;
            tensor.external_data = vec![entry("location", location), entry("offset", offset)];
            tensor.data_location = Some(DataLocation::External as i32);
            std::fs::write(&path, outside.encode()).unwrap();
        };
        write(&mut outside, "weights.bin", "8");
        let missing = read(&path).unwrap_err().to_string();
        assert!(missing.contains("weights.bin"), "{missing}");
        let raw: Vec<u8> = [0; 8].into_iter().chain(values.iter().flat_map(|value| value.to_le_bytes())).collect();
        std::fs::write(folder.path().join("weights.bin"), &raw).unwrap();
        let whole = read(&path).unwrap();
        assert_eq!(whole.weight(&name).unwrap(), values);
        assert!(whole.was_external("weights.bin"));
        write(&mut outside, "weights.bin", "999999999");
        assert!(read(&path).unwrap_err().to_string().contains("shorter"));
        write(&mut outside, "../weights.bin", "8");
        assert!(read(&path).unwrap_err().to_string().contains("beside the model"));
    }
}

//! Reads an ONNX file's structure without its weights: inputs, outputs, operators, operator sets, metadata, and
//! external weight files. Pure.
//!
//! Only the needed fields of onnx.proto's messages are declared; the others, above all weights, are skipped and never
//! copied.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

/// Most operators that only change shape or type between an output's producer and the output; exporters write a
/// handful.
const MAX_STEPS: usize = 100;
const NOT_A_GRAPH: &str = "it is not an ONNX graph, or it is cut off";

/// Structure of a graph.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Outline {
    /// Inputs that are not filled by a weight.
    pub(crate) inputs: Vec<GraphPort>,
    /// Outputs, in the graph's order.
    pub(crate) outputs: Vec<GraphPort>,
    /// Operator sets, each with its version; the standard one is called `ai.onnx`.
    pub(crate) operators: BTreeMap<String, u64>,
    /// External weight files, relative to the graph's folder.
    pub(crate) weight_files: BTreeSet<String>,
    /// Metadata that the exporter wrote.
    pub(crate) metadata: BTreeMap<String, String>,
    nodes: Vec<OnnxNode>,
}

/// An input or output.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GraphPort {
    /// Its name.
    pub(crate) name: String,
    /// Its content.
    pub(crate) holds: PortContent,
}

/// Content of an input or output.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PortContent {
    /// Numbers or texts; a size is `None` if it is only known in a run. The element type is numbered as in onnx.proto.
    Tensor {
        /// 1 is float32, 2 uint8, 10 float16.
        element: i32,
        /// One size per dimension.
        shape: Vec<Option<u32>>,
    },
    /// A table from label to score for each image, as from ZipMap.
    LabelScores,
    /// Anything else.
    Other,
}

impl Outline {
    /// Reads a whole ONNX file; the error says why it is not a graph.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, &'static str> {
        let model = OnnxModel::decode(bytes).map_err(|_| NOT_A_GRAPH)?;
        let mut weight_files = BTreeSet::new();
        let graphs = model.graph.iter().chain(model.training.iter().flat_map(OnnxTraining::graphs));
        graphs.for_each(|graph| graph.collect_weight_files(&mut weight_files));
        model.functions.iter().flat_map(|function| &function.nodes).for_each(|node| node.collect(&mut weight_files));
        let operators = model.operator_sets.into_iter().map(|set| match set.domain.is_empty() {
            true => ("ai.onnx".to_owned(), set.version.unsigned_abs()),
            false => (set.domain, set.version.unsigned_abs()),
        });
        let graph = model.graph.unwrap_or_default();
        let filled: BTreeSet<&str> = graph.weights.iter().map(|weight| weight.name.as_str()).collect();
        let inputs = graph.inputs.iter().filter(|input| !filled.contains(input.name.as_str()));
        Ok(Self {
            inputs: inputs.map(OnnxValue::port).collect(),
            outputs: graph.outputs.iter().map(OnnxValue::port).collect(),
            operators: operators.collect(),
            weight_files,
            metadata: model.metadata.into_iter().map(|entry| (entry.key, entry.value)).collect(),
            nodes: graph.nodes,
        })
    }

    /// The operator that produces an output, ignoring those that only change its shape or type.
    pub(crate) fn producer_of(&self, output: &str) -> Option<&str> {
        let mut name = output;
        // Each step goes to an earlier node and searches all of them; a broken graph may have cycles.
        for _ in 0..self.nodes.len().min(MAX_STEPS) {
            let node = self.nodes.iter().find(|node| node.outputs.iter().any(|made| made == name))?;
            match node.operator.as_str() {
                "Identity" | "Cast" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Transpose" | "ZipMap" => {
                    name = node.inputs.first()?;
                }
                operator => return Some(operator),
            }
        }
        None
    }

    /// Labels stored in the graph, for classifiers that end in a ZipMap.
    pub(crate) fn labels(&self) -> Option<Vec<String>> {
        let named = self.nodes.iter().filter(|node| node.operator == "ZipMap");
        let texts =
            named.flat_map(|node| &node.attributes).find(|attribute| attribute.name == "classlabels_strings")?;
        Some(texts.strings.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect())
    }

    /// The first operators an input passes through, nearest first, as long as they form a chain.
    pub(crate) fn first_operators(&self, input: &str, most: usize) -> Vec<&str> {
        let mut found = Vec::new();
        let mut name = input;
        while found.len() < most {
            let Some(node) = self.nodes.iter().find(|node| node.inputs.iter().any(|taken| taken == name)) else {
                break;
            };
            found.push(node.operator.as_str());
            let Some(made) = node.outputs.first() else { break };
            name = made;
        }
        found
    }
}

/// The needed fields of onnx.proto's messages. They contain no tensor data.
#[derive(Clone, PartialEq, Message)]
struct OnnxModel {
    #[prost(message, optional, tag = "7")]
    graph: Option<OnnxGraph>,
    #[prost(message, repeated, tag = "8")]
    operator_sets: Vec<OnnxOperatorSet>,
    #[prost(message, repeated, tag = "14")]
    metadata: Vec<OnnxEntry>,
    #[prost(message, repeated, tag = "20")]
    training: Vec<OnnxTraining>,
    #[prost(message, repeated, tag = "25")]
    functions: Vec<OnnxFunction>,
}

#[derive(Clone, PartialEq, Message)]
struct OnnxOperatorSet {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct OnnxTraining {
    #[prost(message, optional, tag = "1")]
    initialization: Option<OnnxGraph>,
    #[prost(message, optional, tag = "2")]
    algorithm: Option<OnnxGraph>,
}

impl OnnxTraining {
    fn graphs(&self) -> impl Iterator<Item = &OnnxGraph> {
        self.initialization.iter().chain(&self.algorithm)
    }
}

#[derive(Clone, PartialEq, Message)]
struct OnnxFunction {
    #[prost(message, repeated, tag = "7")]
    nodes: Vec<OnnxNode>,
}

#[derive(Clone, PartialEq, Message)]
struct OnnxGraph {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<OnnxNode>,
    #[prost(message, repeated, tag = "5")]
    weights: Vec<OnnxTensor>,
    #[prost(message, repeated, tag = "11")]
    inputs: Vec<OnnxValue>,
    #[prost(message, repeated, tag = "12")]
    outputs: Vec<OnnxValue>,
    #[prost(message, repeated, tag = "15")]
    sparse_weights: Vec<OnnxSparseTensor>,
}

impl OnnxGraph {
    fn collect_weight_files(&self, found: &mut BTreeSet<String>) {
        self.weights.iter().for_each(|weight| weight.collect(found));
        self.sparse_weights.iter().for_each(|weight| weight.collect(found));
        self.nodes.iter().for_each(|node| node.collect(found));
    }
}

#[derive(Clone, PartialEq, Message)]
struct OnnxNode {
    #[prost(string, repeated, tag = "1")]
    inputs: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    outputs: Vec<String>,
    #[prost(string, tag = "4")]
    operator: String,
    #[prost(message, repeated, tag = "5")]
    attributes: Vec<OnnxAttribute>,
}

impl OnnxNode {
    fn collect(&self, found: &mut BTreeSet<String>) {
        for attribute in &self.attributes {
            attribute.weight.iter().chain(&attribute.weights).for_each(|weight| weight.collect(found));
            attribute.graph.iter().chain(&attribute.graphs).for_each(|graph| graph.collect_weight_files(found));
            let sparse = attribute.sparse_weight.iter().chain(&attribute.sparse_weights);
            sparse.for_each(|weight| weight.collect(found));
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct OnnxAttribute {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "5")]
    weight: Option<OnnxTensor>,
    #[prost(message, optional, tag = "6")]
    graph: Option<OnnxGraph>,
    #[prost(bytes = "vec", repeated, tag = "9")]
    strings: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "10")]
    weights: Vec<OnnxTensor>,
    #[prost(message, repeated, tag = "11")]
    graphs: Vec<OnnxGraph>,
    #[prost(message, optional, tag = "22")]
    sparse_weight: Option<OnnxSparseTensor>,
    #[prost(message, repeated, tag = "23")]
    sparse_weights: Vec<OnnxSparseTensor>,
}

#[derive(Clone, PartialEq, Message)]
struct OnnxTensor {
    #[prost(string, tag = "8")]
    name: String,
    #[prost(message, repeated, tag = "13")]
    external: Vec<OnnxEntry>,
}

impl OnnxTensor {
    fn collect(&self, found: &mut BTreeSet<String>) {
        let places = self.external.iter().filter(|entry| entry.key == "location");
        found.extend(places.map(|entry| entry.value.clone()));
    }
}

#[derive(Clone, PartialEq, Message)]
struct OnnxSparseTensor {
    #[prost(message, optional, tag = "1")]
    values: Option<OnnxTensor>,
    #[prost(message, optional, tag = "2")]
    indices: Option<OnnxTensor>,
}

impl OnnxSparseTensor {
    fn collect(&self, found: &mut BTreeSet<String>) {
        self.values.iter().chain(&self.indices).for_each(|weight| weight.collect(found));
    }
}

#[derive(Clone, PartialEq, Message)]
struct OnnxEntry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct OnnxValue {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    kind: Option<OnnxType>,
}

impl OnnxValue {
    fn port(&self) -> GraphPort {
        let kind = self.kind.clone().unwrap_or_default();
        let holds = match (kind.tensor, kind.sequence.and_then(|sequence| sequence.of)) {
            (Some(tensor), _) => {
                let dims = tensor.shape.unwrap_or_default().dims;
                let size = |dim: &OnnxDim| dim.size.and_then(|size| u32::try_from(size).ok());
                PortContent::Tensor { element: tensor.element, shape: dims.iter().map(size).collect() }
            }
            (None, Some(of)) if of.map.is_some() => PortContent::LabelScores,
            _ => PortContent::Other,
        };
        GraphPort { name: self.name.clone(), holds }
    }
}

#[derive(Clone, PartialEq, Message)]
struct OnnxType {
    #[prost(message, optional, tag = "1")]
    tensor: Option<OnnxTensorType>,
    #[prost(message, optional, boxed, tag = "4")]
    sequence: Option<Box<OnnxSequenceType>>,
    #[prost(message, optional, tag = "5")]
    map: Option<OnnxMapType>,
}

#[derive(Clone, PartialEq, Message)]
struct OnnxTensorType {
    #[prost(int32, tag = "1")]
    element: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<OnnxShape>,
}

#[derive(Clone, PartialEq, Message)]
struct OnnxSequenceType {
    #[prost(message, optional, boxed, tag = "1")]
    of: Option<Box<OnnxType>>,
}

#[derive(Clone, PartialEq, Message)]
struct OnnxMapType {}

#[derive(Clone, PartialEq, Message)]
struct OnnxShape {
    #[prost(message, repeated, tag = "1")]
    dims: Vec<OnnxDim>,
}

#[derive(Clone, PartialEq, Message)]
struct OnnxDim {
    #[prost(int64, optional, tag = "1")]
    size: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::fixture;
    use proptest::prelude::*;

    fn weight(location: &str) -> OnnxTensor {
        let entry = |key: &str, value: &str| OnnxEntry { key: key.into(), value: value.into() };
        OnnxTensor { name: "w".into(), external: vec![entry("location", location), entry("offset", "4096")] }
    }

    fn file(graph: OnnxGraph) -> Vec<u8> {
        OnnxModel { graph: Some(graph), ..OnnxModel::default() }.encode_to_vec()
    }

    #[test]
    fn the_outline_of_a_fixture_has_its_ends_and_operators() {
        let bytes = std::fs::read(fixture("bench-cnn").join("graph.onnx")).unwrap();
        let outline = Outline::read(&bytes).unwrap();
        assert_eq!((outline.inputs.len(), outline.operators["ai.onnx"]), (1, 17));
        assert!(matches!(&outline.inputs[0].holds, PortContent::Tensor { element: 1, shape } if shape.len() == 4));
        assert_eq!(outline.producer_of(&outline.outputs[0].name), Some("Softmax"));
        assert_eq!(outline.first_operators(&outline.inputs[0].name, 1), ["Conv"]);
        assert!(Outline::read(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn weights_kept_outside_are_found_beside_the_graph_and_in_nested_ones() {
        let nested = OnnxGraph { weights: vec![weight("deep/b.bin")], ..OnnxGraph::default() };
        let node = OnnxNode {
            attributes: vec![OnnxAttribute { graph: Some(nested), ..Default::default() }],
            ..OnnxNode::default()
        };
        let graph =
            OnnxGraph { weights: vec![weight("a.bin"), weight("a.bin")], nodes: vec![node], ..OnnxGraph::default() };
        let outline = Outline::read(&file(graph)).unwrap();
        assert_eq!(outline.weight_files.into_iter().collect::<Vec<_>>(), ["a.bin", "deep/b.bin"]);
    }

    #[test]
    fn an_overlong_chain_is_not_followed_to_its_end() {
        let node = |number: usize| OnnxNode {
            inputs: vec![(number + 1).to_string()],
            outputs: vec![number.to_string()],
            operator: "Identity".into(),
            attributes: Vec::new(),
        };
        let nodes: Vec<OnnxNode> = (0..100_000).map(node).collect();
        let outline = Outline::read(&file(OnnxGraph { nodes, ..OnnxGraph::default() })).unwrap();
        let begun = std::time::Instant::now();
        assert_eq!(outline.producer_of("0"), None);
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_cyclic_graph_has_no_producer() {
        let node = |from: &str, to: &str| OnnxNode {
            inputs: vec![from.into()],
            outputs: vec![to.into()],
            operator: "Identity".into(),
            attributes: Vec::new(),
        };
        let outline =
            Outline::read(&file(OnnxGraph { nodes: vec![node("a", "b"), node("b", "a")], ..OnnxGraph::default() }));
        assert_eq!(outline.unwrap().producer_of("a"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Outline::read(&bytes);
        }
    }

    #[test]
    fn graphs_that_were_bent_are_read_or_refused() {
        let mut graphs = bend::corpus("fixtures/forms", &[".onnx"], 10_000);
        graphs.extend(bend::corpus("fixtures/gradients", &[".onnx"], 10_000));
        bend::bend_all("outlines of graphs", &graphs, bend::turns(), |bytes| {
            if let Ok(outline) = Outline::read(bytes) {
                let _labels = outline.labels();
                for port in outline.outputs.iter().chain(&outline.inputs) {
                    let _of_it =
                        (outline.producer_of(&port.name).is_some(), outline.first_operators(&port.name, 5).len());
                }
            }
            1
        });
    }
}

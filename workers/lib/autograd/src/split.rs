//! Splits a step where training begins: the part before the first trained weight always gives the same for a picture,
//! so it needs to be computed only once.

use std::collections::HashSet;

use crate::error::AutogradError;
use crate::onnx::{OnnxDocument, declared, reads};
use crate::proto::NodeProto;
use crate::tensor_facts::TensorFacts;
use crate::training_step::{SCALE, TARGET, TrainingStep};

/// A step in two parts.
#[derive(Debug, Clone, PartialEq)]
pub struct StepSplit {
    /// From images to features, without any trained weight.
    pub frozen: OnnxDocument,
    /// From features to loss and gradients: a step whose images are those features.
    pub tail: TrainingStep,
}

impl TrainingStep {
    /// The step in two parts, if a single tensor with a row per image passes from the frozen to the trained part; `None`
    /// if training begins at the images, or several tensors pass.
    pub fn split(&self, known: &TensorFacts) -> Result<Option<StepSplit>, AutogradError> {
        let graph = self.graph.graph()?;
        let starts = self.weights.iter().map(|weight| weight.name.as_str()).chain([TARGET, SCALE]);
        let trained = after(&graph.node, starts);
        let by_images = after(&graph.node, [self.images.as_str()]);
        let mut late: Vec<bool> =
            graph.node.iter().map(|node| node.output.iter().any(|name| trained.contains(name.as_str()))).collect();
        let features = loop {
            let made_late = |name: &String| {
                let mut nodes = graph.node.iter().zip(&late);
                nodes.any(|(node, late)| *late && node.output.contains(name))
            };
            let readers = graph.node.iter().zip(&late).filter(|(_, late)| **late);
            let passing: HashSet<String> = readers
                .flat_map(|(node, _)| reads(node))
                .filter(|name| by_images.contains(name.as_str()) && !made_late(name))
                .collect();
            // Tensors that a step writes itself have no row per image, so they stay after the cut.
            match passing.iter().find(|name| !known.is_initializer(name)) {
                Some(own) => {
                    let made = graph.node.iter().position(|node| node.output.contains(own));
                    late[made.ok_or_else(|| AutogradError::Unknown { tensor: own.clone() })?] = true;
                }
                None => break passing,
            }
        };
        let mut features = features.into_iter();
        let (Some(features), None) = (features.next(), features.next()) else { return Ok(None) };
        let shape = known.shape(&features)?.to_vec();
        if features == self.images || shape.first() != self.images_shape.first() {
            return Ok(None);
        }
        let frozen = self.graph.cut(&features)?;
        let mut tail = TrainingStep { images: features.clone(), images_shape: shape.clone(), ..self.clone() };
        let graph = tail.graph.graph_mut()?;
        // Nodes that depend on neither images nor weights make constants, which the trained part may read.
        let is_frozen = |node: &NodeProto| node.output.iter().any(|name| by_images.contains(name.as_str()));
        let kept = graph.node.iter().zip(&late).filter(|(node, late)| **late || !is_frozen(node));
        let kept: Vec<NodeProto> = kept.map(|(node, _)| node.clone()).collect();
        let wanted: HashSet<String> = kept.iter().flat_map(reads).collect();
        graph.node = kept;
        graph.initializer.retain(|tensor| wanted.contains(tensor.name()));
        for input in graph.input.iter_mut().filter(|input| input.name() == self.images) {
            *input = declared(&features, Some(&shape));
        }
        Ok(Some(StepSplit { frozen, tail }))
    }
}

/// Every tensor that depends on one of these, including themselves.
fn after<'a>(nodes: &'a [NodeProto], starts: impl IntoIterator<Item = &'a str>) -> HashSet<&'a str> {
    let mut found: HashSet<&str> = starts.into_iter().collect();
    for node in nodes {
        if reads(node).iter().any(|name| found.contains(name.as_str())) {
            found.extend(node.output.iter().map(String::as_str).filter(|name| !name.is_empty()));
        }
    }
    found
}

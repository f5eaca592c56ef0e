//! How much of a model can be trained, before training it.

use crate::error::AutogradError;
use crate::tensor_facts::TensorFacts;
use crate::trainable::{self, TrainableSelection};
use crate::training_step::PreparedModel;

/// How much of a model can be trained.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainabilityReport {
    /// Number of layers: operators with a matrix or a kernel.
    pub layers: usize,
    /// How many of them, from the last one on, can be trained; all if nothing prevents it.
    pub trainable_layers: usize,
    /// Number of weight tensors in those layers.
    pub weights: usize,
    /// Number of parameters in those weights.
    pub parameters: u64,
    /// Operators that prevent training all layers, each with its node and the reason.
    pub unsupported: Vec<String>,
}

/// Finds out how much of a model can be trained. `known`: with all results of the probe.
pub fn report(prepared: &PreparedModel, known: &TensorFacts) -> Result<TrainabilityReport, AutogradError> {
    let layers = trainable::layers(&prepared.plain);
    let unsupported = match prepared.step(known, &TrainableSelection::All) {
        Ok(_) => Vec::new(),
        Err(AutogradError::Unsupported { unsupported, .. }) => unsupported,
        Err(error) => return Err(error),
    };
    let works = |count: usize| prepared.step(known, &TrainableSelection::Last(count)).ok();
    // What works for this many layers works for fewer: only operators after the first of them matter.
    let (mut least, mut most) = (0, layers);
    while least < most {
        let middle = (least + most).div_ceil(2);
        match works(middle) {
            Some(_) => least = middle,
            None => most = middle - 1,
        }
    }
    let step = if unsupported.is_empty() { prepared.step(known, &TrainableSelection::All).ok() } else { works(least) };
    let weights = step.map(|step| step.weights).unwrap_or_default();
    let parameters = weights.iter().map(|weight| crate::tensor::count(&weight.shape) as u64).sum();
    Ok(TrainabilityReport { layers, trainable_layers: least, weights: weights.len(), parameters, unsupported })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vision::graph::{Graph, GraphInput, TensorNumbers};

    use super::*;
    use crate::onnx::{self, OnnxDocument, declared};
    use crate::proto::tensor_proto::DataType;
    use crate::proto::{AttributeProto, GraphProto, NodeProto};
    use crate::tensor_facts::TensorConstants;

    fn small_cnn() -> OnnxDocument {
        onnx::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/gradients/small_cnn/model.onnx"))
            .unwrap()
    }

    fn known(prepared: &PreparedModel) -> TensorFacts {
        let mut known = prepared.known().unwrap();
        let probe = prepared.probe().unwrap().encode();
        let mut graph = Graph::open(&vision::OnnxRuntime::find_and_load(None).unwrap(), "probe", &probe, 1).unwrap();
        let images = [GraphInput { name: "images", shape: &[2, 3, 16, 16], values: &[0.0; 2 * 3 * 256] }];
        graph
            .run(&images, |came| {
                let values = match came.numbers {
                    TensorNumbers::Floats(values) => TensorConstants::Floats(values.to_vec()),
                    TensorNumbers::Ints(values) => TensorConstants::Ints(values.to_vec()),
                    TensorNumbers::Other => TensorConstants::Other,
                };
                known.add(came.name, came.shape.to_vec(), values);
            })
            .unwrap();
        known
    }

    #[test]
    fn an_operator_without_a_rule_is_named_with_the_trainable_layers() {
        let prepared = PreparedModel::new(&small_cnn(), "scores", &[2, 3, 16, 16]).unwrap();
        let known = known(&prepared);
        let whole = report(&prepared, &known).unwrap();
        assert_eq!((whole.layers, whole.trainable_layers, whole.weights, whole.parameters), (4, 4, 8, 4273));
        // The second activation gets an operator without a rule.
        let mut odd = prepared.clone();
        let nodes = &mut odd.onnx.graph_mut().unwrap().node;
        let relus = nodes.iter_mut().filter(|node| node.op_type() == "Relu");
        relus.take(2).last().unwrap().op_type = Some("Ceil".into());
        let partial = report(&odd, &known).unwrap();
        assert_eq!((partial.layers, partial.trainable_layers, partial.weights), (4, 2, 4));
        assert!(partial.unsupported.len() == 1 && partial.unsupported[0].starts_with("Ceil"), "{partial:?}");
        // The same inside a branch.
        let branch = odd.onnx.graph_mut().unwrap().node.iter_mut().find(|node| node.op_type() == "Ceil").unwrap();
        let inner = NodeProto { op_type: Some("Relu".into()), output: vec!["inner".into()], ..branch.clone() };
        let graph = GraphProto { node: vec![inner], output: vec![declared("inner", None)], ..GraphProto::default() };
        branch.attribute = vec![AttributeProto { g: Some(graph), ..AttributeProto::default() }];
        (branch.op_type, branch.input) = (Some("If".into()), Vec::new());
        let partial = report(&odd, &known).unwrap();
        assert_eq!((partial.layers, partial.trainable_layers), (4, 2));
        assert!(partial.unsupported[0].contains("without branches and loops"), "{partial:?}");
    }

    #[test]
    fn models_that_cannot_be_trained_are_refused_with_the_reason() {
        let refused = |change: fn(&mut OnnxDocument)| {
            let mut model = small_cnn();
            change(&mut model);
            PreparedModel::new(&model, "scores", &[2, 3, 16, 16]).unwrap_err()
        };
        let half = refused(|model| {
            model.graph_mut().unwrap().initializer[0].data_type = Some(DataType::Float16 as i32);
        });
        assert!(half.to_string().contains("float16") && half.name() == "model_precision", "{half}");
        let quantized = refused(|model| {
            model.graph_mut().unwrap().node[0].op_type = Some("QLinearConv".into());
        });
        assert!(quantized.to_string().contains("int8"), "{quantized}");
        let old = refused(|model| model.model.opset_import[0].version = Some(11));
        assert!(old.to_string().contains("version 11"), "{old}");
        let gone = PreparedModel::new(&small_cnn(), "nothing", &[2, 3, 16, 16]).unwrap_err();
        assert!(gone.to_string().contains("nothing"), "{gone}");
    }

    #[test]
    fn trainable_weights_are_chosen_as_requested() {
        let prepared = PreparedModel::new(&small_cnn(), "scores", &[2, 3, 16, 16]).unwrap();
        let chosen = |text: &str| trainable::choose(&prepared.plain, &text.parse().unwrap());
        assert_eq!(chosen("all").unwrap().len(), 8);
        assert_eq!(chosen("head").unwrap().len(), 2);
        assert_eq!(chosen("last 2").unwrap().len(), 4);
        assert_eq!(chosen("last 99").unwrap().len(), 8);
        let first = chosen("all").unwrap()[0].clone();
        assert_eq!(chosen(&first).unwrap(), std::slice::from_ref(&first));
        assert!(chosen("*.bias").unwrap().iter().all(|name| name.ends_with(".bias")));
        let error = chosen("classifier.*").unwrap_err().to_string();
        assert!(error.contains("classifier.*") && error.contains(&first), "{error}");
        assert!("last x".parse::<TrainableSelection>().is_err() && "".parse::<TrainableSelection>().is_err());
    }
}

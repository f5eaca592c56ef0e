//! Compares gradients with references by PyTorch in 64-bit floats (fixtures/gradients, fixtures/make_gradients.py),
//! computed by the real runtime in 32-bit floats.

#![allow(clippy::indexing_slicing)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use autograd::reference::Reference;
use autograd::tensor_facts::TensorConstants;
use autograd::training_step::{PreparedModel, SCALE, TARGET};
use autograd::{TensorFacts, TrainableSelection, TrainingStep};
use vision::OnnxRuntime;
use vision::graph::{Graph, GraphInput, GraphOutput, TensorNumbers};

/// Largest allowed difference from the reference, as a share of the gradient's largest value.
const MOST_WRONG: f64 = 1e-4;

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/gradients");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 12, "of {} graphs nothing much is known", cases.len());
    cases
}

/// A reference's model prepared for its images, and all results of its probe.
fn ready(runtime: &OnnxRuntime, reference: &Reference) -> (PreparedModel, TensorFacts) {
    let (shape, images) = (reference.shape("images").to_vec(), reference.floats("images"));
    let mut prepared = PreparedModel::new(&reference.model, "scores", &shape).unwrap();
    if reference.model.declared_batch() == Some(1) {
        let one = [&[1], &shape[1..]].concat();
        let single = PreparedModel::new(&reference.model, "scores", &one).unwrap();
        let known = probe(runtime, &single, &images[..images.len() / shape[0] as usize], &one);
        prepared = single.widened(&known, shape[0]).unwrap();
    }
    let known = probe(runtime, &prepared, &images, &shape);
    (prepared, known)
}

/// All results of a probe.
fn probe(runtime: &OnnxRuntime, prepared: &PreparedModel, images: &[f32], shape: &[i64]) -> TensorFacts {
    let mut known = prepared.known().unwrap();
    let probe = prepared.probe().unwrap();
    let mut graph = Graph::open(runtime, "probe", &probe.encode(), 1).unwrap();
    let given = [GraphInput { name: probe.input().unwrap(), shape, values: images }];
    let see = |came: GraphOutput<'_>| {
        let values = match came.numbers {
            TensorNumbers::Floats(values) => TensorConstants::Floats(values.to_vec()),
            TensorNumbers::Ints(values) => TensorConstants::Ints(values.to_vec()),
            TensorNumbers::Other => TensorConstants::Other,
        };
        known.add(came.name, came.shape.to_vec(), values);
    };
    graph.run(&given, see).unwrap();
    known
}

/// Runs a step; returns every output by name.
fn run(runtime: &OnnxRuntime, step: &TrainingStep, reference: &Reference) -> BTreeMap<String, Vec<f32>> {
    run_on(runtime, step, reference, &reference.floats("images"))
}

fn run_on(
    runtime: &OnnxRuntime,
    step: &TrainingStep,
    reference: &Reference,
    images: &[f32],
) -> BTreeMap<String, Vec<f32>> {
    let mut graph = Graph::open(runtime, "step", &step.graph.encode(), 1).unwrap();
    let batch = step.images_shape[0];
    let (target, scale) = (reference.floats("target"), reference.floats("scale"));
    let target_shape = [batch, step.classes as i64];
    let mut given = vec![
        GraphInput { name: &step.images, shape: &step.images_shape, values: images },
        GraphInput { name: TARGET, shape: &target_shape, values: &target },
        GraphInput { name: SCALE, shape: &[], values: &scale },
    ];
    let weights: Vec<Vec<f32>> =
        step.weights.iter().map(|weight| reference.model.weight(&weight.name).unwrap()).collect();
    for (weight, values) in step.weights.iter().zip(&weights) {
        given.push(GraphInput { name: &weight.name, shape: &weight.shape, values });
    }
    let mut came = BTreeMap::new();
    graph
        .run(&given, |output| {
            let TensorNumbers::Floats(values) = output.numbers else { panic!("{} is no float", output.name) };
            came.insert(output.name.to_owned(), values.to_vec());
        })
        .unwrap();
    came
}

#[test]
fn every_gradient_matches_the_reference() {
    let runtime = OnnxRuntime::find_and_load(None).unwrap();
    let mut wrong = Vec::new();
    for case in cases() {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let reference = Reference::read(&case).unwrap();
        let (prepared, known) = ready(&runtime, &reference);
        let step = match prepared.step(&known, &TrainableSelection::All) {
            Ok(step) => step,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let came = run(&runtime, &step, &reference);
        let trained: Vec<&str> = step.weights.iter().map(|weight| weight.name.as_str()).collect();
        let missing: Vec<&str> = reference.weights().filter(|weight| !trained.contains(weight)).collect();
        if !missing.is_empty() {
            wrong.push(format!("{name}: nothing trains {missing:?}"));
        }
        let mut worst_of_case: f64 = 0.0;
        for (output, values) in &came {
            let error = reference.error_of(output, values).unwrap();
            worst_of_case = worst_of_case.max(error);
            if error > MOST_WRONG {
                wrong.push(format!("{name}: {output} is wrong by {error:.1e}"));
            }
        }
        println!("{name}: {} gradients, worst {worst_of_case:.1e}", step.weights.len());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_split_step_gives_the_same_as_the_whole() {
    let runtime = OnnxRuntime::find_and_load(None).unwrap();
    let mut in_two = 0;
    for case in cases() {
        let reference = Reference::read(&case).unwrap();
        let (shape, images) = (reference.shape("images").to_vec(), reference.floats("images"));
        let (prepared, known) = ready(&runtime, &reference);
        for last in 1..=3 {
            let Ok(step) = prepared.step(&known, &TrainableSelection::Last(last)) else { continue };
            let Some(split) = step.split(&known).unwrap() else { continue };
            let mut frozen = Graph::open(&runtime, "frozen", &split.frozen.encode(), 1).unwrap();
            let given = [GraphInput { name: split.frozen.input().unwrap(), shape: &shape, values: &images }];
            let mut features = Vec::new();
            frozen
                .run(&given, |came| {
                    assert_eq!(came.shape, split.tail.images_shape);
                    let TensorNumbers::Floats(values) = came.numbers else { panic!("no floats") };
                    features = values.to_vec();
                })
                .unwrap();
            let whole = run(&runtime, &step, &reference);
            let tail = run_on(&runtime, &split.tail, &reference, &features);
            assert_eq!(whole.keys().collect::<Vec<_>>(), tail.keys().collect::<Vec<_>>());
            for (name, values) in &whole {
                let largest = values.iter().fold(1e-12_f32, |largest, value| largest.max(value.abs()));
                let error = values.iter().zip(&tail[name]).map(|(a, b)| (a - b).abs() / largest).fold(0.0, f32::max);
                assert!(error < 1e-5, "{}, last {last}: {name} differs by {error:.1e}", case.display());
            }
            in_two += 1;
        }
    }
    assert!(in_two >= 12, "only {in_two} steps could be cut in two");
}

//! How wrong gradients are: steps in 32-bit floats against references made elsewhere in 64-bit floats.

use std::path::{Path, PathBuf};

use autograd::loss::Targets;
use autograd::reference::Reference;
use autograd::training_step::LOSS;
use autograd::{AutogradError, TrainableSelection};
use serde::Serialize;
use training::stepper::Stepper;
use vision::OnnxRuntime;

use crate::error::BenchError;

/// The project's own, in a checkout.
const OWN: &str = "fixtures/gradients";

/// A model, a part of it that is trained, and how wrong its gradients are.
#[derive(Debug, Clone, Serialize)]
pub(super) struct GradientCheck {
    /// Name of the folder.
    pub case: String,
    /// `all`, or the last so many layers.
    pub trained: String,
    /// Weights.
    pub weights: usize,
    /// The worst of them: the largest difference as a share of the largest value.
    pub error: f64,
}

/// Checks every folder of references there; of a model with more than three layers also the head, and the last third.
pub(super) fn check(runtime: &OnnxRuntime, folder: Option<&Path>) -> Result<Vec<GradientCheck>, BenchError> {
    let folder = folder.unwrap_or(Path::new(OWN));
    let entries = std::fs::read_dir(folder).map_err(BenchError::file(folder))?;
    let mut cases: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    cases.retain(|case| case.is_dir());
    cases.sort();
    let mut checked = Vec::new();
    for case in cases {
        let name = case.file_name().unwrap_or_default().to_string_lossy().into_owned();
        eprintln!("bench: gradients of {name}");
        let reference = Reference::read(&case)?;
        let shape = reference.shape("images").to_vec();
        let output = reference.model.output()?.to_owned();
        let (prepared, known) = training::trainable_model::prepare(runtime, &reference.model, &output, &shape)?;
        let layers = autograd::report::report(&prepared, &known)?.layers;
        let mut parts = vec![("all".to_owned(), TrainableSelection::All)];
        if layers > 3 {
            let third = layers.div_ceil(3);
            parts.push((format!("last {third} of {layers}"), TrainableSelection::Last(third)));
            parts.push(("head".into(), TrainableSelection::HEAD));
        }
        for (trained, trainable) in parts {
            let step = prepared.step(&known, &trainable)?;
            let weights: Vec<Vec<f32>> =
                step.weights.iter().map(|weight| reference.model.weight(&weight.name)).collect::<Result<_, _>>()?;
            let names: Vec<String> = step.weights.iter().map(|weight| weight.gradient.clone()).collect();
            let mut stepper = Stepper::open(runtime, step, 1)?;
            let scale = reference.floats("scale").first().copied().unwrap_or(1.0);
            let targets = Targets { values: reference.floats("target"), scale };
            let mut gradients = vec![Vec::new(); names.len()];
            let loss = stepper.learn(&reference.floats("images"), &targets, &weights, &mut gradients)?;
            let errors = names.iter().zip(&gradients).map(|(name, came)| reference.error_of(name, came));
            let errors: Vec<f64> =
                errors.chain([reference.error_of(LOSS, &[loss])]).collect::<Result<_, AutogradError>>()?;
            let error = errors.into_iter().fold(0.0, f64::max);
            checked.push(GradientCheck { case: name.clone(), trained, weights: names.len(), error });
        }
    }
    Ok(checked)
}

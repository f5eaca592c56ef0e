//! Errors of gradients: training steps in 32-bit floats against PyTorch's references in 64-bit floats.

use std::path::{Path, PathBuf};

use autograd::loss::Targets;
use autograd::reference::Reference;
use autograd::training_step::LOSS;
use autograd::{AutogradError, TrainableSelection};
use serde::Serialize;
use training::stepper::Stepper;
use vision::OnnxRuntime;

use crate::error::BenchError;

/// The project's own references, in a checkout.
const OWN: &str = "fixtures/gradients";

/// Gradient errors of a model with some of its layers trained.
#[derive(Debug, Clone, Serialize)]
pub(super) struct GradientCheck {
    /// Name of the reference's folder.
    pub case: String,
    /// Trained layers: `all`, `head`, or the last N of all.
    pub trained: String,
    /// Number of trained weight tensors.
    pub weights: usize,
    /// Largest error of a gradient or the loss: its largest difference relative to its largest value.
    pub error: f64,
}

/// Checks every reference in a folder; for a model of more than three layers also with only the last third, and only the
/// head, trained.
pub(super) fn check_gradients(runtime: &OnnxRuntime, folder: Option<&Path>) -> Result<Vec<GradientCheck>, BenchError> {
    let folder = folder.unwrap_or(Path::new(OWN));
    let entries = std::fs::read_dir(folder).map_err(BenchError::file(folder))?;
    let mut cases: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    cases.retain(|case| case.is_dir());
    cases.sort();
    let mut checks = Vec::new();
    for case in cases {
        let name = case.file_name().unwrap_or_default().to_string_lossy().into_owned();
        eprintln!("bench: checking gradients of {name}");
        let reference = Reference::read(&case)?;
        let shape = reference.shape("images").to_vec();
        let output = reference.model.output()?.to_owned();
        let (prepared, facts) = training::trainable_model::prepare(runtime, &reference.model, &output, &shape)?;
        let layers = autograd::report::report(&prepared, &facts)?.layers;
        let mut parts = vec![("all".to_owned(), TrainableSelection::All)];
        if layers > 3 {
            let third = layers.div_ceil(3);
            parts.push((format!("last {third} of {layers}"), TrainableSelection::Last(third)));
            parts.push(("head".into(), TrainableSelection::HEAD));
        }
        for (trained, trainable) in parts {
            let step = prepared.step(&facts, &trainable)?;
            let weights: Vec<Vec<f32>> =
                step.weights.iter().map(|weight| reference.model.weight(&weight.name)).collect::<Result<_, _>>()?;
            let names: Vec<String> = step.weights.iter().map(|weight| weight.gradient.clone()).collect();
            let mut stepper = Stepper::open(runtime, step, 1)?;
            let scale = reference.floats("scale").first().copied().unwrap_or(1.0);
            let targets = Targets { values: reference.floats("target"), scale };
            let mut gradients = vec![Vec::new(); names.len()];
            let loss = stepper.learn(&reference.floats("images"), &targets, &weights, &mut gradients)?;
            let errors = names.iter().zip(&gradients).map(|(name, gradient)| reference.error_of(name, gradient));
            let errors: Vec<f64> =
                errors.chain([reference.error_of(LOSS, &[loss])]).collect::<Result<_, AutogradError>>()?;
            let error = errors.into_iter().fold(0.0, f64::max);
            checks.push(GradientCheck { case: name.clone(), trained, weights: names.len(), error });
        }
    }
    Ok(checks)
}

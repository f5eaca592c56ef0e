//! Starts a worker whose model can be swapped, with the release that served last or with the baseline.

use std::path::Path;

use schemas::RefusedRelease;
use vision::{InferenceError, InferencePool, InferenceSettings, Model, ModelError, OnnxRuntime};

use crate::release_cache::ReleaseCache;
use releases::trial::TrialRunner;

/// A worker's model, loaded and warmed up.
#[derive(Debug)]
pub struct ServingModel {
    /// The baseline model.
    pub root: Model,
    /// Runs the serving model.
    pub infer: InferencePool,
    /// Where releases are kept.
    pub home: ReleaseCache,
    /// How a release is tried.
    pub trial: TrialRunner,
    /// Releases it did not start with, and why.
    pub refused: Vec<RefusedRelease>,
}

/// Why a worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The release cache cannot be opened.
    #[error("could not open the release cache in {folder}; name another folder (recognizer.work, verifier.work)")]
    Home {
        /// Path of the folder.
        folder: String,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The baseline is not a valid model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The baseline cannot be loaded.
    #[error(transparent)]
    Infer(#[from] InferenceError),
}

/// Loads and warms up the model; blocks for a moment. `folder`: the baseline model.
pub fn start_model(
    onnx: &OnnxRuntime,
    folder: &Path,
    infer: &InferenceSettings,
    work: &Path,
    trial: TrialRunner,
) -> Result<ServingModel, StartError> {
    let root = Model::load(folder)?;
    let unusable = |source| StartError::Home { folder: work.display().to_string(), source };
    let home = ReleaseCache::open(work).map_err(unusable)?;
    let (model, mut refused) = home.start(&root).map_err(unusable)?;
    let running = match InferencePool::start(onnx, &model, infer) {
        Err(error) if model.release != root.release => {
            let note = error.fault_note();
            tracing::warn!(
                release = model.release.short(),
                fault = note.kind.as_str(),
                reason = note.reason,
                "cached release cannot be loaded; starting with the baseline"
            );
            refused.push(RefusedRelease { release: model.release, fault: note });
            home.serving_release(&root.release, true).map_err(unusable)?;
            InferencePool::start(onnx, &root, infer)?
        }
        started => started?,
    };
    Ok(ServingModel { root, infer: running, home, trial, refused })
}

//! How a worker whose model can be exchanged begins: with what served last, or with what it was set up with.

use std::path::Path;

use schemas::RefusedRelease;
use vision::{InferenceError, InferencePool, InferenceSettings, Model, ModelError, OnnxRuntime};

use crate::release_cache::ReleaseCache;
use crate::trial::TrialRunner;

/// A worker's model, loaded and warm.
#[derive(Debug)]
pub struct ServingModel {
    /// What it was set up with.
    pub root: Model,
    /// What runs.
    pub infer: InferencePool,
    /// Where releases lie.
    pub home: ReleaseCache,
    /// How a release is tried.
    pub trial: TrialRunner,
    /// What it does not begin with.
    pub refused: Vec<RefusedRelease>,
}

/// Why a worker does not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its folder.
    #[error("folder {folder} for releases cannot be used; name another one (recognizer.work, verifier.work)")]
    Home {
        /// The folder.
        folder: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What it was set up with is no model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// What it was set up with does not run.
    #[error(transparent)]
    Infer(#[from] InferenceError),
}

/// Loads and warms; takes a moment and the calling thread. `folder`: the model it was set up with.
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
                "what served last cannot be loaded: begins with what it was set up with"
            );
            refused.push(RefusedRelease { release: model.release, fault: note });
            home.serving_release(&root.release, true).map_err(unusable)?;
            InferencePool::start(onnx, &root, infer)?
        }
        started => started?,
    };
    Ok(ServingModel { root, infer: running, home, trial, refused })
}

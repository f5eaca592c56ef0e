//! How a worker whose model can be exchanged begins: with what served last, or with what it was set up with.

use std::path::Path;

use schemas::RefusedRelease;
use vision::{Infer, InferError, InferSettings, Model, ModelError, Onnx};

use crate::home::Home;
use crate::trial::Trial;

/// A worker's model, loaded and warm.
#[derive(Debug)]
pub struct Started {
    /// What it was set up with.
    pub root: Model,
    /// What runs.
    pub infer: Infer,
    /// Where releases lie.
    pub home: Home,
    /// How a release is tried.
    pub trial: Trial,
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
    Infer(#[from] InferError),
}

/// Loads and warms; takes a moment and the calling thread. `folder`: the model it was set up with.
pub fn start_model(
    onnx: &Onnx,
    folder: &Path,
    infer: &InferSettings,
    work: &Path,
    trial: Trial,
) -> Result<Started, StartError> {
    let root = Model::load(folder)?;
    let unusable = |source| StartError::Home { folder: work.display().to_string(), source };
    let home = Home::open(work).map_err(unusable)?;
    let (model, mut refused) = home.start(&root).map_err(unusable)?;
    let running = match Infer::start(onnx, &model, infer) {
        Err(error) if model.release != root.release => {
            let note = error.fault_note();
            tracing::warn!(
                release = model.release.short(),
                fault = note.name,
                reason = note.reason,
                "what served last cannot be loaded: begins with what it was set up with"
            );
            refused.push(RefusedRelease { release: model.release, fault: note });
            home.serving_release(&root.release, true).map_err(unusable)?;
            Infer::start(onnx, &root, infer)?
        }
        started => started?,
    };
    Ok(Started { root, infer: running, home, trial, refused })
}

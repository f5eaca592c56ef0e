//! Why a measurement failed.

use std::path::PathBuf;
use std::time::Duration;

use streams::CarryError;
use streams::server::ServerError;
use vision::{InferenceError, ModelError, SessionError};

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// The default model is missing.
    #[error("model {looked_for} not found: run this in a checkout of the project, or name a model with --model DIR", looked_for = looked_for.display())]
    NoModel {
        /// The expected folder.
        looked_for: PathBuf,
    },
    /// A folder of labelled images is unusable.
    #[error(transparent)]
    Dataset(#[from] dataset::DatasetError),
    /// A folder has no usable images.
    #[error("folder {folder} {why}", folder = folder.display())]
    NoImages {
        /// The folder.
        folder: PathBuf,
        /// The problem, as the rest of the sentence.
        why: String,
    },
    /// A file cannot be read or written.
    #[error("could not access {path}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// ONNX Runtime is missing or rejects the model.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The bare loop failed on an image.
    #[error(transparent)]
    Infer(#[from] InferenceError),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] training::TrainError),
    /// Updates could not be merged.
    #[error(transparent)]
    Derive(#[from] aggregator::aggregate::AggregateError),
    /// A graph cannot be trained.
    #[error(transparent)]
    Autograd(#[from] autograd::AutogradError),
    /// The nats-server does not run.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// A NATS operation failed.
    #[error(transparent)]
    Carry(#[from] CarryError),
    /// A worker process could not be started.
    #[error("{role} could not be started")]
    NotStarted {
        /// Role of the worker.
        role: &'static str,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A worker process exited.
    #[error("{role} exited unexpectedly ({how}): see its log above")]
    Ended {
        /// Role of the worker.
        role: &'static str,
        /// Exit status.
        how: String,
    },
    /// An image got no answer in time.
    #[error("an image got no answer within {} s", timeout.as_secs())]
    NoAnswer {
        /// Time waited.
        timeout: Duration,
    },
    /// An image was answered with a fault.
    #[error("an image could not be recognized: {why}")]
    Dead {
        /// Reason of the fault.
        why: String,
    },
    /// No image was finished in a measurement window.
    #[error("no image was finished in {} s: the machine is too busy, or the window too short", length.as_secs_f64())]
    Nothing {
        /// Length of the window.
        length: Duration,
    },
    /// A task or thread of the bench panicked.
    #[error("a task of the measurement crashed")]
    Broken(#[from] tokio::task::JoinError),
    /// A server certificate could not be created.
    #[error(transparent)]
    Certificate(#[from] fleet::FleetError),
    /// The shaped link between the servers could not be set up.
    #[error("could not set up the link between the servers")]
    Link {
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A condition was not reached in time.
    #[error("timed out after {} s waiting for {what}", timeout.as_secs())]
    NotReady {
        /// The condition, as a noun phrase.
        what: &'static str,
        /// Time waited.
        timeout: Duration,
    },
    /// A report could not be serialized, or a reply could not be parsed.
    #[error("could not read or write JSON")]
    Json(#[from] serde_json::Error),
    /// A chart could not be drawn.
    #[error(transparent)]
    Chart(#[from] crate::chart::ChartError),
    /// The cameras to measure with cannot be had.
    #[error("no cameras to measure with: {why}")]
    Cameras {
        /// The problem, and what to do.
        why: String,
    },
    /// The kernel does not tell what a process uses.
    #[error("processor time and memory of processes cannot be read: this bench needs /proc, so run it on Linux")]
    Unmeasured,
    /// Stopped by the user.
    #[error("stopped before the end")]
    Stopped,
}

impl BenchError {
    /// Maps an I/O error on `path`.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

//! Why a measurement came to nothing.

use std::path::PathBuf;
use std::time::Duration;

use streams::CarryError;
use streams::server::ServerError;
use vision::{InferenceError, ModelError, SessionError};

/// Why a measurement came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// The default model is not where it is looked for.
    #[error("model {looked_for} is not here: run this in a checkout of the project, or name a model with --model DIR", looked_for = looked_for.display())]
    NoModel {
        /// Where it was looked for.
        looked_for: PathBuf,
    },
    /// A folder of labelled images that cannot be used.
    #[error(transparent)]
    Dataset(#[from] dataset::DatasetError),
    /// A folder without usable images.
    #[error("folder {folder} {why}", folder = folder.display())]
    NoImages {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file that cannot be read or written.
    #[error("{path} cannot be used", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// The model is none.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// ONNX Runtime is missing or refuses the model.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The bare loop failed on a picture.
    #[error(transparent)]
    Infer(#[from] InferenceError),
    /// A step of training failed.
    #[error(transparent)]
    Train(#[from] training::TrainError),
    /// Weights could not be merged.
    #[error(transparent)]
    Derive(#[from] aggregator::aggregate::AggregateError),
    /// A graph cannot be trained.
    #[error(transparent)]
    Autograd(#[from] autograd::AutogradError),
    /// The server does not run.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The server refuses or fails something.
    #[error(transparent)]
    Carry(#[from] CarryError),
    /// A worker's process cannot be started.
    #[error("{role} could not be started")]
    NotStarted {
        /// Which.
        role: &'static str,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// A worker's process ended.
    #[error("{role} ended by itself ({how}): its log above says why")]
    Ended {
        /// Which.
        role: &'static str,
        /// How.
        how: String,
    },
    /// An image without an answer.
    #[error("an image had no answer within {}s", patience.as_secs())]
    NoAnswer {
        /// How long was waited.
        patience: Duration,
    },
    /// An image that was answered by a tombstone.
    #[error("an image could not be recognized: {why}")]
    Dead {
        /// The fault in its answer.
        why: String,
    },
    /// Nothing was finished in a stretch of time.
    #[error("nothing was finished in {}s: the machine is too busy, or a window too short", length.as_secs_f64())]
    Nothing {
        /// How long it was.
        length: Duration,
    },
    /// The measurement's own task or thread broke.
    #[error("a part of the measurement broke")]
    Broken(#[from] tokio::task::JoinError),
    /// No certificate for a server.
    #[error(transparent)]
    Certificate(#[from] fleet::FleetError),
    /// The link between the servers cannot be made.
    #[error("the link between the servers could not be made")]
    Link {
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// A worker did not become ready.
    #[error("{what} did not come about within {}s", patience.as_secs())]
    NotReady {
        /// What was waited for.
        what: &'static str,
        /// How long.
        patience: Duration,
    },
    /// A report that has no JSON form.
    #[error("report cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    /// A picture cannot be drawn.
    #[error(transparent)]
    Chart(#[from] crate::chart::ChartError),
    /// Somebody stopped it.
    #[error("stopped before it was through")]
    Stopped,
}

impl BenchError {
    /// A failure of the system on a file.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

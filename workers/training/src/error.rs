//! Why nothing was trained.

use std::path::PathBuf;

use autograd::AutogradError;
use vision::{InferenceError, ModelError, SessionError};

/// Why nothing was trained. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model's folder.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model's graph.
    #[error(transparent)]
    Autograd(#[from] AutogradError),
    /// The runtime.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The model cannot be run on a picture.
    #[error(transparent)]
    Infer(#[from] InferenceError),
    /// A file cannot be read or written.
    #[error("{} cannot be {verb}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// `read` or `written`.
        verb: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is nothing to learn from.
    #[error("folder {} {why}", folder.display())]
    NoExamples {
        /// Which.
        folder: PathBuf,
        /// What is wrong, and what would do.
        why: String,
    },
    /// Labels that the model does not know.
    #[error(
        "{count} images have labels the model does not know ({}); add them to the model, or correct the index",
        labels.join(", ")
    )]
    UnknownLabels {
        /// Images.
        count: usize,
        /// Some of the labels.
        labels: Vec<String>,
    },
    /// Only one class to learn from.
    #[error("all {count} images are labelled {label:?}: a model that sees only one class forgets the others")]
    SingleClass {
        /// Images.
        count: usize,
        /// The label.
        label: String,
    },
    /// Most pictures cannot be read.
    #[error("{unreadable} of {count} images cannot be used, the first is {first}")]
    Unreadable {
        /// So many.
        unreadable: usize,
        /// Of so many.
        count: usize,
        /// Which, and why.
        first: String,
    },
    /// The loss is no number any more.
    #[error(
        "the loss is not finite in epoch {epoch}: use a smaller learning rate (now {learning_rate}), or clip gradients (clip_norm)"
    )]
    Diverged {
        /// From 1.
        epoch: u32,
        /// The setting.
        learning_rate: f32,
    },
    /// The model gives probabilities, and not by a softmax at its end.
    #[error(
        "output {output:?} is probabilities, but not made by a Softmax at the end of the graph: export the model with logits"
    )]
    NoLogits {
        /// The output.
        output: String,
    },
    /// Several labels at once, or one number for two labels.
    #[error(
        "output {output:?} is {kind} with {scores} scores for {labels} labels: training takes models that tell one label of \
         several by one logit each"
    )]
    OtherTask {
        /// The output.
        output: String,
        /// What its numbers are.
        kind: &'static str,
        /// How many there are for an image.
        scores: usize,
        /// How many labels there are.
        labels: usize,
    },
    /// Something is where the new model should be.
    #[error("{} is there already and not empty; name a folder that does not exist yet", folder.display())]
    Taken {
        /// Which.
        folder: PathBuf,
    },
    /// It takes more memory than it may.
    #[error(
        "training takes {needed_mib} MiB and trainer.limits.memory_max_mib allows {allowed_mib}: use smaller batches (trainer.batch), train fewer layers (trainer.trainable), or allow more"
    )]
    OutOfMemory {
        /// What it takes, at the least.
        needed_mib: u64,
        /// The setting.
        allowed_mib: u64,
    },
    /// Weights that cannot be put into a file, or read from one.
    #[error("weights cannot be {verb}")]
    Weights {
        /// `read` or `written`.
        verb: &'static str,
        /// Why.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// Settings that make no sense.
    #[error("setting {0}")]
    Settings(String),
    /// Told to stop.
    #[error("stopped before it was done; nothing was written")]
    Stopped,
}

impl TrainError {
    /// Makes a failed reading of a file an error.
    pub fn read(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| TrainError::File { path, verb: "read", source }
    }

    /// Makes a failed writing of a file an error.
    pub fn write(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| TrainError::File { path, verb: "written", source }
    }
}

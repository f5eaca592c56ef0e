//! Why a training failed.

use std::path::PathBuf;

use autograd::AutogradError;
use vision::{InferenceError, ModelError, SessionError};

/// Why a training failed. Each error says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model's folder cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model's graph cannot be trained.
    #[error(transparent)]
    Autograd(#[from] AutogradError),
    /// The ONNX Runtime failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The model cannot be run on a picture.
    #[error(transparent)]
    Infer(#[from] InferenceError),
    /// A file cannot be read or written.
    #[error("{} could not be {verb}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// `read` or `written`.
        verb: &'static str,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The folder of labelled pictures cannot be used.
    #[error(transparent)]
    Dataset(#[from] dataset::DatasetError),
    /// There is nothing to learn from.
    #[error("folder {} {why}", folder.display())]
    NoExamples {
        /// Path of the folder.
        folder: PathBuf,
        /// What is wrong and what to do, in words that follow the path.
        why: String,
    },
    /// Labels that the model does not have.
    #[error(
        "{count} images have labels unknown to the model ({}); add them to the model, or correct the index",
        labels.join(", ")
    )]
    UnknownLabels {
        /// Number of images.
        count: usize,
        /// Some of the labels.
        labels: Vec<String>,
    },
    /// All examples have the same class.
    #[error(
        "all {count} images are labelled {label:?}; training on a single class would forget the others, so add images of other labels"
    )]
    SingleClass {
        /// Number of images.
        count: usize,
        /// Their label.
        label: String,
    },
    /// Most pictures are unusable.
    #[error("{unreadable} of {count} images cannot be used; the first is {first}")]
    Unreadable {
        /// Number of unusable images.
        unreadable: usize,
        /// Number of all images.
        count: usize,
        /// Path of the first, and why.
        first: String,
    },
    /// The loss became NaN or infinite.
    #[error(
        "the loss is not finite in epoch {epoch}; use a lower learning rate (now {learning_rate}), or clip gradients (clip_norm)"
    )]
    Diverged {
        /// Number of the epoch, from 1.
        epoch: u32,
        /// The configured learning rate.
        learning_rate: f32,
    },
    /// The model gives probabilities that do not come from a final softmax.
    #[error(
        "output {output:?} gives probabilities that do not come from a Softmax at the end of the graph; export the model with logits"
    )]
    NoLogits {
        /// Name of the output.
        output: String,
    },
    /// The model finds objects.
    #[error("cannot train a detector yet: model {model} finds objects; train it elsewhere and import it as a release")]
    Detector {
        /// Name of the model.
        model: String,
    },
    /// The model predicts several labels at once, or one number for two labels.
    #[error(
        "output {output:?} is {kind} with {scores} scores for {labels} labels; only models that choose one label \
         with one logit per label can be trained"
    )]
    OtherTask {
        /// Name of the output.
        output: String,
        /// What its numbers are.
        kind: &'static str,
        /// Number of scores per image.
        scores: usize,
        /// Number of labels.
        labels: usize,
    },
    /// The target folder is in use.
    #[error("{} already exists and is not empty; name a folder that does not exist yet", folder.display())]
    Taken {
        /// Path of the folder.
        folder: PathBuf,
    },
    /// It needs more memory than allowed.
    #[error(
        "training needs {needed_mib} MiB, but trainer.limits.memory_max_mib allows {allowed_mib}; use smaller batches (trainer.batch), train fewer layers (trainer.trainable), or raise the limit"
    )]
    OutOfMemory {
        /// Memory it needs at least, MiB.
        needed_mib: u64,
        /// The limit, MiB.
        allowed_mib: u64,
    },
    /// Weights cannot be encoded or decoded.
    #[error("weights could not be {verb}")]
    Weights {
        /// `read` or `written`.
        verb: &'static str,
        /// Error of the safetensors library.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A setting is invalid.
    #[error("invalid setting: {0}")]
    Settings(String),
    /// Training was stopped.
    #[error("training was stopped before it finished; nothing was written")]
    Stopped,
}

impl TrainError {
    /// Turns an I/O error from reading a file into a [`TrainError`].
    pub fn read(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| TrainError::File { path, verb: "read", source }
    }

    /// Turns an I/O error from writing a file into a [`TrainError`].
    pub fn write(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| TrainError::File { path, verb: "written", source }
    }
}

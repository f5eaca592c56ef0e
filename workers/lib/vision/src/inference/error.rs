//! Why pictures are not recognized.

use schemas::FaultNote;

use crate::decode::DecodeError;
use crate::session::SessionError;
use crate::tensor::TensorError;

/// Why a picture was not recognized.
#[derive(Debug, thiserror::Error)]
pub enum InferenceError {
    /// The picture's fault.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The model's or the runtime's fault.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A bug of this program.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A stage panicked on this picture; the replica continues.
    #[error("stage {stage} panicked on this image: {why}")]
    Panicked {
        /// The stage: `tensor` or `infer`.
        stage: &'static str,
        /// Message of the panic.
        why: String,
    },
    /// Whoever asked looked at the decoded picture, and does not want it inferred.
    #[error("the picture's result is not wanted any more")]
    Declined,
    /// The threads have ended or are about to.
    #[error("inference has stopped")]
    Stopped,
    /// A thread could not be started.
    #[error("could not start a thread for a replica")]
    NoThread {
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
}

impl InferenceError {
    /// A stable name for dead letters, metrics and scripts.
    pub fn name(&self) -> &'static str {
        match self {
            InferenceError::Decode(error) => error.name(),
            InferenceError::Session(error) => error.name(),
            InferenceError::Tensor(_) => "tensor_unfit",
            InferenceError::Panicked { .. } => "infer_panicked",
            InferenceError::Declined => "infer_declined",
            InferenceError::Stopped => "infer_stopped",
            InferenceError::NoThread { .. } => "infer_no_thread",
        }
    }

    /// The note for a dead letter.
    pub fn fault_note(&self) -> FaultNote {
        let remedy = match self {
            InferenceError::Decode(error) => error.remedy(),
            InferenceError::Session(_) | InferenceError::Tensor(_) => "check the model with `tributary model check`",
            InferenceError::Panicked { .. } => "keep the image and report it with the version of tributary",
            InferenceError::Declined | InferenceError::Stopped | InferenceError::NoThread { .. } => {
                "none needed; another worker takes it"
            }
        };
        FaultNote::new(self.name(), self.to_string(), remedy)
    }

    /// Whether another model would fail on this picture too.
    pub fn is_the_images_fault(&self) -> bool {
        matches!(self, InferenceError::Decode(_) | InferenceError::Panicked { .. })
    }
}

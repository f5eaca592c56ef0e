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
    /// Ours.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A room panicked on this picture; the replica goes on.
    #[error("room {room} panicked on this image: {why}")]
    Panicked {
        /// Where.
        room: &'static str,
        /// Its last words.
        why: String,
    },
    /// The threads have ended or are about to.
    #[error("inference has stopped")]
    Stopped,
    /// The system gave no thread.
    #[error("thread for a replica could not be started")]
    NoThread {
        /// Why.
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
            InferenceError::Stopped => "infer_stopped",
            InferenceError::NoThread { .. } => "infer_no_thread",
        }
    }

    /// What happened, for a dead letter.
    pub fn fault_note(&self) -> FaultNote {
        let remedy = match self {
            InferenceError::Decode(error) => error.remedy(),
            InferenceError::Session(_) | InferenceError::Tensor(_) => "try the model with `tributary model check`",
            InferenceError::Panicked { .. } => "keep the image and report it with the version of tributary",
            InferenceError::Stopped | InferenceError::NoThread { .. } => "nothing: another worker takes it",
        };
        FaultNote::new(self.name(), self.to_string(), remedy)
    }

    /// True if another model would fail on this picture too: it is the picture that is bad.
    pub fn is_the_images_fault(&self) -> bool {
        matches!(self, InferenceError::Decode(_) | InferenceError::Panicked { .. })
    }
}

//! Why a model cannot be trained.

use std::path::PathBuf;

/// Why a model cannot be read, changed or trained. Each error says what to do.
#[derive(Debug, thiserror::Error)]
pub enum AutogradError {
    /// A file cannot be read.
    #[error("could not read {}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The bytes are not an ONNX model.
    #[error("the file is not an ONNX model, or it is cut off")]
    NotOnnx(#[source] prost::DecodeError),
    /// A required part is missing.
    #[error("the model has no {what}")]
    Missing {
        /// The part, such as `graph`.
        what: String,
    },
    /// Weights in external files cannot be used.
    #[error("the weights of {tensor} are in the external file {location}, and {why}")]
    External {
        /// Name of the tensor.
        tensor: String,
        /// Path that the model names.
        location: String,
        /// What is wrong.
        why: String,
    },
    /// The model's opset is too old.
    #[error(
        "the model uses version {found} of the ONNX operators, but training needs {least} or later; export it again"
    )]
    Opset {
        /// The model's opset.
        found: i64,
        /// The oldest supported opset.
        least: i64,
    },
    /// The batch size is fixed in the graph.
    #[error("the model is made for batches of {found}, and {why}; export it with a dynamic batch")]
    FixedBatch {
        /// The fixed batch size.
        found: i64,
        /// Why it cannot be changed.
        why: String,
    },
    /// The model is quantized or half-precision.
    #[error(
        "the model computes in {kind} ({at}), but training needs 32-bit floats; train the model it was converted from, then convert it again"
    )]
    Precision {
        /// The element type, such as `float16`.
        kind: &'static str,
        /// Name of a tensor or node of that type.
        at: String,
    },
    /// No requested weight can be trained.
    #[error("{why}")]
    NothingTrainable {
        /// What was requested and what exists.
        why: String,
    },
    /// Operators between the trainable weights and the output have no gradient rule.
    #[error(
        "no gradient is known for {}; {remedy}",
        unsupported.join(", ")
    )]
    Unsupported {
        /// Each operator with its node and the reason.
        unsupported: Vec<String>,
        /// What would work.
        remedy: String,
    },
    /// A tensor was not probed.
    #[error("nothing is known about tensor {tensor}, because it was not seen when the model was probed; report it")]
    Unknown {
        /// Its name.
        tensor: String,
    },
    /// A tensor does not fit.
    #[error("tensor {tensor}: {why}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong.
        why: String,
    },
    /// A choice of trainable weights is invalid.
    #[error("`{text}` is not a choice of weights; write all, head, last N, or name patterns such as `classifier.*`")]
    Choice {
        /// The text that was given.
        text: String,
    },
}

impl AutogradError {
    /// A stable name for programs.
    pub fn name(&self) -> &'static str {
        match self {
            AutogradError::File { .. } => "model_unreadable",
            AutogradError::NotOnnx(_) => "model_not_onnx",
            AutogradError::Missing { .. } => "model_incomplete",
            AutogradError::External { .. } => "model_weights_missing",
            AutogradError::Opset { .. } => "model_opset_old",
            AutogradError::FixedBatch { .. } => "model_batch_fixed",
            AutogradError::Precision { .. } => "model_precision",
            AutogradError::NothingTrainable { .. } => "nothing_trainable",
            AutogradError::Unsupported { .. } => "operator_without_gradient",
            AutogradError::Unknown { .. } => "tensor_unknown",
            AutogradError::Tensor { .. } => "tensor_unfit",
            AutogradError::Choice { .. } => "trainable_unreadable",
        }
    }
}

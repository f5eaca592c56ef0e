//! Why a model cannot be trained.

use std::path::PathBuf;

/// Why a model cannot be read, changed or trained. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum AutogradError {
    /// A file cannot be read.
    #[error("{} cannot be read", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The bytes are no ONNX model.
    #[error("the file is not an ONNX model, or cut off")]
    NotOnnx(#[source] prost::DecodeError),
    /// Something that every model has is missing.
    #[error("the model has no {what}")]
    Missing {
        /// For example `graph`.
        what: String,
    },
    /// Weights in files beside the model cannot be used.
    #[error("weights of {tensor} are outside the model, in {location}, and {why}")]
    External {
        /// Name of the tensor.
        tensor: String,
        /// Where it should be.
        location: String,
        /// What is wrong.
        why: String,
    },
    /// The graph uses another set of operators than can be handled.
    #[error(
        "the model uses version {found} of the ONNX operators, and training takes {least} and later: export it anew"
    )]
    Opset {
        /// The model's.
        found: i64,
        /// The least.
        least: i64,
    },
    /// The number of images is written into the graph.
    #[error("the model is made for batches of {found}, and {why}: export it with a dynamic batch")]
    FixedBatch {
        /// So many.
        found: i64,
        /// Why it cannot take another number.
        why: String,
    },
    /// A quantized or half-precision model.
    #[error(
        "the model computes in {kind} ({at}), and training needs 32-bit floats: train the model it was made from, then convert it again"
    )]
    Precision {
        /// For example `float16`.
        kind: &'static str,
        /// Name of a tensor or node where that shows.
        at: String,
    },
    /// Nothing can be trained as asked for.
    #[error("{why}")]
    NothingTrainable {
        /// What was asked for and what there is.
        why: String,
    },
    /// Operators on the way from the trainable weights to the output have no rule.
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
    /// A tensor's shape is not known.
    #[error("nothing is known of tensor {tensor}: it was not seen when the model was probed")]
    Unknown {
        /// Its name.
        tensor: String,
    },
    /// A tensor is not what it must be.
    #[error("tensor {tensor}: {why}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong.
        why: String,
    },
    /// A choice of trainable weights that cannot be read.
    #[error("`{text}` chooses no weights: write all, head, last N, or patterns of names as in `classifier.*`")]
    Choice {
        /// What was written.
        text: String,
    },
}

impl AutogradError {
    /// Its name, for programs.
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

//! Training without a training framework: derives from an ONNX classifier a *training step*, a graph of ordinary ONNX
//! operators that takes a batch, its targets and the weights, and gives the loss and one gradient per weight. Whatever
//! runs the classifier runs the step.
//!
//! ```text
//! model.onnx ─▶ onnx: read ─▶ probe (run once elsewhere) ─▶ known ─▶ trainable ─▶ fold ─▶ composite ─▶ unfold ─▶ step ─▶ step.onnx
//!                                                                    report: what has no rule
//! weights ─▶ onnx: patch ─▶ a new model.onnx
//! ```
//!
//! [`training_step`] shows that path; each operator's rule is a function in [`rules`]. Everything is pure: nothing is
//! run here, and only [`onnx::read`] reads files. Deliberately absent: a runtime, a training loop, an optimizer.

// Arithmetic over arrays whose shapes are checked when a graph is read.
#![allow(clippy::indexing_slicing)]

mod proto;

mod batch;
pub mod build;
mod composite;
mod fold;
pub mod gradient_tape;
pub mod loss;
pub mod onnx;
pub mod reference;
pub mod report;
mod rules;
mod split;
pub mod tensor;
pub mod tensor_facts;
pub mod trainable;
pub mod training_step;
mod unfold;
mod upgrade;
mod writer;

mod error;

pub use error::AutogradError;
pub use onnx::OnnxDocument;
pub use split::StepSplit;
pub use tensor_facts::TensorFacts;
pub use trainable::TrainableSelection;
pub use training_step::TrainingStep;

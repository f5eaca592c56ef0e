//! Trains a better model from labelled images, without Python and without a second framework: from a folder of pictures
//! to new weights.
//!
//! [`examples`] lists pictures and labels, [`batches`] decodes, augments and orders them, [`stepper`] runs the training
//! step of [`autograd`], [`optimizer`] moves the weights, [`train`](train::train_model) is the loop around them,
//! [`hard_focus`] decides which pictures are seen more often, [`holdout`] whether the model improved, [`folder`] writes
//! the new model. [`trainable_model`] asks the runtime for the tensor shapes, [`pace`] limits CPU and memory,
//! by the account in [`quota`],
//! [`checkpoint`] saves progress, [`weights`] reads and writes tensors.
//!
//! Deliberately absent: messages, other sites, decisions about releases.

// Arithmetic over arrays of one length.
#![allow(clippy::indexing_slicing)]

pub mod batches;
pub mod checkpoint;
pub mod error;
pub mod examples;
pub mod folder;
pub mod hard_focus;
pub mod holdout;
pub mod optimizer;
pub mod pace;
pub mod quota;
pub mod settings;
pub mod stepper;
pub mod train;
pub mod trainable_model;
pub mod weights;

pub use checkpoint::{CheckpointFolder, Epoch};
pub use error::TrainError;
pub use examples::{ExampleSplit, Examples};
pub use pace::TrainingPace;
pub use settings::TrainSettings;
pub use train::{TRAINING_RESUMED, TrainContext, TrainedModel, train_model};

//! A better model from labelled images, without Python and without a second framework: from a plain folder of pictures to
//! new weights.
//!
//! [`examples`] says which pictures there are and what they show, [`batches`] decodes, changes and orders them, [`stepper`]
//! runs the training step of [`autograd`], [`optimizer`] moves the weights, [`train`](train::train) is the loop around them,
//! [`focus`] says what is seen oftener, [`folder`] writes the model they belong to. [`probe`] asks the runtime for the shapes that a step is made from, [`pace`]
//! says how fast it may go, [`checkpoint`] how far it is, [`weights`] writes tensors into files. Deliberately absent:
//! messages, other sites, decisions about releases.

pub mod batches;
pub mod checkpoint;
pub mod error;
pub mod examples;
pub mod folder;
pub mod hard_focus;
pub mod holdout;
pub mod optimizer;
pub mod pace;
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
pub use train::{TrainContext, TrainedModel, train_model};

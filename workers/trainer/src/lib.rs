//! A better model from labelled images, without Python and without a second framework: examples → batches →
//! steps → a new model folder.
//!
//! [`train`](train::train) reads as that path: [`examples`] says which pictures there are and what they show,
//! [`batches`] decodes, changes and orders them, [`stepper`] runs the training step of [`autograd`], [`optimizer`] moves
//! the weights, [`folder`] writes the model they belong to. [`probe`] asks the runtime for the shapes that a step is
//! made from. Deliberately absent: other sites, streams, decisions about releases.

pub mod batches;
pub mod error;
pub mod examples;
pub mod folder;
pub mod optimizer;
pub mod probe;
pub mod settings;
pub mod stepper;
pub mod train;

pub use error::TrainError;
pub use examples::{Examples, Split};
pub use settings::TrainSettings;
pub use train::{Epoch, Measured, Trained, train};

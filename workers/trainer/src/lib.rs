//! A better model from labelled images, without Python and without a second framework.
//!
//! A site's trainer walks collect → train → submit ([`walk`]): [`collect`] reads what is said of the site's images into a
//! [`collection`] and copies them, [`train`](train::train) learns, [`submit`] sends the weights. Training itself also goes from a plain folder to
//! a new model folder: [`examples`] says which pictures there are and what they show, [`batches`] decodes, changes and
//! orders them, [`stepper`] runs the training step of [`autograd`], [`optimizer`] moves the weights, [`folder`] writes
//! the model they belong to. [`probe`] asks the runtime for the shapes that a step is made from, [`pace`] says how fast
//! it may go, [`checkpoint`] how far it is, [`weights`] writes tensors into files. Deliberately absent: other sites,
//! decisions about releases.

pub mod batches;
pub mod checkpoint;
pub mod collect;
pub mod collection;
pub mod error;
pub mod examples;
pub mod folder;
pub mod optimizer;
pub mod pace;
pub mod probe;
pub mod settings;
pub mod stepper;
pub mod submit;
pub mod train;
pub mod walk;
pub mod weights;

pub use checkpoint::{Checkpoints, Epoch};
pub use error::TrainError;
pub use examples::{Examples, Split};
pub use pace::Pace;
pub use settings::TrainSettings;
pub use train::{Around, Trained, train};
pub use walk::run;

//! A site's trainer: collect → train → submit, repeatedly ([`worker`]). [`collector`] reads the labels of the site's
//! images into a [`collection`] and copies the images ([`training_copy`]), the crate `training` trains,
//! [`learned_images`] records at the site which images an update learned from, [`submit`] sends the weights.
//! [`base_weights`] is the model that a round starts from.
//!
//! Deliberately absent: access to other sites, decisions about releases.

mod base_weights;
mod collection;
pub mod collector;
pub mod learned_images;
mod settings;
mod submit;
pub mod training_copy;
mod worker;

pub use settings::TrainerSettings;
pub use worker::run;

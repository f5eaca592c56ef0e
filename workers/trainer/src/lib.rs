//! A site's trainer: [`collect`] → train → [`submit`], again and again ([`walk`]). [`collect`] reads what is said of the
//! site's images into a [`collection`] and copies them ([`copied`]), the crate `training` learns, [`learned`] keeps at the
//! site which images an update learned from, [`submit`] sends the weights. [`base`] is the model that a round starts from.
//! Deliberately absent: access to other sites, decisions about releases.

pub mod base_weights;
pub mod collection;
pub mod collector;
pub mod learned_images;
pub mod submit;
pub mod training_copy;
pub mod worker;

pub use worker::run;

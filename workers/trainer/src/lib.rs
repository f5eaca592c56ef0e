//! A site's trainer: [`collect`] → train → [`submit`], again and again ([`walk`]). [`collect`] reads what is said of the
//! site's images into a [`collection`] and copies them, the crate `training` learns, [`submit`] sends the weights. [`base`] is the model
//! that a round starts from.
//! Deliberately absent: access to other sites, decisions about releases.

pub mod base;
pub mod collect;
pub mod collection;
pub mod submit;
pub mod walk;

pub use walk::run;

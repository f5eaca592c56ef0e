//! From a model's folder to a release that sites run, and back.
//!
//! [`package`] makes one file of a folder and a folder of it, [`oci`] lays it out as registries take it.

pub mod oci;
pub mod package;

//! What a release is, and how a model's releases stand.
//!
//! [`package`] makes one file of a folder and a folder of it, [`oci`] lays it out as registries take it, [`prepare`] makes a
//! release of a folder. [`stage`] is how a model's releases stand and what may be decided next (pure), [`decision_log`]
//! where decisions are written. [`compatibility`] says whether a machine can run a release at all (pure), [`trial`] tries it
//! in a process of its own, kept to its files by [`confinement`]. Deliberately absent: which release is better, and what a
//! worker does to serve one.

pub mod compatibility;
pub mod confinement;
pub mod decision_log;
pub mod oci;
pub mod package;
pub mod prepare;
pub mod stage;
pub mod trial;

//! From a model's folder to a release that sites run, and back.
//!
//! [`package`] makes one file of a folder and a folder of it, [`oci`] lays it out as registries take it, [`prepare`] makes a
//! release of a folder. [`stage`] is how a model's releases stand and what may be decided next (pure), [`log`] where
//! decisions are written. At a worker: [`able`] says whether a machine can run a release at all (pure), [`trial`] tries it
//! in a process of its own, kept to its files by [`confinement`], [`orders`] hears what shall run, [`swap`] lets it serve, [`home`] keeps it, [`start`] begins with what served last, [`count`] and [`report`] tell what came of it.
//! Deliberately absent: which release is better.

pub mod compatibility;
pub mod confinement;
pub mod decision_log;
pub mod oci;
pub mod order_watch;
pub mod package;
pub mod prepare;
pub mod release_cache;
pub mod release_counter;
pub mod report;
pub mod serving_model;
pub mod stage;
pub mod swap;
pub mod trial;

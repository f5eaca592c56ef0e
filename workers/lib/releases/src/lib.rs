//! Releases, and a model's rollout state.
//!
//! [`package`] packs a folder into one file and unpacks it, [`oci`] writes it as an OCI image layout, [`prepare`] makes
//! a release of a folder. [`stage`] holds a model's rollout state and the decisions that may follow (pure),
//! [`decision_log`] writes decisions. [`compatibility`] says whether a machine can run a release (pure), [`trial`]
//! tries it in a process of its own that [`confinement`] restricts to its files. Deliberately absent: which release is
//! better, and what a worker does to serve one.

pub mod compatibility;
pub mod confinement;
pub mod decision_log;
pub mod oci;
pub mod package;
pub mod prepare;
pub mod stage;
pub mod trial;

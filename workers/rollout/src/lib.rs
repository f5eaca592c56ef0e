//! From a model's folder to a release that sites run.
//!
//! [`package`] packs a folder into one file and unpacks it, [`oci`] writes it as an OCI image layout, [`prepare`] makes
//! a release of a folder. [`stage`] holds a model's rollout state and the decisions that may follow (pure),
//! [`decision_log`] writes decisions. At a worker, [`compatibility`] says whether a machine can run a release (pure),
//! [`trial`] tries it in a process of its own that [`confinement`] restricts to its files, [`order_watch`] receives
//! orders, [`swap`] makes a release serve, [`release_cache`] keeps it, [`serving_model`] starts a worker with the
//! release that served last, [`release_counter`] and [`report`] count and report results.
//!
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

//! How many replicas a worker runs.
//!
//! [`walk`] follows what was asked for (a note of the place, or the settings), looks at the queue, and lets [`vision::Infer`]
//! start or drain replicas; [`decide`] says how many, and why, and is pure. Deliberately absent: processes, which whoever
//! starts them counts (`tributary status` shows them; Kubernetes scales them by the metric of queued work).

pub mod decide;
pub mod replica_request;
pub mod settings;
pub mod worker;

pub use replica_request::{ReplicaRequest, ReplicaRequestError};
pub use settings::ScaleSettings;
pub use worker::{Scaler, falls_short, replica_note};

//! Adapts the number of replicas of a worker.
//!
//! [`worker`] follows the request of a person (a ledger note, or the settings), observes the queue, and has
//! [`vision::InferencePool`] start or drain replicas; [`decide`] decides how many, and why, and is pure. Deliberately
//! absent: processes, which whoever starts them counts (`tributary status` shows them; Kubernetes scales them by the
//! metric of queued work).

pub mod decide;
pub mod replica_request;
pub mod settings;
pub mod worker;

pub use replica_request::{ReplicaRequest, ReplicaRequestError};
pub use settings::ScaleSettings;
pub use worker::{Scaler, replica_note};

//! How many replicas a worker runs.
//!
//! [`scaler`] follows the requested number (a note of the site or the cloud, or the settings), reads the queue, and has
//! [`vision::InferencePool`] start or drain replicas; [`decide`] says how many and why, and is pure. Deliberately
//! absent: processes, which are counted by whoever starts them (`tributary status` shows them; Kubernetes scales them
//! by the metric of queued work).

pub mod decide;
pub mod rate;
pub mod replica_request;
pub mod scaler;
pub mod settings;

pub use replica_request::{ReplicaRequest, ReplicaRequestError};
pub use scaler::{Scaler, falls_short, replica_note};
pub use settings::ScaleSettings;

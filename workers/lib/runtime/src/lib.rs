//! Runs a worker, whatever its role.
//!
//! A role is a [`Handler`]: one delivery in, publications out. [`consume`] pulls, lets the handler work, publishes the
//! results, and only then acknowledges (invariant 1). [`fault`] says whose fault a failure is, which decides what
//! happens to the message.

pub mod audit;
pub mod clock;
pub mod consumer;
pub mod dead_letter;
pub mod drift;
pub mod fault;
pub mod handler;
pub mod heartbeat;
pub mod metrics;
pub mod outcome;
mod retry;
pub mod settings;
mod shutdown;
pub mod site_key;
pub mod telemetry;
pub mod ticket;
pub mod traces;
pub mod trust;

pub use consumer::{ConsumerConfig, consume};
pub use fault::Fault;
pub use handler::{Handler, MessageCredit, OutgoingMessages};
pub use retry::retry_until_found;
pub use shutdown::Shutdown;

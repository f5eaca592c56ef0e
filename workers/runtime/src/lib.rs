//! How a worker runs, whatever its role.
//!
//! A role is a [`Step`]: one delivery in, publications out. [`drive`] pulls, lets the step handle,
//! publishes what came of it, and only then acknowledges (invariant 1). [`fault`] says whose fault a
//! failure is, which decides what becomes of the message.

pub mod audit;
pub mod heartbeat;
pub mod clock;
pub mod drift;
pub mod consumer;
pub mod fault;
pub mod dead_letter;
pub mod retry;
pub mod metrics;
pub mod process;
pub mod settings;
pub mod shutdown;
pub mod site_key;
pub mod handler;
pub mod telemetry;
pub mod ticket;
pub mod trust;

pub use consumer::{ConsumerConfig, consume};
pub use fault::Fault;
pub use retry::retry_until_found;
pub use shutdown::Shutdown;
pub use handler::{MessageCredit, OutgoingMessages, Handler};

//! How a worker runs, whatever its role.
//!
//! A role is a [`Step`]: one delivery in, publications out. [`drive`] pulls, lets the step handle,
//! publishes what came of it, and only then acknowledges (invariant 1). [`fault`] says whose fault a
//! failure is, which decides what becomes of the message.

pub mod audit;
pub mod beat;
pub mod clock;
pub mod drift;
pub mod drive;
pub mod fault;
pub mod letter;
pub mod lookup;
pub mod metrics;
pub mod process;
pub mod settings;
pub mod shutdown;
pub mod sign;
pub mod step;
pub mod telemetry;
pub mod ticket;
pub mod trust;

pub use drive::{ConsumerConfig, consume};
pub use fault::Fault;
pub use lookup::retry_until_found;
pub use shutdown::Shutdown;
pub use step::{MessageCredit, OutgoingMessages, Handler};

//! How it is carried: the one crate that names the clients of the broker and of object stores.
//!
//! Reading order: [`table`], [`subject`] and [`topology`] say what exists, [`connect`] reaches it, [`publish`],
//! [`pull`] and [`blobs`] move things, [`store`] keeps what must outlive every stream, [`server`] runs a
//! broker of our own, [`batch`] says how the kernel schedules it. Knows no worker.

pub mod admin;
pub mod batch;
pub mod blobs;
pub mod cameras;
pub mod checkup;
pub mod connect;
mod direct;
pub mod error;
pub mod fleet;
pub mod monitor;
pub mod nkey;
pub mod pick;
pub mod publish;
pub mod pull;
pub mod read;
pub mod refusal;
pub mod rights;
pub mod server;
pub mod store;
pub mod subject;
pub mod sweep;
pub mod table;
pub mod tap;
pub mod topology;

pub use blobs::Blobs;
pub use connect::{Bus, NatsSettings};
pub use error::CarryError;
pub use publish::{Placed, Publication, Publisher};
pub use pull::{Delivery, Puller};
pub use store::{Put, Store};

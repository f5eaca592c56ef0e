//! Transport: the one crate that names the clients of the broker and of object stores.
//!
//! Reading order: [`subject_table`], [`subject`] and [`topology`] say what exists, [`connect`] connects to a server,
//! [`publish`], [`puller`] and [`blobs`] move data, [`store`] keeps what must outlive every stream, [`server`] runs a
//! nats-server of our own. Knows no worker.

/// The same verb on a server in memory, where the connection leads to one.
macro_rules! in_memory {
    ($bus:expr, $link:ident => $twin:expr) => {
        #[cfg(feature = "memory")]
        if let Some($link) = $bus.memory() {
            return $twin;
        }
    };
}

pub mod admin;
pub mod backoff;
pub mod blob_sweep;
mod blobs;
mod bucket;
pub mod cameras;
pub mod checkup;
pub mod connect;
mod direct_get;
pub mod error;
pub mod fetch_many;
pub mod fleet;
pub mod image_refusal;
#[cfg(feature = "memory")]
pub mod memory;
pub mod monitor;
pub mod nkey;
mod partial_file;
pub mod permissions;
#[cfg(test)]
mod pinned_server;
pub mod publish;
mod puller;
pub mod reader;
pub mod server;
pub mod store;
pub mod subject;
pub mod subject_table;
pub mod tap;
pub mod topology;

pub use blobs::Blobs;
pub use connect::{Bus, NatsSettings};
pub use error::CarryError;
pub use publish::{Publication, PublishOutcome, Publisher};
pub use puller::{Delivery, Puller};
pub use store::{PutOutcome, ReleaseStore};

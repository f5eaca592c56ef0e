//! Environments for end-to-end tests: real servers, workers of the built binary, a link that can be cut, and an oracle
//! that compares obligations with outcomes.
//!
//! Reading order: [`world`] starts servers and workers ([`program`]), [`proxy`] is the link between them, [`pictures`]
//! holds each model's prediction for each picture, [`oracle`] publishes pictures and judges the answers, and [`fault`]
//! injects faults meanwhile. [`seaweed`] is an object store, [`bare_server`] a server with the test's own
//! configuration, [`shifted`] a wrong clock, and [`cameras`] are cameras on the network. Nothing here asserts: every
//! function returns an error or a list of violations, and the test decides.

#![allow(clippy::indexing_slicing)]

pub mod bare_server;
pub mod cameras;
pub mod fault;
pub mod odd_images;
pub mod oracle;
pub mod pictures;
pub mod program;
pub mod proxy;
pub mod seaweed;
pub mod shifted;
pub mod until;
pub mod world;

pub use fault::InjectedFault;
pub use oracle::{Judgement, Oracle};
pub use program::{CommandOutput, WorkerProcess, run};
pub use proxy::{Proxy, ProxyMode};
pub use until::until;
pub use world::{TestWorld, WorldPlan};

/// The seed of a test: `TRIBUTARY_TEST_SEED` if set, to reproduce a failure, else `default`.
pub fn seed(default: u64) -> u64 {
    std::env::var("TRIBUTARY_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(default)
}

//! Worlds to test in: real servers, the built binary's workers, a link that can be cut, and an oracle
//! that counts obligations against outcomes.
//!
//! Reading order: [`world`] starts servers and workers ([`program`]), [`proxy`] is the link between
//! them, [`pictures`] knows what each model says about each picture, [`oracle`] publishes them and
//! judges what came of it, [`fault`] does harm meanwhile; [`seaweed`] is an object store, [`bare_server`] a server of the test's
//! own configuration, [`shifted`] a wrong clock. Deliberately absent: assertions; everything here returns an error or a
//! list of violations, and the test decides.

#![allow(clippy::indexing_slicing)]

pub mod bare_server;
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
pub use proxy::{LinkCut, Proxy};
pub use until::until;
pub use world::{TestWorld, WorldPlan};

/// The seed of a test: `TRIBUTARY_TEST_SEED` to run a failure again, `usual` otherwise.
pub fn seed(usual: u64) -> u64 {
    std::env::var("TRIBUTARY_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(usual)
}

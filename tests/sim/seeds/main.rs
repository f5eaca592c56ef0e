//! Workers on servers in memory under simulated time. Each seed gives another history of faults, and an oracle judges
//! it.
//!
//! `cargo test -p sim` runs a few seeds of every scenario, `TRIBUTARY_SEEDS=20000 cargo test -p sim` many more. A failure
//! prints its seed and the command that runs that seed alone.

#![allow(clippy::indexing_slicing)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod backoff;
mod chaos;
mod consumer;
mod courier;
mod operations;
mod oracle;
mod releasers;
mod requests;
mod rounds;
mod scale;
mod seeds;
mod swap;
mod world;

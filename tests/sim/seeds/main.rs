//! Workers on servers in memory under simulated time. Each seed is another history of faults; an oracle judges each.
//!
//! `cargo test -p sim` runs some seeds of every scenario, `TRIBUTARY_SEEDS=20000 cargo test -p sim` more of them. A seed that
//! fails is printed with the command that runs it alone.

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
mod oracle;
mod releasers;
mod requests;
mod rounds;
mod scale;
mod seeds;
mod swap;
mod world;

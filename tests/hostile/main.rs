//! Bytes from outside, bent at random: whatever reads them says no or yes, and never panics, hangs, or takes more than it may.
//! Each parser has a corpus, among the fixtures where there are files of its kind; a run repeats itself by its seed. What no
//! other crate can reach is tried by its own tests, which have `bent` in their names. `make soak` gives all of them millions
//! of turns.
//!
//! A binary of its own, for its memory is limited.

#![allow(clippy::indexing_slicing)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

mod fleets;
mod folds;
mod headers;
mod images;
mod messages;
mod metrics;
mod models;
mod notes;
mod signatures;
mod texts;
mod weights;

//! What a worker does to serve a release.
//!
//! [`model_server`] is all of it at once, for any handler; [`serving_model`] starts with the release that served last,
//! [`order_watch`] follows orders, [`swap`] makes a release
//! serve after a trial, [`release_cache`] keeps it on disk, [`release_counter`] and [`report`] count and report
//! results, [`scale`] decides how many replicas run. Deliberately absent: what a release is ([`releases`]), and which
//! one is better.

pub mod model_server;
mod order_watch;
mod release_cache;
pub mod release_counter;
pub mod report;
pub mod scale;
pub mod serving_model;
pub mod swap;

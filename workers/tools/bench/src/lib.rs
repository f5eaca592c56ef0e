//! Measurements anyone can repeat, one file a bench: [`recognize`], [`policy`], [`train`], [`federated`],
//! [`rounds`], [`aggregate`], [`canary`], [`swap`], [`replay`], [`scale`].
//!
//! Shared: [`workload`] (what is recognized), [`warm_replicas`] (the same work without the pipeline), [`bench_site`] (a
//! server and a recognizer in processes of their own), [`load_generator`] (images in, answers out), [`measurement_window`] (what
//! happened in a stretch of time), [`os::process`] (what the kernel says about processes), [`stats`],
//! `games` (many of one kind, on all cores), [`camera`] (the same scenes shown otherwise), [`report`] (a table for people, JSON for programs), [`curve`], [`chart`] and [`bar_chart`]. For policies: [`testbed`]
//! (a site and a cloud), [`link_shaper`] (the link between them), [`fake_cloud`] (a cloud with a pace of its own),
//! [`labelled_images`] (images with true labels), [`answer_listener`] (what is answered, and when), [`worker`].
//!
//! Deliberately absent: the logic of any role. A recognizer that is measured is the binary itself.

pub mod aggregate;
pub mod answer_listener;
pub mod bar_chart;
pub mod bench_site;
pub mod camera;
pub mod canary;
pub mod chart;
pub mod curve;
pub mod error;
mod experiments;
pub mod fake_cloud;
pub mod federated;
pub mod labelled_images;
pub mod link_shaper;
pub mod load_generator;
pub mod measurement_window;
pub mod policy;
pub mod recognize;
pub mod replay;
pub mod report;
pub mod rounds;
pub mod scale;
pub mod stats;
pub mod swap;
pub mod testbed;
pub mod train;
pub mod warm_replicas;
pub mod worker;
pub mod workload;

pub use error::BenchError;

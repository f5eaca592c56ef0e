//! Measurements anyone can repeat, one file a bench: [`recognize`].
//!
//! Shared: [`workload`] (what is recognized), [`bare`] (the same work without the pipeline), [`site`] (a
//! server and a recognizer in processes of their own), [`load`] (images in, answers out), [`window`] (what
//! happened in a stretch of time), [`process`] (what the kernel says about processes), [`stats`],
//! [`report`] (a table for people, JSON for programs), [`curve`] and [`chart`].
//!
//! Deliberately absent: the logic of any role. A recognizer that is measured is the binary itself.

pub mod bare;
pub mod chart;
pub mod curve;
pub mod error;
pub mod load;
pub mod process;
pub mod recognize;
pub mod report;
pub mod site;
pub mod stats;
pub mod window;
pub mod workload;

pub use error::BenchError;

//! Labelled pictures in a folder.
//!
//! A folder has an `index.csv` that names files and their labels, or one folder for each label. This is the one place that
//! reads either, for training, public sets, publishing, benches and demos. Deliberately absent: pixels, and what a label
//! means to a model.

mod columns;
mod error;
mod read;

pub use columns::IndexColumns;
pub use error::DatasetError;
pub use read::{Dataset, DatasetRow, ExampleSplit, read_dataset};

/// The file that names pictures and their labels.
pub const INDEX_FILE: &str = "index.csv";

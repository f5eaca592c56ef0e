//! Labelled pictures in a folder.
//!
//! A folder has an `index.csv` that names files and their labels, or one folder per label. Only this crate reads
//! either, for training, public sets, publishing, benches and demos. Deliberately absent: pixels, and what a label
//! means to a model.

mod columns;
mod error;
mod read;

pub use columns::IndexColumns;
pub use error::DatasetError;
pub use read::{Dataset, DatasetRow, ExampleSplit, read_dataset};

/// Name of the file that lists pictures and their labels.
pub const INDEX_FILE: &str = "index.csv";

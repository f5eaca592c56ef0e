//! The columns of an index.

use csv::StringRecord;

/// Positions of the columns of an `index.csv` that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexColumns {
    /// `file` or `path`: the picture, relative to the index's folder.
    pub file: usize,
    /// `label` or `class_name`.
    pub label: usize,
    /// `split`; absent if there is no such column.
    pub split: Option<usize>,
    /// `hard`: `true` where the site found the picture doubtful; absent if there is no such column.
    pub hard: Option<usize>,
}

impl IndexColumns {
    /// Finds the columns in the first line of an index.
    ///
    /// # Errors
    /// The names of the missing column, for people.
    pub fn find(heads: &StringRecord) -> Result<Self, &'static str> {
        let position = |names: &[&str]| heads.iter().position(|head| names.contains(&head));
        Ok(Self {
            file: position(&["file", "path"]).ok_or("file or path")?,
            label: position(&["label", "class_name"]).ok_or("label or class_name")?,
            split: position(&["split"]),
            hard: position(&["hard"]),
        })
    }
}

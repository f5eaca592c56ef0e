//! Which columns of an index mean what.

use csv::StringRecord;

/// Positions of the columns that are read of an `index.csv`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexColumns {
    /// `file` or `path`: the picture, relative to the index's folder.
    pub file: usize,
    /// `label` or `class_name`.
    pub label: usize,
    /// `split`, if it is there.
    pub split: Option<usize>,
    /// `hard`, if it is there: `true` where the site was in doubt.
    pub hard: Option<usize>,
}

impl IndexColumns {
    /// Finds them in the first line of an index.
    ///
    /// # Errors
    /// The names of a column that is missing, for people.
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

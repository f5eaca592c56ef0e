//! Reads a folder of labelled pictures.

use std::path::{Component, Path, PathBuf};

use crate::INDEX_FILE;
use crate::columns::IndexColumns;
use crate::error::DatasetError;

/// What a picture is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExampleSplit {
    /// For training.
    Train,
    /// For measuring during training: `val` in an index.
    Holdout,
    /// For measuring at the end; nothing is chosen by it: `test` in an index.
    Test,
}

/// A labelled picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetRow {
    /// Path relative to the folder, as spelled in the index.
    pub file: String,
    /// Its label; never empty.
    pub label: String,
    /// What it is used for; for training if there is no index or no column `split`.
    pub split: ExampleSplit,
    /// Whether the site found it doubtful.
    pub hard: bool,
    /// Its group, from the requested column; absent if the index has no such column.
    pub group: Option<String>,
}

/// The labelled pictures of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// Path of the folder.
    pub folder: PathBuf,
    /// In the order of the index, or sorted by label and name. Never empty.
    pub rows: Vec<DatasetRow>,
    /// Whether the index assigns a split to each picture.
    pub has_splits: bool,
}

impl Dataset {
    /// Path of a picture.
    pub fn path(&self, row: &DatasetRow) -> PathBuf {
        self.folder.join(&row.file)
    }

    /// Keeps the pictures of split `test` if there are any, otherwise all.
    pub fn keep_test_split(&mut self) {
        if self.rows.iter().any(|row| row.split == ExampleSplit::Test) {
            self.rows.retain(|row| row.split == ExampleSplit::Test);
        }
    }

    /// Up to `count` rows, spread evenly over all.
    pub fn spread(&self, count: usize) -> impl Iterator<Item = &DatasetRow> {
        let count = count.min(self.rows.len());
        (0..count).filter_map(move |number| self.rows.get(number * self.rows.len() / count))
    }
}

/// Reads a folder of labelled pictures. An [`INDEX_FILE`] has the columns `file` or `path`, `label` or `class_name`,
/// and optionally `split` (`val`, `test`; anything else is for training), `hard`, and `group_column`. Rows without a
/// label are skipped. Without an index, each folder's name is the label of the files in it; names that begin with a dot
/// are skipped.
///
/// # Errors
/// [`DatasetError`]; also if an index names something that is not a regular file inside the folder.
pub fn read_dataset(folder: &Path, group_column: Option<&str>) -> Result<Dataset, DatasetError> {
    let index = folder.join(INDEX_FILE);
    let (rows, has_splits) =
        if index.is_file() { read_index(folder, &index, group_column)? } else { (read_label_folders(folder)?, false) };
    if rows.is_empty() {
        return Err(DatasetError::Empty { folder: folder.into() });
    }
    Ok(Dataset { folder: folder.into(), rows, has_splits })
}

fn read_index(
    folder: &Path,
    index: &Path,
    group_column: Option<&str>,
) -> Result<(Vec<DatasetRow>, bool), DatasetError> {
    let unreadable = |source| DatasetError::Index { path: index.into(), source };
    let mut reader = csv::Reader::from_path(index).map_err(unreadable)?;
    let heads = reader.headers().map_err(unreadable)?;
    let columns = IndexColumns::find(heads)
        .map_err(|column| DatasetError::MissingColumn { path: index.into(), column: column.into() })?;
    let group = group_column.and_then(|name| heads.iter().position(|head| head == name));
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(unreadable)?;
        let field = |column: usize| record.get(column).unwrap_or_default();
        if field(columns.label).is_empty() {
            continue;
        }
        check_file(folder, field(columns.file)).map_err(|why| DatasetError::BadFile {
            path: index.into(),
            file: field(columns.file).into(),
            why,
        })?;
        rows.push(DatasetRow {
            file: field(columns.file).into(),
            label: field(columns.label).into(),
            split: match columns.split.map(field) {
                Some("val") => ExampleSplit::Holdout,
                Some("test") => ExampleSplit::Test,
                _ => ExampleSplit::Train,
            },
            hard: columns.hard.map(field) == Some("true"),
            group: group.map(|column| field(column).into()),
        });
    }
    Ok((rows, columns.split.is_some()))
}

/// An index may be written by somebody else, so it may only name regular files in its own folder. A missing file is
/// reported when it is opened.
fn check_file(folder: &Path, file: &str) -> Result<(), &'static str> {
    let named = Path::new(file);
    if !named.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err("is outside the folder");
    }
    match folder.join(named).metadata() {
        Ok(metadata) if !metadata.is_file() => Err("is not a file"),
        _ => Ok(()),
    }
}

fn read_label_folders(folder: &Path) -> Result<Vec<DatasetRow>, DatasetError> {
    let mut rows = Vec::new();
    for label in list_names(folder)? {
        let of_label = folder.join(&label);
        if !of_label.is_dir() {
            continue;
        }
        for name in list_names(&of_label)? {
            let file = format!("{label}/{name}");
            if folder.join(&file).is_file() {
                let label = label.clone();
                rows.push(DatasetRow { file, label, split: ExampleSplit::Train, hard: false, group: None });
            }
        }
    }
    Ok(rows)
}

/// Names in a folder, sorted, without those that begin with a dot.
fn list_names(folder: &Path) -> Result<Vec<String>, DatasetError> {
    let unreadable = |source| DatasetError::Folder { path: folder.into(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        names.push(entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| !name.starts_with('.'));
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn an_index_says_label_split_doubt_and_group_under_either_name() {
        let index =
            "path,class_name,split,hard,slide\na.png,boot,val,true,s1\n./b.png,\"ankle, boot\",,,s2\nc.png,,test,,s3\n";
        let folder = folder_with(&[("index.csv", index), ("a.png", ""), ("b.png", "")]);
        let dataset = read_dataset(folder.path(), Some("slide")).unwrap();
        assert!(dataset.has_splits);
        let row = |file: &str, label: &str, split, hard, group: &str| DatasetRow {
            file: file.into(),
            label: label.into(),
            split,
            hard,
            group: Some(group.into()),
        };
        let expected = [
            row("a.png", "boot", ExampleSplit::Holdout, true, "s1"),
            row("./b.png", "ankle, boot", ExampleSplit::Train, false, "s2"),
        ];
        assert_eq!(dataset.rows, expected);
        assert_eq!(read_dataset(folder.path(), Some("patient")).unwrap().rows[0].group, None);
    }

    #[test]
    fn without_an_index_a_folder_is_a_label_and_hidden_files_are_left_out() {
        let files = [
            ("boot/2.png", ""),
            ("boot/1.png", ""),
            (".git/x", ""),
            ("bag/.hidden", ""),
            ("bag/sub/x", ""),
            ("readme", ""),
        ];
        let dataset = read_dataset(folder_with(&files).path(), None).unwrap();
        let files: Vec<&str> = dataset.rows.iter().map(|row| row.file.as_str()).collect();
        assert_eq!(files, ["boot/1.png", "boot/2.png"]);
        assert!(!dataset.has_splits);
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        let tell = |files: &[(&str, &str)]| read_dataset(folder_with(files).path(), None).unwrap_err().to_string();
        assert!(tell(&[("index.csv", "name;class\n")]).ends_with("has no column file or path"));
        assert!(tell(&[("index.csv", "file\n")]).ends_with("has no column label or class_name"));
        assert!(tell(&[("index.csv", "file,label\n../secret,boot\n")]).contains("names ../secret, which is outside"));
        assert!(tell(&[("index.csv", "file,label\nsub,boot\n"), ("sub/x", "")]).contains("which is not a file"));
        assert!(tell(&[("index.csv", "file,label\n")]).contains("has no labelled images"));
        assert!(tell(&[("readme", "")]).contains("has no labelled images"));
        let missing = read_dataset(Path::new("nowhere"), None).unwrap_err();
        assert!(matches!(missing, DatasetError::Folder { .. }), "{missing}");
    }

    #[test]
    fn rows_are_spread_evenly_over_what_is_kept() {
        let index = "file,label,split\n1,a,train\n2,a,test\n3,a,test\n4,a,test\n5,a,test\n";
        let mut dataset = read_dataset(folder_with(&[("index.csv", index)]).path(), None).unwrap();
        dataset.keep_test_split();
        let files: Vec<&str> = dataset.spread(2).map(|row| row.file.as_str()).collect();
        assert_eq!(files, ["2", "4"]);
        assert_eq!(dataset.spread(9).count(), 4);
    }
}

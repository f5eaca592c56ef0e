//! Lists pictures and their labels: a folder with an `index.csv`, or one folder per label.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::TrainError;

/// What an example is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExampleSplit {
    /// For training.
    Train,
    /// For measuring during training (holdout).
    HeldOut,
    /// For measuring at the end; nothing is chosen by it.
    Test,
}

/// One labelled picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Path of the picture.
    pub path: PathBuf,
    /// Index of its label in the model's list.
    pub class: usize,
    /// What it is used for.
    pub split: ExampleSplit,
    /// Whether the site found it doubtful.
    pub hard: bool,
    /// Mean number of times it is seen per epoch, on top of `collect.hard_repeats`; 1 unless a round has a focus.
    pub times: f64,
}

/// Labelled pictures.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Examples {
    /// All of them, in the order of the index or of their paths.
    pub all: Vec<Example>,
}

impl Examples {
    /// Reads a folder. An `index.csv` has the columns `file` or `path`, `label` or `class_name`, `hard` (`true` if the
    /// site found it doubtful), and `split`, where `val` is the holdout, `test` is for the end and everything else is
    /// for training. Without an index, each folder's name is the label of the pictures in it. If no holdout is named,
    /// `holdout_ratio` of the training examples is held out, chosen by path alone, so that it is the same in every run.
    pub fn read(folder: &Path, labels: &[String], holdout_ratio: f64) -> Result<Self, TrainError> {
        let index = folder.join("index.csv");
        let found = if index.is_file() { read_index(folder, &index)? } else { read_folders(folder)? };
        let wrong = |why: &str| TrainError::NoExamples { folder: folder.into(), why: why.into() };
        if found.is_empty() {
            return Err(wrong(
                "has no labelled images; it needs an index.csv (columns file, label, split), or one folder per label",
            ));
        }
        let places: BTreeMap<&str, usize> = labels.iter().enumerate().map(|(at, label)| (label.as_str(), at)).collect();
        let unknown: Vec<&str> =
            found.iter().map(|row| row.label.as_str()).filter(|label| !places.contains_key(label)).collect();
        if !unknown.is_empty() {
            let names: BTreeSet<&str> = unknown.iter().copied().collect();
            let labels = names.into_iter().take(5).map(str::to_owned).collect();
            return Err(TrainError::UnknownLabels { count: unknown.len(), labels });
        }
        let none_held_out = found.iter().all(|row| row.split != ExampleSplit::HeldOut);
        let all: Vec<Example> = found
            .into_iter()
            .map(|row| {
                let drawn =
                    none_held_out && row.split == ExampleSplit::Train && hash_fraction(&row.file) < holdout_ratio;
                Example {
                    path: folder.join(row.file),
                    class: places.get(row.label.as_str()).copied().unwrap_or_default(),
                    split: if drawn { ExampleSplit::HeldOut } else { row.split },
                    hard: row.hard,
                    times: 1.0,
                }
            })
            .collect();
        let examples = Self { all };
        let classes: BTreeSet<usize> = examples.of(ExampleSplit::Train).map(|example| example.class).collect();
        match (classes.len(), examples.of(ExampleSplit::HeldOut).count()) {
            (0, _) => Err(wrong("has no images to train on; all have split val or test")),
            (1, _) => Err(TrainError::SingleClass {
                count: examples.of(ExampleSplit::Train).count(),
                label: classes.first().and_then(|class| labels.get(*class)).cloned().unwrap_or_default(),
            }),
            (_, 0) => Err(wrong("has too few images for a holdout; add images, or give some of them split val")),
            _ => Ok(examples),
        }
    }

    /// The examples of one split.
    pub fn of(&self, split: ExampleSplit) -> impl Iterator<Item = &Example> {
        self.all.iter().filter(move |example| example.split == split)
    }
}

struct ExampleRow {
    file: String,
    label: String,
    split: ExampleSplit,
    hard: bool,
}

fn read_index(folder: &Path, index: &Path) -> Result<Vec<ExampleRow>, TrainError> {
    let wrong =
        |why: String| TrainError::NoExamples { folder: folder.into(), why: format!("has an index.csv that {why}") };
    let mut reader = csv::Reader::from_path(index).map_err(|error| wrong(format!("could not be read: {error}")))?;
    let heads = reader.headers().map_err(|error| wrong(format!("could not be read: {error}")))?.clone();
    let column = |names: &[&str]| heads.iter().position(|head| names.contains(&head));
    let file = column(&["file", "path"]).ok_or_else(|| wrong("has no column `file` or `path`".into()))?;
    let label =
        column(&["label", "class_name"]).ok_or_else(|| wrong("has no column `label` or `class_name`".into()))?;
    let (split, hard) = (column(&["split"]), column(&["hard"]));
    let mut rows = Vec::new();
    for row in reader.records() {
        let row = row.map_err(|error| wrong(format!("could not be read: {error}")))?;
        let field = |column: usize| row.get(column).unwrap_or_default().to_owned();
        let split = match split.map(field).as_deref() {
            Some("val") => ExampleSplit::HeldOut,
            Some("test") => ExampleSplit::Test,
            _ => ExampleSplit::Train,
        };
        if field(label).is_empty() {
            continue;
        }
        let hard = hard.map(field).as_deref() == Some("true");
        let named = Path::new(row.get(file).unwrap_or_default());
        let inside = named.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        // An index may be written by somebody else, so it may only name regular files in its own folder.
        if !inside || !folder.join(named).metadata().map_or(true, |metadata| metadata.is_file()) {
            let why = if inside { "is not a file" } else { "is outside the folder" };
            return Err(wrong(format!("names {}, which {why}", named.display())));
        }
        rows.push(ExampleRow { file: field(file), label: field(label), split, hard });
    }
    Ok(rows)
}

fn read_folders(folder: &Path) -> Result<Vec<ExampleRow>, TrainError> {
    let names = |folder: &Path| -> Result<Vec<String>, TrainError> {
        let entries = std::fs::read_dir(folder).map_err(TrainError::read(folder))?;
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry.map_err(TrainError::read(folder))?.file_name().to_string_lossy().into_owned());
        }
        names.retain(|name| !name.starts_with('.'));
        names.sort_unstable();
        Ok(names)
    };
    let mut rows = Vec::new();
    for label in names(folder)? {
        if folder.join(&label).is_dir() {
            let files = names(&folder.join(&label))?;
            rows.extend(files.into_iter().map(|file| ExampleRow {
                file: format!("{label}/{file}"),
                label: label.clone(),
                split: ExampleSplit::Train,
                hard: false,
            }));
        }
    }
    Ok(rows)
}

/// A hash of a name, from 0 to below 1.
fn hash_fraction(name: &str) -> f64 {
    let digest: [u8; 32] = Sha256::digest(name).into();
    let first = u64::from_be_bytes(std::array::from_fn(|place| digest[place]));
    (first >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Vec<String> {
        ["cat", "dog"].map(str::to_owned).to_vec()
    }

    fn folder(index: Option<&str>, files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        }
        index.into_iter().for_each(|index| std::fs::write(folder.path().join("index.csv"), index).unwrap());
        folder
    }

    #[test]
    fn an_index_assigns_splits() {
        let index = "path,class_name,split\na.png,cat,train\nb.png,dog,site\nc.png,cat,val\nd.png,dog,test\n";
        let examples = Examples::read(folder(Some(index), &[]).path(), &labels(), 0.5).unwrap();
        let splits: Vec<ExampleSplit> = examples.all.iter().map(|example| example.split).collect();
        assert_eq!(splits, [ExampleSplit::Train, ExampleSplit::Train, ExampleSplit::HeldOut, ExampleSplit::Test]);
    }

    #[test]
    fn without_an_index_folders_are_labels_and_a_holdout_is_chosen() {
        let files: Vec<String> = (0..100).flat_map(|at| [format!("cat/{at}.png"), format!("dog/{at}.png")]).collect();
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let examples = Examples::read(folder(None, &files).path(), &labels(), 0.2).unwrap();
        let held_out = examples.of(ExampleSplit::HeldOut).count();
        assert!((20..60).contains(&held_out), "{held_out} of 200");
        let again = Examples::read(folder(None, &files).path(), &labels(), 0.2).unwrap();
        assert_eq!(again.of(ExampleSplit::HeldOut).count(), held_out, "chosen by path alone");
    }

    #[test]
    fn unusable_examples_are_refused_by_name() {
        let refused =
            |index: &str| Examples::read(folder(Some(index), &[]).path(), &labels(), 0.5).unwrap_err().to_string();
        assert!(refused("file,label\na.png,cow\nb.png,cat\n").contains("cow"));
        assert!(refused("file,label,split\na.png,cat,train\nb.png,cat,val\n").contains("a single class"));
        assert!(refused("file,label\n").contains("no labelled images"));
        assert!(refused("file,kind\na.png,cat\n").contains("no column `label`"));
        assert!(refused("file,label\na.png,\n").contains("no labelled images"), "unlabelled");
    }
}

//! Lists pictures and their labels: a folder with an `index.csv`, or one folder per label.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub use dataset::ExampleSplit;
use dataset::read_dataset;
use sha2::{Digest, Sha256};

use crate::error::TrainError;

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
    /// Reads a folder of labelled pictures ([`read_dataset`]). Where the index holds none out, `holdout_ratio` of what is
    /// to learn from is held out, chosen by the path alone, so that it is the same in every run.
    ///
    /// # Errors
    /// A folder that cannot be read, labels that the model does not have, or too few pictures to learn from or to hold out.
    pub fn read(folder: &Path, labels: &[String], holdout_ratio: f64) -> Result<Self, TrainError> {
        let wrong = |why: &str| TrainError::NoExamples { folder: folder.into(), why: why.into() };
        let found = read_dataset(folder, None)?.rows;
        let places: BTreeMap<&str, usize> = labels.iter().enumerate().map(|(at, label)| (label.as_str(), at)).collect();
        let unknown: Vec<&str> =
            found.iter().map(|row| row.label.as_str()).filter(|label| !places.contains_key(label)).collect();
        if !unknown.is_empty() {
            let names: BTreeSet<&str> = unknown.iter().copied().collect();
            let labels = names.into_iter().take(5).map(str::to_owned).collect();
            return Err(TrainError::UnknownLabels { count: unknown.len(), labels });
        }
        let none_held_out = found.iter().all(|row| row.split != ExampleSplit::Holdout);
        let all: Vec<Example> = found
            .into_iter()
            .map(|row| {
                let drawn =
                    none_held_out && row.split == ExampleSplit::Train && hash_fraction(&row.file) < holdout_ratio;
                Example {
                    path: folder.join(row.file),
                    class: places.get(row.label.as_str()).copied().unwrap_or_default(),
                    split: if drawn { ExampleSplit::Holdout } else { row.split },
                    hard: row.hard,
                    times: 1.0,
                }
            })
            .collect();
        let examples = Self { all };
        let classes: BTreeSet<usize> = examples.of(ExampleSplit::Train).map(|example| example.class).collect();
        match (classes.len(), examples.of(ExampleSplit::Holdout).count()) {
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
        assert_eq!(splits, [ExampleSplit::Train, ExampleSplit::Train, ExampleSplit::Holdout, ExampleSplit::Test]);
    }

    #[test]
    fn without_an_index_folders_are_labels_and_a_holdout_is_chosen() {
        let files: Vec<String> = (0..100).flat_map(|at| [format!("cat/{at}.png"), format!("dog/{at}.png")]).collect();
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let examples = Examples::read(folder(None, &files).path(), &labels(), 0.2).unwrap();
        let held_out = examples.of(ExampleSplit::Holdout).count();
        assert!((20..60).contains(&held_out), "{held_out} of 200");
        let again = Examples::read(folder(None, &files).path(), &labels(), 0.2).unwrap();
        assert_eq!(again.of(ExampleSplit::Holdout).count(), held_out, "chosen by the path alone");
    }

    #[test]
    fn unusable_examples_are_refused_by_name() {
        let refused =
            |index: &str| Examples::read(folder(Some(index), &[]).path(), &labels(), 0.5).unwrap_err().to_string();
        assert!(refused("file,label\na.png,cow\nb.png,cat\n").contains("cow"));
        assert!(refused("file,label,split\na.png,cat,train\nb.png,cat,val\n").contains("a single class"));
        assert!(refused("file,label\n").contains("no labelled images"));
        assert!(refused("file,kind\na.png,cat\n").contains("no column label or class_name"));
        assert!(refused("file,label\na.png,\n").contains("no labelled images"), "unlabelled");
    }
}

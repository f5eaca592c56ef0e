//! How right a model is, by class.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context;
use vision::{InferenceSettings, Model, OnnxRuntime, Replica, softmax};

use super::pictures::LoopPicture;
use crate::format;

/// How many were right of how many, by label.
#[derive(Debug, Clone, Default)]
pub struct Right {
    /// By label.
    pub of_label: BTreeMap<String, (usize, usize)>,
}

impl Right {
    /// Tries a model's folder on pictures, on all cores.
    pub fn of(onnx: &OnnxRuntime, folder: &Path, pictures: &[LoopPicture]) -> anyhow::Result<Self> {
        let model = Model::load(folder)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let share = |pictures: &[LoopPicture]| -> anyhow::Result<Self> {
            let mut replica = Replica::open(onnx, &model, &InferenceSettings::default())?;
            let mut right = Self::default();
            for picture in pictures {
                let bytes = std::fs::read(&picture.path)
                    .with_context(|| format!("{} cannot be read", picture.path.display()))?;
                let ratios = softmax(&replica.predict(&bytes)?.logits, 1.0);
                let said = vision::prediction(&model, &ratios).map(|said| said.label);
                right.see(&picture.label, said.as_deref());
            }
            Ok(right)
        };
        std::thread::scope(|scope| {
            let parts = pictures.chunks(pictures.len().div_ceil(cores).max(1));
            let working: Vec<_> = parts.map(|part| scope.spawn(|| share(part))).collect();
            let mut all = Self::default();
            for thread in working {
                all.add(thread.join().map_err(|_| anyhow::anyhow!("recognizing broke off"))??);
            }
            Ok(all)
        })
    }

    /// One more picture: what it shows, and what was said.
    pub fn see(&mut self, label: &str, said: Option<&str>) {
        let (right, count) = self.of_label.entry(label.to_owned()).or_default();
        *right += usize::from(said == Some(label));
        *count += 1;
    }

    fn add(&mut self, other: Self) {
        for (label, (right, count)) in other.of_label {
            let own = self.of_label.entry(label).or_default();
            own.0 += right;
            own.1 += count;
        }
    }

    /// Share of all that is right, 0 to 1.
    pub fn ratio(&self) -> f64 {
        ratio(self.of_label.values())
    }

    /// The same in words, for a table; of no labels nothing.
    pub fn percent_of(&self, labels: &BTreeSet<String>) -> String {
        if labels.is_empty() { String::new() } else { format::percent(self.ratio_of(labels)) }
    }

    /// The same in words, to go on with a sentence; of no labels nothing.
    pub fn said_of(&self, labels: &BTreeSet<String>) -> String {
        if labels.is_empty() {
            return String::new();
        }
        format!(", {} of classes unseen at the start", format::percent(self.ratio_of(labels)))
    }

    /// Share of the pictures with these labels that is right, 0 to 1.
    pub fn ratio_of(&self, labels: &BTreeSet<String>) -> f64 {
        ratio(self.of_label.iter().filter(|(label, _)| labels.contains(*label)).map(|(_, counts)| counts))
    }
}

fn ratio<'a>(counts: impl Iterator<Item = &'a (usize, usize)>) -> f64 {
    let (right, count) = counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    right as f64 / count.max(1) as f64
}

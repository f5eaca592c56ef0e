//! Accuracy of a model by class.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context;
use vision::{InferenceSettings, Model, OnnxRuntime, Replica, softmax};

use super::pictures::LoopPicture;
use tributary::format;

/// Correct and total images by label.
#[derive(Debug, Clone, Default)]
pub(super) struct Right {
    /// Correct and total images, by label.
    pub of_label: BTreeMap<String, (usize, usize)>,
}

impl Right {
    /// Evaluates a model's folder on images, on all cores.
    pub(super) fn of(onnx: &OnnxRuntime, folder: &Path, pictures: &[LoopPicture]) -> anyhow::Result<Self> {
        let model = Model::load(folder)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let share = |pictures: &[LoopPicture]| -> anyhow::Result<Self> {
            let mut replica = Replica::open(onnx, &model, &InferenceSettings::default())?;
            let mut right = Self::default();
            for picture in pictures {
                let bytes = std::fs::read(&picture.path)
                    .with_context(|| format!("{} cannot be read", picture.path.display()))?;
                let ratios = softmax(&replica.predict(&bytes)?.logits, 1.0);
                let label = vision::prediction(&model, &ratios).map(|prediction| prediction.label);
                right.count_answer(&picture.label, label.as_deref());
            }
            Ok(right)
        };
        std::thread::scope(|scope| {
            let parts = pictures.chunks(pictures.len().div_ceil(cores).max(1));
            let working: Vec<_> = parts.map(|part| scope.spawn(|| share(part))).collect();
            let mut all = Self::default();
            for thread in working {
                all.add(thread.join().map_err(|_| anyhow::anyhow!("inference crashed"))??);
            }
            Ok(all)
        })
    }

    /// Counts one image: its true label, and the answer.
    pub(super) fn count_answer(&mut self, label: &str, answer: Option<&str>) {
        let (right, count) = self.of_label.entry(label.to_owned()).or_default();
        *right += usize::from(answer == Some(label));
        *count += 1;
    }

    fn add(&mut self, other: Self) {
        for (label, (right, count)) in other.of_label {
            let own = self.of_label.entry(label).or_default();
            own.0 += right;
            own.1 += count;
        }
    }

    /// Accuracy over all images, 0 to 1.
    pub(super) fn ratio(&self) -> f64 {
        ratio(self.of_label.values())
    }

    /// Accuracy on these labels as text, for a table; empty for no labels.
    pub(super) fn percent_of(&self, labels: &BTreeSet<String>) -> String {
        if labels.is_empty() { String::new() } else { format::percent(self.ratio_of(labels)) }
    }

    /// Accuracy on these labels as the end of a sentence; empty for no labels.
    pub(super) fn sentence_of(&self, labels: &BTreeSet<String>) -> String {
        if labels.is_empty() {
            return String::new();
        }
        format!(", {} on classes unseen at the start", format::percent(self.ratio_of(labels)))
    }

    /// Accuracy on images with these labels, 0 to 1.
    pub(super) fn ratio_of(&self, labels: &BTreeSet<String>) -> f64 {
        ratio(self.of_label.iter().filter(|(label, _)| labels.contains(*label)).map(|(_, counts)| counts))
    }
}

fn ratio<'a>(counts: impl Iterator<Item = &'a (usize, usize)>) -> f64 {
    let (right, count) = counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    right as f64 / count.max(1) as f64
}

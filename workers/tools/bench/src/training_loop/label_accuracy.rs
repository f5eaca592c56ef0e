//! Accuracy of a model by class.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context;
use vision::{InferenceSettings, Model, OnnxRuntime, Replica, softmax};

use super::pictures::LoopPicture;
use tributary::format;

/// Accuracy of a model on labelled images.
#[derive(Debug, Clone, Default)]
pub(super) struct LabelAccuracy {
    /// Correct and total images, by true label.
    pub by_label: BTreeMap<String, (usize, usize)>,
}

impl LabelAccuracy {
    /// Evaluates a model folder on images, using all cores.
    pub(super) fn evaluate(onnx: &OnnxRuntime, folder: &Path, pictures: &[LoopPicture]) -> anyhow::Result<Self> {
        let model = Model::load(folder)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let evaluate_part = |pictures: &[LoopPicture]| -> anyhow::Result<Self> {
            let mut replica = Replica::open(onnx, &model, &InferenceSettings::default())?;
            let mut accuracy = Self::default();
            for picture in pictures {
                let bytes = std::fs::read(&picture.path)
                    .with_context(|| format!("could not read {}", picture.path.display()))?;
                let ratios = softmax(&replica.predict(&bytes)?.logits, 1.0);
                let label = vision::prediction(&model, &ratios).map(|prediction| prediction.label);
                accuracy.count_answer(&picture.label, label.as_deref());
            }
            Ok(accuracy)
        };
        std::thread::scope(|scope| {
            let parts = pictures.chunks(pictures.len().div_ceil(cores).max(1));
            let threads: Vec<_> = parts.map(|part| scope.spawn(|| evaluate_part(part))).collect();
            let mut all = Self::default();
            for thread in threads {
                all.add(thread.join().map_err(|_| anyhow::anyhow!("an inference thread panicked"))??);
            }
            Ok(all)
        })
    }

    /// Counts one answer. `label`: the true label; `answer`: the answered label, if any.
    pub(super) fn count_answer(&mut self, label: &str, answer: Option<&str>) {
        let (correct, count) = self.by_label.entry(label.to_owned()).or_default();
        *correct += usize::from(answer == Some(label));
        *count += 1;
    }

    fn add(&mut self, other: Self) {
        for (label, (correct, count)) in other.by_label {
            let sum = self.by_label.entry(label).or_default();
            sum.0 += correct;
            sum.1 += count;
        }
    }

    /// Accuracy on all images, 0 to 1.
    pub(super) fn ratio(&self) -> f64 {
        ratio(self.by_label.values())
    }

    /// Accuracy on these labels as text, for a table; empty for no labels.
    pub(super) fn percent_of(&self, labels: &BTreeSet<String>) -> String {
        if labels.is_empty() { String::new() } else { format::percent(self.ratio_of(labels)) }
    }

    /// Accuracy on the unseen labels as the end of a sentence; empty without any.
    pub(super) fn unseen_clause(&self, labels: &BTreeSet<String>) -> String {
        if labels.is_empty() {
            return String::new();
        }
        format!(", {} on classes unseen at the start", format::percent(self.ratio_of(labels)))
    }

    /// Accuracy on images with these labels, 0 to 1.
    pub(super) fn ratio_of(&self, labels: &BTreeSet<String>) -> f64 {
        ratio(self.by_label.iter().filter(|(label, _)| labels.contains(*label)).map(|(_, counts)| counts))
    }
}

fn ratio<'a>(counts: impl Iterator<Item = &'a (usize, usize)>) -> f64 {
    let (correct, count) = counts.fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
    correct as f64 / count.max(1) as f64
}

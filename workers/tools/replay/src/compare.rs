//! Compares another model's predictions with recorded answers. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::row::TaskRow;

/// Column headers of a comparison file.
pub const HEADS: [&str; 11] = [
    "task",
    "camera",
    "published_at_ms",
    "label",
    "source",
    "answer",
    "confidence",
    "release",
    "new_answer",
    "new_confidence",
    "cost_ms",
];

/// Another model's prediction for an image.
#[derive(Debug, Clone, PartialEq)]
pub struct ComparedPrediction {
    /// Its best class.
    pub label: String,
    /// Probability of that class, 0 to 1.
    pub confidence: f32,
    /// Cost in milliseconds of one replica.
    pub cost_ms: f64,
}

/// The row of a comparison file for one image.
pub fn cells(row: &TaskRow, prediction: &ComparedPrediction) -> [String; 11] {
    let (label, source) = row.label().map_or(("", ""), |(label, source)| (label.as_ref(), source.as_str()));
    [
        row.task.to_string(),
        row.camera.to_string(),
        row.published_at_ms.to_string(),
        label.to_owned(),
        source.to_owned(),
        row.answer.as_deref().unwrap_or_default().to_owned(),
        row.confidence.map(|confidence| confidence.to_string()).unwrap_or_default(),
        row.release.as_deref().unwrap_or_default().to_owned(),
        prediction.label.clone(),
        prediction.confidence.to_string(),
        format!("{:.3}", prediction.cost_ms),
    ]
}

/// Result of a comparison.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// Images with both a recorded answer and a new prediction.
    pub images: u64,
    /// Images that the new model could not read.
    pub unreadable: u64,
    /// Images on which both agree.
    pub same: u64,
    /// Mean confidence of the recorded answers, 0 to 1.
    pub confidence_before: f64,
    /// Mean confidence of the new model, 0 to 1.
    pub confidence_now: f64,
    /// Labelled images.
    pub labelled: u64,
    /// Labelled images with a correct recorded answer.
    pub right_before: u64,
    /// Labelled images with a correct new prediction.
    pub right_now: u64,
    /// Images that were wrong and are now right.
    pub mended: u64,
    /// Images that were right and are now wrong.
    pub broken: u64,
    /// Mean cost of an image with the new model, milliseconds of one replica.
    pub cost_ms: f64,
    /// Recorded answer, new prediction and count, where they differ.
    pub changes: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Comparison {
    /// Counts one image.
    pub fn add(&mut self, row: &TaskRow, prediction: &ComparedPrediction) {
        let Some(before) = row.answer.as_deref() else { return };
        self.count(before, row.confidence.unwrap_or(0.0), row.label().map(|(label, _)| label.as_ref()), prediction);
    }

    /// Counts a row that was written earlier.
    pub fn add_cells(&mut self, cells: &csv::StringRecord) -> Option<()> {
        let text = |at: usize| cells.get(at).filter(|text| !text.is_empty());
        let prediction = ComparedPrediction {
            label: text(8)?.to_owned(),
            confidence: text(9)?.parse().ok()?,
            cost_ms: text(10)?.parse().ok()?,
        };
        self.count(text(5)?, text(6)?.parse().ok()?, text(3), &prediction);
        Some(())
    }

    fn count(&mut self, before: &str, confidence: f32, label: Option<&str>, prediction: &ComparedPrediction) {
        let share = 1.0 / (self.images + 1) as f64;
        let mean = |mean: f64, new: f64| mean + (new - mean) * share;
        self.images += 1;
        self.confidence_before = mean(self.confidence_before, confidence.into());
        self.confidence_now = mean(self.confidence_now, prediction.confidence.into());
        self.cost_ms = mean(self.cost_ms, prediction.cost_ms);
        if before == prediction.label {
            self.same += 1;
        } else {
            *self.changes.entry(before.to_owned()).or_default().entry(prediction.label.clone()).or_default() += 1;
        }
        let Some(label) = label else { return };
        let (was, is) = (before == label, prediction.label == label);
        self.labelled += 1;
        self.right_before += u64::from(was);
        self.right_now += u64::from(is);
        self.mended += u64::from(!was && is);
        self.broken += u64::from(was && !is);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::tests::row;

    #[test]
    fn changes_are_counted_equally_from_memory_and_from_a_file() {
        let mut comparison = Comparison::default();
        let prediction = |label: &str| ComparedPrediction { label: label.into(), confidence: 0.8, cost_ms: 2.0 };
        let right = TaskRow { answer: Some("crab".into()), ..row() };
        let mut written = Comparison::default();
        for (row, prediction) in [
            (row(), prediction("crab")),
            (row(), prediction("fish")),
            (right.clone(), prediction("eel")),
            (right, prediction("crab")),
        ] {
            comparison.add(&row, &prediction);
            written.add_cells(&csv::StringRecord::from(cells(&row, &prediction).to_vec())).unwrap();
        }
        assert_eq!(comparison, written);
        assert_eq!((comparison.images, comparison.same, comparison.labelled), (4, 2, 4));
        assert_eq!((comparison.right_before, comparison.right_now), (2, 2));
        assert_eq!((comparison.mended, comparison.broken), (1, 1));
        assert_eq!(comparison.changes["fish"]["crab"], 1);
        assert!((comparison.confidence_now - 0.8).abs() < 1e-6 && (comparison.cost_ms - 2.0).abs() < 1e-9);
    }
}

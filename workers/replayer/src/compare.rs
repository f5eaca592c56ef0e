//! Another model's opinion of what was answered, answer by answer. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::row::TaskRow;

/// Heads of the columns of a comparison.
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

/// What another model says of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct ComparedPrediction {
    /// Its best class.
    pub label: String,
    /// Its probability, 0 to 1.
    pub confidence: f32,
    /// What it took, milliseconds of one replica.
    pub cost_ms: f64,
}

/// One answer beside the other.
pub fn cells(row: &TaskRow, said: &ComparedPrediction) -> [String; 11] {
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
        said.label.clone(),
        said.confidence.to_string(),
        format!("{:.3}", said.cost_ms),
    ]
}

/// What came of comparing.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// Images that both answered.
    pub images: u64,
    /// Images that the new model could not be shown.
    pub unreadable: u64,
    /// Both said the same.
    pub same: u64,
    /// Mean confidence before, 0 to 1.
    pub confidence_before: f64,
    /// Mean confidence now, 0 to 1.
    pub confidence_now: f64,
    /// Images of which somebody said what they show.
    pub labelled: u64,
    /// Of those, right before.
    pub right_before: u64,
    /// Of those, right now.
    pub right_now: u64,
    /// Wrong before and right now.
    pub mended: u64,
    /// Right before and wrong now.
    pub broken: u64,
    /// Mean cost of an image now, milliseconds of one replica.
    pub cost_ms: f64,
    /// What was said before and is said now, and how often, where they differ.
    pub changes: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Comparison {
    /// Counts one image.
    pub fn add(&mut self, row: &TaskRow, said: &ComparedPrediction) {
        let Some(before) = row.answer.as_deref() else { return };
        self.count(before, row.confidence.unwrap_or(0.0), row.label().map(|(label, _)| label.as_ref()), said);
    }

    /// Counts a line that was written before.
    pub fn add_cells(&mut self, cells: &csv::StringRecord) -> Option<()> {
        let text = |at: usize| cells.get(at).filter(|text| !text.is_empty());
        let said = ComparedPrediction {
            label: text(8)?.to_owned(),
            confidence: text(9)?.parse().ok()?,
            cost_ms: text(10)?.parse().ok()?,
        };
        self.count(text(5)?, text(6)?.parse().ok()?, text(3), &said);
        Some(())
    }

    fn count(&mut self, before: &str, confidence: f32, label: Option<&str>, said: &ComparedPrediction) {
        let share = 1.0 / (self.images + 1) as f64;
        let mean = |mean: f64, new: f64| mean + (new - mean) * share;
        self.images += 1;
        self.confidence_before = mean(self.confidence_before, confidence.into());
        self.confidence_now = mean(self.confidence_now, said.confidence.into());
        self.cost_ms = mean(self.cost_ms, said.cost_ms);
        if before == said.label {
            self.same += 1;
        } else {
            *self.changes.entry(before.to_owned()).or_default().entry(said.label.clone()).or_default() += 1;
        }
        let Some(label) = label else { return };
        let (was, is) = (before == label, said.label == label);
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
    fn what_changed_is_counted_and_a_written_comparison_counts_alike() {
        let mut comparison = Comparison::default();
        let said = |label: &str| ComparedPrediction { label: label.into(), confidence: 0.8, cost_ms: 2.0 };
        let right = TaskRow { answer: Some("crab".into()), ..row() };
        let mut written = Comparison::default();
        for (row, said) in
            [(row(), said("crab")), (row(), said("fish")), (right.clone(), said("eel")), (right, said("crab"))]
        {
            comparison.add(&row, &said);
            written.add_cells(&csv::StringRecord::from(cells(&row, &said).to_vec())).unwrap();
        }
        assert_eq!(comparison, written);
        assert_eq!((comparison.images, comparison.same, comparison.labelled), (4, 2, 4));
        assert_eq!((comparison.right_before, comparison.right_now), (2, 2));
        assert_eq!((comparison.mended, comparison.broken), (1, 1));
        assert_eq!(comparison.changes["fish"]["crab"], 1);
        assert!((comparison.confidence_now - 0.8).abs() < 1e-6 && (comparison.cost_ms - 2.0).abs() < 1e-9);
    }
}

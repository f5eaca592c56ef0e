//! Compares another model's predictions with recorded answers: by label, and detectors by their objects. Pure.

use std::collections::BTreeMap;

use detection::{AveragePrecision, PrecisionSums, match_from};
use schemas::{DetectedObject, LabelSource, ObjectMatch, objects_agree};
use serde::Serialize;

use crate::row::TaskRow;

/// Column headers of a comparison file.
pub const HEADS: [&str; 14] = [
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
    "true_objects",
    "answer_objects",
    "new_objects",
];

/// Another model's prediction for an image.
#[derive(Debug, Clone, PartialEq)]
pub struct ComparedPrediction {
    /// Its best class.
    pub label: String,
    /// Probability of that class, 0 to 1.
    pub confidence: f32,
    /// What it found, if it is a detector.
    pub objects: Option<Vec<DetectedObject>>,
    /// Cost in milliseconds of one replica.
    pub cost_ms: f64,
}

/// The row of a comparison file for one image; objects are JSON, and empty where there are none to compare.
pub fn cells(row: &TaskRow, prediction: &ComparedPrediction) -> [String; 14] {
    let json = |objects: Option<&[DetectedObject]>| {
        objects.map(|objects| serde_json::to_string(objects).unwrap_or_default()).unwrap_or_default()
    };
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
        json(row.true_objects().map(|(objects, _)| objects.as_ref())),
        json(row.objects.as_deref()),
        json(prediction.objects.as_deref()),
    ]
}

/// What is known of an image before another model looks at it.
struct KnownAnswer<'a> {
    label: &'a str,
    confidence: f32,
    objects: Option<&'a [DetectedObject]>,
    true_label: Option<&'a str>,
    true_objects: Option<&'a [DetectedObject]>,
    source: Option<LabelSource>,
}

/// Detectors before and now, held against the objects that persons drew.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DetectionComparison {
    /// Images with objects by a person, of the recorded answer and of the new model.
    pub images: u64,
    /// True objects in them.
    pub truths: u64,
    /// The recorded answers.
    pub before: DetectionScores,
    /// The new model.
    pub now: DetectionScores,
}

/// How good the objects of answers are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct DetectionScores {
    /// Mean average precision at intersections over union from 0.5 to 0.95, 0 to 1; absent without any true object.
    pub map50_95: Option<f64>,
    /// The same at 0.5.
    pub map50: Option<f64>,
    /// The same at 0.75.
    pub map75: Option<f64>,
    /// F1 of all objects that answers list, at 0.5, 0 to 1.
    pub f1: f64,
}

/// Sums behind [`DetectionScores`].
#[derive(Debug, Clone, Default, PartialEq)]
struct DetectionSums {
    images: u64,
    before: (PrecisionSums, ObjectMatch),
    now: (PrecisionSums, ObjectMatch),
}

impl DetectionSums {
    fn add(&mut self, before: &[DetectedObject], now: &[DetectedObject], truth: &[DetectedObject]) {
        self.images += 1;
        for ((precision, matches), found) in [(&mut self.before, before), (&mut self.now, now)] {
            precision.add(found, truth);
            matches.add(match_from(found, truth, 0.0));
        }
    }

    fn comparison(&self) -> Option<DetectionComparison> {
        let scores = |(precision, matches): &(PrecisionSums, ObjectMatch)| {
            let precision: AveragePrecision = precision.precision();
            DetectionScores {
                map50_95: precision.mean(),
                map50: precision.mean_50(),
                map75: precision.mean_75(),
                f1: matches.f1(),
            }
        };
        let (_, matches) = &self.now;
        (self.images > 0).then(|| DetectionComparison {
            images: self.images,
            truths: matches.matched + matches.only_right,
            before: scores(&self.before),
            now: scores(&self.now),
        })
    }
}

/// Result of a comparison.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// Images with both a recorded answer and a new prediction.
    pub images: u64,
    /// Images that the new model could not read.
    pub unreadable: u64,
    /// Images on which both agree: the same label, or of detectors the same objects.
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
    /// Recorded answer, new prediction and count, where the labels differ.
    pub changes: BTreeMap<String, BTreeMap<String, u64>>,
    /// Precision of detectors; absent without objects by a person. [`Comparison::finish`] sets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detection: Option<DetectionComparison>,
    #[serde(skip)]
    sums: DetectionSums,
}

impl Comparison {
    /// Counts one image.
    pub fn add(&mut self, row: &TaskRow, prediction: &ComparedPrediction) {
        let Some(label) = row.answer.as_deref() else { return };
        let known = KnownAnswer {
            label,
            confidence: row.confidence.unwrap_or(0.0),
            objects: row.objects.as_deref(),
            true_label: row.label().map(|(label, _)| label.as_ref()),
            true_objects: row.true_objects().map(|(objects, _)| objects.as_ref()),
            source: row.label().map(|(_, source)| source),
        };
        self.count(&known, prediction);
    }

    /// Counts a row that was written earlier; `None` for one that is not whole.
    pub fn add_cells(&mut self, cells: &csv::StringRecord) -> Option<()> {
        let text = |at: usize| cells.get(at).filter(|text| !text.is_empty());
        let objects = |at: usize| -> Option<Option<Vec<DetectedObject>>> {
            text(at).map(|text| serde_json::from_str(text).ok()).map_or(Some(None), |objects| objects.map(Some))
        };
        let (true_objects, answer_objects) = (objects(11)?, objects(12)?);
        let prediction = ComparedPrediction {
            label: text(8)?.to_owned(),
            confidence: text(9)?.parse().ok()?,
            objects: objects(13)?,
            cost_ms: text(10)?.parse().ok()?,
        };
        let known = KnownAnswer {
            label: text(5)?,
            confidence: text(6)?.parse().ok()?,
            objects: answer_objects.as_deref(),
            true_label: text(3),
            true_objects: true_objects.as_deref(),
            source: text(4).and_then(|source| SOURCES.into_iter().find(|known| known.as_str() == source)),
        };
        self.count(&known, &prediction);
        Some(())
    }

    /// Computes the precision of detectors from what was counted.
    pub fn finish(&mut self) {
        self.detection = self.sums.comparison();
    }

    fn count(&mut self, known: &KnownAnswer<'_>, prediction: &ComparedPrediction) {
        let share = 1.0 / (self.images + 1) as f64;
        let mean = |mean: f64, new: f64| mean + (new - mean) * share;
        self.images += 1;
        self.confidence_before = mean(self.confidence_before, known.confidence.into());
        self.confidence_now = mean(self.confidence_now, prediction.confidence.into());
        self.cost_ms = mean(self.cost_ms, prediction.cost_ms);
        let now = prediction.objects.as_deref();
        let is_same = match (known.objects, now) {
            (Some(before), Some(now)) => objects_agree(now, before),
            _ => known.label == prediction.label,
        };
        self.same += u64::from(is_same);
        if known.label != prediction.label && !is_same {
            *self.changes.entry(known.label.to_owned()).or_default().entry(prediction.label.clone()).or_default() += 1;
        }
        if let (Some(before), Some(now), Some(truth), Some(LabelSource::Person)) =
            (known.objects, now, known.true_objects, known.source)
        {
            self.sums.add(before, now, truth);
        }
        let Some(label) = known.true_label else { return };
        let is_right = |objects: Option<&[DetectedObject]>, said: &str| match (objects, known.true_objects) {
            (Some(objects), Some(truth)) => objects_agree(objects, truth),
            _ => said == label,
        };
        let (was, is) = (is_right(known.objects, known.label), is_right(now, &prediction.label));
        self.labelled += 1;
        self.right_before += u64::from(was);
        self.right_now += u64::from(is);
        self.mended += u64::from(!was && is);
        self.broken += u64::from(was && !is);
    }
}

const SOURCES: [LabelSource; 3] = [LabelSource::Person, LabelSource::Publisher, LabelSource::Verdict];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::tests::{detected_row, object, row};

    #[test]
    fn changes_are_counted_equally_from_memory_and_from_a_file() {
        let mut comparison = Comparison::default();
        let prediction =
            |label: &str| ComparedPrediction { label: label.into(), confidence: 0.8, objects: None, cost_ms: 2.0 };
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
    #[test]
    fn detectors_are_compared_by_objects_equally_from_memory_and_from_a_file() {
        let fish = object("fish", 0.9, [0.0, 0.0, 0.5, 1.0]);
        let crab = object("crab", 0.8, [0.75, 0.75, 1.0, 1.0]);
        let only_fish = [fish.clone()];
        let drawn = |objects: &[DetectedObject]| {
            let person = Some("fish".into());
            TaskRow { person, person_objects: Some(objects.into()), ..detected_row() }
        };
        let found = |objects: &[DetectedObject]| ComparedPrediction {
            label: "fish".into(),
            confidence: 0.9,
            objects: Some(objects.to_vec()),
            cost_ms: 2.0,
        };
        let (mut comparison, mut written) = (Comparison::default(), Comparison::default());
        for (row, prediction) in [
            (drawn(&only_fish), found(&only_fish)),
            (drawn(&[fish.clone(), crab.clone()]), found(&only_fish)),
            (detected_row(), found(&[fish.clone(), crab.clone()])),
            (TaskRow { route: schemas::Route::Verified, ..detected_row() }, found(&[crab])),
        ] {
            comparison.add(&row, &prediction);
            written.add_cells(&csv::StringRecord::from(cells(&row, &prediction).to_vec())).unwrap();
        }
        comparison.finish();
        written.finish();
        assert_eq!(comparison, written);
        assert_eq!((comparison.images, comparison.same, comparison.labelled), (4, 1, 3));
        assert_eq!((comparison.right_before, comparison.right_now), (2, 1), "a verdict is a truth for single images");
        assert!(comparison.changes.is_empty(), "the labels are the same: {:?}", comparison.changes);
        let detection = comparison.detection.unwrap();
        assert_eq!((detection.images, detection.truths), (2, 3), "a verdict is no truth for precision");
        let near = |value: Option<f64>, expected: f64| (value.unwrap() - expected).abs() < 1e-9;
        // Before: both fish, and the crab, beside which one was invented. Now: both fish, and no crab.
        assert!(near(detection.before.map50, 0.75) && near(Some(detection.before.f1), 6.0 / 7.0), "{detection:?}");
        assert!(near(detection.now.map50, 0.5) && near(Some(detection.now.f1), 0.8), "{detection:?}");
        let mut cut = csv::StringRecord::from(cells(&drawn(&[fish]), &found(&[])).to_vec());
        cut.truncate(12);
        cut.push_field("");
        cut.push_field("[{\"label\":");
        assert_eq!(written.add_cells(&cut), None);
    }
}

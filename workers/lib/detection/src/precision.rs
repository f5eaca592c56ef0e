//! Mean average precision, the same numbers as pycocotools' `COCOeval` for boxes: intersections over union from 0.5 to
//! 0.95 in steps of 0.05, 101 recall points, at most 100 detections of a class in a picture, all sizes, no crowds.
//!
//! A detection takes the free truth of its class that it covers best; detections of one picture choose in the order of
//! their confidence, those of equal confidence in the order they come in. A class without truth has no precision, and
//! does not count in the mean.

use std::collections::{BTreeMap, BTreeSet};

use schemas::{BoundingBox, DetectedObject};

/// Number of thresholds of intersection over union.
const THRESHOLDS: usize = 10;
/// Place of 0.75 among them; 0.5 is the first.
const AT_75: usize = 5;
/// Points of recall at which precision is read.
const RECALL_POINTS: u32 = 101;
/// Detections of a class that count in one picture, the surest.
const MAX_DETECTIONS: usize = 100;

/// Precision of a class; averages are over the recall points, 0 to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassPrecision {
    /// The class.
    pub label: String,
    /// True objects of the class.
    pub truths: u64,
    /// Mean of the average precisions at 0.5, 0.55, … 0.95.
    pub ap: f64,
    /// Average precision at 0.5.
    pub ap50: f64,
    /// Average precision at 0.75.
    pub ap75: f64,
}

/// Precision of a detector over pictures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AveragePrecision {
    /// The classes that have true objects, by name.
    pub classes: Vec<ClassPrecision>,
}

impl AveragePrecision {
    /// Mean over the classes of their mean precision at 0.5 to 0.95 (mAP, mAP50-95); absent without true objects.
    pub fn mean(&self) -> Option<f64> {
        self.mean_of(|class| class.ap)
    }

    /// Mean over the classes at 0.5 (mAP50).
    pub fn mean_50(&self) -> Option<f64> {
        self.mean_of(|class| class.ap50)
    }

    /// Mean over the classes at 0.75 (mAP75).
    pub fn mean_75(&self) -> Option<f64> {
        self.mean_of(|class| class.ap75)
    }

    fn mean_of(&self, value: impl Fn(&ClassPrecision) -> f64) -> Option<f64> {
        let sum: f64 = self.classes.iter().map(value).sum();
        (!self.classes.is_empty()).then(|| sum / self.classes.len() as f64)
    }
}

/// A detection that was held against the truth of its picture.
#[derive(Debug, Clone, Copy, PartialEq)]
struct JudgedDetection {
    confidence: f32,
    /// One bit for each threshold at which it is a true object, the lowest threshold in the lowest bit.
    right: u16,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct ClassSums {
    truths: u64,
    detections: Vec<JudgedDetection>,
}

/// What is known of a detector after some pictures: about 8 bytes for each of its detections.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PrecisionSums {
    classes: BTreeMap<String, ClassSums>,
}

impl PrecisionSums {
    /// Adds a picture: what a detector found, and what is truly there. A detection without a valid box, or whose
    /// confidence is not a number, is counted as wrong; a truth without a valid box as one that nobody can find.
    pub fn add(&mut self, found: &[DetectedObject], truth: &[DetectedObject]) {
        let labels: BTreeSet<&str> = found.iter().chain(truth).map(|object| object.label.as_str()).collect();
        for label in labels {
            let of = |objects: &'_ [DetectedObject]| -> Vec<(f32, BoundingBox)> {
                let of_class = objects.iter().filter(|object| object.label == label);
                of_class.map(|object| (known_confidence(object), object.bounds)).collect()
            };
            let (mut found, truth) = (of(found), of(truth));
            found.sort_by(|(a, _), (b, _)| b.total_cmp(a));
            found.truncate(MAX_DETECTIONS);
            let sums = self.classes.entry(label.to_owned()).or_default();
            sums.truths += truth.len() as u64;
            sums.detections.extend(judge(&found, &truth));
        }
    }

    /// The precision over all pictures so far.
    pub fn precision(&self) -> AveragePrecision {
        let classes = self.classes.iter().filter(|(_, sums)| sums.truths > 0);
        let classes = classes.map(|(label, sums)| {
            let mut ranked = sums.detections.clone();
            ranked.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
            let at: Vec<f64> = (0..THRESHOLDS).map(|place| average(&ranked, place, sums.truths)).collect();
            let one = |place: usize| at.get(place).copied().unwrap_or(0.0);
            ClassPrecision {
                label: label.clone(),
                truths: sums.truths,
                ap: at.iter().sum::<f64>() / THRESHOLDS as f64,
                ap50: one(0),
                ap75: one(AT_75),
            }
        });
        AveragePrecision { classes: classes.collect() }
    }
}

fn known_confidence(object: &DetectedObject) -> f32 {
    if object.confidence.is_nan() { f32::NEG_INFINITY } else { object.confidence }
}

/// The thresholds as numpy's `linspace(0.5, 0.95, 10)` makes them.
fn threshold(place: usize) -> f64 {
    if place + 1 == THRESHOLDS { 0.95 } else { place as f64 * ((0.95 - 0.5) / 9.0) + 0.5 }
}

/// Holds one picture's detections of a class, surest first, against its truths.
fn judge(found: &[(f32, BoundingBox)], truth: &[(f32, BoundingBox)]) -> Vec<JudgedDetection> {
    let overlaps: Vec<Vec<f64>> =
        found.iter().map(|(_, found)| truth.iter().map(|(_, truth)| overlap(found, truth)).collect()).collect();
    let mut judged: Vec<JudgedDetection> =
        found.iter().map(|(confidence, _)| JudgedDetection { confidence: *confidence, right: 0 }).collect();
    for place in 0..THRESHOLDS {
        let mut taken = vec![false; truth.len()];
        for (detection, overlaps) in judged.iter_mut().zip(&overlaps) {
            let mut best = threshold(place).min(1.0 - 1e-10);
            let mut chosen = None;
            for ((at, overlap), taken) in overlaps.iter().enumerate().zip(&taken) {
                // Of equal ones the last.
                if !taken && *overlap >= best {
                    (best, chosen) = (*overlap, Some(at));
                }
            }
            if let Some(taken) = chosen.and_then(|at| taken.get_mut(at)) {
                *taken = true;
                detection.right |= 1 << place;
            }
        }
    }
    judged
}

/// Intersection over union as pycocotools computes it, from left, top, width and height in 64 bits.
fn overlap(one: &BoundingBox, other: &BoundingBox) -> f64 {
    if !one.is_valid() || !other.is_valid() {
        return 0.0;
    }
    let sides = |bounds: &BoundingBox| {
        let [left, top, right, bottom] = <[f32; 4]>::from(*bounds).map(f64::from);
        (left, top, right - left, bottom - top)
    };
    let ((left, top, width, height), (other_left, other_top, other_width, other_height)) = (sides(one), sides(other));
    let shared_width = (width + left).min(other_width + other_left) - left.max(other_left);
    let shared_height = (height + top).min(other_height + other_top) - top.max(other_top);
    if shared_width <= 0.0 || shared_height <= 0.0 {
        return 0.0;
    }
    let shared = shared_width * shared_height;
    shared / (width * height + other_width * other_height - shared)
}

/// Average precision at one threshold: the mean over the recall points of the best precision from that recall on.
fn average(ranked: &[JudgedDetection], place: usize, truths: u64) -> f64 {
    let (mut right, mut wrong) = (0.0, 0.0);
    let mut curve: Vec<(f64, f64)> = Vec::with_capacity(ranked.len());
    for detection in ranked {
        if detection.right & (1 << place) == 0 {
            wrong += 1.0
        } else {
            right += 1.0
        }
        curve.push((right / truths as f64, right / (wrong + right + f64::EPSILON)));
    }
    let mut best = 0.0;
    for (_, precision) in curve.iter_mut().rev() {
        best = f64::max(best, *precision);
        *precision = best;
    }
    let precision_at = |point: u32| {
        let wanted = if point + 1 == RECALL_POINTS { 1.0 } else { f64::from(point) * 0.01 };
        let at = curve.partition_point(|(recall, _)| *recall < wanted);
        curve.get(at).map_or(0.0, |(_, precision)| *precision)
    };
    (0..RECALL_POINTS).map(precision_at).sum::<f64>() / f64::from(RECALL_POINTS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(label: &str, confidence: f32, edges: [f32; 4]) -> DetectedObject {
        DetectedObject { label: label.into(), confidence, bounds: edges.into() }
    }

    fn precision(pictures: &[(Vec<DetectedObject>, Vec<DetectedObject>)]) -> AveragePrecision {
        let mut sums = PrecisionSums::default();
        pictures.iter().for_each(|(found, truth)| sums.add(found, truth));
        sums.precision()
    }

    const HERE: [f32; 4] = [0.0, 0.0, 0.5, 0.5];
    const THERE: [f32; 4] = [0.5, 0.5, 1.0, 1.0];

    #[test]
    fn all_found_is_one_and_nothing_found_is_zero() {
        let truth = || vec![object("cup", 1.0, HERE), object("mug", 1.0, THERE)];
        assert!((precision(&[(truth(), truth())]).mean().unwrap() - 1.0).abs() < 1e-12);
        let none = precision(&[(Vec::new(), truth())]);
        assert_eq!((none.mean(), none.mean_50(), none.mean_75()), (Some(0.0), Some(0.0), Some(0.0)));
        assert_eq!(none.classes.iter().map(|class| class.truths).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn without_truths_there_is_no_mean_and_a_class_without_truths_does_not_count() {
        assert_eq!(precision(&[]).mean(), None);
        assert_eq!(precision(&[(vec![object("cup", 0.9, HERE)], Vec::new())]).mean_50(), None);
        let found = vec![object("cup", 0.9, HERE), object("mug", 0.9, THERE)];
        let only_cup = precision(&[(found, vec![object("cup", 1.0, HERE)])]);
        assert_eq!(only_cup.classes.len(), 1);
        assert!(only_cup.mean_50().unwrap() > 0.999);
    }

    #[test]
    fn what_is_broken_is_wrong_and_harms_nothing_else() {
        let truth = vec![object("cup", 1.0, HERE)];
        let good = object("cup", 0.5, HERE);
        for broken in [object("cup", f32::NAN, THERE), object("cup", f32::NAN, HERE)] {
            let with = precision(&[(vec![broken.clone(), good.clone()], truth.clone())]);
            assert!(with.mean_50().unwrap() > 0.999, "{broken:?} comes after all that are sure of something");
        }
        let nowhere = object("cup", 0.9, [f32::NAN, 0.0, 0.5, 0.5]);
        let with = precision(&[(vec![nowhere.clone(), good.clone()], truth.clone())]);
        assert!((with.mean_50().unwrap() - 0.5).abs() < 1e-9, "one of two is right: {with:?}");
        let unfindable = precision(&[(vec![good], vec![nowhere, object("cup", 1.0, HERE)])]);
        assert!(unfindable.mean_50().unwrap() < 0.51);
    }

    #[test]
    fn only_a_hundred_of_a_class_count_in_a_picture() {
        let mut found: Vec<DetectedObject> = (0..100).map(|_| object("cup", 0.9, THERE)).collect();
        found.push(object("cup", 0.5, HERE));
        assert_eq!(precision(&[(found, vec![object("cup", 1.0, HERE)])]).mean_50(), Some(0.0));
    }

    proptest! {
        #[test]
        fn precision_is_a_share_whatever_was_found(
            found in prop::collection::vec((0u8..3, 0f32..1.0, prop::array::uniform4(0f32..1.0)), 0..20),
            truth in prop::collection::vec((0u8..3, 0f32..1.0, prop::array::uniform4(0f32..1.0)), 0..8),
        ) {
            let objects = |all: Vec<(u8, f32, [f32; 4])>| -> Vec<DetectedObject> {
                all.into_iter().map(|(class, confidence, edges)| object(&class.to_string(), confidence, edges)).collect()
            };
            let all = precision(&[(objects(found), objects(truth))]);
            for class in &all.classes {
                let is_share = |value: f64| (0.0..=1.0).contains(&value);
                prop_assert!(is_share(class.ap) && is_share(class.ap50) && is_share(class.ap75), "{:?}", class);
            }
        }
    }
}

//! Whether two lists of objects show the same: matched one to one, by label and place. Pure.
//!
//! Objects are matched as pycocotools does it: the surest object of the left list chooses first, among the free ones of
//! the right list with its label, the one with the largest intersection over union. The right list is the one that is
//! believed: a verdict, or what a person drew.

use crate::answer::Prediction;
use crate::object::{DetectedObject, MAX_OBJECTS};

/// Intersection over union from which two boxes are of the same object.
pub const MATCH_IOU: f32 = 0.5;

/// F1 of two lists of objects from which they agree: one object missing among five is still below it, one among six
/// above.
pub const AGREEMENT_F1: f64 = 0.9;

/// How many objects of two lists belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ObjectMatch {
    /// Pairs of one object of each list.
    pub matched: u64,
    /// Objects of the left list alone.
    pub only_left: u64,
    /// Objects of the right list alone.
    pub only_right: u64,
}

impl ObjectMatch {
    /// Twice the matched objects among the objects of both lists, 0 to 1; 1 if both are empty.
    pub fn f1(&self) -> f64 {
        let all = 2 * self.matched + self.only_left + self.only_right;
        if all == 0 { 1.0 } else { 2.0 * self.matched as f64 / all as f64 }
    }

    /// Adds the counts of another picture.
    pub fn add(&mut self, other: Self) {
        self.matched += other.matched;
        self.only_left += other.only_left;
        self.only_right += other.only_right;
    }
}

/// Matches two lists of one picture at [`MATCH_IOU`].
pub fn match_objects(left: &[DetectedObject], right: &[DetectedObject]) -> ObjectMatch {
    match_objects_at(left, right, MATCH_IOU)
}

/// Matches two lists of one picture: pairs have the same label and an intersection over union of at least `min_iou`, 0
/// to 1. Objects whose box is not valid match nothing. Of each list, the first [`MAX_OBJECTS`] are looked at, so that
/// the time is bounded whoever sent it; the others count as unmatched.
pub fn match_objects_at(left: &[DetectedObject], right: &[DetectedObject], min_iou: f32) -> ObjectMatch {
    let valid = |objects: &[DetectedObject]| -> Vec<usize> {
        let places = objects.iter().take(MAX_OBJECTS).enumerate();
        places.filter(|(_, object)| object.bounds.is_valid()).map(|(place, _)| place).collect()
    };
    let (mut surest, mut free) = (valid(left), valid(right));
    let confidence = |place: &usize| left.get(*place).map_or(0.0, |object| object.confidence);
    surest.sort_by(|a, b| confidence(b).total_cmp(&confidence(a)));
    let mut matched = 0;
    for object in surest.iter().filter_map(|place| left.get(*place)) {
        let mut best = None;
        let mut best_iou = min_iou;
        for (at, other) in free.iter().enumerate() {
            let Some(other) = right.get(*other).filter(|other| other.label == object.label) else { continue };
            let iou = object.bounds.intersection_over_union(&other.bounds);
            // Of equal ones the last is taken, as pycocotools does.
            if iou >= best_iou {
                (best, best_iou) = (Some(at), iou);
            }
        }
        if let Some(at) = best {
            free.remove(at);
            matched += 1;
        }
    }
    ObjectMatch { matched, only_left: left.len() as u64 - matched, only_right: right.len() as u64 - matched }
}

/// Whether two lists of objects of one picture agree: their F1 is at least [`AGREEMENT_F1`].
pub fn objects_agree(left: &[DetectedObject], right: &[DetectedObject]) -> bool {
    match_objects(left, right).f1() >= AGREEMENT_F1
}

/// Whether two models say the same of one picture. Detectors: whether their objects agree, `believed` being the list
/// that the other is matched to; otherwise, and where only one of them is a detector: whether the labels are the same.
pub fn predictions_agree(prediction: &Prediction, believed: &Prediction) -> bool {
    match (&prediction.objects, &believed.objects) {
        (Some(objects), Some(believed)) => objects_agree(objects, believed),
        _ => prediction.label == believed.label,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ReleaseId;

    fn object(label: &str, confidence: f32, edges: [f32; 4]) -> DetectedObject {
        DetectedObject { label: label.into(), confidence, bounds: edges.into() }
    }

    fn counts(found: ObjectMatch) -> (u64, u64, u64) {
        (found.matched, found.only_left, found.only_right)
    }

    fn prediction(label: &str, objects: Option<Vec<DetectedObject>>) -> Prediction {
        Prediction {
            label: label.into(),
            confidence: 0.5,
            top: Vec::new(),
            labels: None,
            objects,
            release: ReleaseId::from_sha256([1; 32]),
            temperature: None,
            novelty: None,
        }
    }

    #[test]
    fn the_surest_object_chooses_first_and_takes_what_it_covers_best() {
        let truth = [object("cup", 1.0, [0.0, 0.0, 0.5, 1.0]), object("cup", 1.0, [0.25, 0.0, 0.75, 1.0])];
        // The first covers the first truth better and the second well enough; the other one covers the first alone.
        let found =
            |between, first| [object("cup", between, [0.1, 0.0, 0.6, 1.0]), object("cup", first, [0.0, 0.0, 0.5, 1.0])];
        assert_eq!(counts(match_objects(&found(0.9, 0.6), &truth)), (1, 1, 1));
        assert_eq!(counts(match_objects(&found(0.6, 0.9), &truth)), (2, 0, 0));
        assert_eq!(counts(match_objects(&found(0.6, 0.9), &truth[..1])), (1, 1, 0), "each truth is matched once");
    }

    #[test]
    fn another_label_another_place_and_a_broken_box_match_nothing() {
        let cup = object("cup", 0.9, [0.0, 0.0, 0.5, 0.5]);
        for other in [
            object("mug", 0.9, [0.0, 0.0, 0.5, 0.5]),
            object("cup", 0.9, [0.3, 0.0, 0.8, 0.5]),
            object("cup", 0.9, [f32::NAN, 0.0, 0.5, 0.5]),
            object("cup", 0.9, [0.0, 0.0, f32::INFINITY, 0.5]),
            object("cup", 0.9, [0.5, 0.5, 0.0, 0.0]),
        ] {
            let found = match_objects(std::slice::from_ref(&cup), std::slice::from_ref(&other));
            assert_eq!(counts(found), (0, 1, 1), "{other:?}");
            assert_eq!(
                counts(match_objects(&[other.clone(), cup.clone()], std::slice::from_ref(&cup))),
                (1, 1, 0),
                "{other:?}"
            );
        }
        let unsure = object("cup", f32::NAN, [0.0, 0.0, 0.5, 0.5]);
        assert_eq!(counts(match_objects(&[unsure], &[cup])), (1, 0, 0));
    }

    #[test]
    fn exactly_half_is_a_match() {
        let (half, whole) = (object("cup", 0.9, [0.0, 0.0, 0.5, 0.5]), object("cup", 1.0, [0.0, 0.0, 0.5, 1.0]));
        assert_eq!(counts(match_objects(&[half], &[whole])), (1, 0, 0));
    }

    #[test]
    fn longer_lists_than_an_answer_has_take_no_longer() {
        let many: Vec<DetectedObject> = (0..200_000).map(|_| object("cup", 0.9, [0.0, 0.0, 0.5, 0.5])).collect();
        let found = match_objects(&many, &many);
        assert_eq!(counts(found), (300, 199_700, 199_700));
        assert!(!objects_agree(&many, &many));
    }

    #[test]
    fn two_pictures_agree_at_nine_tenths() {
        let place = |at: usize| object("cup", 0.9, [0.1 * at as f32, 0.0, 0.1 * at as f32 + 0.1, 0.1]);
        let objects = |count: usize| (0..count).map(place).collect::<Vec<_>>();
        assert!(objects_agree(&[], &[]));
        assert!(!objects_agree(&[], &objects(1)) && !objects_agree(&objects(1), &[]));
        assert!(!objects_agree(&objects(4), &objects(5)), "8 of 9");
        assert!(objects_agree(&objects(5), &objects(6)), "10 of 11");
        assert!(objects_agree(&objects(6), &objects(5)));
    }

    #[test]
    fn detectors_agree_by_objects_and_others_by_label() {
        let here = || Some(vec![object("cup", 0.9, [0.0, 0.0, 0.5, 0.5])]);
        let there = || Some(vec![object("cup", 0.9, [0.5, 0.5, 1.0, 1.0])]);
        assert!(predictions_agree(&prediction("cup", here()), &prediction("cup", here())));
        assert!(!predictions_agree(&prediction("cup", here()), &prediction("cup", there())));
        assert!(!predictions_agree(&prediction("cup", here()), &prediction("none", Some(Vec::new()))));
        assert!(predictions_agree(&prediction("none", Some(Vec::new())), &prediction("none", Some(Vec::new()))));
        assert!(predictions_agree(&prediction("cup", None), &prediction("cup", None)));
        assert!(!predictions_agree(&prediction("cup", None), &prediction("mug", None)));
        assert!(predictions_agree(&prediction("cup", here()), &prediction("cup", None)), "one is no detector");
    }

    #[test]
    fn counts_of_pictures_add_up() {
        let mut all = ObjectMatch::default();
        assert_eq!(all.f1(), 1.0);
        all.add(ObjectMatch { matched: 2, only_left: 1, only_right: 0 });
        all.add(ObjectMatch { matched: 0, only_left: 0, only_right: 1 });
        assert!((all.f1() - 4.0 / 6.0).abs() < 1e-12);
    }
}

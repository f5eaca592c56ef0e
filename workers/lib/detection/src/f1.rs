//! Matched, missed and invented objects of a picture at a confidence.

use schemas::{DetectedObject, ObjectMatch, match_objects};

/// Matches the objects that a detector is at least `min_confidence` sure of, 0 to 1, with the true ones, at
/// [`schemas::MATCH_IOU`]: the left list of the counts is what was found, the right one the truth. Counts of pictures
/// add up, and [`ObjectMatch::f1`] of the sum is the F1 over all objects.
pub fn match_from(found: &[DetectedObject], truth: &[DetectedObject], min_confidence: f32) -> ObjectMatch {
    let sure: Vec<DetectedObject> =
        found.iter().filter(|object| object.confidence >= min_confidence).cloned().collect();
    match_objects(&sure, truth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_below_the_confidence_are_neither_found_nor_invented() {
        let object = |confidence, left: f32| DetectedObject {
            label: "cup".into(),
            confidence,
            bounds: [left, 0.0, left + 0.25, 0.5].into(),
        };
        let truth = [object(1.0, 0.0), object(1.0, 0.5)];
        let found = [object(0.9, 0.0), object(0.5, 0.25), object(0.3, 0.5)];
        let counts = |min_confidence| {
            let found = match_from(&found, &truth, min_confidence);
            (found.matched, found.only_left, found.only_right)
        };
        assert_eq!(counts(0.95), (0, 0, 2));
        assert_eq!(counts(0.6), (1, 0, 1));
        assert_eq!(counts(0.5), (1, 1, 1));
        assert_eq!(counts(0.0), (2, 1, 0));
    }
}

//! Precision as pycocotools computes it: `fixtures/make_detection_scores.py` wrote the pictures and the numbers.

use std::collections::BTreeMap;
use std::path::Path;

use detection::{AveragePrecision, PrecisionSums};
use schemas::{BoundingBox, DetectedObject};
use serde::Deserialize;

const TOLERANCE: f64 = 1e-9;

#[derive(Deserialize)]
struct ScoredCase {
    name: String,
    pictures: Vec<ScoredPicture>,
    expected: ExpectedScores,
}

#[derive(Deserialize)]
struct ScoredPicture {
    truth: Vec<ScoredBox>,
    found: Vec<ScoredBox>,
}

#[derive(Deserialize)]
struct ScoredBox {
    label: String,
    #[serde(default)]
    confidence: f32,
    #[serde(rename = "box")]
    bounds: BoundingBox,
}

#[derive(Deserialize)]
struct ExpectedScores {
    ap: f64,
    ap50: f64,
    ap75: f64,
    #[serde(default)]
    classes: BTreeMap<String, ExpectedScores>,
}

fn objects(boxes: &[ScoredBox]) -> Vec<DetectedObject> {
    let object =
        |one: &ScoredBox| DetectedObject { label: one.label.clone(), confidence: one.confidence, bounds: one.bounds };
    boxes.iter().map(object).collect()
}

fn precision(case: &ScoredCase) -> AveragePrecision {
    let mut sums = PrecisionSums::default();
    for picture in &case.pictures {
        sums.add(&objects(&picture.found), &objects(&picture.truth));
    }
    sums.precision()
}

fn is_near(one: f64, other: f64) -> bool {
    (one - other).abs() <= TOLERANCE
}

#[test]
fn precision_equals_that_of_pycocotools() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/detection/scores.json");
    let cases: Vec<ScoredCase> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(cases.len(), 9);
    for case in &cases {
        let (found, expected, name) = (precision(case), &case.expected, &case.name);
        let whole = [found.mean(), found.mean_50(), found.mean_75()].map(Option::unwrap);
        for (found, expected) in whole.into_iter().zip([expected.ap, expected.ap50, expected.ap75]) {
            assert!(is_near(found, expected), "{name}: {found} instead of {expected}");
        }
        assert_eq!(found.classes.len(), expected.classes.len(), "{name}");
        for class in &found.classes {
            let expected = &expected.classes[&class.label];
            let is_equal = is_near(class.ap, expected.ap)
                && is_near(class.ap50, expected.ap50)
                && is_near(class.ap75, expected.ap75);
            assert!(is_equal, "{name}, {}: {class:?}", class.label);
        }
    }
}

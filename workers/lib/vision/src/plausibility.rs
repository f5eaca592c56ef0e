//! Runs a model over pictures and looks for signs that its description is wrong.
//!
//! A description with one wrong value still gives answers, only worse ones: colours in the wrong order, numbers in the
//! wrong range. With labelled pictures, the model is also run under the descriptions that are commonly confused with
//! its own; one that is clearly more accurate is named.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use schemas::DetectedObject;
use schemas::model::{Channels, InputDescription};
use serde::Serialize;

use crate::inference::{InferenceError, InferenceResult, InferenceSettings, Replica};
use crate::model::Model;
use crate::prediction::predict;
use crate::scores::probabilities;
use crate::session::OnnxRuntime;

/// Most pictures that are run under other descriptions: enough to see a relevant difference.
const MAX_VARIED_PICTURES: usize = 200;
/// With fewer pictures, a constant answer is not considered odd.
const MIN_PICTURES: usize = 10;
/// Entropy, as a share of a uniform guess's, from which a prediction is meaningless.
const NEARLY_UNIFORM: f32 = 0.98;

/// A picture to try a model on.
#[derive(Debug, Clone)]
pub struct TrialImage {
    /// Path of its file, which is read when needed, as there may be many.
    pub path: PathBuf,
    /// Its true label, if known.
    pub label: Option<String>,
}

/// Result of a model on pictures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrialReport {
    /// One row per picture, in the given order.
    pub images: Vec<TrialRow>,
    /// Recognized pictures whose label is one of the model's.
    pub labelled: usize,
    /// Number of those that are right.
    pub right: usize,
    /// Labels that the model does not have, and the number of pictures with each.
    pub unknown_labels: BTreeMap<String, usize>,
    /// Signs that the description is wrong, in words; empty if there are none.
    pub findings: Vec<String>,
}

/// A model's prediction for one picture.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrialRow {
    /// Path of the picture.
    pub path: PathBuf,
    /// Its true label, if known.
    pub expected: Option<String>,
    /// Predicted label; absent if the picture is unreadable.
    pub label: Option<String>,
    /// Probability of that label, 0 to 1.
    pub confidence_ratio: Option<f32>,
    /// For a detector, what it found, surest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects: Option<Vec<DetectedObject>>,
    /// Why the picture is unreadable.
    pub fault: Option<String>,
}

/// Runs a model over pictures.
pub fn try_on(onnx: &OnnxRuntime, model: &Model, images: &[TrialImage]) -> Result<TrialReport, InferenceError> {
    let mut replica = Replica::open(onnx, model, &InferenceSettings::default())?;
    let (mut rows, mut entropies) = (Vec::new(), Vec::new());
    for image in images {
        let row = |label, confidence_ratio, fault| TrialRow {
            path: image.path.clone(),
            expected: image.label.clone(),
            label,
            confidence_ratio,
            objects: None,
            fault,
        };
        let bytes = match std::fs::read(&image.path) {
            Ok(bytes) => bytes,
            Err(error) => {
                rows.push(row(None, None, Some(format!("it cannot be read: {error}"))));
                continue;
            }
        };
        match replica.predict(&bytes) {
            Ok(seen) => {
                let (top, entropy) = read(model, &seen);
                entropies.push(entropy);
                let objects = seen.detections.map(|found| found.objects);
                rows.push(TrialRow { objects, ..row(Some(top.0), Some(top.1), None) });
            }
            Err(error) if error.is_the_images_fault() => rows.push(row(None, None, Some(error.to_string()))),
            Err(error) => return Err(error),
        }
    }
    let mut unknown_labels = BTreeMap::new();
    for label in images.iter().filter_map(|image| image.label.as_ref()).filter(|label| !model.labels.contains(label)) {
        *unknown_labels.entry(label.clone()).or_insert(0) += 1;
    }
    let judged: Vec<(&TrialImage, bool)> = images
        .iter()
        .zip(&rows)
        .filter(|(image, row)| {
            row.label.is_some() && image.label.as_ref().is_some_and(|label| model.labels.contains(label))
        })
        .map(|(image, row)| (image, row.label == image.label))
        .collect();
    let right = judged.iter().filter(|(_, is_right)| *is_right).count();
    // Several labels at once are independent: their probabilities have no entropy as a distribution.
    let entropies = if model.thresholds.is_empty() { &entropies[..] } else { &[] };
    let mut findings = odd_answers(&rows, entropies, model.labels.len());
    findings.extend(better_descriptions(onnx, model, judged.get(..MAX_VARIED_PICTURES).unwrap_or(&judged)));
    Ok(TrialReport { labelled: judged.len(), right, images: rows, unknown_labels, findings })
}

/// The model's prediction, and its entropy as a share of a uniform guess's.
fn read(model: &Model, seen: &InferenceResult) -> ((String, f32), f32) {
    let temperature = model.description.gate.temperature.unwrap_or(1.0);
    let ratios = probabilities(model, &seen.logits, temperature);
    let top = predict(seen, temperature)
        .map_or_else(Default::default, |prediction| (prediction.label, prediction.confidence));
    let entropy: f32 = ratios.iter().filter(|ratio| **ratio > 0.0).map(|ratio| -ratio * ratio.ln()).sum();
    (top, entropy / (ratios.len().max(2) as f32).ln())
}

fn odd_answers(rows: &[TrialRow], entropies: &[f32], labels: usize) -> Vec<String> {
    let mut findings = Vec::new();
    let predicted: Vec<&str> = rows.iter().filter_map(|row| row.label.as_deref()).collect();
    let expected: BTreeSet<&str> = rows.iter().filter_map(|row| row.expected.as_deref()).collect();
    if let Some(first) = predicted
        .first()
        .filter(|first| predicted.len() >= MIN_PICTURES && predicted.iter().all(|label| label == *first))
        && expected.len() != 1
    {
        findings.push(format!(
            "it predicts {first:?} for all {} pictures; if they show different things, its input numbers are probably in \
             the wrong range (input.scale, mean, std)",
            predicted.len()
        ));
    }
    let mean = entropies.iter().sum::<f32>() / entropies.len().max(1) as f32;
    if !entropies.is_empty() && mean > NEARLY_UNIFORM {
        findings.push(format!(
            "it finds all {labels} labels about equally probable; its input numbers are probably in the \
             wrong range (input.scale, mean, std), or its output is not {labels} logits (output.kind)"
        ));
    }
    findings
}

/// Other descriptions that are clearly more accurate, best first.
fn better_descriptions(onnx: &OnnxRuntime, model: &Model, judged: &[(&TrialImage, bool)]) -> Vec<String> {
    let mut better = Vec::new();
    for (variant, input) in variants(&model.description.input) {
        let mut varied = model.clone();
        varied.description.input = input;
        let Ok(mut replica) = Replica::open(onnx, &varied, &InferenceSettings::default()) else { continue };
        let (mut gained, mut lost) = (0_usize, 0_usize);
        for (image, was_right) in judged {
            let Ok(bytes) = std::fs::read(&image.path) else { continue };
            let Ok(seen) = replica.predict(&bytes) else { continue };
            let is_right = Some(&read(model, &seen).0.0) == image.label.as_ref();
            gained += usize::from(is_right && !was_right);
            lost += usize::from(!is_right && *was_right);
        }
        if is_clearly_more(gained, lost) {
            better.push((gained - lost, variant));
        }
    }
    better.sort_by_key(|(more, _)| std::cmp::Reverse(*more));
    let was = judged.iter().filter(|(_, is_right)| *is_right).count();
    let all = judged.len();
    let say = |(more, variant): (usize, String)| {
        format!(
            "with {variant}, {} of {all} pictures are right instead of {was}; correct model.toml if that is how it was \
                 trained",
            was + more
        )
    };
    better.into_iter().map(say).collect()
}

/// Whether an improvement is more than chance: three standard errors of the changed pictures (McNemar), and at least
/// three pictures.
fn is_clearly_more(gained: usize, lost: usize) -> bool {
    let (more, changed) = (gained as f64 - lost as f64, (gained + lost) as f64);
    more >= 3.0 && more >= 3.0 * changed.sqrt().max(1.0)
}

/// Descriptions that are commonly confused with this one, in words and as values.
fn variants(input: &InputDescription) -> Vec<(String, InputDescription)> {
    let count = input.channels.count();
    let scaled = |scale: f32, mean: f32, std: f32| InputDescription {
        scale,
        mean: vec![mean; count],
        std: vec![std; count],
        ..input.clone()
    };
    let mut found = Vec::new();
    for (channels, word) in [(Channels::Bgr, "bgr"), (Channels::Rgb, "rgb")] {
        if input.channels != Channels::Gray && input.channels != channels {
            found.push((format!("channels = \"{word}\""), InputDescription { channels, ..input.clone() }));
        }
    }
    let ranges = [
        ("0 to 255", scaled(1.0, 0.0, 1.0)),
        ("0 to 1", scaled(1.0 / 255.0, 0.0, 1.0)),
        ("-1 to 1", scaled(1.0 / 255.0, 0.5, 0.5)),
    ];
    for (range, varied) in ranges {
        let first = |all: &[f32]| all.first().copied().unwrap_or_default();
        let (scale, mean, std) = (varied.scale, first(&varied.mean), first(&varied.std));
        found.push((format!("pixels from {range} (scale = {scale}, mean = {mean}, std = {std})"), varied));
    }
    if count == 3 {
        let (mean, std) = crate::draft::IMAGENET;
        let varied = InputDescription { mean: mean.to_vec(), std: std.to_vec(), ..scaled(1.0 / 255.0, 0.0, 1.0) };
        found.push(("ImageNet's mean and deviation (scale = 1/255)".to_owned(), varied));
    }
    found.retain(|(_, varied)| varied != input);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::{fixture, onnx};
    use std::path::Path;

    fn fashion(each: usize) -> Vec<TrialImage> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/images/fashion");
        let mut found = Vec::new();
        for label in folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
            let mut files: Vec<_> = label.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
            files.sort();
            let name = label.file_name().unwrap().to_string_lossy().into_owned();
            found.extend(files.into_iter().take(each).map(|path| TrialImage { path, label: Some(name.clone()) }));
        }
        found
    }

    #[test]
    fn a_correct_description_has_no_findings() {
        let model = Model::load(&fixture("fashion-light")).unwrap();
        let mut images = fashion(4);
        images.push(TrialImage { path: fixture("fashion-light").join("labels.txt"), label: Some("cow".into()) });
        let report = try_on(&onnx(), &model, &images).unwrap();
        assert_eq!(report.findings, [""; 0], "{report:?}");
        assert!(report.right * 10 > report.labelled * 7 && report.labelled == images.len() - 1, "{report:?}");
        assert_eq!(report.unknown_labels["cow"], 1);
        assert!(report.images.last().unwrap().fault.is_some());
    }

    #[test]
    fn a_wrong_range_is_named_with_the_right_one() {
        let mut model = Model::load(&fixture("fashion-light")).unwrap();
        model.description.input.mean = vec![3.0];
        let report = try_on(&onnx(), &model, &fashion(8)).unwrap();
        assert!(report.right * 2 < report.labelled, "{report:?}");
        let named = report.findings.iter().find(|finding| finding.contains("pixels from")).unwrap();
        assert!(named.contains(&format!("of 80 pictures are right instead of {}", report.right)), "{named}");
    }

    #[test]
    fn several_labels_are_not_uniform_and_both_colour_orders_are_tried() {
        let model = Model::load(&fixture("../forms/several-labels")).unwrap();
        let folder = fixture("../processors");
        let images: Vec<TrialImage> =
            ["landscape.png", "portrait.png"].map(|name| TrialImage { path: folder.join(name), label: None }).into();
        assert_eq!(try_on(&onnx(), &model, &images).unwrap().findings, [""; 0]);
        let names: Vec<String> = variants(&model.description.input).into_iter().map(|(name, _)| name).collect();
        assert!(names.contains(&"channels = \"bgr\"".to_owned()) && names.len() == 4, "{names:?}");
    }

    #[test]
    fn chance_is_no_finding() {
        assert!(!is_clearly_more(2, 0) && !is_clearly_more(10, 9) && !is_clearly_more(0, 5));
        assert!(is_clearly_more(9, 0) && is_clearly_more(40, 4));
    }
}

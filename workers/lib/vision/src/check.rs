//! Checks a model before anything depends on it: loads, opens and runs it on a given or generated picture, and returns
//! a report. Refuses whatever any stage of recognition refuses.

use std::path::Path;

use schemas::DetectedObject;
use schemas::limits::MAX_TOP;
use schemas::model::{Channels, Layout, OutputKind, ResizeMode};
use serde::Serialize;

use crate::batch_cost::{BatchCost, measure_batches};
use crate::decode::DecodeSettings;
use crate::inference::{InferenceError, InferenceSettings, Replica};
use crate::model::{Model, ModelError};
use crate::sample;
use crate::scores::{probabilities, top};
use crate::session::OnnxRuntime;

/// Why a model is not usable.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The folder is not a valid model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The graph, the runtime or the picture failed.
    #[error(transparent)]
    Infer(#[from] InferenceError),
}

/// Report about a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelReport {
    /// Name of the model.
    pub name: String,
    /// Digest of its files, 64 hexadecimal digits.
    pub release: String,
    /// Files that belong to it, relative to its folder.
    pub files: Vec<String>,
    /// Size of these files in bytes.
    pub size_bytes: u64,
    /// The runtime it was run on.
    pub runtime: String,
    /// Its input.
    pub input: InputReport,
    /// Its output.
    pub output: OutputReport,
    /// Number of labels.
    pub labels: usize,
    /// Cost of one image on one thread in the best batch, milliseconds, including decoding.
    pub cost_ms: f64,
    /// Batch size with the lowest cost per image.
    pub best_batch: usize,
    /// The measurement behind it.
    pub measured: BatchCost,
    /// Largest batch of the graph; absent if it is not limited.
    pub graph_batch: Option<usize>,
    /// The best classes for the given picture; empty without one, and for a detector.
    pub top: Vec<RankedLabel>,
    /// For a detector, what it found in the given picture, surest first; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects: Option<Vec<DetectedObject>>,
    /// For a detector, scores and boxes that were left out because they are not finite.
    #[serde(skip_serializing_if = "is_zero")]
    pub not_finite: usize,
    /// For a detector, candidates that were left out because there were too many.
    #[serde(skip_serializing_if = "is_zero")]
    pub cut: usize,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Input of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InputReport {
    /// Its name in the graph.
    pub name: String,
    /// Width in pixels.
    pub width_px: u32,
    /// Height in pixels.
    pub height_px: u32,
    /// Number and order of channels.
    pub channels: Channels,
    /// Order of the axes.
    pub layout: Layout,
    /// How a picture is fitted to the input.
    pub resize: ResizeMode,
}

/// Output of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputReport {
    /// Its name in the graph.
    pub name: String,
    /// What its numbers mean.
    pub kind: OutputKind,
    /// Number of features in the second output; absent without one.
    pub features: Option<usize>,
}

/// One of the best classes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RankedLabel {
    /// The label.
    pub label: String,
    /// Its probability, 0 to 1, at the model's own temperature.
    pub confidence_ratio: f32,
}

/// Checks a model. Without an `image`, a generated one is run and `top` is empty.
pub fn check(dir: &Path, onnx: &OnnxRuntime, image: Option<&[u8]>) -> Result<ModelReport, CheckError> {
    let model = Model::load(dir)?;
    let settings = InferenceSettings { decode: DecodeSettings::default(), ..InferenceSettings::default() };
    let mut replica = Replica::open(onnx, &model, &settings)?;
    let generated = sample::jpeg();
    let seen = replica.predict(image.unwrap_or(&generated))?;
    let measured = measure_batches(&mut replica)?;
    let description = &model.description;
    let ratios = probabilities(&model, &seen.logits, description.gate.temperature.unwrap_or(1.0));
    let ranked = |(class, confidence_ratio): (usize, f32)| {
        Some(RankedLabel { label: model.labels.get(class)?.clone(), confidence_ratio })
    };
    let found = seen.detections.filter(|_| image.is_some());
    let is_classifier = !description.output.kind.is_detector();
    let best = if image.is_some() && is_classifier { top(&ratios, MAX_TOP) } else { Vec::new() };
    let (not_finite, cut) = found.as_ref().map_or((0, 0), |found| (found.not_finite, found.cut));
    let (input, output) = (&description.input, &description.output);
    Ok(ModelReport {
        name: description.name.clone(),
        release: model.release.to_string(),
        size_bytes: model.size_bytes()?,
        files: model.files.clone(),
        runtime: format!("ONNX Runtime {} ({})", onnx.version(), onnx.library().display()),
        input: InputReport {
            name: input.name.clone(),
            width_px: input.width_px,
            height_px: input.height_px,
            channels: input.channels,
            layout: input.layout,
            resize: input.resize,
        },
        output: OutputReport {
            name: output.name.clone(),
            kind: output.kind,
            features: seen.features.as_ref().map(Vec::len),
        },
        labels: model.labels.len(),
        cost_ms: measured.best_ms(),
        best_batch: measured.best_batch,
        measured,
        graph_batch: replica.graph_batch(),
        top: best.into_iter().filter_map(ranked).collect(),
        objects: found.map(|found| found.objects),
        not_finite,
        cut,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::{fixture, onnx};

    #[test]
    fn a_report_names_the_best_classes_of_the_picture() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/images/fashion/t-shirt");
        let picture = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).min().unwrap();
        let bytes = std::fs::read(picture).unwrap();
        let report = check(&fixture("fashion-light"), &onnx(), Some(&bytes)).unwrap();
        assert_eq!((report.labels, report.top.len()), (10, 5));
        assert!(report.top.windows(2).all(|pair| pair[0].confidence_ratio >= pair[1].confidence_ratio));
        assert!(report.cost_ms > 0.0 && report.size_bytes > 0 && report.output.features.is_some());
        serde_json::to_string(&report).unwrap();
    }

    #[test]
    fn without_a_picture_the_model_still_runs() {
        let report = check(&fixture("bench-cnn"), &onnx(), None).unwrap();
        assert!(report.top.is_empty() && report.best_batch >= 1);
    }

    #[test]
    fn a_broken_picture_is_refused_by_name() {
        let error = check(&fixture("fashion-light"), &onnx(), Some(b"text")).unwrap_err();
        assert!(matches!(error, CheckError::Infer(error) if error.name() == "image_unknown_format"));
    }
}

//! Result of a picture: the model's output, and where the time went.

use std::sync::Arc;

use serde::Serialize;

use crate::decode::{ImageEnvelope, Pixels};
use crate::detection::Detections;
use crate::model::Model;

/// Looks at a picture between its decoding and its inference, on the replica's thread; false declines its inference
/// ([`crate::InferenceError::Declined`]).
pub type PixelInspector = Box<dyn FnOnce(&Pixels) -> bool + Send>;

/// A model's output for one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct InferenceResult {
    /// One per class; `softmax(logits / temperature)` gives the probabilities. For a detector, those of the best score
    /// of each class in the picture.
    pub logits: Vec<f32>,
    /// Features before the last layer; absent if the model does not give them.
    pub features: Option<Vec<f32>>,
    /// Novelty: share of the calibration pictures that are less unlike what the model knows, 0 to 1; absent without a
    /// novelty score.
    pub novelty: Option<f32>,
    /// For a detector, what it found; otherwise absent.
    pub detections: Option<Detections>,
    /// The model that gave it.
    pub model: Arc<Model>,
    /// Where the time went.
    pub timings: InferenceTimings,
    /// Anything unusual around the picture's bytes that was skipped.
    pub envelope: ImageEnvelope,
}

/// Where the time of one picture went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct InferenceTimings {
    /// From the call until a replica took it, microseconds.
    pub waited_us: u64,
    /// Decoding, resizing and scaling, microseconds.
    pub decode_us: u64,
    /// Running its whole batch, microseconds.
    pub infer_us: u64,
    /// Images in that batch, including this one.
    pub batch_size: usize,
}

impl InferenceTimings {
    /// Cost of the picture on its replica, milliseconds: decoding, and its share of the run.
    pub fn cost_ms(&self) -> f64 {
        (self.decode_us as f64 + self.infer_us as f64 / self.batch_size.max(1) as f64) / 1000.0
    }
}

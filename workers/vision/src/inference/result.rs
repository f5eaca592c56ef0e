//! What comes of a picture: what a model saw in it, and where the time went.

use std::sync::Arc;

use serde::Serialize;

use crate::decode::ImageEnvelope;
use crate::model::Model;

/// What a model saw in one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct InferenceResult {
    /// One a class; `softmax(logits / temperature)` gives the probabilities.
    pub logits: Vec<f32>,
    /// The features before the last layer, if the model gives them.
    pub features: Option<Vec<f32>>,
    /// Share of the pictures of the model's calibration that are less strange to it, 0 to 1; absent without a novelty score.
    pub novelty: Option<f32>,
    /// The model that saw it.
    pub model: Arc<Model>,
    /// Where the time went.
    pub timings: InferenceTimings,
    /// What was odd about the bytes and was passed over, in words.
    pub envelope: ImageEnvelope,
}

/// Where the time of one picture went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct InferenceTimings {
    /// From the call until a replica took it up, in microseconds.
    pub waited_us: u64,
    /// Decoding, resizing and scaling, in microseconds.
    pub decode_us: u64,
    /// The run of its whole batch, in microseconds.
    pub infer_us: u64,
    /// Images in that batch, itself included.
    pub batch_size: usize,
}

impl InferenceTimings {
    /// What the picture cost the replica, milliseconds: decoding, and its part of the run.
    pub fn cost_ms(&self) -> f64 {
        (self.decode_us as f64 + self.infer_us as f64 / self.batch_size.max(1) as f64) / 1000.0
    }
}

//! From image bytes to class scores or objects.
//!
//! In: bytes as published, and a model folder. Out: one row of logits per image, or the objects in it. The steps: [`mod@decode`] (bytes to
//! pixels) → [`tensor`] (pixels to the model's input) → [`session`] (input to scores), each independent of the next;
//! [`inference`] owns the threads that run them and groups images into batches, the most urgent first ([`urgency`]),
//! whose best size [`batch_cost`] measures. [`model`] reads a model's description, a Hugging Face export included; [`detection`] reads a detector's outputs, [`scores`] turns logits into
//! probabilities and [`prediction`](mod@prediction) those into labels, [`novelty`] measures how unlike the known
//! pictures one is, [`page`] and [`tile`] cut a scan into pictures, [`check`](mod@check) tries a model before use,
//! [`thumbnail`] compares pictures of one camera, [`draft`](mod@draft) describes one without a description, [`plausibility`] looks for a wrong one.
//!
//! Deliberately absent: messages and streams, thresholds, training.

pub mod augment;
pub mod batch_cost;
pub mod check;
pub mod decode;
pub mod detection;
pub mod draft;
pub mod graph;
mod head;
mod huggingface;
mod inference;
mod labels;
mod lookup;
mod model;
pub mod novelty;
mod outline;
mod page;
mod plausibility;
pub mod prediction;
mod replica;
mod sample;
mod scores;
mod session;
pub mod tensor;
pub mod thumbnail;
mod tile;
mod urgency;

pub use batch_cost::BatchCost;
pub use check::{CheckError, InputReport, ModelReport, OutputReport, RankedLabel, check};
pub use decode::{
    DecodeError, DecodeSettings, GrayPixels, ImageEnvelope, PictureFormat, Pixels, decode, decode_gray_into,
    dimensions, is_complete,
};
pub use detection::Detections;
pub use draft::{DraftNote, ModelDraft, draft};
pub use graph::Graph;
pub use head::Head;
pub use inference::{
    InferenceError, InferencePool, InferenceResult, InferenceSettings, InferenceTimings, PixelInspector,
    ProcessorContention, Replica, Replicas, StandbyModel,
};
pub use model::{Model, ModelError};
pub use novelty::fit::{FitError, FitReport, SeparationReport};
pub use novelty::{Novelty, NoveltySource};
pub use page::{count_pages, extract_page};
pub use plausibility::{TrialImage, TrialReport, TrialRow, try_on};
pub use prediction::{predict, prediction};
pub use sample::{enlarged, pictures};
pub use scores::{probabilities, sigmoid, softmax, top};
pub use session::{BatchOutputs, OnnxRuntime, Session, SessionError};
pub use tile::{TileError, TileImage, Tiles, split};
pub use urgency::{MAX_WAIT, Urgency, UrgencyQueue, UrgencyRank};

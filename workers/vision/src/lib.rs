//! From image bytes to class scores.
//!
//! Enters: bytes as published, and a folder with a model. Leaves: one row of logits an image.
//! A walk: [`decode`] (bytes to pixels) → [`tensor`] (pixels to the model's input) → [`session`]
//! (input to scores), each without knowing the next; [`infer`] owns the threads that walk it and
//! puts images together into batches, whose best size [`measure`] finds. [`model`] reads what the model expects, [`huggingface`] the
//! same from an export of the Hub; [`scores`] turns logits into probabilities and [`opinion`] those into words, [`novelty`] says how strange a picture is, [`page`] and [`tile`] cut a
//! scan into pictures, [`check`] tries a model before it is used, [`draft`](mod@draft) describes one that nobody described.
//!
//! Deliberately absent: messages and streams, thresholds, training.

pub mod augment;
pub mod batch_cost;
pub mod check;
pub mod decode;
pub mod draft;
pub mod graph;
pub mod head;
mod huggingface;
pub mod inference;
mod labels;
mod lookup;
pub mod model;
pub mod novelty;
mod outline;
pub mod page;
pub mod plausibility;
pub mod prediction;
mod replica;
mod sample;
pub mod scores;
pub mod session;
pub mod tensor;
pub mod tile;

pub use batch_cost::BatchCost;
pub use check::{CheckError, InputReport, ModelReport, OutputReport, RankedLabel, check};
pub use decode::{DecodeError, DecodeSettings, ImageEnvelope, PictureFormat, Pixels, decode, dimensions, is_complete};
pub use draft::{DraftNote, ModelDraft, draft};
pub use graph::Graph;
pub use head::Head;
pub use inference::{
    InferenceError, InferencePool, InferenceResult, InferenceSettings, InferenceTimings, Replica, Replicas,
    StandbyModel,
};
pub use model::{Model, ModelError};
pub use novelty::fit::{FitError, FitReport, SeparationReport};
pub use novelty::{Novelty, NoveltySource};
pub use page::{count_pages, extract_page};
pub use plausibility::{TrialImage, TrialReport, TrialRow, try_on};
pub use prediction::prediction;
pub use sample::{enlarged, pictures};
pub use scores::{probabilities, sigmoid, softmax, top};
pub use session::{BatchOutputs, OnnxRuntime, Session, SessionError};
pub use tile::{TileError, TileImage, Tiles, split};

//! An image in, an answer out: admit → fetch → decode → batch → infer → gate → report.
//!
//! [`walk`] reads as that path. [`admit`] and [`gate`] are pure decisions, [`report`] says what came
//! of it. Decoding, batching and inferring happen in `vision`, on the replicas' own threads.
//! Deliberately absent: training, second opinions, the link.

pub mod admit;
pub mod gate;
pub mod report;
pub mod settings;
pub mod walk;

pub use settings::RecognizerSettings;
pub use walk::{Recognizer, run};

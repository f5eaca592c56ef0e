//! Turns an image into an answer: accept → admit → fetch → decode → batch → infer → gate → report.
//!
//! [`worker`] reads as that path. Pure decisions: [`accept`] (can it be an image), [`offload_window`] (how many tasks
//! the cloud may hold), and those of `offload` (admit, gate, escalation, calibration). Around them: [`signals`] and
//! [`machine_vitals`] gather the inputs, [`admission`] decides and counts, [`offload`] holds what the cloud works on,
//! [`learner`] collects verdicts, [`report`] makes the messages to publish. Decoding, batching and inference run in
//! `vision`, on the replicas' own threads. Deliberately absent: training, a second model, the link.

mod accept;
mod admission;
mod learner;
mod machine_vitals;
mod offload;
mod offload_window;
pub mod report;
mod settings;
pub mod signals;
mod worker;

pub use settings::RecognizerSettings;
pub use worker::{Recognizer, run};

//! Turns an image into an answer: accept → admit → fetch → decode → batch → infer → gate → report.
//!
//! [`worker`] reads as that path. Pure decisions: [`accept`] (can it be an image), [`offload_window`] (how many tasks
//! the cloud may hold), `reuse::policy`, `states::tracker`, and those of `offload` (admit, gate, escalation,
//! calibration). Around them: [`signals`] and
//! [`machine_vitals`] gather the inputs, [`admission`] decides and counts, [`offload`] holds what the cloud works on,
//! [`learner`] collects verdicts, [`reuse`] gives a picture the answer of the one before, [`states`] follows what cameras
//! show, [`report`] makes the messages to publish. Decoding, batching and inference run in
//! `vision`, on the replicas' own threads. Deliberately absent: training, a second model, the link.

mod accept;
mod admission;
mod camera_map;
mod learner;
mod machine_vitals;
mod offload;
mod offload_window;
pub mod report;
mod reuse;
mod settings;
pub mod signals;
mod states;
mod worker;

pub use reuse::{CameraReuseSettings, ReuseSettings};
pub use settings::RecognizerSettings;
pub use states::StateSettings;
pub use worker::{Recognizer, run};

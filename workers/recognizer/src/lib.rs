//! An image in, an answer out: accept → admit → fetch → decode → batch → infer → gate → report.
//!
//! [`walk`] reads as that path. Pure decisions: [`accept`] (can it be an image), [`window`] (how much the cloud may hold), and
//! those of `decisions` (admit, gate, fate, learn). Around them: [`signals`] and [`load`] gather what is decided by, [`admission`] asks and counts, [`away`] holds what the cloud works on,
//! [`learner`] collects verdicts, [`report`] says what came of it. Decoding, batching and inferring happen
//! in `vision`, on the replicas' own threads. Deliberately absent: training, second opinions, the link.

pub mod accept;
pub mod admission;
pub mod learner;
pub mod machine_vitals;
pub mod offload;
pub mod offload_window;
pub mod report;
pub mod settings;
pub mod signals;
pub mod worker;

pub use settings::RecognizerSettings;
pub use worker::{Recognizer, run};

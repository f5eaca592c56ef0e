//! An image in, an answer out: accept → admit → fetch → decode → batch → infer → gate → report.
//!
//! [`walk`] reads as that path. Pure decisions: [`accept`] (can it be an image), [`admit`] (here, in the
//! cloud, or not yet), [`gate`] (sure or in doubt), [`fate`] (what becomes of doubt), [`learn`] (what
//! verdicts teach the gate), [`window`] (how much the cloud may hold), each by the numbers of a [`policy`]. Around them: [`signals`] and [`load`]
//! gather what is decided by, [`admission`] asks and counts, [`away`] holds what the cloud works on,
//! [`learner`] collects verdicts, [`report`] says what came of it. Decoding, batching and inferring happen
//! in `vision`, on the replicas' own threads. Deliberately absent: training, second opinions, the link.

pub mod accept;
pub mod admission;
pub mod admit;
pub mod away;
pub mod fate;
pub mod gate;
pub mod learn;
pub mod learner;
pub mod load;
pub mod policy;
pub mod report;
pub mod settings;
pub mod signals;
pub mod walk;
pub mod window;

pub use policy::{Policy, PolicyName};
pub use settings::RecognizerSettings;
pub use walk::{Recognizer, run};

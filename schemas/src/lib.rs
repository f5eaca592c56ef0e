//! What is said: every message of Tributary as plain data.
//!
//! Enters and leaves: nothing; this crate has no sockets, no files and no clock.
//! One message a file, with its version history. Wire format: MessagePack maps with named fields
//! ([`codec`]), so that any client can read them.

pub mod answer;
pub mod audit;
pub mod beat;
pub mod blob;
pub mod codec;
pub mod dead;
pub mod decided;
pub mod drift;
pub mod hardcase;
pub mod id;
pub mod label;
pub mod learned;
pub mod limits;
pub mod model;
pub mod release;
pub mod root;
pub mod round;
pub mod swap;
pub mod task;
pub mod update;
pub mod verdict;
pub mod verify;

pub use answer::{Answer, MAX_HELD_LABELS, NO_LABEL, Prediction, Ranked, Reason, Route, Stage, Timings};
pub use audit::AuditNote;
pub use beat::{Heartbeat, CloudReport, DecisionReport, LinkReport, OutcomeReport, RoundReport, TrainingReport};
pub use blob::BlobRef;
pub use codec::{CodecError, Message, decode, encode};
pub use dead::{CutPayload, DeadLetter, FaultNote};
pub use decided::{Decided, Doubted, Fated};
pub use drift::{DriftLevel, DriftMeasure, DriftReport};
pub use hardcase::HardCase;
pub use id::{CameraName, IdError, ModelName, ReleaseId, SetName, SiteName, TaskId};
pub use label::Label;
pub use learned::LearnedImages;
pub use model::ModelDescription;
pub use release::{Canary, Decision, Finding, Needs, Order, Release, Rollout, Says, Stage as ReleaseStage};
pub use root::{Root, Signature};
pub use round::{HardClass, HardFocus, Round, RoundEvent, Terms};
pub use swap::{Agreed, Agreement, Counts, Moments, RefusedRelease, Swap};
pub use task::{CaptureTime, Task, Tile};
pub use update::{Gain, LabelSource, Measured, Update, WeightForm};
pub use verdict::Verdict;
pub use verify::{Hardness, Payload, Verify, VerifyReason};

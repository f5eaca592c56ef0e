//! What is said: every message of Tributary as plain data.
//!
//! Enters and leaves: nothing; this crate has no sockets, no files and no clock.
//! One message a file, with its version history. Wire format: MessagePack maps with named fields
//! ([`codec`]), so that any client can read them.

pub mod answer;
pub mod audit;
pub mod heartbeat;
pub mod blob;
pub mod codec;
pub mod dead;
pub mod decision_trace;
pub mod drift;
pub mod hardcase;
pub mod id;
pub mod label;
pub mod learned_images;
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

pub use answer::{Answer, MAX_HELD_LABELS, NO_LABEL, Prediction, RankedClass, Reason, Route, AnswerStage, Timings};
pub use audit::AuditNote;
pub use heartbeat::{Heartbeat, CloudReport, DecisionReport, LinkReport, OutcomeReport, RoundReport, TrainingReport};
pub use blob::BlobRef;
pub use codec::{CodecError, Message, decode, encode};
pub use dead::{TruncatedPayload, DeadLetter, FaultNote};
pub use decision_trace::{DecisionTrace, EscalationTrace, EscalationOutcome};
pub use drift::{DriftLevel, DriftMeasure, DriftReport};
pub use hardcase::HardCase;
pub use id::{CameraName, IdError, ModelName, ReleaseId, SetName, SiteName, TaskId};
pub use label::Label;
pub use learned_images::LearnedImages;
pub use model::ModelDescription;
pub use release::{Canary, ReleaseDecision, CanaryFinding, MachineRequirements, Order, Release, Rollout, FindingOutcome, ReleaseStage};
pub use root::{Root, Signature};
pub use round::{HardClass, HardFocus, Round, RoundEvent, RoundTerms};
pub use swap::{AgreementCount, Agreement, ReleaseCounts, MomentSums, RefusedRelease, Swap};
pub use task::{CaptureTime, Task, Tile};
pub use update::{Gain, LabelSource, ModelAccuracy, Update, WeightFormat};
pub use verdict::Verdict;
pub use verify::{Hardness, Payload, VerifyRequest, VerifyReason};

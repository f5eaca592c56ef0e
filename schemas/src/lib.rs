//! Every message of Tributary as plain data.
//!
//! This crate has no sockets, no files and no clock. Each message has a file of its own with its version history. Wire
//! format: MessagePack maps with named fields ([`codec`]), so that any client can read them.

pub mod answer;
mod answer_totals;
mod audit;
mod blob;
mod camera_health;
pub mod codec;
mod dead;
pub mod decision_trace;
mod drift;
mod fault;
pub mod final_answer;
mod hardcase;
mod heartbeat;
mod id;
mod label;
mod learned_images;
pub mod limits;
pub mod model;
mod object;
mod object_match;
pub mod picture;
mod release;
mod role;
mod root;
pub mod round;
mod shared_bytes;
pub mod swap;
pub mod task;
pub mod trace_parent;
mod update;
mod verdict;
mod verify;
pub mod vocabulary;

pub use answer::{Answer, AnswerStage, MAX_HELD_LABELS, NO_LABEL, Prediction, RankedClass, Reason, Route, Timings};
pub use answer_totals::AnswerTotals;
pub use audit::AuditNote;
pub use blob::BlobRef;
pub use camera_health::{CameraHealth, CameraState, FrameCounts, RegionState};
pub use codec::{CodecError, Message, decode, decode_shared, encode};
pub use dead::{DeadLetter, TruncatedPayload};
pub use decision_trace::{DecisionTrace, EscalationOutcome, EscalationTrace};
pub use drift::{DriftLevel, DriftMeasure, DriftReport};
pub use fault::{FaultKind, FaultNote};
pub use hardcase::HardCase;
pub use heartbeat::{
    CameraReuse, CloudReport, DecisionReport, Heartbeat, LinkReport, MAX_CAMERAS, MAX_REUSE_CAMERAS, OutcomeReport,
    RecentVerdicts, ReuseReport, RoleFailure, RoundReport, RoundState, TrainerState, TrainingHour, TrainingReport,
};
pub use id::{CameraName, IdError, ModelName, ReleaseId, SetName, SiteName, TaskId};
pub use label::{Label, StatedLabelError, check_objects, leading_label};
pub use learned_images::LearnedImages;
pub use model::ModelDescription;
pub use object::{BoundingBox, DetectedObject, MAX_OBJECTS};
pub use object_match::{
    AGREEMENT_F1, MATCH_IOU, ObjectMatch, match_objects, match_objects_at, objects_agree, predictions_agree,
};
pub use picture::{PictureFault, PictureReport};
pub use release::{
    Canary, CanaryFinding, CanaryMeasure, CanaryReport, DecisionOrigin, FindingOutcome, MachineRequirements,
    MissingMeasure, Order, Release, ReleaseDecision, ReleaseStage, Rollout,
};
pub use role::Role;
pub use root::{Root, Signature};
pub use round::{HardClass, HardFocus, Round, RoundEvent, RoundTerms};
pub use swap::{Agreement, AgreementCount, MomentSums, RefusedRelease, ReleaseCounts, Swap};
pub use task::{CaptureTime, Task, Tile};
pub use trace_parent::TraceParent;
pub use update::{Gain, LabelSource, ModelAccuracy, Update, WeightFormat};
pub use verdict::Verdict;
pub use verify::{Hardness, Payload, VerifyReason, VerifyRequest};
pub use vocabulary::{Vocabulary, WireWord};

//! What is said about a task. Version history: 1, first; later with more reasons
//! and the optional energy, with the task that was replayed, with what was decided by, with notes, with several labels, and
//! with novelty.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::decision_trace::DecisionTrace;
use crate::fault::FaultNote;
use crate::id::{CameraName, ReleaseId, SiteName, TaskId};
use crate::task::{Task, Tile};

/// The label of an image in which none of a model's labels holds.
pub const NO_LABEL: &str = "none";

/// Most labels that an answer names as holding.
pub const MAX_HELD_LABELS: usize = 64;

/// What is said about a task: provisional while a verdict is awaited, final once and for all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The task.
    pub task: TaskId,
    /// The site it was published at.
    pub site: SiteName,
    /// The camera it came from.
    pub camera: CameraName,
    /// Whether another answer may follow.
    pub stage: AnswerStage,
    /// The best class; absent only when the image could not be recognized (route `dead`). Of a model for several labels
    /// at once: the most probable label that holds, or [`NO_LABEL`].
    pub label: Option<String>,
    /// Its calibrated probability, 0 to 1.
    pub confidence: Option<f32>,
    /// The best classes, best first.
    #[serde(default)]
    pub top: Vec<RankedClass>,
    /// Of a model for several labels at once: those that hold, most probable first, at most [`MAX_HELD_LABELS`]. Absent
    /// of other models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<RankedClass>>,
    /// Who decided.
    pub route: Route,
    /// Why it went that way.
    pub reason: Reason,
    /// The release that decided.
    pub release: Option<ReleaseId>,
    /// What its logits were divided by, if that is not what its description says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// How unlike the pictures of its calibration the deciding model finds it, as in [`Opinion::novelty`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub novelty: Option<f32>,
    /// What the edge had said, when somebody else decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<Prediction>,
    /// What was wrong with the image (route `dead`) or with its verification (route `expired`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<FaultNote>,
    /// Sequence of the image in the stream IMAGES, from 1.
    pub image_sequence: u64,
    /// When the image was taken, milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captured_at_ms: Option<u64>,
    /// When the image was stored at the site, milliseconds since the epoch.
    pub published_at_ms: u64,
    /// When this answer was made, milliseconds since the epoch.
    pub answered_at_ms: u64,
    /// Until when a provisional answer waits for a verdict, milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_at_ms: Option<u64>,
    /// How long each step took.
    pub timings: Timings,
    /// What recognizing it took at the site and on the link, millijoules; an estimate unless the machine
    /// counts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_mj: Option<f32>,
    /// The true label, if the publisher knew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truth: Option<String>,
    /// The file the image came from, if the publisher said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Which part of which scan it is, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tile: Option<Tile>,
    /// What was decided about it, and by what; absent where nobody decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided: Option<Box<DecisionTrace>>,
    /// The task its image was answered as before, when it was replayed from a stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed: Option<TaskId>,
    /// What was odd about the image and was passed over, in words, at most [`MAX_NOTES`](crate::task::MAX_NOTES).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Message for Answer {
    const KIND: &'static str = "answer";
    const VERSION: u16 = 1;
}

impl Answer {
    /// An answer about `task` that says nothing yet; the caller fills in what was found.
    pub fn for_task(task: &Task, stage: AnswerStage, route: Route, reason: Reason, answered_at_ms: u64) -> Self {
        Self {
            task: task.id,
            site: task.site.clone(),
            camera: task.camera.clone(),
            stage,
            label: None,
            confidence: None,
            top: Vec::new(),
            labels: None,
            route,
            reason,
            release: None,
            temperature: None,
            novelty: None,
            edge: None,
            fault: None,
            image_sequence: task.image_sequence,
            captured_at_ms: task.captured_at_ms,
            published_at_ms: task.published_at_ms,
            answered_at_ms,
            deadline_at_ms: task.deadline_at_ms,
            timings: Timings::default(),
            energy_mj: None,
            truth: task.truth.clone(),
            file: task.file.clone(),
            tile: task.tile.clone(),
            decided: None,
            replayed: task.replayed,
            notes: task.notes.clone(),
        }
    }

    /// The same opinion with `opinion` as what was decided.
    pub fn with_prediction(mut self, opinion: Prediction) -> Self {
        self.label = Some(opinion.label);
        self.confidence = Some(opinion.confidence);
        self.top = opinion.top;
        self.labels = opinion.labels;
        self.release = Some(opinion.release);
        self.temperature = opinion.temperature;
        self.novelty = opinion.novelty;
        self
    }

    /// What this answer says, if it says something.
    pub fn prediction(&self) -> Option<Prediction> {
        Some(Prediction {
            label: self.label.clone()?,
            confidence: self.confidence?,
            top: self.top.clone(),
            labels: self.labels.clone(),
            release: self.release.clone()?,
            temperature: self.temperature,
            novelty: self.novelty,
        })
    }
}

/// One model's view of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The best class.
    pub label: String,
    /// Its calibrated probability, 0 to 1.
    pub confidence: f32,
    /// The best classes, best first.
    #[serde(default)]
    pub top: Vec<RankedClass>,
    /// Of a model for several labels at once: those that hold, as in [`Answer::labels`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<RankedClass>>,
    /// The release that says so.
    pub release: ReleaseId,
    /// What the logits were divided by; absent: what the release's own description says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Share of the pictures of the model's calibration that are more like what it knows than this one, 0 (as familiar as
    /// the most familiar) to 1 (stranger than all of them); absent of a model without a novelty score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub novelty: Option<f32>,
}

/// One class among the best.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankedClass {
    /// The class.
    pub label: String,
    /// Its calibrated probability, 0 to 1.
    pub confidence: f32,
}

/// Whether another answer may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerStage {
    /// A final one follows.
    Provisional,
    /// Nothing follows.
    Final,
}

/// Who decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// The site itself.
    Edge,
    /// The cloud, without an opinion of the edge.
    Redirected,
    /// The cloud, about a doubtful answer of the edge.
    Verified,
    /// The site itself, because no verdict came in time.
    Expired,
    /// Nobody: the image could not be recognized and is a dead letter.
    Dead,
}

/// Why an answer took its route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Every test of the gate was passed.
    Confident,
    /// The best class is not probable enough.
    LowConfidence,
    /// The best two classes are too close.
    LowMargin,
    /// The probabilities are spread too evenly.
    HighEntropy,
    /// The best class is not probable enough for this label.
    LabelThreshold,
    /// The picture is too unlike those that the model's novelty was calibrated on.
    HighNovelty,
    /// It passed every test, and was drawn to be checked by the cloud.
    Sampled,
    /// The site had too much to do, or the policy sends everything up.
    Overload,
    /// The site does not verify (setting or policy), though the answer is doubtful.
    NotVerified,
    /// Doubtful, and nothing more may go up: the budget of bytes or the share is used up.
    BudgetSpent,
    /// Doubtful, and no verdict could come before the deadline.
    VerdictTooLate,
    /// The outbox was full, so the doubtful answer stands.
    OutboxFull,
    /// The deadline passed before a verdict came.
    DeadlinePassed,
    /// The verifier could not judge the image; its fault note says why.
    VerifierRefused,
    /// The message was given up; its fault note says why.
    GivenUp,
}

impl Reason {
    /// Its word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Confident => "confident",
            Reason::LowConfidence => "low_confidence",
            Reason::LowMargin => "low_margin",
            Reason::HighEntropy => "high_entropy",
            Reason::LabelThreshold => "label_threshold",
            Reason::HighNovelty => "high_novelty",
            Reason::Sampled => "sampled",
            Reason::Overload => "overload",
            Reason::NotVerified => "not_verified",
            Reason::BudgetSpent => "budget_spent",
            Reason::VerdictTooLate => "verdict_too_late",
            Reason::OutboxFull => "outbox_full",
            Reason::DeadlinePassed => "deadline_passed",
            Reason::VerifierRefused => "verifier_refused",
            Reason::GivenUp => "given_up",
        }
    }
}

/// How long each step took, in microseconds; a step that did not happen is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Timings {
    /// From stored in the stream to taken by a recognizer.
    pub queue_us: u64,
    /// Fetching the bytes of an image sent by reference.
    pub fetch_us: u64,
    /// Waiting for a free replica.
    pub wait_us: u64,
    /// Decoding and resizing.
    pub decode_us: u64,
    /// The model.
    pub infer_us: u64,
    /// From the provisional answer to the final one.
    pub verify_us: u64,
    /// Images in the batch it was recognized in.
    pub batch_size: u32,
}

impl Route {
    /// Its word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Route::Edge => "edge",
            Route::Redirected => "redirected",
            Route::Verified => "verified",
            Route::Expired => "expired",
            Route::Dead => "dead",
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

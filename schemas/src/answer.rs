//! The answer to a task. Version history: 1, first; later with more reasons
//! and the optional energy, the task that was replayed, the decision trace, notes, several labels, novelty, the
//! publisher's deadline with how late the answer was, measures of the picture, the task whose answer was reused, and the
//! state of what the camera shows, and the objects that a detector found.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::decision_trace::DecisionTrace;
use crate::fault::FaultNote;
use crate::id::{CameraName, ReleaseId, SiteName, TaskId};
use crate::object::DetectedObject;
use crate::picture::PictureReport;
use crate::task::{Task, Tile};

/// The label of an image to which none of a model's labels applies.
pub const NO_LABEL: &str = "none";

/// Most labels that an answer lists as applying.
pub const MAX_HELD_LABELS: usize = 64;

/// The answer to a task: provisional while a verdict is awaited; a final answer never changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Task it answers.
    pub task: TaskId,
    /// Site that the image was published at.
    pub site: SiteName,
    /// Camera that the image came from.
    pub camera: CameraName,
    /// Whether another answer may follow.
    pub stage: AnswerStage,
    /// The best class; absent only when the image could not be recognized (route `dead`). For a multi-label model: the
    /// most probable label that applies; for a detector: the label of the surest object; [`NO_LABEL`] if there is none.
    pub label: Option<String>,
    /// Calibrated probability of `label`, 0 to 1. For a detector: the confidence of the surest object, or, if it found
    /// none, 1 less the score of the best candidate.
    pub confidence: Option<f32>,
    /// The best classes, best first; at most [`MAX_TOP`](crate::limits::MAX_TOP).
    #[serde(default)]
    pub top: Vec<RankedClass>,
    /// For a multi-label model: the labels that apply, most probable first, at most [`MAX_HELD_LABELS`]. Absent for
    /// other models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<RankedClass>>,
    /// For a detector: what it found, surest first, at most [`MAX_OBJECTS`](crate::MAX_OBJECTS); empty if nothing.
    /// Absent for other models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<Vec<DetectedObject>>,
    /// Who gave the answer.
    pub route: Route,
    /// Why the answer took its route.
    pub reason: Reason,
    /// Release of the model that gave the answer; absent for route `dead`.
    pub release: Option<ReleaseId>,
    /// Divisor of the logits, where it is not the one in the release's own description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Novelty of the image to the model that answered, as in [`Prediction::novelty`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub novelty: Option<f32>,
    /// The site's own prediction, where somebody else gave the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<Prediction>,
    /// Why the image could not be recognized (route `dead`) or verified (route `expired`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<FaultNote>,
    /// Sequence of the image in the stream IMAGES, from 1.
    pub image_sequence: u64,
    /// When the image was taken, milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captured_at_ms: Option<u64>,
    /// When the image was stored at the site, milliseconds since the epoch.
    pub published_at_ms: u64,
    /// When this answer was made, milliseconds since the epoch by the server's clock.
    pub answered_at_ms: u64,
    /// When a provisional answer stops waiting for a verdict, milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_at_ms: Option<u64>,
    /// The publisher's deadline, milliseconds since the epoch; absent if the publisher set none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at_ms: Option<u64>,
    /// How long after `due_at_ms` the final answer was given to the server, milliseconds, at least 1; absent if it was
    /// in time or had no deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late_ms: Option<u64>,
    /// Duration of each step.
    pub timings: Timings,
    /// Energy spent on it at the site and on the link, millijoules; an estimate unless the machine has a counter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_mj: Option<f32>,
    /// The true label, if the publisher knew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truth: Option<String>,
    /// File the image came from, if the publisher named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Position in the scan it was cut from; absent for an image that is not a tile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tile: Option<Tile>,
    /// Figures behind the routing decision; absent where none was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided: Option<Box<DecisionTrace>>,
    /// Task that answered the same image before, if it was replayed from a stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed: Option<TaskId>,
    /// Measures of the picture by whoever took it; absent if nobody measured. Nothing is learned from a picture with
    /// faults, and it does not leave the site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture: Option<PictureReport>,
    /// Task whose answer this is: the picture hardly differs from that task's, so it was not recognized. Absent for an
    /// image that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reused: Option<TaskId>,
    /// State of what the camera shows, after this image: one of the states that its publisher named. Absent without
    /// such states, and before one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Capture time of the first picture of that state, milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// Oddities of the image that did not stop its recognition, in words, at most
    /// [`MAX_NOTES`](crate::task::MAX_NOTES).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Message for Answer {
    const KIND: &'static str = "answer";
    const VERSION: u16 = 1;
}

impl Answer {
    /// An answer about `task` without a prediction; the caller fills that in.
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
            objects: None,
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
            due_at_ms: task.deadline_at_ms,
            late_ms: None,
            timings: Timings::default(),
            energy_mj: None,
            truth: task.truth.clone(),
            file: task.file.clone(),
            tile: task.tile.clone(),
            decided: None,
            replayed: task.replayed,
            picture: task.picture.clone(),
            reused: None,
            state: None,
            since_ms: None,
            notes: task.notes.clone(),
        }
    }

    /// This answer with `prediction` as its result.
    pub fn with_prediction(mut self, prediction: Prediction) -> Self {
        self.label = Some(prediction.label);
        self.confidence = Some(prediction.confidence);
        self.top = prediction.top;
        self.labels = prediction.labels;
        self.objects = prediction.objects;
        self.release = Some(prediction.release);
        self.temperature = prediction.temperature;
        self.novelty = prediction.novelty;
        self
    }

    /// Whether nothing is known to be wrong with its picture.
    pub fn has_healthy_picture(&self) -> bool {
        self.picture.as_ref().is_none_or(PictureReport::is_healthy)
    }

    /// The prediction in this answer; `None` for route `dead`.
    pub fn prediction(&self) -> Option<Prediction> {
        Some(Prediction {
            label: self.label.clone()?,
            confidence: self.confidence?,
            top: self.top.clone(),
            labels: self.labels.clone(),
            objects: self.objects.clone(),
            release: self.release.clone()?,
            temperature: self.temperature,
            novelty: self.novelty,
        })
    }
}

/// What one model says of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The best class.
    pub label: String,
    /// Calibrated probability of `label`, 0 to 1.
    pub confidence: f32,
    /// The best classes, best first; at most [`MAX_TOP`](crate::limits::MAX_TOP).
    #[serde(default)]
    pub top: Vec<RankedClass>,
    /// For a multi-label model: the labels that apply, as in [`Answer::labels`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<RankedClass>>,
    /// For a detector: what it found, as in [`Answer::objects`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<Vec<DetectedObject>>,
    /// Release of the model.
    pub release: ReleaseId,
    /// Divisor of the logits; absent: the one in the release's own description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Fraction of the model's calibration pictures that it finds more familiar than this one, 0 (as familiar as the
    /// most familiar) to 1 (stranger than all of them); absent for a model without a novelty score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub novelty: Option<f32>,
}

impl Prediction {
    /// What a detector is least sure of: label and confidence of that object, of equally unsure ones the last; if it
    /// found nothing, [`NO_LABEL`] and how sure it is of that. `None` for other models.
    pub fn least_sure(&self) -> Option<(&str, f32)> {
        let least = self.objects.as_ref()?.iter().rev().min_by(|a, b| a.confidence.total_cmp(&b.confidence));
        Some(least.map_or((&self.label, self.confidence), |object| (&object.label, object.confidence)))
    }
}

/// One of the best classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankedClass {
    /// Label of the class.
    pub label: String,
    /// Its calibrated probability, 0 to 1.
    pub confidence: f32,
}

/// Whether another answer to the task may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerStage {
    /// A final answer follows.
    Provisional,
    /// No other answer follows.
    Final,
}

/// Who gave an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// The site itself.
    Edge,
    /// The cloud, for an image that the site offloaded without a prediction of its own.
    Redirected,
    /// The cloud, for a doubtful answer of the site.
    Verified,
    /// The site itself, because no verdict came in time.
    Expired,
    /// Nobody: the image could not be recognized; a dead letter says why.
    Dead,
}

/// Why an answer took its route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The answer passed every test of the gate.
    Confident,
    /// The best class is not probable enough.
    LowConfidence,
    /// The two best classes are too close.
    LowMargin,
    /// The probabilities are spread too evenly.
    HighEntropy,
    /// The best class is below the threshold of its label.
    LabelThreshold,
    /// The picture is too unlike those that the novelty score was calibrated on.
    HighNovelty,
    /// The answer passed every test and was sampled for a check by the cloud.
    Sampled,
    /// Offloaded, because the site was overloaded.
    Overload,
    /// Offloaded by the policy from a site that was not overloaded: it sends every image up, or the cloud was predicted
    /// to finish sooner.
    Offloaded,
    /// Doubtful, but a setting or the policy says not to verify, or its picture has faults.
    NotVerified,
    /// Doubtful, but the byte budget or the cap on the share of images sent up is used up.
    BudgetSpent,
    /// Doubtful, but no verdict could arrive before the deadline.
    VerdictTooLate,
    /// Doubtful, but the outbox was full.
    OutboxFull,
    /// No verdict arrived before the deadline.
    DeadlinePassed,
    /// The verifier could not judge the image; its fault note says why.
    VerifierRefused,
    /// The message was given up; its fault note says why.
    GivenUp,
}

impl Reason {
    /// Whether the site doubted its own answer; it has none for an offloaded task.
    pub fn is_doubtful(self) -> bool {
        !matches!(self, Reason::Confident | Reason::Sampled | Reason::Overload | Reason::Offloaded)
    }

    /// The word used on the wire.
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
            Reason::Offloaded => "offloaded",
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

/// Duration of each step, in microseconds; 0 for a step that did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Timings {
    /// From storage in the stream to receipt by a recognizer.
    pub queue_us: u64,
    /// Fetching the bytes of an image sent by reference.
    pub fetch_us: u64,
    /// Waiting for a free replica.
    pub wait_us: u64,
    /// Decoding and resizing.
    pub decode_us: u64,
    /// Running the model.
    pub infer_us: u64,
    /// From the provisional answer to the final one.
    pub verify_us: u64,
    /// Images in its batch.
    pub batch_size: u32,
}

impl Route {
    /// The word used on the wire.
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

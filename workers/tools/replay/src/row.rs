//! What is known of one task, in about 250 bytes, with names and labels shared between rows; the objects of a detector
//! take about 80 bytes each beside.

use std::collections::HashSet;
use std::sync::Arc;

use schemas::{Answer, AnswerStage, DetectedObject, LabelSource, MAX_OBJECTS, Reason, Route, TaskId, objects_agree};
use serde::{Deserialize, Serialize};

use crate::field::{FieldValue, TaskField};

/// The objects of a picture; clones share them.
pub type Objects = Arc<[DetectedObject]>;

/// What is known of one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRow {
    /// Task id.
    pub task: TaskId,
    /// Site it was published at.
    pub site: Arc<str>,
    /// Camera it is from.
    pub camera: Arc<str>,
    /// Sequence of its image in the replayed stream.
    pub sequence: u64,
    /// Whether the answer is final or provisional.
    pub stage: AnswerStage,
    /// Route of the answer.
    pub route: Route,
    /// Reason for that route.
    pub reason: Reason,
    /// Label of the answer; absent for a tombstone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Arc<str>>,
    /// Probability of that label, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
    /// Margin to the second best class, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f32>,
    /// Label from the site's own model, also where the cloud decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<Arc<str>>,
    /// Probability of that label, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge_confidence: Option<f32>,
    /// Novelty of the picture to the site's own model, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub novelty: Option<f32>,
    /// Objects of the answer; absent for an answer that is not a detector's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<Objects>,
    /// Objects from the site's own model; not stored with a pinned image, where the label alone must do.
    #[serde(skip)]
    pub edge_objects: Option<Objects>,
    /// Release that gave the answer, 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Arc<str>>,
    /// Label from the publisher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truth: Option<Arc<str>>,
    /// Label from a person; of objects, that of the first, or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person: Option<Arc<str>>,
    /// Objects from a person; absent where the person labelled the whole picture, or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person_objects: Option<Objects>,
    /// Whether its labels were retracted; it then has no label.
    #[serde(default, skip_serializing_if = "is_false")]
    pub retracted: bool,
    /// When the image was stored, milliseconds since the epoch.
    pub published_at_ms: u64,
    /// When it was answered, milliseconds since the epoch.
    pub answered_at_ms: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A pool of texts shared by rows.
#[derive(Debug, Default)]
pub struct TextPool(HashSet<Arc<str>>);

impl TextPool {
    /// The shared copy of a text.
    pub fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        let new: Arc<str> = text.into();
        self.0.insert(new.clone());
        new
    }
}

impl TaskRow {
    /// From an answer.
    pub fn of(answer: &Answer, texts: &mut TextPool) -> Self {
        // Where only the site decided, its own model's prediction is the answer itself.
        let own = matches!(answer.route, Route::Edge | Route::Expired);
        let (edge, edge_confidence) = match &answer.edge {
            Some(edge) => (Some(edge.label.as_str()), Some(edge.confidence)),
            None if own => (answer.label.as_deref(), answer.confidence),
            None => (None, None),
        };
        let some_objects = |objects: &Option<Vec<DetectedObject>>| -> Option<Objects> {
            objects.as_ref().map(|objects| objects.iter().take(MAX_OBJECTS).cloned().collect())
        };
        let objects = some_objects(&answer.objects);
        let edge_objects = match &answer.edge {
            Some(edge) => some_objects(&edge.objects),
            None => objects.clone().filter(|_| own),
        };
        let margin = match &answer.top[..] {
            [best, second, ..] => Some(best.confidence - second.confidence),
            [best] => Some(best.confidence),
            [] => None,
        };
        let mut shared = |text: Option<&str>| text.map(|text| texts.shared(text));
        let edge = shared(edge);
        let label = shared(answer.label.as_deref());
        let truth = shared(answer.truth.as_deref());
        let release = answer.release.as_ref().map(|release| texts.shared(release.as_str()));
        Self {
            task: answer.task,
            site: texts.shared(answer.site.as_str()),
            camera: texts.shared(answer.camera.as_str()),
            sequence: answer.image_sequence,
            stage: answer.stage,
            route: answer.route,
            reason: answer.reason,
            answer: label,
            confidence: answer.confidence,
            margin,
            edge,
            edge_confidence,
            novelty: answer.edge.as_ref().map_or(answer.novelty.filter(|_| own), |edge| edge.novelty),
            objects,
            edge_objects,
            release,
            truth,
            person: None,
            person_objects: None,
            retracted: false,
            published_at_ms: answer.published_at_ms,
            answered_at_ms: answer.answered_at_ms,
        }
    }

    /// Removes all labels.
    pub fn retract(&mut self) {
        (self.person, self.person_objects, self.truth, self.retracted) = (None, None, None, true);
    }

    /// Number of objects that it keeps in memory.
    pub fn object_count(&self) -> usize {
        let count = |objects: &Option<Objects>| objects.as_ref().map_or(0, |objects| objects.len());
        let edge = if self.edge_is_answer() { 0 } else { count(&self.edge_objects) };
        count(&self.objects) + edge + count(&self.person_objects)
    }

    fn edge_is_answer(&self) -> bool {
        match (&self.objects, &self.edge_objects) {
            (Some(objects), Some(edge)) => Arc::ptr_eq(objects, edge),
            _ => false,
        }
    }

    /// Its true objects and their source, where its label is of objects; the same order of trust as [`TaskRow::label`].
    pub fn true_objects(&self) -> Option<(&Objects, LabelSource)> {
        let (_, source) = self.label()?;
        let objects = match source {
            LabelSource::Person => self.person_objects.as_ref(),
            LabelSource::Publisher => None,
            LabelSource::Verdict => self.objects.as_ref(),
        };
        Some((objects?, source))
    }

    /// Its label and source where it is of the whole picture, as a classifier learns it.
    pub fn class_label(&self) -> Option<(&Arc<str>, LabelSource)> {
        self.label().filter(|_| self.true_objects().is_none())
    }

    /// Its label and source: a person before the publisher, the publisher before the cloud. The site's own prediction
    /// is not a label. Of objects it is the label of the first.
    pub fn label(&self) -> Option<(&Arc<str>, LabelSource)> {
        if self.retracted {
            return None;
        }
        let verdict =
            matches!(self.route, Route::Verified | Route::Redirected).then_some(self.answer.as_ref()).flatten();
        let labels = [
            (self.person.as_ref(), LabelSource::Person),
            (self.truth.as_ref(), LabelSource::Publisher),
            (verdict, LabelSource::Verdict),
        ];
        labels.into_iter().find_map(|(label, source)| Some((label?, source)))
    }

    /// Whether the site found it doubtful.
    pub fn is_hard(&self) -> bool {
        self.reason.is_doubtful() && self.reason != Reason::GivenUp
    }

    /// How hard it was, 0 to 1: one minus the confidence of the site's own model; 1 if that is known to have been
    /// wrong.
    pub fn hardness(&self) -> f32 {
        let wrong = match (&self.edge_objects, self.true_objects()) {
            (Some(edge), Some((truth, _))) => !objects_agree(edge, truth),
            _ => self.edge.as_ref().zip(self.label()).is_some_and(|(edge, (label, _))| edge != label),
        };
        if wrong { 1.0 } else { 1.0 - self.edge_confidence.or(self.confidence).unwrap_or(0.0) }
    }

    /// Whether the answer differs from what a person or the publisher says: in its label, or in the objects.
    pub fn is_wrong(&self) -> bool {
        if let (Some(objects), Some(truth)) = (&self.objects, &self.person_objects) {
            return !objects_agree(objects, truth);
        }
        self.answer
            .as_ref()
            .zip(self.person.as_ref().or(self.truth.as_ref()))
            .is_some_and(|(answer, label)| answer != label)
    }

    /// Value of a field.
    pub fn value(&self, field: TaskField) -> Option<FieldValue> {
        let text = |text: &str| Some(FieldValue::Text(text.to_owned().into()));
        let shared = |text: &Option<Arc<str>>| text.as_ref().map(|text| FieldValue::Text(text.to_string().into()));
        let ratio = |ratio: Option<f32>| ratio.map(|ratio| FieldValue::Number(f64::from(ratio)));
        match field {
            TaskField::Site => text(&self.site),
            TaskField::Camera => text(&self.camera),
            TaskField::Task => text(&self.task.to_string()),
            TaskField::Stage => Some(FieldValue::Text(stage(self.stage).into())),
            TaskField::Route => Some(FieldValue::Text(self.route.as_str().into())),
            TaskField::Reason => Some(FieldValue::Text(self.reason.as_str().into())),
            TaskField::Label => shared(&self.answer),
            TaskField::Truth => shared(&self.truth),
            TaskField::Person => shared(&self.person),
            TaskField::EdgeLabel => shared(&self.edge),
            TaskField::Release => shared(&self.release),
            TaskField::Confidence => ratio(self.confidence),
            TaskField::Margin => ratio(self.margin),
            TaskField::EdgeConfidence => ratio(self.edge_confidence),
            TaskField::Novelty => ratio(self.novelty),
            TaskField::Sequence => Some(FieldValue::Number(self.sequence as f64)),
            TaskField::Published => Some(FieldValue::Number(self.published_at_ms as f64)),
            TaskField::LatencyMs => {
                Some(FieldValue::Number(self.answered_at_ms.saturating_sub(self.published_at_ms) as f64))
            }
            TaskField::Hard => Some(FieldValue::Flag(self.is_hard())),
            TaskField::Wrong => Some(FieldValue::Flag(self.is_wrong())),
            TaskField::Labelled => Some(FieldValue::Flag(self.label().is_some())),
            TaskField::Area => None,
        }
    }
}

/// Value of a field of one object; absent for a field that objects do not have.
pub fn object_value(object: &DetectedObject, field: TaskField) -> Option<FieldValue> {
    match field {
        TaskField::Label => Some(FieldValue::Text(object.label.clone().into())),
        TaskField::Confidence => Some(FieldValue::Number(object.confidence.into())),
        TaskField::Area => Some(FieldValue::Number(object.bounds.area().into())),
        _ => None,
    }
}

/// Name of a stage on the wire.
pub fn stage(stage: AnswerStage) -> &'static str {
    match stage {
        AnswerStage::Provisional => "provisional",
        AnswerStage::Final => "final",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use schemas::leading_label;

    use super::*;

    /// A doubtful answer that was kept and is wrong.
    pub(crate) fn row() -> TaskRow {
        TaskRow {
            task: TaskId::from_name("a"),
            site: "reef".into(),
            camera: "cam-1".into(),
            sequence: 7,
            stage: AnswerStage::Final,
            route: Route::Expired,
            reason: Reason::LowConfidence,
            answer: Some("fish".into()),
            confidence: Some(0.6),
            margin: Some(0.2),
            edge: Some("fish".into()),
            edge_confidence: Some(0.6),
            novelty: None,
            objects: None,
            edge_objects: None,
            release: Some("01".repeat(32).into()),
            truth: Some("crab".into()),
            person: None,
            person_objects: None,
            retracted: false,
            published_at_ms: 1_700_000_000_000,
            answered_at_ms: 1_700_000_000_050,
        }
    }

    pub(crate) fn object(label: &str, confidence: f32, edges: [f32; 4]) -> DetectedObject {
        DetectedObject { label: label.into(), confidence, bounds: edges.into() }
    }

    /// A doubtful answer of a detector: a large fish, surely, and a small crab, perhaps.
    pub(crate) fn detected_row() -> TaskRow {
        let objects: Objects =
            [object("fish", 0.9, [0.0, 0.0, 0.5, 1.0]), object("crab", 0.3, [0.75, 0.75, 1.0, 1.0])].into();
        TaskRow { objects: Some(objects.clone()), edge_objects: Some(objects), truth: None, ..row() }
    }

    #[test]
    fn objects_of_a_person_are_believed_before_those_of_the_cloud() {
        let drawn = |objects: &[DetectedObject]| {
            let person = Some(leading_label(objects).into());
            TaskRow { person, person_objects: Some(objects.into()), ..detected_row() }
        };
        let right = drawn(&[object("fish", 1.0, [0.0, 0.0, 0.5, 0.9]), object("crab", 1.0, [0.7, 0.7, 1.0, 1.0])]);
        assert_eq!(
            right.true_objects().map(|(objects, source)| (objects.len(), source)),
            Some((2, LabelSource::Person))
        );
        assert!(!right.is_wrong() && right.hardness() < 1.0);
        let wrong = drawn(&[object("fish", 1.0, [0.0, 0.0, 0.5, 0.9])]);
        assert!(wrong.is_wrong() && wrong.hardness() == 1.0, "the label is the same, and the crab is not there");
        let nothing = drawn(&[]);
        assert_eq!(nothing.label(), Some((&"none".into(), LabelSource::Person)));
        assert_eq!((nothing.class_label(), nothing.is_wrong()), (None, true), "no class of the whole picture");
        let judged = TaskRow { route: Route::Verified, ..detected_row() };
        assert_eq!(judged.true_objects().map(|(_, source)| source), Some(LabelSource::Verdict));
        let published = TaskRow { truth: Some("fish".into()), ..judged.clone() };
        assert_eq!(published.true_objects(), None, "the publisher's label is of the whole picture");
        let mut retracted = TaskRow { person_objects: wrong.person_objects, person: wrong.person, ..judged };
        retracted.retract();
        assert_eq!((retracted.true_objects(), retracted.is_wrong()), (None, false));
        assert_eq!(detected_row().object_count(), 2, "the site's own objects are the answer's");
    }

    #[test]
    fn a_person_is_believed_before_the_publisher_and_the_publisher_before_the_cloud() {
        let verified = TaskRow { route: Route::Verified, truth: None, ..row() };
        assert_eq!(verified.label(), Some((&"fish".into(), LabelSource::Verdict)));
        let published = TaskRow { truth: Some("crab".into()), ..verified };
        assert_eq!(published.label(), Some((&"crab".into(), LabelSource::Publisher)));
        let seen = TaskRow { person: Some("eel".into()), ..published };
        assert_eq!(seen.label(), Some((&"eel".into(), LabelSource::Person)));
        let alone = TaskRow { route: Route::Edge, truth: None, person: None, ..seen };
        assert_eq!(alone.label(), None, "the site's own prediction is not a label");
        let mut retracted = TaskRow { route: Route::Verified, person: Some("eel".into()), ..row() };
        retracted.retract();
        assert_eq!((retracted.label(), retracted.is_wrong()), (None, false), "a retracted label does not count");
    }

    #[test]
    fn hardness_is_highest_for_wrong_then_for_unsure_answers() {
        let unsure = TaskRow { truth: None, ..row() };
        assert_eq!(row().hardness(), 1.0);
        assert!((unsure.hardness() - 0.4).abs() < 1e-6);
    }
}

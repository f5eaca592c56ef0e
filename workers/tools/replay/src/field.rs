//! The fields of a task, and how their values are written. Pure.

use std::borrow::Cow;
use std::fmt;

use crate::timestamp;

/// A field of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskField {
    /// Site it was published at.
    Site,
    /// Camera it is from.
    Camera,
    /// Task id.
    Task,
    /// `final` or `provisional`.
    Stage,
    /// Route of the answer.
    Route,
    /// Reason for that route.
    Reason,
    /// Label of the answer.
    Label,
    /// Label from the publisher.
    Truth,
    /// Label from a person.
    Person,
    /// Label from the site's own model.
    EdgeLabel,
    /// Release that gave the answer.
    Release,
    /// Confidence of the answer, 0 to 1.
    Confidence,
    /// Margin between the two best classes, 0 to 1.
    Margin,
    /// Confidence of the site's own model, 0 to 1.
    EdgeConfidence,
    /// Novelty of the picture to the site's own model, 0 to 1.
    Novelty,
    /// Sequence in the stream IMAGES.
    Sequence,
    /// When the image was stored.
    Published,
    /// Time from stored to answered, milliseconds.
    LatencyMs,
    /// Whether the site found it doubtful.
    Hard,
    /// Whether the answer differs from the label of a person or the publisher.
    Wrong,
    /// Whether a person, the publisher or the cloud labelled it.
    Labelled,
    /// Area of an object's box as a fraction of the picture, 0 to 1; of objects alone.
    Area,
}

/// Text fields.
pub const TEXTS: [TaskField; 11] = [
    TaskField::Site,
    TaskField::Camera,
    TaskField::Task,
    TaskField::Stage,
    TaskField::Route,
    TaskField::Reason,
    TaskField::Label,
    TaskField::Truth,
    TaskField::Person,
    TaskField::EdgeLabel,
    TaskField::Release,
];
/// Number fields.
pub const NUMBERS: [TaskField; 7] = [
    TaskField::Confidence,
    TaskField::Margin,
    TaskField::EdgeConfidence,
    TaskField::Novelty,
    TaskField::Sequence,
    TaskField::Published,
    TaskField::LatencyMs,
];
/// Flag fields.
pub const FLAGS: [TaskField; 3] = [TaskField::Hard, TaskField::Wrong, TaskField::Labelled];

/// Fields of an object.
pub const OBJECT_FIELDS: [TaskField; 3] = [TaskField::Label, TaskField::Confidence, TaskField::Area];

/// Type of a field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldKind {
    /// Text.
    Text,
    /// A number.
    Number,
    /// True or false.
    Flag,
}

/// Value of a field, or to compare a field with.
#[derive(Debug, Clone, PartialEq)]
pub enum FieldValue {
    /// Text.
    Text(Cow<'static, str>),
    /// A number.
    Number(f64),
    /// True or false.
    Flag(bool),
}

const STAGES: &[&str] = &["final", "provisional"];
const ROUTES: &[&str] = &["edge", "redirected", "verified", "expired", "dead"];
const REASONS: &[&str] = &[
    "confident",
    "low_confidence",
    "low_margin",
    "high_entropy",
    "label_threshold",
    "high_novelty",
    "sampled",
    "overload",
    "offloaded",
    "not_verified",
    "budget_spent",
    "verdict_too_late",
    "outbox_full",
    "deadline_passed",
    "verifier_refused",
    "given_up",
];

impl TaskField {
    /// The field of a task with this name.
    pub fn named(name: &str) -> Option<Self> {
        let all = TEXTS.into_iter().chain(NUMBERS).chain(FLAGS);
        all.into_iter().find(|field| field.as_str() == name)
    }

    /// The field of an object with this name.
    pub fn of_object(name: &str) -> Option<Self> {
        OBJECT_FIELDS.into_iter().find(|field| field.as_str() == name)
    }

    /// Name of the field.
    pub fn as_str(self) -> &'static str {
        match self {
            TaskField::Site => "site",
            TaskField::Camera => "camera",
            TaskField::Task => "task",
            TaskField::Stage => "stage",
            TaskField::Route => "route",
            TaskField::Reason => "reason",
            TaskField::Label => "label",
            TaskField::Truth => "truth",
            TaskField::Person => "person",
            TaskField::EdgeLabel => "edge_label",
            TaskField::Release => "release",
            TaskField::Confidence => "confidence",
            TaskField::Margin => "margin",
            TaskField::EdgeConfidence => "edge_confidence",
            TaskField::Novelty => "novelty",
            TaskField::Sequence => "sequence",
            TaskField::Published => "published",
            TaskField::LatencyMs => "latency_ms",
            TaskField::Hard => "hard",
            TaskField::Wrong => "wrong",
            TaskField::Labelled => "labelled",
            TaskField::Area => "area",
        }
    }

    /// Type of its value.
    pub fn kind(self) -> FieldKind {
        match self {
            _ if self == TaskField::Area || NUMBERS.contains(&self) => FieldKind::Number,
            _ if FLAGS.contains(&self) => FieldKind::Flag,
            _ => FieldKind::Text,
        }
    }

    /// All possible values, where there are few.
    pub fn values(self) -> Option<&'static [&'static str]> {
        match self {
            TaskField::Stage => Some(STAGES),
            TaskField::Route => Some(ROUTES),
            TaskField::Reason => Some(REASONS),
            _ => None,
        }
    }

    /// Parses a value to compare the field with.
    ///
    /// # Errors
    /// One sentence that says what is allowed.
    pub fn read(self, text: &str) -> Result<FieldValue, String> {
        if let Some(values) = self.values().filter(|values| !values.contains(&text)) {
            return Err(format!("{self} cannot be {text:?}; it must be one of {}", values.join(", ")));
        }
        match self {
            TaskField::Published => match timestamp::parse_timestamp(text, None) {
                Ok(at_ms) => Ok(FieldValue::Number(at_ms as f64)),
                Err(why) => Err(why),
            },
            TaskField::Confidence
            | TaskField::Margin
            | TaskField::EdgeConfidence
            | TaskField::Novelty
            | TaskField::Area => {
                let ratio = match text.strip_suffix('%') {
                    Some(percent) => percent.parse::<f64>().map(|percent| percent / 100.0),
                    None => text.parse(),
                };
                let ratio = ratio.map_err(|_| format!("{self} is a number from 0 to 1, such as 0.6 or 60%"))?;
                match (0.0..=1.0).contains(&ratio) {
                    true => Ok(FieldValue::Number(ratio)),
                    false => Err(format!("{self} is a number from 0 to 1, such as 0.6 or 60%")),
                }
            }
            TaskField::Sequence | TaskField::LatencyMs => {
                text.parse().map(FieldValue::Number).map_err(|_| format!("{self} is a number"))
            }
            _ => Ok(FieldValue::Text(text.to_owned().into())),
        }
    }
}

impl fmt::Display for TaskField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use schemas::{AnswerStage, Reason, Route};
    use serde::de::DeserializeOwned;

    use super::*;

    #[test]
    fn field_values_match_those_of_answers() {
        fn known<T: DeserializeOwned>(values: &[&str]) {
            for value in values {
                assert!(serde_json::from_value::<T>((*value).into()).is_ok(), "{value} is not a word in answers");
            }
        }
        known::<AnswerStage>(STAGES);
        known::<Route>(ROUTES);
        known::<Reason>(REASONS);
        let refused = serde_json::from_value::<Reason>("nothing".into()).unwrap_err().to_string();
        assert_eq!(refused.matches('`').count() / 2, REASONS.len() + 1, "answers have other reasons: {refused}");
    }

    #[test]
    fn every_field_is_found_by_its_name() {
        for field in TEXTS.into_iter().chain(NUMBERS).chain(FLAGS) {
            assert_eq!(TaskField::named(field.as_str()), Some(field));
        }
        for field in OBJECT_FIELDS {
            assert_eq!(TaskField::of_object(field.as_str()), Some(field));
        }
        assert_eq!((TaskField::named("area"), TaskField::of_object("camera")), (None, None));
    }
}

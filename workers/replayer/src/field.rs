//! What can be asked about a task, and how its values are written. Pure.

use std::borrow::Cow;
use std::fmt;

use crate::timestamp;

/// What can be asked about a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskField {
    /// Where it was published.
    Site,
    /// What it came from.
    Camera,
    /// Its id.
    Task,
    /// `final` or `provisional`.
    Stage,
    /// Who decided.
    Route,
    /// Why it went that way.
    Reason,
    /// What its answer says.
    Label,
    /// What the publisher says it shows.
    Truth,
    /// What a person says it shows.
    Person,
    /// What the site's own model said.
    EdgeLabel,
    /// The release that decided.
    Release,
    /// Of the answer, 0 to 1.
    Confidence,
    /// Between the two best classes, 0 to 1.
    Margin,
    /// Of the site's own model, 0 to 1.
    EdgeConfidence,
    /// How strange the picture is to the site's own model, 0 to 1.
    Novelty,
    /// In the stream IMAGES.
    Sequence,
    /// When it was stored.
    Published,
    /// From stored to answered, milliseconds.
    LatencyMs,
    /// Whether the site was in doubt.
    Hard,
    /// Whether the answer is another than a person or the publisher says.
    Wrong,
    /// Whether a person, the publisher or the cloud said what it shows.
    Labelled,
}

/// Fields of text.
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
/// Fields of numbers.
pub const NUMBERS: [TaskField; 7] = [
    TaskField::Confidence,
    TaskField::Margin,
    TaskField::EdgeConfidence,
    TaskField::Novelty,
    TaskField::Sequence,
    TaskField::Published,
    TaskField::LatencyMs,
];
/// Fields that are true or not.
pub const FLAGS: [TaskField; 3] = [TaskField::Hard, TaskField::Wrong, TaskField::Labelled];

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldKind {
    /// Text.
    Text,
    /// A number.
    Number,
    /// True or not.
    Flag,
}

/// What stands in a field, or is compared with it.
#[derive(Debug, Clone, PartialEq)]
pub enum FieldValue {
    /// Text.
    Text(Cow<'static, str>),
    /// A number.
    Number(f64),
    /// True or not.
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
    "not_verified",
    "budget_spent",
    "verdict_too_late",
    "outbox_full",
    "deadline_passed",
    "verifier_refused",
    "given_up",
];

impl TaskField {
    /// The field of a name.
    pub fn named(name: &str) -> Option<Self> {
        let all = TEXTS.into_iter().chain(NUMBERS).chain(FLAGS);
        all.into_iter().find(|field| field.as_str() == name)
    }

    /// Its name.
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
        }
    }

    /// What it holds.
    pub fn kind(self) -> FieldKind {
        match self {
            _ if NUMBERS.contains(&self) => FieldKind::Number,
            _ if FLAGS.contains(&self) => FieldKind::Flag,
            _ => FieldKind::Text,
        }
    }

    /// All it can hold, where that is a short list.
    pub fn values(self) -> Option<&'static [&'static str]> {
        match self {
            TaskField::Stage => Some(STAGES),
            TaskField::Route => Some(ROUTES),
            TaskField::Reason => Some(REASONS),
            _ => None,
        }
    }

    /// Understands a value that is compared with it.
    ///
    /// # Errors
    /// One sentence that says what can stand there.
    pub fn read(self, text: &str) -> Result<FieldValue, String> {
        if let Some(values) = self.values().filter(|values| !values.contains(&text)) {
            return Err(format!("no task has {self} {text:?}: use {}", values.join(", ")));
        }
        match self {
            TaskField::Published => match timestamp::parse_timestamp(text, None) {
                Ok(at_ms) => Ok(FieldValue::Number(at_ms as f64)),
                Err(why) => Err(why),
            },
            TaskField::Confidence | TaskField::Margin | TaskField::EdgeConfidence | TaskField::Novelty => {
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
    fn what_a_field_can_hold_is_what_answers_say() {
        fn known<T: DeserializeOwned>(values: &[&str]) {
            for value in values {
                assert!(serde_json::from_value::<T>((*value).into()).is_ok(), "{value} is no word of answers");
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
    }
}

//! A person's label for a task, or its retraction. Version history: 1, first; later with the
//! optional source, for labels that are replayed, the optional reason of a retraction, and the optional objects.

use serde::{Deserialize, Serialize};

use crate::answer::NO_LABEL;
use crate::codec::Message;
use crate::id::TaskId;
use crate::limits::MAX_LABEL_BYTES;
use crate::object::{DetectedObject, MAX_OBJECTS};
use crate::update::LabelSource;

/// What a task's image truly shows as a person says it, or a retraction of every earlier label. The latest message
/// counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// Task that is labelled.
    pub task: TaskId,
    /// The true class, at most [`crate::limits::MAX_LABEL_BYTES`] long; empty in a retraction and beside `objects`.
    pub label: String,
    /// All objects in the image, at most [`MAX_OBJECTS`]; empty if nothing is there. Absent in a label of a whole image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<Vec<DetectedObject>>,
    /// Who gave the label, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When it was given, milliseconds since the epoch.
    pub labelled_at_ms: u64,
    /// Source of a label that is replayed for a trainer; absent: a person, just now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<LabelSource>,
    /// Why every label of the task so far is retracted, verdicts included, at most
    /// [`crate::limits::MAX_NOTE_BYTES`] long; absent in a label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retracted: Option<String>,
}

/// What is wrong with a label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatedLabelError {
    /// A label is empty or too long.
    #[error("the label has {size_bytes} bytes; it must have 1 to {MAX_LABEL_BYTES}")]
    Length {
        /// Its size, bytes.
        size_bytes: usize,
    },
    /// Too many objects.
    #[error("{count} objects are too many; the limit is {MAX_OBJECTS}")]
    TooManyObjects {
        /// Number of objects.
        count: usize,
    },
    /// The label of an object is empty or too long.
    #[error("the label of object {number} has {size_bytes} bytes; it must have 1 to {MAX_LABEL_BYTES}")]
    ObjectLength {
        /// The object's place in the list, from 1.
        number: usize,
        /// Size of its label, bytes.
        size_bytes: usize,
    },
    /// The box of an object is outside the picture or has no area.
    #[error(
        "the box of object {number} is [{}]; left, top, right and bottom are fractions of the picture, 0 to 1, with left < right and top < bottom",
        edges.join(", ")
    )]
    Bounds {
        /// The object's place in the list, from 1.
        number: usize,
        /// Left, top, right and bottom, as text.
        edges: [String; 4],
    },
}

impl Label {
    /// Retracts every earlier label of a task. A trainer of an older version reads it as a label that its model does
    /// not know, and leaves the image out as well.
    pub fn retraction(task: TaskId, by: Option<String>, why: &str, at_ms: u64) -> Self {
        let retracted = Some(why.to_owned());
        Self { task, label: String::new(), objects: None, by, labelled_at_ms: at_ms, source: None, retracted }
    }

    /// Checks what is said: a label, or objects.
    ///
    /// # Errors
    /// What is missing, too long, too much, or outside the picture.
    pub fn check(&self) -> Result<(), StatedLabelError> {
        match (&self.objects, &self.retracted) {
            (_, Some(_)) => Ok(()),
            (Some(objects), None) => check_objects(objects),
            (None, None) => check_length(&self.label, |size_bytes| StatedLabelError::Length { size_bytes }),
        }
    }
}

impl Message for Label {
    const KIND: &'static str = "label";
    const VERSION: u16 = 1;
}

/// Checks the objects of a picture as a person states them.
///
/// # Errors
/// The first object that is not within the limits, or that there are too many.
pub fn check_objects(objects: &[DetectedObject]) -> Result<(), StatedLabelError> {
    if objects.len() > MAX_OBJECTS {
        return Err(StatedLabelError::TooManyObjects { count: objects.len() });
    }
    for (number, object) in (1..).zip(objects) {
        check_length(&object.label, |size_bytes| StatedLabelError::ObjectLength { number, size_bytes })?;
        if !object.bounds.is_valid() {
            let edges = <[f32; 4]>::from(object.bounds).map(|edge| edge.to_string());
            return Err(StatedLabelError::Bounds { number, edges });
        }
    }
    Ok(())
}

/// The one label that stands for objects where only one has room: the first one's, or [`NO_LABEL`] if there is none.
pub fn leading_label(objects: &[DetectedObject]) -> &str {
    objects.first().map_or(NO_LABEL, |object| object.label.as_str())
}

fn check_length(label: &str, fault: impl Fn(usize) -> StatedLabelError) -> Result<(), StatedLabelError> {
    if (1..=MAX_LABEL_BYTES).contains(&label.len()) { Ok(()) } else { Err(fault(label.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(label: &str, objects: Option<Vec<DetectedObject>>) -> Label {
        let task = TaskId::from_name("a");
        Label { task, label: label.into(), objects, by: None, labelled_at_ms: 1, source: None, retracted: None }
    }

    fn object(label: &str, edges: [f32; 4]) -> DetectedObject {
        DetectedObject { label: label.into(), confidence: 1.0, bounds: edges.into() }
    }

    const WHOLE: [f32; 4] = [0.0, 0.0, 1.0, 1.0];

    #[test]
    fn a_label_says_a_class_or_objects_within_limits() {
        assert_eq!(label("coat", None).check(), Ok(()));
        assert_eq!(label("", Some(Vec::new())).check(), Ok(()), "nothing is there");
        assert_eq!(label("", Some(vec![object("coat", WHOLE); MAX_OBJECTS])).check(), Ok(()));
        assert_eq!(Label::retraction(TaskId::from_name("a"), None, "mistaken", 1).check(), Ok(()));
        let refused = |label: Label| label.check().unwrap_err().to_string();
        assert!(refused(label("", None)).contains("0 bytes"));
        assert!(refused(label(&"x".repeat(257), None)).contains("257 bytes"));
        assert!(refused(label("", Some(vec![object("coat", WHOLE); 301]))).contains("301 objects"));
        assert!(refused(label("", Some(vec![object("a", WHOLE), object("", WHOLE)]))).contains("object 2 has 0 bytes"));
        for edges in [[0.5, 0.0, 0.5, 1.0], [f32::NAN, 0.0, 0.5, 1.0], [0.0, 0.0, 1.5, 1.0], [-0.1, 0.0, 0.5, 1.0]] {
            let why = refused(label("", Some(vec![object("coat", edges)])));
            assert!(why.starts_with("the box of object 1 is [") && why.contains("left < right"), "{why}");
        }
    }
}

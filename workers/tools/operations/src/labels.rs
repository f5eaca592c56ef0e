//! A person's labels for answered images: of whole pictures, which a site's trainer learns from, or boxes.

use runtime::clock;
use schemas::{
    Answer, CodecError, DetectedObject, Label, SiteName, StatedLabelError, TaskId, decode, encode, match_objects_at,
};
use streams::{Bus, CarryError, Publication, Publisher, reader, subject, topology};

use crate::PUBLISH_TIMEOUT;
use crate::audit::record_change;
use crate::words::count;

/// Intersection over union from which a box is one that nobody moved: the rest is rounding of pixels.
const UNMOVED_IOU: f32 = 0.999;

/// Why labels were not published.
#[derive(Debug, thiserror::Error)]
pub enum LabellingError {
    /// A label is not within its limits.
    #[error("task {task}: {why}")]
    Label {
        /// The task.
        task: TaskId,
        /// What is wrong with its label.
        #[source]
        why: StatedLabelError,
    },
    /// An answer cannot be read, or a label not be written.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The server failed.
    #[error(transparent)]
    Carry(#[from] CarryError),
}

/// What a person says of a task's image.
#[derive(Debug, Clone, PartialEq)]
pub enum LabelContent {
    /// The class of the whole picture.
    Class(String),
    /// All objects in it; empty if nothing is there.
    Objects(Vec<DetectedObject>),
    /// All objects in it, as an export wrote them and somebody may have corrected them: no label if they are still those
    /// of the task's answer.
    Reviewed(Vec<DetectedObject>),
}

impl LabelContent {
    /// The labels in it.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        let (class, objects) = match self {
            Self::Class(class) => (Some(class.as_str()), None),
            Self::Objects(objects) | Self::Reviewed(objects) => (None, Some(objects)),
        };
        class.into_iter().chain(objects.into_iter().flatten().map(|object| object.label.as_str()))
    }

    fn into_label(self, task: TaskId, by: Option<String>, now_ms: u64) -> Label {
        let (label, objects) = match self {
            Self::Class(class) => (class, None),
            Self::Objects(objects) | Self::Reviewed(objects) => {
                // Whoever drew a box is sure of it.
                let sure = objects.into_iter().map(|object| DetectedObject { confidence: 1.0, ..object });
                (String::new(), Some(sure.collect()))
            }
        };
        Label { task, label, objects, by, labelled_at_ms: now_ms, source: None, retracted: None }
    }

    /// Whether it says no more than the answer does.
    fn repeats(&self, answer: &Answer) -> bool {
        let (Self::Reviewed(objects), Some(answered)) = (self, &answer.objects) else { return false };
        let unmoved = match_objects_at(objects, answered, UNMOVED_IOU);
        unmoved.only_left == 0 && unmoved.only_right == 0
    }
}

/// A task and what a person says of it.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskLabel {
    /// The task.
    pub task: TaskId,
    /// What is said.
    pub content: LabelContent,
}

impl TaskLabel {
    /// The class of a whole picture.
    pub fn of_class(task: TaskId, class: impl Into<String>) -> Self {
        Self { task, content: LabelContent::Class(class.into()) }
    }
}

/// Labels of tasks, each within its limits.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelBatch(Vec<TaskLabel>);

impl LabelBatch {
    /// Checks labels.
    ///
    /// # Errors
    /// The first one that is empty, too long, too much, or outside its picture.
    pub fn new(labels: Vec<TaskLabel>) -> Result<Self, LabellingError> {
        for TaskLabel { task, content } in &labels {
            let label = content.clone().into_label(*task, None, 0);
            label.check().map_err(|why| LabellingError::Label { task: *task, why })?;
        }
        Ok(Self(labels))
    }
}

/// What came of labels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelledTasks {
    /// Number of published labels.
    pub labelled: u64,
    /// Reviewed images whose objects are those of their answer.
    pub unchanged: u64,
    /// Tasks that were skipped, because the site has no final answer for them.
    pub unknown: Vec<TaskId>,
}

/// Publishes a person's labels of tasks that a site has answered. `by`: who labels.
pub async fn label_tasks(
    bus: &Bus,
    site: &SiteName,
    batch: LabelBatch,
    by: Option<&str>,
) -> Result<LabelledTasks, LabellingError> {
    let publisher = Publisher::new(bus.clone(), PUBLISH_TIMEOUT);
    let mut done = LabelledTasks::default();
    let published = publish_labels(bus, &publisher, site, batch, by, &mut done).await;
    if done.labelled > 0 {
        record_change(bus, site, "label", count(done.labelled, "task")).await;
    }
    published.map(|()| done)
}

async fn publish_labels(
    bus: &Bus,
    publisher: &Publisher,
    site: &SiteName,
    batch: LabelBatch,
    by: Option<&str>,
    done: &mut LabelledTasks,
) -> Result<(), LabellingError> {
    for TaskLabel { task, content } in batch.0 {
        let slot = subject::final_answer_of_any_camera(site, task);
        let Some(record) = reader::last_message(bus, topology::ANSWERS, &slot).await? else {
            done.unknown.push(task);
            continue;
        };
        let answer: Answer = decode(&record.payload)?;
        if content.repeats(&answer) {
            done.unchanged += 1;
            continue;
        }
        let label = content.into_label(task, by.map(str::to_owned), clock::now_ms());
        let id = task.child(&format!("label-{}-{}", label.label, label.labelled_at_ms)).to_string();
        let publication = Publication::with_id(subject::label(site, &answer.camera), encode(&label)?, id);
        publisher.publish(&publication).await?;
        done.labelled += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use schemas::task::StorageStamp;
    use schemas::{AnswerStage, Reason, Route, Task};

    use super::*;

    fn object(label: &str, edges: [f32; 4]) -> DetectedObject {
        DetectedObject { label: label.into(), confidence: 0.5, bounds: edges.into() }
    }

    #[test]
    fn a_label_that_is_not_within_its_limits_is_refused_with_its_task() {
        let task = TaskId::from_name("a");
        let batch = |content: LabelContent| LabelBatch::new(vec![TaskLabel { task, content }]);
        let class = |label: String| batch(LabelContent::Class(label));
        assert!(class("coat".into()).is_ok() && class("x".repeat(256)).is_ok());
        assert!(batch(LabelContent::Objects(Vec::new())).is_ok());
        for refused in [
            class(String::new()),
            class("x".repeat(257)),
            batch(LabelContent::Objects(vec![object("coat", [0.0, 0.0, 2.0, 1.0])])),
            batch(LabelContent::Reviewed(vec![object("coat", [0.0, 0.0, 1.0, 1.0]); 301])),
        ] {
            assert!(refused.unwrap_err().to_string().contains(&task.to_string()));
        }
    }

    #[test]
    fn what_a_person_draws_is_sure() {
        let drawn = LabelContent::Objects(vec![object("coat", [0.0, 0.0, 1.0, 1.0])]);
        assert_eq!(drawn.labels().collect::<Vec<_>>(), ["coat"]);
        let label = drawn.into_label(TaskId::from_name("a"), Some("anna".into()), 5);
        assert_eq!((label.label.as_str(), label.objects.unwrap()[0].confidence), ("", 1.0));
    }

    #[test]
    fn reviewed_objects_that_nobody_changed_are_no_label() {
        let (site, camera) = ("reef".parse().unwrap(), "cam1".parse().unwrap());
        let task = Task::from_id(&StorageStamp { site, camera, sequence: 1, stored_at_ns: 0 }, TaskId::from_name("a"));
        let mut answer = Answer::for_task(&task, AnswerStage::Final, Route::Edge, Reason::Confident, 7);
        let (fish, crab) = (object("fish", [0.1, 0.1, 0.5, 0.5]), object("crab", [0.6, 0.6, 0.9, 0.9]));
        answer.objects = Some(vec![fish.clone(), crab.clone()]);
        let repeats = |objects: &[DetectedObject]| LabelContent::Reviewed(objects.to_vec()).repeats(&answer);
        assert!(repeats(&[crab.clone(), fish.clone()]), "in any order");
        assert!(repeats(&[crab.clone(), object("fish", [0.1, 0.1, 0.500_01, 0.5])]), "rounded");
        assert!(!repeats(std::slice::from_ref(&fish)) && !repeats(&[]), "removed");
        assert!(!repeats(&[crab.clone(), fish.clone(), object("eel", [0.1, 0.1, 0.5, 0.5])]), "added");
        assert!(!repeats(&[crab.clone(), object("fish", [0.1, 0.1, 0.51, 0.5])]), "moved");
        assert!(!repeats(&[crab.clone(), object("eel", [0.1, 0.1, 0.5, 0.5])]), "relabelled");
        assert!(!LabelContent::Objects(vec![fish, crab]).repeats(&answer), "said to be right as they are");
    }
}

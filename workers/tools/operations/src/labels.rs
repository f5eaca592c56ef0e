//! A person's labels for answered images, which a site's trainer learns from.

use runtime::clock;
use schemas::limits::MAX_LABEL_BYTES;
use schemas::{Answer, CodecError, Label, SiteName, TaskId, decode, encode};
use streams::{Bus, CarryError, Publication, Publisher, reader, subject, topology};

use crate::PUBLISH_TIMEOUT;
use crate::audit::record_change;
use crate::words::count;

/// Why labels were not published.
#[derive(Debug, thiserror::Error)]
pub enum LabellingError {
    /// A label is empty or too long.
    #[error("the label of task {task} has {size_bytes} bytes; it must have 1 to {MAX_LABEL_BYTES}")]
    Length {
        /// The task.
        task: TaskId,
        /// Size of its label, bytes.
        size_bytes: usize,
    },
    /// An answer cannot be read, or a label not be written.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The server failed.
    #[error(transparent)]
    Carry(#[from] CarryError),
}

/// Labels of tasks, each within its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelBatch(Vec<(TaskId, String)>);

impl LabelBatch {
    /// Checks labels.
    ///
    /// # Errors
    /// The first one that is empty or too long.
    pub fn new(labels: Vec<(TaskId, String)>) -> Result<Self, LabellingError> {
        match labels.iter().find(|(_, label)| label.is_empty() || label.len() > MAX_LABEL_BYTES) {
            Some((task, label)) => Err(LabellingError::Length { task: *task, size_bytes: label.len() }),
            None => Ok(Self(labels)),
        }
    }
}

/// What came of labels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelledTasks {
    /// Number of published labels.
    pub labelled: u64,
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
    for (task, label) in batch.0 {
        let slot = subject::final_answer_of_any_camera(site, task);
        let Some(record) = reader::last_message(bus, topology::ANSWERS, &slot).await? else {
            done.unknown.push(task);
            continue;
        };
        let answer: Answer = decode(&record.payload)?;
        let by = by.map(str::to_owned);
        let label = Label { task, label, by, labelled_at_ms: clock::now_ms(), source: None, retracted: None };
        let id = task.child(&format!("label-{}-{}", label.label, label.labelled_at_ms)).to_string();
        let publication = Publication::with_id(subject::label(site, &answer.camera), encode(&label)?, id);
        publisher.publish(&publication).await?;
        done.labelled += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_that_is_empty_or_too_long_is_refused_with_its_task() {
        let task = TaskId::from_name("a");
        let batch = |label: String| LabelBatch::new(vec![(task, label)]);
        assert!(batch("coat".into()).is_ok() && batch("x".repeat(MAX_LABEL_BYTES)).is_ok());
        for label in [String::new(), "x".repeat(MAX_LABEL_BYTES + 1)] {
            assert!(batch(label).unwrap_err().to_string().contains(&task.to_string()));
        }
    }
}

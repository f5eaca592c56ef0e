//! Refuses messages that cannot be images whatever their bytes are, before anything is fetched or allocated.
//! Pure.

use schemas::limits::MAX_IMAGE_BYTES;
use schemas::{FaultNote, Task};

/// Why a task is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskRefusal {
    /// Neither bytes nor a blob reference.
    #[error("the message contains neither bytes nor a blob reference")]
    Empty,
    /// Both bytes and a blob reference, of which one is not the image.
    #[error("the message contains {size_bytes} bytes and also a blob reference")]
    Both {
        /// Length of the payload, bytes.
        size_bytes: usize,
    },
    /// Larger than any image may be.
    #[error("the image has {size_bytes} bytes; at most {MAX_IMAGE_BYTES} are accepted")]
    TooLarge {
        /// Length of the image, bytes.
        size_bytes: u64,
    },
}

impl From<TaskRefusal> for FaultNote {
    fn from(refusal: TaskRefusal) -> Self {
        let (name, remedy) = match refusal {
            TaskRefusal::Empty => {
                ("image_empty", "check what the camera publishes: the payload must be the encoded image")
            }
            TaskRefusal::Both { .. } => ("image_ambiguous", "publish either the bytes or a blob reference"),
            TaskRefusal::TooLarge { .. } => ("image_too_large", "publish large scans with `tributary publish --tile`"),
        };
        FaultNote::new(name, refusal.to_string(), remedy)
    }
}

/// Checks a task with a payload of this length.
pub(crate) fn accept_task(task: &Task, payload_bytes: usize) -> Result<(), TaskRefusal> {
    let size_bytes = match &task.blob {
        Some(_) if payload_bytes > 0 => return Err(TaskRefusal::Both { size_bytes: payload_bytes }),
        Some(blob) => blob.size_bytes,
        None => payload_bytes as u64,
    };
    match size_bytes {
        0 => Err(TaskRefusal::Empty),
        _ if size_bytes > MAX_IMAGE_BYTES => Err(TaskRefusal::TooLarge { size_bytes }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::task::StorageStamp;
    use schemas::{BlobRef, TaskId};

    fn task(blob: Option<BlobRef>) -> Task {
        let stored = StorageStamp {
            site: "reef".parse().unwrap(),
            camera: "cam1".parse().unwrap(),
            sequence: 1,
            stored_at_ns: 0,
        };
        Task { blob, ..Task::from_id(&stored, TaskId::new_random()) }
    }

    #[test]
    fn bytes_or_a_reference_are_accepted() {
        assert_eq!(accept_task(&task(None), 1), Ok(()));
        assert_eq!(accept_task(&task(Some(BlobRef::new([0; 32], 5))), 0), Ok(()));
    }

    #[test]
    fn nothing_both_and_too_much_are_refused() {
        assert_eq!(accept_task(&task(None), 0), Err(TaskRefusal::Empty));
        assert_eq!(accept_task(&task(Some(BlobRef::new([0; 32], 0))), 0), Err(TaskRefusal::Empty));
        assert_eq!(accept_task(&task(Some(BlobRef::new([0; 32], 5))), 1), Err(TaskRefusal::Both { size_bytes: 1 }));
        let size_bytes = MAX_IMAGE_BYTES + 1;
        assert_eq!(
            accept_task(&task(Some(BlobRef::new([0; 32], size_bytes))), 0),
            Err(TaskRefusal::TooLarge { size_bytes })
        );
    }
}

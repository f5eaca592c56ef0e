//! Whose fault a failure is: the message's, which becomes a dead letter; the moment's, so it is retried; or
//! the worker's, which stops because somebody must act.

use std::fmt;
use std::time::Duration;

use schemas::{CodecError, FaultKind, FaultNote, WireWord};
use streams::CarryError;
pub use streams::error::error_chain;

/// Delay of a retry after a temporary failure.
pub const RETRY_DELAY: Duration = Duration::from_secs(2);

/// A failure, classified by whose fault it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// The message can never be handled: it becomes a dead letter.
    Reject(FaultNote),
    /// A temporary failure: the message is retried.
    Retry {
        /// Delay of the retry.
        after: Duration,
        /// What failed.
        note: FaultNote,
    },
    /// No failure: the message is to be looked at again later.
    Wait {
        /// Delay until then.
        after: Duration,
    },
    /// This worker cannot handle any message.
    Stop(FaultNote),
}

impl Fault {
    /// A fault of the message.
    pub fn reject(kind: impl Into<WireWord<FaultKind>>, reason: impl ToString, remedy: impl Into<String>) -> Self {
        Self::Reject(FaultNote::new(kind, reason.to_string(), remedy))
    }

    /// A temporary fault.
    pub fn retry(kind: impl Into<WireWord<FaultKind>>, reason: impl ToString) -> Self {
        let note = FaultNote::new(kind, reason.to_string(), "none needed: it is retried automatically");
        Self::Retry { after: RETRY_DELAY, note }
    }
}

impl fmt::Display for Fault {
    /// For people who asked for what failed, not for a worker: it is not retried for them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Retry { note, .. } => write!(f, "{} ({})", note.reason, note.kind),
            Fault::Stop(note) | Fault::Reject(note) => write!(f, "{} ({}): {}", note.reason, note.kind, note.remedy),
            Fault::Wait { after } => write!(f, "not ready: try again in {} s", after.as_secs()),
        }
    }
}

impl std::error::Error for Fault {}

/// The fault of a worker whose connection has ended for good.
pub fn client_gone() -> FaultNote {
    let reason = "the connection has ended, so nothing can be sent or received";
    FaultNote::new("client_gone", reason, "the supervisor restarts the worker")
}

impl From<CarryError> for Fault {
    fn from(error: CarryError) -> Self {
        let reason = error_chain(&error);
        match error {
            CarryError::BadBlob { .. } => Self::reject("blob_bad", reason, "publish the image again"),
            CarryError::Codec(error) => error.into(),
            CarryError::TooLarge { .. } => Self::reject("message_too_large", reason, "publish smaller images"),
            CarryError::Subject { .. } => Self::reject(
                "subject_unknown",
                reason,
                "publish to image.<site>.<camera>; names may contain letters, digits, - and _",
            ),
            _ => Self::retry("carry_failed", reason),
        }
    }
}

impl From<CodecError> for Fault {
    fn from(error: CodecError) -> Self {
        Self::reject("message_unreadable", error_chain(&error), "run the same release of tributary on both sides")
    }
}

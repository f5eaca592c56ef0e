//! Whose fault a failure is. The message's: it becomes a dead letter. The moment's: it is tried
//! again. Ours: the worker stops and somebody must act.

use std::time::Duration;

use schemas::{CodecError, FaultKind, FaultNote, WireWord};
use streams::CarryError;
pub use streams::error::error_chain;

/// After a failure of the moment, a message is tried again this much later.
pub const RETRY_DELAY: Duration = Duration::from_secs(2);

/// A failure, and whose fault it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// The message can never be handled: a dead letter.
    Reject(FaultNote),
    /// It may be handled later.
    Retry {
        /// How much later.
        after: Duration,
        /// What happened.
        note: FaultNote,
    },
    /// Nothing is wrong; it is to be looked at again later.
    Wait {
        /// How much later.
        after: Duration,
    },
    /// This worker cannot handle anything.
    Stop(FaultNote),
}

impl Fault {
    /// The message's fault.
    pub fn reject(kind: impl Into<WireWord<FaultKind>>, reason: impl ToString, remedy: impl Into<String>) -> Self {
        Self::Reject(FaultNote::new(kind, reason.to_string(), remedy))
    }

    /// The moment's fault.
    pub fn retry(kind: impl Into<WireWord<FaultKind>>, reason: impl ToString) -> Self {
        let note = FaultNote::new(kind, reason.to_string(), "nothing: it is tried again by itself");
        Self::Retry { after: RETRY_DELAY, note }
    }
}

/// Why a worker stops whose connection's own task has ended.
pub fn client_gone() -> FaultNote {
    let reason = "the connection's task ended, so nothing can be sent or received any more";
    FaultNote::new("client_gone", reason, "whoever supervises the worker starts it again")
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
                "publish to image.<site>.<camera>, letters, digits, - and _ only",
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

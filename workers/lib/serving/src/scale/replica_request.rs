//! A person's request for a number of replicas, as text and as note. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most replicas of a process: each is a thread with a session of its own.
pub const MAX_REPLICAS: usize = 256;

/// A requested number of replicas; never more than a process can run, and never none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "ReplicaRequestNote")]
pub enum ReplicaRequest {
    /// Exactly this many.
    Fixed(usize),
    /// From the first number to the second: more while work queues up and more help, fewer when they idle.
    Between(usize, usize),
}

/// An invalid request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaRequestError {
    /// Neither a number nor a range.
    #[error("{text:?} is not a number of replicas; write 3, or 1-4 to follow the queue")]
    Unreadable {
        /// The text, cut to a printable length.
        text: String,
    },
    /// Fewer than one.
    #[error("{replicas} replicas would leave the work undone; at least 1 must run (to stop the work, stop the worker)")]
    TooFew {
        /// Requested number.
        replicas: usize,
    },
    /// More than a process can run.
    #[error("{replicas} replicas are more than one process can run ({MAX_REPLICAS}); start more workers")]
    TooMany {
        /// Requested number.
        replicas: usize,
    },
    /// A range in the wrong order.
    #[error("invalid range {least}-{most}: the lower bound comes first")]
    Empty {
        /// First number.
        least: usize,
        /// Second number.
        most: usize,
    },
}

/// The request as it is noted, before its numbers were checked.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum ReplicaRequestNote {
    Fixed(usize),
    Between(usize, usize),
}

impl TryFrom<ReplicaRequestNote> for ReplicaRequest {
    type Error = ReplicaRequestError;

    fn try_from(note: ReplicaRequestNote) -> Result<Self, ReplicaRequestError> {
        match note {
            ReplicaRequestNote::Fixed(replicas) => Self::fixed(replicas),
            ReplicaRequestNote::Between(least, most) => Self::between(least, most),
        }
    }
}

impl ReplicaRequest {
    fn fixed(replicas: usize) -> Result<Self, ReplicaRequestError> {
        match replicas {
            0 => Err(ReplicaRequestError::TooFew { replicas }),
            1..=MAX_REPLICAS => Ok(Self::Fixed(replicas)),
            _ => Err(ReplicaRequestError::TooMany { replicas }),
        }
    }

    fn between(least: usize, most: usize) -> Result<Self, ReplicaRequestError> {
        Self::fixed(least)?;
        Self::fixed(most)?;
        match least > most {
            true => Err(ReplicaRequestError::Empty { least, most }),
            false => Ok(Self::Between(least, most)),
        }
    }
}

impl FromStr for ReplicaRequest {
    type Err = ReplicaRequestError;

    fn from_str(text: &str) -> Result<Self, ReplicaRequestError> {
        let unreadable = || ReplicaRequestError::Unreadable { text: text.chars().take(64).collect() };
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| unreadable());
        match text.split_once('-') {
            None => Self::fixed(number(text)?),
            Some((least, most)) => Self::between(number(least)?, number(most)?),
        }
    }
}

impl fmt::Display for ReplicaRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplicaRequest::Fixed(replicas) => write!(f, "{replicas}"),
            ReplicaRequest::Between(least, most) => write!(f, "{least}-{most}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_are_parsed_and_others_refused_with_a_remedy() {
        assert_eq!("3".parse(), Ok(ReplicaRequest::Fixed(3)));
        assert_eq!("1-4".parse(), Ok(ReplicaRequest::Between(1, 4)));
        for (text, word) in [
            ("0", "at least 1"),
            ("0-2", "at least 1"),
            ("x", "write 3"),
            ("-1", "write 3"),
            ("4-1", "lower bound"),
            ("9999", "more workers"),
        ] {
            let refused = text.parse::<ReplicaRequest>().unwrap_err().to_string();
            assert!(refused.contains(word), "{text}: {refused}");
        }
    }

    #[test]
    fn a_note_is_checked_like_text() {
        let read = |note: &str| serde_json::from_str::<Option<ReplicaRequest>>(note).map_err(|error| error.to_string());
        for asked in [None, Some(ReplicaRequest::Fixed(3)), Some(ReplicaRequest::Between(1, MAX_REPLICAS))] {
            assert_eq!(read(&serde_json::to_string(&asked).unwrap()), Ok(asked));
        }
        assert!(read("{\"fixed\":18446744073709551615}").unwrap_err().contains("more workers"));
        assert!(read("{\"fixed\":0}").is_err() && read("{\"between\":[4,1]}").is_err());
    }
}

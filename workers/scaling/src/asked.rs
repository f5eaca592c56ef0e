//! How many replicas somebody asked for, as it is written. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most replicas of a process: each is a thread with a session of its own.
pub const MOST_REPLICAS: usize = 256;

/// How many replicas somebody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asked {
    /// So many.
    Fixed(usize),
    /// As many as the queue needs, from the first to the second.
    Between(usize, usize),
}

/// What is no number of replicas.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskedError {
    /// Not a number and no range.
    #[error("{text:?} is no number of replicas: write 3, or 1-4 to follow the queue")]
    Unreadable {
        /// What was written, cut to a printable length.
        text: String,
    },
    /// Fewer than there must be.
    #[error("{replicas} replicas would leave the work undone: at least 1 must run (stop the worker to stop its work)")]
    TooFew {
        /// How many were asked for.
        replicas: usize,
    },
    /// More than a process runs.
    #[error("{replicas} replicas are more than one process runs, {MOST_REPLICAS}: start more workers")]
    TooMany {
        /// How many were asked for.
        replicas: usize,
    },
    /// A range that holds nothing.
    #[error("from {least} to {most} there is no number: write the smaller one first")]
    Empty {
        /// The first.
        least: usize,
        /// The second.
        most: usize,
    },
}

impl FromStr for Asked {
    type Err = AskedError;

    fn from_str(text: &str) -> Result<Self, AskedError> {
        let unreadable = || AskedError::Unreadable { text: text.chars().take(64).collect() };
        let number = |text: &str| match text.trim().parse::<usize>() {
            Ok(0) => Err(AskedError::TooFew { replicas: 0 }),
            Ok(replicas) if replicas > MOST_REPLICAS => Err(AskedError::TooMany { replicas }),
            Ok(replicas) => Ok(replicas),
            Err(_) => Err(unreadable()),
        };
        match text.split_once('-') {
            None => Ok(Asked::Fixed(number(text)?)),
            Some((least, most)) => match (number(least)?, number(most)?) {
                (least, most) if least > most => Err(AskedError::Empty { least, most }),
                (least, most) => Ok(Asked::Between(least, most)),
            },
        }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Asked::Fixed(replicas) => write!(f, "{replicas}"),
            Asked::Between(least, most) => write!(f, "{least}-{most}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_are_read_and_others_refused_with_what_to_write() {
        assert_eq!("3".parse(), Ok(Asked::Fixed(3)));
        assert_eq!("1-4".parse(), Ok(Asked::Between(1, 4)));
        for (text, word) in [
            ("0", "at least 1"),
            ("0-2", "at least 1"),
            ("x", "write 3"),
            ("-1", "write 3"),
            ("4-1", "smaller"),
            ("9999", "more workers"),
        ] {
            let refused = text.parse::<Asked>().unwrap_err().to_string();
            assert!(refused.contains(word), "{text}: {refused}");
        }
    }
}

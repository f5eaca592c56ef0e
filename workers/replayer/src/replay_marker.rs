//! What a replay was begun with, so that the same command goes on where it stopped: with the same moments, up to the same
//! answer, whatever came since.

use std::path::{Path, PathBuf};

use schemas::TaskId;
use serde::{Deserialize, Serialize};

use crate::error::ReplayError;

/// What a replay was begun with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplayMarker {
    /// What was asked for, as it was written.
    pub asked: String,
    /// A name of its own.
    pub run: TaskId,
    /// Milliseconds since the epoch.
    pub since_ms: Option<u64>,
    /// Milliseconds since the epoch: when it was begun, or earlier.
    pub until_ms: u64,
    /// The newest answer then.
    pub answers_to: u64,
    /// How many images are through, where nothing else tells.
    #[serde(default)]
    pub through: u64,
    /// Whether all are.
    #[serde(default)]
    pub done: bool,
}

impl ReplayMarker {
    /// What was begun before, if something was.
    ///
    /// # Errors
    /// [`ReplayError::Foreign`] if that was something else.
    pub fn read_previous(path: &Path, asked: &str) -> Result<Option<Self>, ReplayError> {
        let Ok(text) = std::fs::read(path) else { return Ok(None) };
        let foreign = |what: String| ReplayError::Foreign { path: path.into(), what };
        let begun: Self =
            serde_json::from_slice(&text).map_err(|_| foreign("something that is no note of a replay".into()))?;
        if begun.asked != asked {
            return Err(foreign(format!("another replay ({})", begun.asked)));
        }
        Ok(Some(begun))
    }

    /// Notes it, whole or not at all.
    ///
    /// # Errors
    /// The system's words.
    pub fn write_marker(&self, path: &Path) -> Result<(), ReplayError> {
        let beside = path.with_added_extension("part");
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        std::fs::write(&beside, text).map_err(ReplayError::write(&beside))?;
        std::fs::rename(&beside, path).map_err(ReplayError::write(path))
    }
}

/// Where a replay is noted that leaves no file of its own: in the user's state folder. Absent for a user without a home.
pub fn of_user(asked: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    Some(state.join("tributary/replay").join(format!("{}.json", TaskId::from_name(asked))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_begun_goes_on_and_something_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replay.json");
        assert_eq!(ReplayMarker::read_previous(&path, "a").unwrap(), None);
        let begun = ReplayMarker {
            asked: "a".into(),
            run: TaskId::from_name("x"),
            since_ms: Some(1),
            until_ms: 2,
            answers_to: 3,
            through: 4,
            done: false,
        };
        begun.write_marker(&path).unwrap();
        assert_eq!(ReplayMarker::read_previous(&path, "a").unwrap(), Some(begun));
        let refused = ReplayMarker::read_previous(&path, "b").unwrap_err().to_string();
        assert!(refused.contains("another replay (a)"), "{refused}");
        std::fs::write(&path, "x").unwrap();
        assert!(ReplayMarker::read_previous(&path, "a").is_err());
    }
}

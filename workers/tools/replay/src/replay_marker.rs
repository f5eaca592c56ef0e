//! Records how a replay was started, so that the same command resumes it: with the same times and up to the same
//! answer, whatever arrived since.

use std::path::{Path, PathBuf};

use schemas::TaskId;
use serde::{Deserialize, Serialize};

use crate::error::ReplayError;

/// How a replay was started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReplayMarker {
    /// The command's selection, as one line.
    pub asked: String,
    /// Random id of the run.
    pub run: TaskId,
    /// Start of the selection, milliseconds since the epoch; absent: unlimited.
    pub since_ms: Option<u64>,
    /// End of the selection, milliseconds since the epoch: when it was started, or earlier.
    pub until_ms: u64,
    /// Sequence of the newest answer at the start.
    pub answers_to: u64,
    /// Images done, for destinations that cannot tell.
    #[serde(default)]
    pub through: u64,
    /// Whether all images are done.
    #[serde(default)]
    pub done: bool,
}

impl ReplayMarker {
    /// The marker of an earlier run, if there is one.
    ///
    /// # Errors
    /// [`ReplayError::Foreign`] if it is of another replay.
    pub(crate) fn read_previous(path: &Path, asked: &str) -> Result<Option<Self>, ReplayError> {
        let Ok(text) = std::fs::read(path) else { return Ok(None) };
        let foreign = |what: String| ReplayError::Foreign { path: path.into(), what };
        let begun: Self =
            serde_json::from_slice(&text).map_err(|_| foreign("a file that is not a replay marker".into()))?;
        if begun.asked != asked {
            return Err(foreign(format!("another replay ({})", begun.asked)));
        }
        Ok(Some(begun))
    }

    /// Writes the marker, completely or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write_marker(&self, path: &Path) -> Result<(), ReplayError> {
        let beside = path.with_added_extension("part");
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        std::fs::write(&beside, text).map_err(ReplayError::write(&beside))?;
        std::fs::rename(&beside, path).map_err(ReplayError::write(path))
    }
}

/// Path of the marker of a replay without a file of its own: in the user's state folder. Absent for a user without a
/// home folder.
pub(crate) fn of_user(asked: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    Some(state.join("tributary/replay").join(format!("{}.json", TaskId::from_name(asked))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_started_replay_resumes_and_another_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("progress.json");
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

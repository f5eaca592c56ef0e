//! Settings of states.

use serde::{Deserialize, Serialize};

/// When what a camera shows counts as changed, where its publisher names states.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StateSettings {
    /// Sure answers in a row with the label of another state that change the state, 1 to 100.
    pub changes_after: u32,
}

impl Default for StateSettings {
    fn default() -> Self {
        Self { changes_after: 2 }
    }
}

impl StateSettings {
    /// Checks the settings.
    ///
    /// # Errors
    /// A sentence with the key, the value and its range.
    pub fn check(&self) -> Result<(), String> {
        match self.changes_after {
            1..=100 => Ok(()),
            count => Err(format!("changes_after is {count}; it must be between 1 and 100")),
        }
    }
}

//! What an operator may choose about the archive.

use serde::{Deserialize, Serialize};

/// What an operator may choose about the archive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JanitorSettings {
    /// Answered images go when the stream is fuller than this, 0 to 1.
    pub high_ratio: f64,
    /// They go until it is this full, 0 to `high_ratio`.
    pub low_ratio: f64,
    /// How often it looks, seconds, at least 1.
    pub every_s: u64,
}

impl Default for JanitorSettings {
    fn default() -> Self {
        Self { high_ratio: 0.85, low_ratio: 0.7, every_s: 5 }
    }
}

impl JanitorSettings {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.high_ratio) || !(0.0..=self.high_ratio).contains(&self.low_ratio) {
            return Err("janitor: 0 <= low_ratio <= high_ratio <= 1 is not so".into());
        }
        match self.every_s {
            0 => Err("janitor.every_s is 0, use at least 1".into()),
            _ => Ok(()),
        }
    }
}

//! Settings of the replayer.

use serde::{Deserialize, Serialize};

/// Most tasks of one replay: each takes about 250 bytes of memory.
pub(crate) const MOST_TASKS: usize = 2_000_000;
/// Most objects of the tasks of one replay: each takes about 80 bytes of memory.
pub(crate) const MOST_OBJECTS: usize = 10_000_000;

/// Replayer settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplayerSettings {
    /// Read-rate limit in MiB/s while the site's recognizers work, above 0; an idle site is read without limit.
    pub busy_mib_per_s: f64,
    /// Images read and not yet written, MiB, at least 1.
    pub in_flight_mib: u32,
}

impl Default for ReplayerSettings {
    fn default() -> Self {
        Self { busy_mib_per_s: 4.0, in_flight_mib: 32 }
    }
}

impl ReplayerSettings {
    /// Checks the settings and names the first one that is out of range.
    pub fn check(&self) -> Result<(), String> {
        if !(self.busy_mib_per_s.is_finite() && self.busy_mib_per_s > 0.0) {
            return Err(format!("busy_mib_per_s is {}; it must be above 0", self.busy_mib_per_s));
        }
        match self.in_flight_mib {
            0 => Err("in_flight_mib is 0; it must be at least 1".into()),
            _ => Ok(()),
        }
    }
}

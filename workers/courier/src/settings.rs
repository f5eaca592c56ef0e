//! What an operator may choose about the link.

use serde::{Deserialize, Serialize};

/// What an operator may choose about the link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CourierSettings {
    /// Messages on their way up at a time, 1 to 256.
    pub uploads: usize,
    /// How often the cloud is asked for a sign of life, milliseconds, at least 50.
    pub probe_every_ms: u64,
    /// A question unanswered for this long means that the link is down, milliseconds, at least 50.
    pub probe_patience_ms: u64,
}

impl Default for CourierSettings {
    fn default() -> Self {
        Self { uploads: 16, probe_every_ms: 500, probe_patience_ms: 2000 }
    }
}

impl CourierSettings {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self { uploads: 0 | 257.., .. } => Err("courier.uploads must be 1 to 256".into()),
            Self { probe_every_ms: ..50, .. } => Err("courier.probe_every_ms must be at least 50".into()),
            Self { probe_patience_ms: ..50, .. } => Err("courier.probe_patience_ms must be at least 50".into()),
            _ => Ok(()),
        }
    }
}

//! All settings that decide, as they are noted so that what was decided can be decided again.

use schemas::model::GateDefaults;
use serde::{Deserialize, Serialize};

use crate::gate::{Gate, GateSettings};
use crate::policy::Policy;
use crate::verify::VerifySettings;

/// All settings that decide.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EffectiveSettings {
    /// Where a task is recognized.
    pub policy: Policy,
    /// What makes an answer doubtful.
    pub gate: GateSettings,
    /// What the model says about that, where the settings say nothing.
    pub model: GateDefaults,
    /// What becomes of doubt.
    pub verify: VerifySettings,
}

impl EffectiveSettings {
    /// The gate that follows.
    pub fn gate(&self) -> Gate {
        Gate::new(&self.gate, &self.model)
    }
}

/// The note that holds settings, by the end of its name.
pub fn settings_note(settings: &str) -> String {
    format!("decides-{settings}")
}

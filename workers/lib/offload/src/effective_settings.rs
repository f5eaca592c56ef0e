//! All settings that influence decisions, noted so that a decision can be made again.

use schemas::model::GateDefaults;
use serde::{Deserialize, Serialize};

use crate::gate::{Gate, GateSettings};
use crate::policy::Policy;
use crate::verify::VerifySettings;

/// All settings that influence decisions.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EffectiveSettings {
    /// Settings of the first decision, where a task is recognized.
    pub policy: Policy,
    /// Settings of the gate.
    pub gate: GateSettings,
    /// The model's own thresholds, for what the settings leave open.
    pub model: GateDefaults,
    /// Settings of the second decision, about doubtful answers.
    pub verify: VerifySettings,
}

impl EffectiveSettings {
    /// The gate that results from settings and model.
    pub fn gate(&self) -> Gate {
        Gate::new(&self.gate, &self.model)
    }
}

/// Key of the ledger note that holds settings, given their digest.
pub fn settings_note(settings: &str) -> String {
    format!("decides-{settings}")
}

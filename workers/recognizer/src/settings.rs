//! What an operator may choose about recognizing.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vision::InferSettings;

use crate::gate::GateSettings;

/// What an operator may choose about recognizing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecognizerSettings {
    /// Folder of the site's model.
    pub model: PathBuf,
    /// Replicas, batches and what a picture may cost.
    pub infer: InferSettings,
    /// What makes an answer doubtful; what is absent is the model's own.
    pub gate: GateSettings,
    /// What becomes of doubtful answers.
    pub verify: VerifySettings,
    /// Deliveries after which an image is given up, at least 1. High, because a restart of a worker
    /// costs one as well.
    pub tries: u64,
}

impl Default for RecognizerSettings {
    fn default() -> Self {
        Self {
            model: PathBuf::from("model"),
            infer: InferSettings::default(),
            gate: GateSettings::default(),
            verify: VerifySettings::default(),
            tries: 20,
        }
    }
}

/// What becomes of doubtful answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifySettings {
    /// Whether they are sent up for a verdict; without it they are final as they are.
    pub enabled: bool,
    /// How long a provisional answer waits for its verdict, seconds; a publisher's own deadline may
    /// only shorten it.
    pub deadline_s: u32,
}

impl Default for VerifySettings {
    fn default() -> Self {
        Self { enabled: true, deadline_s: 24 * 3600 }
    }
}

impl RecognizerSettings {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        self.gate.check()?;
        match self.tries {
            0 => Err("recognizer.tries is 0, use at least 1".into()),
            _ => Ok(()),
        }
    }
}

//! What an operator may choose about verifying.

use schemas::Role;
use std::path::PathBuf;

use scaling::ScaleSettings;
use schemas::limits::MAX_TRIES;
use serde::{Deserialize, Serialize};
use vision::InferenceSettings;

/// What an operator may choose about verifying.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifierSettings {
    /// Folder of the cloud's model.
    pub model: Option<PathBuf>,
    /// Folder of a head for the sites' model, which judges the features of sites that send no images: a model
    /// whose picture is one row of features.
    pub head: Option<PathBuf>,
    /// Replicas, batches and what a picture may cost.
    pub infer: InferenceSettings,
    /// How many replicas, where that follows the queue; `tributary scale` changes it while it runs.
    pub scale: ScaleSettings,
    /// Divides the logits before the softmax, above 0; the model's own if absent.
    pub temperature: Option<f32>,
    /// Folder of the releases that it was given; each verifier of a machine has a part of it to itself.
    pub work: PathBuf,
    /// How often it is told what came of the release that runs, seconds, at least 1.
    pub report_s: u32,
    /// Length of the stretches of time in which that is counted, seconds, 10 or more where many sites report: hours are told
    /// apart by them, and a release is held against the stretches before it.
    pub count_s: u32,
    /// Deliveries after which a task is given up, at least 1.
    pub tries: u64,
}

impl Default for VerifierSettings {
    fn default() -> Self {
        Self {
            model: None,
            head: None,
            infer: InferenceSettings::default(),
            scale: ScaleSettings::default(),
            temperature: None,
            work: PathBuf::from("tributary-verifier"),
            report_s: 30,
            count_s: 600,
            tries: 20,
        }
    }
}

impl VerifierSettings {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        self.scale.check(Role::Verifier)?;
        self.infer.decode.check().map_err(|why| format!("verifier.{why}"))?;
        if let Some(temperature) = self.temperature.filter(|value| !(value.is_finite() && *value > 0.0)) {
            return Err(format!("verifier.temperature is {temperature}, it must be above 0"));
        }
        if self.report_s == 0 || self.count_s == 0 {
            return Err("verifier.report_s and verifier.count_s must be at least 1".into());
        }
        match self.tries {
            1..=MAX_TRIES => Ok(()),
            tries => Err(format!("verifier.tries is {tries}; it must be between 1 and {MAX_TRIES}")),
        }
    }
}

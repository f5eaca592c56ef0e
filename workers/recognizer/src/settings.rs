//! What an operator may choose about recognizing.

use schemas::Role;
use std::path::PathBuf;

use runtime::drift::DriftSettings;
use scaling::ScaleSettings;
use schemas::limits::MAX_TRIES;
use serde::{Deserialize, Serialize};
use vision::InferenceSettings;

use decisions::gate::GateSettings;
use decisions::policy::Policy;
use decisions::verify::VerifySettings;

/// What an operator may choose about recognizing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecognizerSettings {
    /// Folder of the site's model.
    pub model: PathBuf,
    /// Replicas, batches and what a picture may cost.
    pub infer: InferenceSettings,
    /// How many replicas, where that follows the queue; `tributary scale` changes it while it runs.
    pub scale: ScaleSettings,
    /// What makes an answer doubtful; what is absent is the model's own.
    pub gate: GateSettings,
    /// What becomes of doubtful answers.
    pub verify: VerifySettings,
    /// Where a task is recognized.
    pub policy: Policy,
    /// What counts as the same as before.
    pub drift: DriftSettings,
    /// Folder of the releases that the site was given; each worker has a part of it to itself.
    pub work: PathBuf,
    /// What the site is called where rings of sites are chosen, such as `harbour` or `night`.
    pub site_labels: Vec<String>,
    /// How often it is told what came of the release that runs, seconds, at least 1.
    pub report_s: u32,
    /// Length of the stretches of time in which that is counted, seconds, 10 or more where many sites report: hours are told
    /// apart by them, and a release is held against the stretches before it.
    pub count_s: u32,
    /// Deliveries after which an image is given up, 1 to 50. High, because a restart of a worker
    /// costs one as well.
    pub tries: u64,
}

impl Default for RecognizerSettings {
    fn default() -> Self {
        Self {
            model: PathBuf::from("model"),
            infer: InferenceSettings::default(),
            scale: ScaleSettings::default(),
            gate: GateSettings::default(),
            verify: VerifySettings::default(),
            policy: Policy::default(),
            drift: DriftSettings::default(),
            work: PathBuf::from("tributary-recognizer"),
            site_labels: Vec::new(),
            report_s: 30,
            count_s: 600,
            tries: 20,
        }
    }
}

impl RecognizerSettings {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        self.scale.check(Role::Recognizer)?;
        self.infer.decode.check().map_err(|why| format!("recognizer.{why}"))?;
        self.gate.check()?;
        self.policy.check()?;
        self.drift.check(Role::Recognizer)?;
        self.verify.check()?;
        if self.report_s == 0 || self.count_s == 0 {
            return Err("recognizer.report_s and recognizer.count_s must be at least 1".into());
        }
        match self.tries {
            1..=MAX_TRIES => Ok(()),
            tries => Err(format!("recognizer.tries is {tries}; it must be between 1 and {MAX_TRIES}")),
        }
    }
}

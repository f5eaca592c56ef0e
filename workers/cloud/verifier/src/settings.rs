//! Settings of the verifier.

use std::path::PathBuf;

use runtime::settings::check_section;
use schemas::limits::MAX_TRIES;
use serde::{Deserialize, Serialize};
use serving::scale::ScaleSettings;
use vision::InferenceSettings;

/// Settings of the verifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifierSettings {
    /// Folder of the cloud's model.
    pub model: Option<PathBuf>,
    /// Folder of a head for the sites' model, which judges the features of sites that send no images: a model
    /// whose input is one row of features.
    pub head: Option<PathBuf>,
    /// Replicas, batches, and limits on pictures.
    pub infer: InferenceSettings,
    /// Number of replicas, if it follows the queue; `tributary scale` changes it at runtime.
    pub scale: ScaleSettings,
    /// Divides the logits before the softmax, above 0; absent: the model's own.
    pub temperature: Option<f32>,
    /// Folder of the releases it received; each verifier of a machine uses a part of its own.
    pub work: PathBuf,
    /// Interval of reports on the running release, seconds, at least 1.
    pub report_s: u32,
    /// Length of the intervals over which reports count, seconds, at least 10 where many sites report: they separate
    /// the hours of a day, and a release is compared with the intervals before it.
    pub count_s: u32,
    /// Deliveries after which a request is given up, at least 1.
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
    /// Checks the settings.
    pub fn check(&self) -> Result<(), String> {
        check_section("scale", self.scale.check())?;
        check_section("infer.decode", self.infer.decode.check())?;
        if let Some(temperature) = self.temperature.filter(|value| !(value.is_finite() && *value > 0.0)) {
            return Err(format!("temperature is {temperature}; it must be above 0"));
        }
        serving::report::check_intervals(self.report_s, self.count_s)?;
        match self.tries {
            1..=MAX_TRIES => Ok(()),
            tries => Err(format!("tries is {tries}; it must be between 1 and {MAX_TRIES}")),
        }
    }
}

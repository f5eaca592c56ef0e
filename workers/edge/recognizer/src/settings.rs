//! Settings of the recognizer.

use std::path::PathBuf;

use runtime::drift::DriftSettings;
use runtime::settings::check_section;
use schemas::limits::MAX_TRIES;
use serde::{Deserialize, Serialize};
use serving::scale::ScaleSettings;
use vision::InferenceSettings;

use offload::gate::GateSettings;
use offload::policy::Policy;
use offload::verify::VerifySettings;

/// Settings of the recognizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecognizerSettings {
    /// Folder of the site's model.
    pub model: PathBuf,
    /// Replicas, batches, and limits on pictures.
    pub infer: InferenceSettings,
    /// Number of replicas, if it follows the queue; `tributary scale` changes it at runtime.
    pub scale: ScaleSettings,
    /// What makes an answer doubtful; absent ones are the model's own.
    pub gate: GateSettings,
    /// What happens to doubtful answers.
    pub verify: VerifySettings,
    /// Where tasks are recognized.
    pub policy: Policy,
    /// Windows of the drift detection.
    pub drift: DriftSettings,
    /// Folder of the releases it received; each worker uses a part of its own.
    pub work: PathBuf,
    /// Labels of the site by which rings are selected, such as `harbour` or `night`.
    pub site_labels: Vec<String>,
    /// Interval of reports on the running release, seconds, at least 1.
    pub report_s: u32,
    /// Length of the intervals over which reports count, seconds, at least 10 where many sites report: they separate
    /// the hours of a day, and a release is compared with the intervals before it.
    pub count_s: u32,
    /// Deliveries after which an image is given up, 1 to 50. High, because a restart of a worker
    /// uses up one as well.
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
    /// Checks the settings.
    pub fn check(&self) -> Result<(), String> {
        check_section("scale", self.scale.check())?;
        check_section("infer.decode", self.infer.decode.check())?;
        check_section("gate", self.gate.check())?;
        check_section("policy", self.policy.check())?;
        check_section("drift", self.drift.check())?;
        check_section("verify", self.verify.check())?;
        serving::report::check_intervals(self.report_s, self.count_s)?;
        match self.tries {
            1..=MAX_TRIES => Ok(()),
            tries => Err(format!("tries is {tries}; it must be between 1 and {MAX_TRIES}")),
        }
    }
}

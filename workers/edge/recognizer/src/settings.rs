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

use crate::reuse::ReuseSettings;
use crate::states::StateSettings;

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
    /// Latency objective: the time, in milliseconds, from an image's arrival to its answer that 99 % should keep at the
    /// site, 10 to 60000. Batches are kept small enough, and replicas within `scale`'s range are added in time. Absent: no
    /// objective.
    pub latency_slo_ms: Option<u32>,
    /// What makes an answer doubtful; absent ones are the model's own.
    pub gate: GateSettings,
    /// What happens to doubtful answers.
    pub verify: VerifySettings,
    /// Where tasks are recognized.
    pub policy: Policy,
    /// Windows of the drift detection.
    pub drift: DriftSettings,
    /// Answers for pictures that hardly differ from the one before.
    pub reuse: ReuseSettings,
    /// States of what cameras show.
    pub states: StateSettings,
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
            latency_slo_ms: None,
            gate: GateSettings::default(),
            verify: VerifySettings::default(),
            policy: Policy::default(),
            drift: DriftSettings::default(),
            reuse: ReuseSettings::default(),
            states: StateSettings::default(),
            work: PathBuf::from("tributary-recognizer"),
            site_labels: Vec::new(),
            report_s: 30,
            count_s: 600,
            tries: 20,
        }
    }
}

/// Range of the latency objective, milliseconds.
const LATENCY_SLO_MS: std::ops::RangeInclusive<u32> = 10..=60_000;

impl RecognizerSettings {
    /// Settings of the inference, with the latency objective.
    pub fn inference(&self) -> InferenceSettings {
        InferenceSettings { objective_ms: self.latency_slo_ms, ..self.infer.clone() }
    }

    /// Checks the settings.
    pub fn check(&self) -> Result<(), String> {
        check_section("scale", self.scale.check())?;
        check_section("infer.decode", self.infer.decode.check())?;
        check_section("gate", self.gate.check())?;
        check_section("policy", self.policy.check())?;
        check_section("drift", self.drift.check())?;
        check_section("reuse", self.reuse.check())?;
        check_section("states", self.states.check())?;
        check_section("verify", self.verify.check())?;
        if let Some(ms) = self.latency_slo_ms.filter(|ms| !LATENCY_SLO_MS.contains(ms)) {
            let (least, most) = LATENCY_SLO_MS.into_inner();
            return Err(format!("latency_slo_ms is {ms}; it must be between {least} and {most}"));
        }
        serving::report::check_intervals(self.report_s, self.count_s)?;
        match self.tries {
            1..=MAX_TRIES => Ok(()),
            tries => Err(format!("tries is {tries}; it must be between 1 and {MAX_TRIES}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latency_objective_is_checked_and_reaches_the_inference() {
        let with = |latency_slo_ms| RecognizerSettings { latency_slo_ms, ..RecognizerSettings::default() };
        for wrong in [0, 9, 60_001] {
            let error = with(Some(wrong)).check().unwrap_err();
            assert_eq!(error, format!("latency_slo_ms is {wrong}; it must be between 10 and 60000"));
        }
        assert_eq!(with(Some(400)).check(), Ok(()));
        assert_eq!(with(Some(400)).inference().objective_ms, Some(400));
        assert_eq!(with(None).inference(), InferenceSettings::default());
    }
}

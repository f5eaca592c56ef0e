//! Decides whether an answer is confident or doubtful, after inference. Pure.

use std::collections::BTreeMap;

use schemas::Reason;
use schemas::model::GateDefaults;
use serde::{Deserialize, Serialize};

use crate::calibration::Calibration;

/// Confidence below which an answer is doubtful if neither the model nor the settings say otherwise.
/// A guess that suits calibrated classifiers of about ten classes.
const DEFAULT_MIN_CONFIDENCE: f32 = 0.7;

/// Settings of the gate; an absent one is the model's own, or not tested.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GateSettings {
    /// Divides the logits before the softmax, above 0.
    pub temperature: Option<f32>,
    /// Smallest confidence of the best class, 0 to 1.
    pub min_confidence_ratio: Option<f32>,
    /// Smallest distance between the two best classes, 0 to 1.
    pub min_margin_ratio: Option<f32>,
    /// Largest entropy as a fraction of the entropy of a uniform guess, 0 to 1.
    pub max_entropy_ratio: Option<f32>,
    /// Largest novelty, 0 to 1: with 0.99 a picture is doubtful if it is stranger than 99 % of the calibration pictures
    /// of the model's novelty score. Not tested on a release without a novelty score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_novelty: Option<f32>,
    /// Smallest confidence for single labels, 0 to 1; replaces `min_confidence_ratio` for them.
    pub labels: BTreeMap<String, f32>,
    /// Instead of thresholds: the accuracy that final answers must reach for each label, above 0.5 and
    /// below 1, measured by the cloud's verdicts, from which the confidence thresholds are then learned.
    pub target_accuracy_ratio: Option<f64>,
}

impl GateSettings {
    /// Checks the settings.
    pub fn check(&self) -> Result<(), String> {
        if let Some(temperature) = self.temperature.filter(|value| !(value.is_finite() && *value > 0.0)) {
            return Err(format!("temperature is {temperature}; it must be above 0"));
        }
        let ratios = [
            ("min_confidence_ratio", self.min_confidence_ratio),
            ("min_margin_ratio", self.min_margin_ratio),
            ("max_entropy_ratio", self.max_entropy_ratio),
            ("max_novelty", self.max_novelty),
        ];
        let ratios = ratios.map(|(name, ratio)| (name.to_owned(), ratio));
        let labels = self.labels.iter().map(|(label, ratio)| (format!("labels.{label}"), Some(*ratio)));
        if let Some(target) = self.target_accuracy_ratio.filter(|target| !(*target > 0.5 && *target < 1.0)) {
            return Err(format!("target_accuracy_ratio is {target}; it must be between 0.5 and 1, both excluded"));
        }
        for (name, ratio) in ratios.into_iter().chain(labels) {
            if let Some(ratio) = ratio.filter(|ratio| !(0.0..=1.0).contains(ratio)) {
                return Err(format!("{name} is {ratio}; it must be between 0 and 1"));
            }
        }
        Ok(())
    }
}

/// The tests an answer must pass to be confident.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// Divides the logits before the softmax for the tests, above 0.
    pub temperature: f32,
    /// The same for published confidence; differs only after calibration by verdicts.
    pub calibrated: f32,
    min_confidence: f32,
    min_margin: f32,
    max_entropy: f32,
    max_novelty: f32,
    labels: BTreeMap<String, f32>,
}

impl Gate {
    /// The gate of these settings, with the model's own values and then defaults for what is absent.
    pub fn new(settings: &GateSettings, model: &GateDefaults) -> Self {
        let mut labels = model.labels.clone();
        labels.extend(settings.labels.clone());
        let temperature = settings.temperature.or(model.temperature).unwrap_or(1.0);
        Self {
            temperature,
            calibrated: temperature,
            min_confidence: settings
                .min_confidence_ratio
                .or(model.min_confidence_ratio)
                .unwrap_or(DEFAULT_MIN_CONFIDENCE),
            min_margin: settings.min_margin_ratio.or(model.min_margin_ratio).unwrap_or(0.0),
            max_entropy: settings.max_entropy_ratio.or(model.max_entropy_ratio).unwrap_or(1.0),
            max_novelty: settings.max_novelty.or(model.max_novelty).unwrap_or(1.0),
            labels,
        }
    }

    /// The same tests, with the confidence thresholds and temperature learned from verdicts.
    pub fn with_calibration(&self, calibration: &Calibration) -> Self {
        Self {
            min_confidence: calibration.pooled,
            labels: calibration.thresholds.clone(),
            calibrated: calibration.temperature.unwrap_or(self.calibrated),
            ..self.clone()
        }
    }

    /// Whether novelty is tested.
    pub fn tests_novelty(&self) -> bool {
        self.max_novelty < 1.0
    }

    /// `Confident`, or the first test that failed. `label`: the best class.
    pub fn decide(&self, tested: &TestedScores, label: &str) -> Reason {
        let TestedScores { best, second, entropy_ratio, novelty } = *tested;
        // First, because a model's confidence means little for a picture unlike those it knows.
        if novelty.is_some_and(|novelty| novelty > self.max_novelty) {
            return Reason::HighNovelty;
        }
        match self.labels.get(label) {
            Some(min) if best < *min => return Reason::LabelThreshold,
            None if best < self.min_confidence => return Reason::LowConfidence,
            _ => {}
        }
        if best - second < self.min_margin {
            return Reason::LowMargin;
        }
        // A limit at the end of the range is off; rounding must not make a uniform guess fail it.
        if self.max_entropy < 1.0 && entropy_ratio > self.max_entropy {
            return Reason::HighEntropy;
        }
        Reason::Confident
    }
}

/// The scores that are tested.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TestedScores {
    /// Calibrated probability of the best class, 0 to 1.
    pub best: f32,
    /// Calibrated probability of the second best class, 0 to 1.
    pub second: f32,
    /// Entropy as a fraction of the entropy of a uniform guess, 0 to 1.
    pub entropy_ratio: f32,
    /// Novelty of the picture to the model, 0 to 1; absent without a novelty score.
    pub novelty: Option<f32>,
}

impl TestedScores {
    /// From the calibrated probabilities of all classes.
    pub fn of(ratios: &[f32]) -> Self {
        let (best, second) = best_two(ratios);
        Self { best, second, entropy_ratio: entropy_ratio(ratios), novelty: None }
    }

    /// From the calibrated probabilities of a model's labels. `thresholds`: probability from which each label applies,
    /// for a multi-label model; otherwise empty.
    ///
    /// With several labels the least certain one decides: `best` is the certainty that it applies, or does not, from
    /// 0.5 at its threshold to 1 at 0 and at 1; `second` is the rest. The entropy is the mean over the labels.
    pub fn of_model(ratios: &[f32], thresholds: &[f32]) -> Self {
        if thresholds.is_empty() {
            return Self::of(ratios);
        }
        let certainty = |(ratio, threshold): (&f32, &f32)| match ratio >= threshold {
            true if *threshold < 1.0 => 0.5 + 0.5 * (ratio - threshold) / (1.0 - threshold),
            false if *threshold > 0.0 => 0.5 + 0.5 * (threshold - ratio) / threshold,
            _ => 1.0,
        };
        let best = ratios.iter().zip(thresholds).map(certainty).fold(1.0, f32::min);
        let entropy: f32 = ratios.iter().map(|ratio| entropy_ratio(&[*ratio, 1.0 - ratio])).sum();
        let entropy_ratio = entropy / ratios.len().max(1) as f32;
        Self { best, second: 1.0 - best, entropy_ratio, novelty: None }
    }

    /// Of a detector's prediction, by the confidence that it is [least sure](schemas::Prediction::least_sure) of. A box
    /// has no second class and no entropy, so those tests pass.
    pub fn of_object(confidence: f32) -> Self {
        Self { best: confidence, second: 0.0, entropy_ratio: 0.0, novelty: None }
    }

    /// The same scores with a novelty.
    pub fn with_novelty(self, novelty: Option<f32>) -> Self {
        Self { novelty, ..self }
    }
}

fn best_two(ratios: &[f32]) -> (f32, f32) {
    ratios.iter().fold((0.0, 0.0), |(best, second), &ratio| match ratio {
        _ if ratio > best => (ratio, best),
        _ if ratio > second => (best, ratio),
        _ => (best, second),
    })
}

/// Shannon entropy as a fraction of that of a uniform guess over the same number of classes, 0 to 1.
pub fn entropy_ratio(ratios: &[f32]) -> f32 {
    if ratios.len() < 2 {
        return 0.0;
    }
    let entropy: f32 = ratios.iter().filter(|ratio| **ratio > 0.0).map(|ratio| -ratio * ratio.ln()).sum();
    entropy / (ratios.len() as f32).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schemas::{DetectedObject, Prediction, ReleaseId};

    fn gate(settings: GateSettings) -> Gate {
        Gate::new(&settings, &GateDefaults::default())
    }

    #[test]
    fn each_test_names_itself() {
        let only = |settings: GateSettings| {
            gate(GateSettings { min_confidence_ratio: settings.min_confidence_ratio.or(Some(0.0)), ..settings })
        };
        let ratios = [0.5, 0.4, 0.1];
        let confidence = GateSettings { min_confidence_ratio: Some(0.6), ..GateSettings::default() };
        assert_eq!(only(confidence).decide(&TestedScores::of(&ratios), "a"), Reason::LowConfidence);
        let margin = GateSettings { min_margin_ratio: Some(0.2), ..GateSettings::default() };
        assert_eq!(only(margin).decide(&TestedScores::of(&ratios), "a"), Reason::LowMargin);
        let entropy = GateSettings { max_entropy_ratio: Some(0.5), ..GateSettings::default() };
        assert_eq!(only(entropy).decide(&TestedScores::of(&ratios), "a"), Reason::HighEntropy);
        let label = GateSettings { labels: [("a".to_owned(), 0.6)].into(), ..GateSettings::default() };
        assert_eq!(only(label.clone()).decide(&TestedScores::of(&ratios), "a"), Reason::LabelThreshold);
        assert_eq!(only(label).decide(&TestedScores::of(&ratios), "b"), Reason::Confident);
    }

    #[test]
    fn the_least_sure_object_decides_and_without_objects_how_sure_nothing_is() {
        let gate = gate(GateSettings {
            min_confidence_ratio: Some(0.5),
            min_margin_ratio: Some(0.3),
            labels: [("dog".to_owned(), 0.3)].into(),
            ..GateSettings::default()
        });
        let decide = |objects: &[(&str, f32)], confidence| {
            let object = |(label, confidence): &(&str, f32)| DetectedObject {
                label: (*label).to_owned(),
                confidence: *confidence,
                bounds: [0.0, 0.0, 0.5, 0.5].into(),
            };
            let prediction = Prediction {
                label: "none".into(),
                confidence,
                top: Vec::new(),
                labels: None,
                objects: Some(objects.iter().map(object).collect()),
                release: ReleaseId::from_sha256([1; 32]),
                temperature: None,
                novelty: None,
            };
            let (label, confidence) = prediction.least_sure().unwrap();
            gate.decide(&TestedScores::of_object(confidence), label)
        };
        assert_eq!(decide(&[("cat", 0.9), ("cat", 0.6)], 0.9), Reason::Confident);
        assert_eq!(decide(&[("cat", 0.9), ("cat", 0.4)], 0.9), Reason::LowConfidence);
        assert_eq!(decide(&[("cat", 0.9), ("dog", 0.4)], 0.9), Reason::Confident);
        assert_eq!(decide(&[("cat", 0.9), ("dog", 0.2)], 0.9), Reason::LabelThreshold);
        assert_eq!(decide(&[("dog", 0.4), ("cat", 0.4)], 0.9), Reason::LowConfidence, "of equal ones the last");
        assert_eq!(decide(&[], 0.8), Reason::Confident);
        assert_eq!(decide(&[], 0.4), Reason::LowConfidence);
    }

    #[test]
    fn a_strange_picture_is_doubtful_at_any_confidence() {
        let sure = |novelty| TestedScores::of(&[0.99, 0.01]).with_novelty(novelty);
        let gate = gate(GateSettings { max_novelty: Some(0.99), ..GateSettings::default() });
        assert_eq!(gate.decide(&sure(Some(0.995)), "a"), Reason::HighNovelty);
        assert_eq!(gate.decide(&sure(Some(0.99)), "a"), Reason::Confident);
        assert_eq!(gate.decide(&sure(None), "a"), Reason::Confident, "a model without a novelty score");
        assert!(gate.tests_novelty());
        let calibrated = gate.with_calibration(&crate::calibration::CalibrationEvidence::default().calibration(0.9));
        assert_eq!(calibrated.decide(&sure(Some(0.995)), "a"), Reason::HighNovelty);
        let open = Gate::new(&GateSettings::default(), &GateDefaults::default());
        assert_eq!(open.decide(&sure(Some(1.0)), "a"), Reason::Confident, "it is off by default");
        assert!(!open.tests_novelty());
    }

    #[test]
    fn with_several_labels_the_least_certain_one_decides() {
        let tested = |ratios: &[f32], thresholds: &[f32]| TestedScores::of_model(ratios, thresholds);
        assert_eq!(tested(&[0.2, 0.7], &[]), TestedScores::of(&[0.2, 0.7]));
        assert!((tested(&[0.99, 0.1, 0.4], &[0.5; 3]).best - 0.6).abs() < 1e-6);
        assert!((tested(&[0.3, 0.0], &[0.3, 0.5]).best - 0.5).abs() < 1e-6, "at its threshold");
        assert!((tested(&[0.0, 1.0], &[0.3, 0.7]).best - 1.0).abs() < 1e-6);
        assert!((tested(&[0.5, 1.0], &[0.0, 1.0]).best - 0.75).abs() < 1e-6, "thresholds of 0 and 1");
        assert!(tested(&[0.5, 0.0], &[0.5; 2]).entropy_ratio > 0.49);
    }

    #[test]
    fn settings_override_the_model() {
        let model = GateDefaults { min_confidence_ratio: Some(0.9), temperature: Some(2.0), ..GateDefaults::default() };
        let settings = GateSettings { min_confidence_ratio: Some(0.4), ..GateSettings::default() };
        let gate = Gate::new(&settings, &model);
        assert_eq!(gate.decide(&TestedScores::of(&[0.5, 0.5]), "a"), Reason::Confident);
        assert_eq!(gate.temperature, 2.0);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for settings in [
            GateSettings { temperature: Some(0.0), ..GateSettings::default() },
            GateSettings { min_confidence_ratio: Some(1.1), ..GateSettings::default() },
            GateSettings { max_entropy_ratio: Some(f32::NAN), ..GateSettings::default() },
            GateSettings { max_novelty: Some(99.0), ..GateSettings::default() },
            GateSettings { labels: [("a".to_owned(), -0.1)].into(), ..GateSettings::default() },
        ] {
            assert!(settings.check().is_err(), "{settings:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn a_stricter_gate_never_makes_an_answer_confident(
            logits in prop::collection::vec(-5f32..5.0, 2..20), low in 0f32..1.0, more in 0f32..1.0,
        ) {
            let ratios = vision::softmax(&logits, 1.0);
            let at = |min: f32| gate(GateSettings { min_confidence_ratio: Some(min), ..GateSettings::default() });
            if at(low).decide(&TestedScores::of(&ratios), "a") != Reason::Confident {
                prop_assert_ne!(at((low + more).min(1.0)).decide(&TestedScores::of(&ratios), "a"), Reason::Confident);
            }
        }

        #[test]
        fn a_gate_without_limits_passes_everything(logits in prop::collection::vec(-50f32..50.0, 1..20)) {
            let open = gate(GateSettings { min_confidence_ratio: Some(0.0), ..GateSettings::default() });
            prop_assert_eq!(open.decide(&TestedScores::of(&vision::softmax(&logits, 1.0)), "a"), Reason::Confident);
        }
    }
}

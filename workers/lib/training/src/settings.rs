//! What a training depends on.

use autograd::TrainableSelection;
use autograd::trainable::AUTO;
use serde::{Deserialize, Serialize};

/// What a training depends on. The defaults are estimates that work for a few thousand small pictures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainSettings {
    /// Weights to train: `auto` (all; only the last layers of a trained model when there are few images), `all`,
    /// `head`, `last N` (layers), or comma-separated name patterns.
    pub trainable: String,
    /// Number of epochs, 1 to 10,000.
    pub epochs: u32,
    /// Images per step, 1 to 1024.
    pub batch: u16,
    /// How weights follow gradients.
    pub optimizer: OptimizerSettings,
    /// How the learning rate changes.
    pub schedule: LearningRateSchedule,
    /// Share of the label's weight that is spread over all classes, 0 to below 1.
    pub label_smoothing_ratio: f32,
    /// Show every class equally often, however many examples it has.
    pub balanced: bool,
    /// How often a hard image is seen for each time another one is, at least 1.
    pub hard_repeats: u32,
    /// Share of the examples in the holdout, above 0 to below 1, if the index does not name one.
    pub holdout_ratio: f64,
    /// Random changes of pictures.
    pub augment: AugmentSettings,
    /// Random seed: the same seed, examples and settings give the same weights on the same machine.
    pub seed: u64,
    /// Threads per step, at least 1.
    pub threads: u16,
    /// Images computed at a time, at least 1, whose gradients are added up to those of the batch; absent: the batch at
    /// once. The sums are rounded differently.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub piece: Option<u16>,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            trainable: AUTO.into(),
            epochs: 10,
            batch: 32,
            optimizer: OptimizerSettings::default(),
            schedule: LearningRateSchedule::Cosine,
            label_smoothing_ratio: 0.0,
            balanced: true,
            hard_repeats: 1,
            holdout_ratio: 0.1,
            augment: AugmentSettings::default(),
            seed: 1,
            threads: 1,
            piece: None,
        }
    }
}

/// How weights follow gradients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerSettings {
    /// Kind: `sgd` or `adam`.
    pub kind: OptimizerKind,
    /// Highest learning rate, above 0; absent: found by trying a few, or 0.02 from random weights.
    pub learning_rate: Option<f32>,
    /// For `sgd`: share of the last movement that is kept, 0 to below 1.
    pub momentum_ratio: f32,
    /// Pull of every weight towards zero, 0 or more.
    pub weight_decay: f32,
    /// Largest norm of all gradients together, above 0; longer ones are clipped. Absent: no clipping.
    pub clip_norm: Option<f32>,
    /// Pull of every weight towards its start, 0 or more (L2-SP, arXiv 1802.01483; FedProx, arXiv 1812.06127). Absent:
    /// for a trained model 10 divided by the number of images, at most 0.1; 0 from random weights.
    pub proximal: Option<f32>,
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Sgd,
            learning_rate: None,
            momentum_ratio: 0.9,
            weight_decay: 0.0,
            clip_norm: None,
            proximal: None,
        }
    }
}

/// Kind of optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// Adam (arXiv 1412.6980), with the usual 0.9, 0.999 and 1e-8.
    Adam,
}

/// How the learning rate changes from the first to the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LearningRateSchedule {
    /// It stays the same.
    Constant,
    /// It rises for the first twentieth and falls along half a cosine to zero (arXiv 1608.03983).
    Cosine,
}

impl LearningRateSchedule {
    /// The rate at a step as a share of the highest. `done_ratio`: 0 before the first step, 1 after the last.
    pub fn rate_ratio(self, done_ratio: f64) -> f64 {
        const RISE: f64 = 0.05;
        match self {
            LearningRateSchedule::Constant => 1.0,
            LearningRateSchedule::Cosine if done_ratio < RISE => (done_ratio / RISE).max(0.01),
            LearningRateSchedule::Cosine => {
                0.5 * (1.0 + (std::f64::consts::PI * (done_ratio - RISE) / (1.0 - RISE)).cos())
            }
        }
    }
}

/// Random changes of pictures; 0 and false disable them.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentSettings {
    /// Mirror half of the pictures left to right.
    pub mirror: bool,
    /// Shift by up to this share of the sides, 0 to 0.5.
    pub shift_ratio: f32,
    /// Enlarge by up to this share, showing a part, 0 to 1.
    pub zoom_ratio: f32,
    /// Rotate by up to this many degrees either way, 0 to 180.
    pub turn_degrees: f32,
    /// Make brighter or darker by up to this share, 0 to 1.
    pub brightness_ratio: f32,
}

impl TrainSettings {
    /// Images computed at a time.
    pub fn images_at_a_time(&self) -> u16 {
        self.piece.unwrap_or(self.batch).min(self.batch)
    }

    /// Checks the settings and names the first one that is out of range.
    pub fn check(&self) -> Result<(), String> {
        let OptimizerSettings { learning_rate, momentum_ratio, weight_decay, clip_norm, proximal, .. } = self.optimizer;
        let AugmentSettings { shift_ratio, zoom_ratio, turn_degrees, brightness_ratio, .. } = self.augment;
        let wants = [
            ((1..=10_000).contains(&self.epochs), format!("epochs is {}; it must be 1 to 10000", self.epochs)),
            ((1..=1024).contains(&self.batch), format!("batch is {}; it must be 1 to 1024", self.batch)),
            (self.piece != Some(0), "piece is 0; it must be at least 1, or omit it".into()),
            (self.threads >= 1, "threads is 0; it must be at least 1".into()),
            (
                learning_rate.is_none_or(|rate| rate > 0.0 && rate.is_finite()),
                format!("optimizer.learning_rate is {}; it must be above 0", learning_rate.unwrap_or_default()),
            ),
            (
                (0.0..1.0).contains(&momentum_ratio),
                format!("optimizer.momentum_ratio is {momentum_ratio}; it must be at least 0 and below 1"),
            ),
            (weight_decay >= 0.0, format!("optimizer.weight_decay is {weight_decay}; it must be 0 or more")),
            (
                clip_norm.is_none_or(|norm| norm > 0.0),
                format!("optimizer.clip_norm is {}; it must be above 0", clip_norm.unwrap_or_default()),
            ),
            (
                proximal.is_none_or(|proximal| proximal >= 0.0),
                format!("optimizer.proximal is {}; it must be 0 or more", proximal.unwrap_or_default()),
            ),
            (
                (0.0..1.0).contains(&self.label_smoothing_ratio),
                format!("label_smoothing_ratio is {}; it must be at least 0 and below 1", self.label_smoothing_ratio),
            ),
            (
                self.holdout_ratio > 0.0 && self.holdout_ratio < 1.0,
                format!("holdout_ratio is {}; it must be above 0 and below 1", self.holdout_ratio),
            ),
            ((0.0..=0.5).contains(&shift_ratio), format!("augment.shift_ratio is {shift_ratio}; it must be 0 to 0.5")),
            ((0.0..=1.0).contains(&zoom_ratio), format!("augment.zoom_ratio is {zoom_ratio}; it must be 0 to 1")),
            (
                (0.0..=180.0).contains(&turn_degrees),
                format!("augment.turn_degrees is {turn_degrees}; it must be 0 to 180"),
            ),
            (
                (0.0..=1.0).contains(&brightness_ratio),
                format!("augment.brightness_ratio is {brightness_ratio}; it must be 0 to 1"),
            ),
        ];
        match wants.iter().find(|(is, _)| !is) {
            Some((_, wanted)) => Err(wanted.clone()),
            None => match self.trainable.parse::<TrainableSelection>() {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("trainable: {error}")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls_to_zero() {
        let rates: Vec<f64> =
            (0..=100).map(|step| LearningRateSchedule::Cosine.rate_ratio(f64::from(step) / 100.0)).collect();
        assert!(rates[..6].windows(2).all(|pair| pair[0] < pair[1]), "{rates:?}");
        assert!(rates[5..].windows(2).all(|pair| pair[0] > pair[1]), "{rates:?}");
        assert!((rates[5] - 1.0).abs() < 1e-9 && rates[100] < 1e-9);
    }

    #[test]
    fn invalid_settings_are_refused_by_name() {
        assert!(TrainSettings::default().check().is_ok());
        let wrong = TrainSettings { batch: 0, ..TrainSettings::default() };
        assert!(wrong.check().unwrap_err().contains("batch"));
        let wrong = TrainSettings { trainable: "last none".into(), ..TrainSettings::default() };
        assert!(wrong.check().unwrap_err().contains("last none"));
    }
}

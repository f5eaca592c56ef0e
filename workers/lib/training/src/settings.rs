//! Training settings.

use std::path::PathBuf;

use autograd::TrainableSelection;
use autograd::trainable::AUTO;
use schemas::WeightFormat;
use serde::{Deserialize, Serialize};

/// Training settings. The defaults are estimates that work for a few thousand small pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
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
    /// Share of the examples in the holdout, above 0 to below 1, if the index does not name one.
    pub holdout_ratio: f64,
    /// Random changes of pictures.
    pub augment: AugmentSettings,
    /// Random seed: the same seed, examples and settings give the same weights on the same machine.
    pub seed: u64,
    /// Threads per step, at least 1.
    pub threads: u16,
    /// CPU and memory limits.
    pub limits: LimitSettings,
    /// For a site's trainer: folder of the site's model; absent: the recognizer's.
    pub model: Option<PathBuf>,
    /// For a site's trainer: folder of its images and checkpoints; its content can be recreated.
    pub work: PathBuf,
    /// For a site's trainer: which images it trains on, and when.
    pub collect: CollectSettings,
    /// For a site's trainer: path of the key that signs its updates, as `tributary key` creates it; absent: unsigned.
    pub key: Option<PathBuf>,
    /// For a site's trainer: number format of the weights in an update: `f32`, `f16` (half the bytes), or `delta_f16`
    /// (half the bytes, as a difference from the base).
    pub weight_format: WeightFormat,
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
            holdout_ratio: 0.1,
            augment: AugmentSettings::default(),
            seed: 1,
            threads: 1,
            limits: LimitSettings::default(),
            model: None,
            work: PathBuf::from("tributary-training"),
            collect: CollectSettings::default(),
            key: None,
            weight_format: WeightFormat::F32,
        }
    }
}

/// CPU and memory limits of training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSettings {
    /// Memory limit in MiB, at least 1; absent: unlimited.
    pub memory_max_mib: Option<u32>,
    /// For a site's trainer: share of one CPU core that it may use, above 0 to 1. It only uses idle CPU time in any
    /// case.
    pub cpu_ratio: f64,
    /// For a site's trainer: pause while more than this many seconds of work are queued for the site's recognizers.
    pub yield_queue_s: f64,
    /// For a site's trainer: seconds between checkpoints, at least 1.
    pub checkpoint_every_s: u32,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self { memory_max_mib: None, cpu_ratio: 0.5, yield_queue_s: 0.5, checkpoint_every_s: 60 }
    }
}

/// Which images a site trains on, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CollectSettings {
    /// Seconds between looks for new labels, at least 1.
    pub every_s: u32,
    /// Train when this many images were labelled since the last time, at least 1.
    pub min_new_images: u32,
    /// Most labelled images to train on, at least 2; the oldest of the most frequent labels are dropped.
    pub max_images: u32,
    /// Disk space for them in MiB, at least 1.
    pub max_mib: u32,
    /// Lowest confidence of a verdict that is used as a label, 0 to 1.
    pub min_verdict_ratio: f32,
    /// How often a hard image is seen for each time another one is, 1 to 100. Twice helps by no more than chance
    /// (decision 0033).
    pub hard_repeats: u32,
}

impl Default for CollectSettings {
    fn default() -> Self {
        Self {
            every_s: 60,
            min_new_images: 500,
            max_images: 20_000,
            max_mib: 1024,
            min_verdict_ratio: 0.6,
            hard_repeats: 1,
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
    /// Checks the settings and names the first one that is out of range.
    pub fn check(&self) -> Result<(), String> {
        let OptimizerSettings { learning_rate, momentum_ratio, weight_decay, clip_norm, proximal, .. } = self.optimizer;
        let AugmentSettings { shift_ratio, zoom_ratio, turn_degrees, brightness_ratio, .. } = self.augment;
        let LimitSettings { memory_max_mib, cpu_ratio, yield_queue_s, checkpoint_every_s } = self.limits;
        let collect = &self.collect;
        let wants = [
            ((1..=10_000).contains(&self.epochs), format!("epochs is {}; it must be 1 to 10000", self.epochs)),
            ((1..=1024).contains(&self.batch), format!("batch is {}; it must be 1 to 1024", self.batch)),
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
            (memory_max_mib != Some(0), "limits.memory_max_mib is 0; it must be at least 1, or omit it".into()),
            (
                cpu_ratio > 0.0 && cpu_ratio <= 1.0,
                format!("limits.cpu_ratio is {cpu_ratio}; it must be above 0 and at most 1"),
            ),
            (yield_queue_s > 0.0, format!("limits.yield_queue_s is {yield_queue_s}; it must be above 0")),
            (checkpoint_every_s > 0, "limits.checkpoint_every_s is 0; it must be at least 1".into()),
            (collect.every_s > 0, "collect.every_s is 0; it must be at least 1".into()),
            (collect.min_new_images > 0, "collect.min_new_images is 0; it must be at least 1".into()),
            (collect.max_images > 1, format!("collect.max_images is {}; it must be at least 2", collect.max_images)),
            (collect.max_mib > 0, "collect.max_mib is 0; it must be at least 1".into()),
            (
                (0.0..=1.0).contains(&collect.min_verdict_ratio),
                format!("collect.min_verdict_ratio is {}; it must be 0 to 1", collect.min_verdict_ratio),
            ),
            (
                (1..=100).contains(&collect.hard_repeats),
                format!("collect.hard_repeats is {}; it must be 1 to 100", collect.hard_repeats),
            ),
        ];
        match wants.iter().find(|(is, _)| !is) {
            Some((_, wanted)) => Err(format!("trainer.{wanted}")),
            None => match self.trainable.parse::<TrainableSelection>() {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("trainer.trainable: {error}")),
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

//! How is trained.

use std::path::PathBuf;

use autograd::TrainableSelection;
use autograd::trainable::AUTO;
use schemas::WeightFormat;
use serde::{Deserialize, Serialize};

/// How is trained. The defaults are guesses that learn from a few thousand small pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSettings {
    /// Which weights: `auto` (all, or of a model that is good already the last layers alone where images are few), `all`,
    /// `head`, `last N` (layers), or patterns of names with commas between them.
    pub trainable: String,
    /// How often every example is seen, 1 to 10,000.
    pub epochs: u32,
    /// Images in a step, 1 to 1024.
    pub batch: u16,
    /// How weights follow gradients.
    pub optimizer: OptimizerSettings,
    /// How the learning rate changes.
    pub schedule: LearningRateSchedule,
    /// What is taken from the label and given to all classes equally, 0 to below 1.
    pub label_smoothing_ratio: f32,
    /// Whether every class is seen equally often, however many examples it has.
    pub balanced: bool,
    /// Share of the examples held out to measure by, above 0 to below 1, where the index names none.
    pub holdout_ratio: f64,
    /// How pictures are changed at random.
    pub augment: AugmentSettings,
    /// Of all chance: the same seed, examples and settings give the same weights on the same machine.
    pub seed: u64,
    /// Threads of one step, at least 1.
    pub threads: u16,
    /// What it may take from the machine.
    pub limits: LimitSettings,
    /// Of a site's trainer: folder of the model that the site runs; the recognizer's if absent.
    pub model: Option<PathBuf>,
    /// Of a site's trainer: where it keeps the images it learns from and how far it is; it can be made again.
    pub work: PathBuf,
    /// Of a site's trainer: what it learns from, and when.
    pub collect: CollectSettings,
    /// Of a site's trainer: file of the key that its updates are signed with, as `tributary key` makes it; absent: they are
    /// not signed.
    pub key: Option<PathBuf>,
    /// Of a site's trainer: how the weights in an update are written: `f32`, `f16` (half the bytes), or
    /// `delta_f16` (half the bytes, against the base).
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

/// What training may take from the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSettings {
    /// Memory that training may take, MiB, at least 1; absent: not limited.
    pub memory_max_mib: Option<u32>,
    /// Of a site's trainer: share of one processor that it may use, above 0 to 1. It runs only on what nobody
    /// else wants in any case.
    pub cpu_ratio: f64,
    /// Of a site's trainer: it stands still while more than this waits for the site's recognizers, seconds.
    pub yield_queue_s: f64,
    /// Of a site's trainer: how much work a kill may cost, seconds, at least 1.
    pub checkpoint_every_s: u32,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self { memory_max_mib: None, cpu_ratio: 0.5, yield_queue_s: 0.5, checkpoint_every_s: 60 }
    }
}

/// What a site learns from, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CollectSettings {
    /// How often it looks for new labels, seconds, at least 1.
    pub every_s: u32,
    /// It trains when so many images were labelled since the last time, at least 1.
    pub min_new_images: u32,
    /// Labelled images it learns from, at least 2; of the most frequent labels the oldest make way.
    pub max_images: u32,
    /// Room for them in its folder, MiB, at least 1.
    pub max_mib: u32,
    /// A verdict is believed from this confidence on, 0 to 1.
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
    /// Which.
    pub kind: OptimizerKind,
    /// Step length at the highest, above 0; absent: found by trying a few, or 0.02 from random weights.
    pub learning_rate: Option<f32>,
    /// Of `sgd`: how much of the last movement goes on, 0 to below 1.
    pub momentum_ratio: f32,
    /// Pulls every weight towards zero, 0 and more.
    pub weight_decay: f32,
    /// Longest gradient of all weights together; longer ones are shortened. Absent: none is.
    pub clip_norm: Option<f32>,
    /// Pulls every weight towards where it started, 0 and more (L2-SP, arXiv 1802.01483; FedProx, arXiv 1812.06127); absent:
    /// 10 divided by the number of images learned from, at most 0.1, of a model that is good already; 0 from random weights.
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

/// Which optimizer.
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
    /// Not at all.
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

/// How pictures are changed at random; 0 and false: not.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentSettings {
    /// Half of them are mirrored, left and right changing sides.
    pub mirror: bool,
    /// Moved by up to this share of their sides, 0 to 0.5.
    pub shift_ratio: f32,
    /// Enlarged by up to this share, so that a part is seen, 0 to 1.
    pub zoom_ratio: f32,
    /// Turned by up to so many degrees either way, 0 to 180.
    pub turn_degrees: f32,
    /// Made brighter or darker by up to this share, 0 to 1.
    pub brightness_ratio: f32,
}

impl TrainSettings {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        let OptimizerSettings { learning_rate, momentum_ratio, weight_decay, clip_norm, proximal, .. } = self.optimizer;
        let AugmentSettings { shift_ratio, zoom_ratio, turn_degrees, brightness_ratio, .. } = self.augment;
        let LimitSettings { memory_max_mib, cpu_ratio, yield_queue_s, checkpoint_every_s } = self.limits;
        let collect = &self.collect;
        let wants = [
            ((1..=10_000).contains(&self.epochs), "epochs: 1 to 10000"),
            ((1..=1024).contains(&self.batch), "batch: 1 to 1024"),
            (self.threads >= 1, "threads: at least 1"),
            (learning_rate.is_none_or(|rate| rate > 0.0 && rate.is_finite()), "optimizer.learning_rate: above 0"),
            ((0.0..1.0).contains(&momentum_ratio), "optimizer.momentum_ratio: 0 to below 1"),
            (weight_decay >= 0.0, "optimizer.weight_decay: 0 and more"),
            (clip_norm.is_none_or(|norm| norm > 0.0), "optimizer.clip_norm: above 0"),
            (proximal.is_none_or(|proximal| proximal >= 0.0), "optimizer.proximal: 0 and more"),
            ((0.0..1.0).contains(&self.label_smoothing_ratio), "label_smoothing_ratio: 0 to below 1"),
            (self.holdout_ratio > 0.0 && self.holdout_ratio < 1.0, "holdout_ratio: above 0, below 1"),
            ((0.0..=0.5).contains(&shift_ratio), "augment.shift_ratio: 0 to 0.5"),
            ((0.0..=1.0).contains(&zoom_ratio), "augment.zoom_ratio: 0 to 1"),
            ((0.0..=180.0).contains(&turn_degrees), "augment.turn_degrees: 0 to 180"),
            ((0.0..=1.0).contains(&brightness_ratio), "augment.brightness_ratio: 0 to 1"),
            (memory_max_mib != Some(0), "limits.memory_max_mib: at least 1, or leave it away"),
            (cpu_ratio > 0.0 && cpu_ratio <= 1.0, "limits.cpu_ratio: above 0 to 1"),
            (yield_queue_s > 0.0, "limits.yield_queue_s: above 0"),
            (checkpoint_every_s > 0, "limits.checkpoint_every_s: at least 1"),
            (collect.every_s > 0, "collect.every_s: at least 1"),
            (collect.min_new_images > 0, "collect.min_new_images: at least 1"),
            (collect.max_images > 1, "collect.max_images: at least 2"),
            (collect.max_mib > 0, "collect.max_mib: at least 1"),
            ((0.0..=1.0).contains(&collect.min_verdict_ratio), "collect.min_verdict_ratio: 0 to 1"),
            ((1..=100).contains(&collect.hard_repeats), "collect.hard_repeats: 1 to 100"),
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
    fn the_rate_rises_and_falls_to_nothing() {
        let rates: Vec<f64> =
            (0..=100).map(|step| LearningRateSchedule::Cosine.rate_ratio(f64::from(step) / 100.0)).collect();
        assert!(rates[..6].windows(2).all(|pair| pair[0] < pair[1]), "{rates:?}");
        assert!(rates[5..].windows(2).all(|pair| pair[0] > pair[1]), "{rates:?}");
        assert!((rates[5] - 1.0).abs() < 1e-9 && rates[100] < 1e-9);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        assert!(TrainSettings::default().check().is_ok());
        let wrong = TrainSettings { batch: 0, ..TrainSettings::default() };
        assert!(wrong.check().unwrap_err().contains("batch"));
        let wrong = TrainSettings { trainable: "last none".into(), ..TrainSettings::default() };
        assert!(wrong.check().unwrap_err().contains("last none"));
    }
}

//! Settings of a site's trainer, and of `tributary train`.

use std::path::PathBuf;

use schemas::WeightFormat;
use serde::{Deserialize, Serialize};
use training::TrainSettings;
use training::pace::DEFAULT_CPU_RATIO;
use training::quota::CpuBounds;
use training::settings::{AugmentSettings, LearningRateSchedule, OptimizerSettings};

/// Settings of a site's trainer, and of `tributary train`: how is trained ([`TrainSettings`]), and for a site where, on what
/// and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainerSettings {
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

impl Default for TrainerSettings {
    fn default() -> Self {
        let TrainSettings {
            trainable,
            epochs,
            batch,
            optimizer,
            schedule,
            label_smoothing_ratio,
            balanced,
            hard_repeats,
            holdout_ratio,
            augment,
            seed,
            threads,
            piece: _,
        } = TrainSettings::default();
        Self {
            trainable,
            epochs,
            batch,
            optimizer,
            schedule,
            label_smoothing_ratio,
            balanced,
            holdout_ratio,
            augment,
            seed,
            threads,
            limits: LimitSettings::default(),
            model: None,
            work: PathBuf::from("tributary-training"),
            collect: CollectSettings { hard_repeats, ..CollectSettings::default() },
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
    /// For a site's trainer: share of one CPU core that it may use, above 0 to 1. Without `least_ratio` it only uses
    /// idle CPU time in any case.
    pub cpu_ratio: f64,
    /// For a site's trainer: least share of one CPU core over an hour of training, 0 to `cpu_ratio` and to 1 less
    /// `inference_reserve_ratio`. A busy site gives it in short pieces, evenly; an overloaded one by the end of the
    /// hour. 0: a busy site trains on what nobody else wants, which may be nothing.
    pub least_ratio: f64,
    /// For a site's trainer with `least_ratio`: share of one CPU core that inference keeps at any moment, 0 to below 1,
    /// whatever training is owed.
    pub inference_reserve_ratio: f64,
    /// For a site's trainer with `least_ratio`: images computed in one piece, at least 1. Inference waits for a
    /// processor no longer than a piece takes, which `status` shows: aim for some 10 ms.
    pub piece_images: u16,
    /// For a site's trainer: pause while more than this many seconds of work are queued for the site's recognizers; with
    /// `least_ratio`, as long as its share of the hour allows.
    pub yield_queue_s: f64,
    /// For a site's trainer: seconds between checkpoints, at least 1.
    pub checkpoint_every_s: u32,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            memory_max_mib: None,
            cpu_ratio: DEFAULT_CPU_RATIO,
            least_ratio: 0.0,
            inference_reserve_ratio: 0.5,
            piece_images: 4,
            yield_queue_s: 0.5,
            checkpoint_every_s: 60,
        }
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

impl LimitSettings {
    /// Bounds of the processor time of training.
    pub fn bounds(&self) -> CpuBounds {
        CpuBounds {
            most_ratio: self.cpu_ratio,
            least_ratio: self.least_ratio,
            reserve_ratio: self.inference_reserve_ratio,
        }
    }
}

impl TrainerSettings {
    /// How is trained.
    pub fn training(&self) -> TrainSettings {
        TrainSettings {
            trainable: self.trainable.clone(),
            epochs: self.epochs,
            batch: self.batch,
            optimizer: self.optimizer.clone(),
            schedule: self.schedule,
            label_smoothing_ratio: self.label_smoothing_ratio,
            balanced: self.balanced,
            hard_repeats: self.collect.hard_repeats,
            holdout_ratio: self.holdout_ratio,
            augment: self.augment,
            seed: self.seed,
            threads: self.threads,
            piece: (self.limits.least_ratio > 0.0).then_some(self.limits.piece_images),
        }
    }

    /// Checks the settings and names the first one that is out of range.
    pub fn check(&self) -> Result<(), String> {
        let LimitSettings {
            memory_max_mib,
            cpu_ratio,
            least_ratio,
            inference_reserve_ratio,
            piece_images,
            yield_queue_s,
            checkpoint_every_s,
        } = self.limits;
        let most_ratio = cpu_ratio.min(1.0 - inference_reserve_ratio);
        let collect = &self.collect;
        let wants = [
            (memory_max_mib != Some(0), "limits.memory_max_mib is 0; it must be at least 1, or omit it".into()),
            (
                cpu_ratio > 0.0 && cpu_ratio <= 1.0,
                format!("limits.cpu_ratio is {cpu_ratio}; it must be above 0 and at most 1"),
            ),
            (
                (0.0..1.0).contains(&inference_reserve_ratio),
                format!(
                    "limits.inference_reserve_ratio is {inference_reserve_ratio}; it must be at least 0 and below 1"
                ),
            ),
            (
                (0.0..=most_ratio).contains(&least_ratio),
                format!(
                    "limits.least_ratio is {least_ratio}; it must be 0 to {most_ratio:.3}, the smaller of limits.cpu_ratio \
                     and 1 less limits.inference_reserve_ratio"
                ),
            ),
            (piece_images > 0, "limits.piece_images is 0; it must be at least 1".into()),
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
            Some((_, wanted)) => Err(wanted.clone()),
            None => self.training().check(),
        }
    }
}

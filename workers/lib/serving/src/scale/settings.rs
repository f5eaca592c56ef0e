//! Settings of the number of replicas.

use serde::{Deserialize, Serialize};

/// Settings for a worker whose number of replicas follows its queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScaleSettings {
    /// Fewest replicas, at least 1.
    pub min_replicas: usize,
    /// Most replicas, at least `min_replicas`; 0: the number is fixed to `infer.replicas`. The queue starts no more than
    /// the processors can run at once.
    pub max_replicas: usize,
    /// Queued work above which replicas are added, seconds, above 0.
    pub target_s: f64,
    /// Shortest time from a change until replicas are added again, seconds. Where more did not help, they are tried
    /// again after 5 times as long, then 10, 20, at most 80 times.
    pub up_cooldown_s: f64,
    /// Time with too little work after which half of the replicas that are too many are removed, seconds.
    pub down_cooldown_s: f64,
    /// Smallest gain in images per second from one more replica, as a fraction of what each did before, 0 to 1; those that
    /// bring less, by more than chance, are removed again.
    pub min_gain_ratio: f64,
}

impl Default for ScaleSettings {
    fn default() -> Self {
        Self {
            min_replicas: 1,
            max_replicas: 0,
            target_s: 1.0,
            up_cooldown_s: 3.0,
            down_cooldown_s: 60.0,
            min_gain_ratio: 0.1,
        }
    }
}

impl ScaleSettings {
    /// Checks the settings.
    pub fn check(&self) -> Result<(), String> {
        let Self { min_replicas: min, max_replicas: max, .. } = self;
        if *min == 0 {
            return Err("min_replicas is 0; it must be at least 1".into());
        }
        if *max > 0 && max < min {
            return Err(format!("max_replicas is {max}; it must be 0, or at least min_replicas ({min})"));
        }
        let positive = [
            ("target_s", self.target_s),
            ("up_cooldown_s", self.up_cooldown_s),
            ("down_cooldown_s", self.down_cooldown_s),
        ];
        if let Some((name, value)) = positive.into_iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            return Err(format!("{name} is {value}; it must be above 0"));
        }
        match (0.0..=1.0).contains(&self.min_gain_ratio) {
            true => Ok(()),
            false => Err(format!("min_gain_ratio is {}; it must be between 0 and 1", self.min_gain_ratio)),
        }
    }
}

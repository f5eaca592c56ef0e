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
    /// These settings for a latency objective: replicas are added when half of the time that the objective leaves beside
    /// a batch is queued, because the queue is looked at once a second and grows meanwhile.
    pub fn within_objective(self, objective_s: f64, batch_s: f64) -> Self {
        const LEAST_S: f64 = 1e-3;
        let target_s = self.target_s.min(((objective_s - batch_s) / 2.0).max(LEAST_S));
        Self { target_s, ..self }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_objective_adds_replicas_sooner_and_never_later() {
        let target_s = |objective_s, batch_s| ScaleSettings::default().within_objective(objective_s, batch_s).target_s;
        assert!((target_s(0.4, 0.1) - 0.15).abs() < 1e-9);
        assert_eq!(target_s(60.0, 0.1), ScaleSettings::default().target_s);
        assert!(ScaleSettings::default().within_objective(0.01, 0.5).check().is_ok(), "a batch takes longer");
    }
}

//! What an operator may choose about the number of replicas.

use serde::{Deserialize, Serialize};
use streams::Role;

/// What an operator may choose about the number of replicas of a worker that follows its queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScaleSettings {
    /// Fewest replicas, at least 1.
    pub min_replicas: usize,
    /// Most replicas, at least `least`; 0 follows no queue: there are as many as `infer.replicas` says.
    pub max_replicas: usize,
    /// Seconds of work that may wait before replicas are added, above 0.
    pub target_s: f64,
    /// After a change, replicas are added no sooner than this, seconds.
    pub up_cooldown_s: f64,
    /// Replicas go when there was too little to do for this long, seconds.
    pub down_cooldown_s: f64,
    /// One more replica must raise what is done a second by this share, or it goes again, 0 to 1.
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
    /// What is wrong with the settings, if something is. `role`: whose they are.
    pub fn check(&self, role: Role) -> Result<(), String> {
        let Self { min_replicas: least, max_replicas: most, .. } = self;
        if *least == 0 {
            return Err(format!("{role}.scale.min_replicas is 0, use at least 1"));
        }
        if *most > 0 && most < least {
            return Err(format!(
                "{role}.scale.max_replicas is {most}, use at least {role}.scale.min_replicas, {least}"
            ));
        }
        let positive = [
            ("target_s", self.target_s),
            ("up_cooldown_s", self.up_cooldown_s),
            ("down_cooldown_s", self.down_cooldown_s),
        ];
        if let Some((name, value)) = positive.into_iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            return Err(format!("{role}.scale.{name} is {value}, use more than 0"));
        }
        match (0.0..=1.0).contains(&self.min_gain_ratio) {
            true => Ok(()),
            false => Err(format!("{role}.scale.min_gain_ratio is {}, use 0 to 1", self.min_gain_ratio)),
        }
    }
}

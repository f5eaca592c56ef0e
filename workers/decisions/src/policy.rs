//! Which policy decides where a task is recognized, and by which numbers. Can be changed while it runs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A policy by name. All of them go through the same two decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyName {
    /// The method's thresholds: redirect the excess while overloaded and the network is available, hold it
    /// while it is not.
    Paper,
    /// Redirect a task only if the cloud is predicted to be done sooner.
    #[default]
    EarliestFinish,
    /// Nothing goes up; doubtful answers stay as they are.
    EdgeOnly,
    /// Everything goes up.
    CloudOnly,
    /// The usual baseline: the edge first, then one synchronous upload for each hard image, by a fixed
    /// threshold, whatever the load and the link are like.
    HardExample,
    /// A share of the images goes up, drawn by lot.
    Random,
    /// Goes up what the edge gets wrong; needs the true labels, so for measurements only.
    Oracle,
}

/// All of them.
pub const POLICIES: [PolicyName; 7] = [
    PolicyName::Paper,
    PolicyName::EarliestFinish,
    PolicyName::EdgeOnly,
    PolicyName::CloudOnly,
    PolicyName::HardExample,
    PolicyName::Random,
    PolicyName::Oracle,
];

impl PolicyName {
    /// Whether it sends up what it sends up whatever the cloud promises: there is nowhere else to go with it,
    /// and no hurry to take it back.
    pub fn ignores_cloud_estimate(self) -> bool {
        matches!(self, PolicyName::CloudOnly | PolicyName::Random)
    }

    /// The name in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            PolicyName::Paper => "paper",
            PolicyName::EarliestFinish => "earliest-finish",
            PolicyName::EdgeOnly => "edge-only",
            PolicyName::CloudOnly => "cloud-only",
            PolicyName::HardExample => "hard-example",
            PolicyName::Random => "random",
            PolicyName::Oracle => "oracle",
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that no policy has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "policy {name:?} is unknown: use paper, earliest-finish, edge-only, cloud-only, hard-example, random or oracle"
)]
pub struct UnknownPolicy {
    name: String,
}

impl FromStr for PolicyName {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        let known = POLICIES.into_iter().find(|policy| policy.as_str() == name);
        known.ok_or_else(|| UnknownPolicy { name: name.chars().take(64).collect() })
    }
}

/// Which policy decides, and by which numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Its name; `tributary policy NAME` changes it while the site runs.
    pub name: PolicyName,
    /// What `earliest-finish` aims for.
    pub objective: Objective,
    /// When the site counts as overloaded.
    pub load: LoadMarks,
    /// Tasks of one recognizer that may be redirected and without an answer, 1 to 4096.
    pub max_offloaded: u32,
    /// The images of those, MiB, at least 1; they stay in memory, to be taken back.
    pub max_offloaded_mib: u32,
    /// A held task is recognized here after so long, milliseconds, even without a deadline.
    pub hold_ms: u64,
    /// Share of the images that `random` sends up, 0 to 1.
    pub share_ratio: f64,
    /// How long `hard-example` waits for each verdict, milliseconds; with the library it stands for it is 12000.
    pub verdict_timeout_ms: u64,
    /// What recognizing and sending cost, where the machine does not count it.
    pub energy: EnergySettings,
    /// What a verdict is worth to the objective `weighted`, in points of accuracy; a guess to be replaced by
    /// the difference of the two models.
    pub cloud_gain_points: f64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            name: PolicyName::default(),
            objective: Objective::default(),
            load: LoadMarks::default(),
            max_offloaded: 256,
            max_offloaded_mib: 64,
            hold_ms: 2000,
            share_ratio: 0.2,
            verdict_timeout_ms: 12_000,
            energy: EnergySettings::default(),
            cloud_gain_points: 0.0,
        }
    }
}

impl Policy {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        let ratio = |name: &str, value: f64| match (0.0..=1.0).contains(&value) {
            true => Ok(()),
            false => Err(format!("recognizer.policy.{name} is {value}, it must lie between 0 and 1")),
        };
        ratio("share_ratio", self.share_ratio)?;
        let load = &self.load;
        ratio("load.cpu_high_ratio", load.cpu_high_ratio)?;
        ratio("load.memory_high_ratio", load.memory_high_ratio)?;
        ratio("load.memory_pressure_high_ratio", load.memory_pressure_high_ratio)?;
        let pairs = [
            ("cpu_low_ratio", load.cpu_low_ratio, load.cpu_high_ratio),
            ("memory_low_ratio", load.memory_low_ratio, load.memory_high_ratio),
            ("memory_pressure_low_ratio", load.memory_pressure_low_ratio, load.memory_pressure_high_ratio),
            ("queue_low_s", load.queue_low_s, load.queue_high_s),
        ];
        if let Some((name, low, high)) = pairs.into_iter().find(|(_, low, high)| !(0.0..=*high).contains(low)) {
            return Err(format!(
                "recognizer.policy.load.{name} is {low}, it must lie between 0 and its high mark {high}"
            ));
        }
        match self {
            Self { max_offloaded: 0 | 4097.., .. } => Err("recognizer.policy.max_offloaded must be 1 to 4096".into()),
            Self { max_offloaded_mib: 0, .. } => Err("recognizer.policy.max_offloaded_mib is 0, use at least 1".into()),
            _ => Ok(()),
        }
    }
}

/// What `earliest-finish` aims for. Deadlines and privacy are constraints of both.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Latency first; where that makes no difference, energy and bytes, which favour the site.
    #[default]
    Hierarchical,
    /// A sum of latency, energy, bytes and accuracy.
    Weighted(ObjectiveWeights),
}

/// What each part of a weighted objective costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveWeights {
    /// A second until the answer.
    pub per_s: f64,
    /// A joule.
    pub per_j: f64,
    /// A megabyte sent up.
    pub per_mb: f64,
    /// A point of accuracy, which is gained.
    pub per_point: f64,
}

impl Default for ObjectiveWeights {
    fn default() -> Self {
        Self { per_s: 1.0, per_j: 0.0, per_mb: 0.0, per_point: 0.0 }
    }
}

/// When the site counts as overloaded: above the high mark of any, until below the low marks of all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadMarks {
    /// Share of the processors in use, while images wait, 0 to 1.
    pub cpu_high_ratio: f64,
    /// 0 to `cpu_high_ratio`.
    pub cpu_low_ratio: f64,
    /// Share of the memory in use, 0 to 1.
    pub memory_high_ratio: f64,
    /// 0 to `memory_high_ratio`.
    pub memory_low_ratio: f64,
    /// Share of the time in which something waited for memory, where the kernel counts it, 0 to 1.
    pub memory_pressure_high_ratio: f64,
    /// 0 to `memory_pressure_high_ratio`.
    pub memory_pressure_low_ratio: f64,
    /// Seconds of work that wait.
    pub queue_high_s: f64,
    /// 0 to `queue_high_s`.
    pub queue_low_s: f64,
    /// It changes at most this often, milliseconds.
    pub dwell_ms: u64,
}

impl Default for LoadMarks {
    fn default() -> Self {
        Self {
            cpu_high_ratio: 0.95,
            cpu_low_ratio: 0.8,
            memory_high_ratio: 0.92,
            memory_low_ratio: 0.85,
            memory_pressure_high_ratio: 0.2,
            memory_pressure_low_ratio: 0.05,
            queue_high_s: 0.5,
            queue_low_s: 0.1,
            dwell_ms: 250,
        }
    }
}

/// What recognizing and sending cost where the machine does not count it: guesses to be replaced by what a
/// meter says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EnergySettings {
    /// A busy core, watts.
    pub watts_per_core: f64,
    /// A megabyte sent up, joules.
    pub joules_per_mb: f64,
}

impl Default for EnergySettings {
    fn default() -> Self {
        Self { watts_per_core: 8.0, joules_per_mb: 4.0 }
    }
}

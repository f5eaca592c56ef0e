//! The policy that decides where a task is recognized, and its numbers. It can be changed at runtime.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Name of a policy. All policies use the same two decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyName {
    /// The thresholds of the paper: offload the excess while overloaded and the network is available, hold it
    /// while it is not.
    Paper,
    /// Offload a task if the cloud is predicted to finish sooner, or the site is short of memory; hold none.
    #[default]
    EarliestFinish,
    /// Send nothing up; doubtful answers stand.
    EdgeOnly,
    /// Send everything up.
    CloudOnly,
}

/// All policies.
pub const POLICIES: [PolicyName; 4] =
    [PolicyName::Paper, PolicyName::EarliestFinish, PolicyName::EdgeOnly, PolicyName::CloudOnly];

impl PolicyName {
    /// Whether it sends tasks up whatever the cloud's predicted finish: there is no alternative for them,
    /// and no reason to reclaim them early.
    pub fn ignores_cloud_estimate(self) -> bool {
        self == PolicyName::CloudOnly
    }

    /// The name in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            PolicyName::Paper => "paper",
            PolicyName::EarliestFinish => "earliest-finish",
            PolicyName::EdgeOnly => "edge-only",
            PolicyName::CloudOnly => "cloud-only",
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An unknown name of a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy {name:?} is unknown; use earliest-finish, paper, edge-only or cloud-only")]
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

/// The policy and its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Name of the policy; `tributary policy NAME` changes it at runtime.
    pub name: PolicyName,
    /// Objective of `earliest-finish`, of offloading and of verification.
    pub objective: Objective,
    /// Differences that count as none under the objective `hierarchical`.
    pub tolerance: ObjectiveTolerances,
    /// When the site counts as overloaded. `paper` offloads or holds then; `earliest-finish` takes the high marks of
    /// memory as limits, and that of the processor to test free replicas too.
    pub load: LoadMarks,
    /// Most offloaded tasks of one recognizer without an answer, 1 to 4096.
    pub max_offloaded: u32,
    /// Most MiB of images of offloaded tasks, at least 1; they stay in memory so that tasks can be reclaimed.
    pub max_offloaded_mib: u32,
    /// Longest time a task is held (`listen`) before it is recognized here even without a deadline, milliseconds. Only
    /// `paper` and `cloud-only` hold tasks; `earliest-finish` never does, and takes this as the longest delay for which
    /// a site short of memory still offloads.
    pub hold_ms: u64,
    /// How long `cloud-only` waits for a verdict before an image is recognized here, milliseconds.
    pub cloud_only_timeout_ms: u64,
    /// Energy of recognizing and sending, where the machine has no counter.
    pub energy: EnergySettings,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            name: PolicyName::default(),
            objective: Objective::default(),
            tolerance: ObjectiveTolerances::default(),
            load: LoadMarks::default(),
            max_offloaded: 256,
            max_offloaded_mib: 64,
            hold_ms: 2000,
            cloud_only_timeout_ms: 12_000,
            energy: EnergySettings::default(),
        }
    }
}

impl Policy {
    /// Checks the settings.
    pub fn check(&self) -> Result<(), String> {
        let ratio = |name: &str, value: f64| match (0.0..=1.0).contains(&value) {
            true => Ok(()),
            false => Err(format!("{name} is {value}; it must be between 0 and 1")),
        };
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
            return Err(format!("load.{name} is {low}; it must be between 0 and its high mark ({high})"));
        }
        let ObjectiveTolerances { energy_j, sent_mb, accuracy_points } = self.tolerance;
        let mut not_negative = vec![
            ("tolerance.energy_j", energy_j),
            ("tolerance.sent_mb", sent_mb),
            ("tolerance.accuracy_points", accuracy_points),
            ("energy.watts_per_core", self.energy.watts_per_core),
            ("energy.joules_per_mb", self.energy.joules_per_mb),
        ];
        if let Objective::Weighted(ObjectiveWeights { per_s, per_j, per_mb, per_point }) = self.objective {
            not_negative.extend([("per_s", per_s), ("per_j", per_j), ("per_mb", per_mb), ("per_point", per_point)]);
        }
        if let Some((name, value)) = not_negative.into_iter().find(|(_, value)| !(0.0..f64::INFINITY).contains(value)) {
            return Err(format!("{name} is {value}; it must be a number from 0"));
        }
        match self {
            Self { max_offloaded: value @ (0 | 4097..), .. } => {
                Err(format!("max_offloaded is {value}; it must be between 1 and 4096"))
            }
            Self { max_offloaded_mib: 0, .. } => Err("max_offloaded_mib is 0; it must be at least 1".into()),
            _ => Ok(()),
        }
    }
}

/// Objective of `earliest-finish`. Privacy, deadlines and budgets are constraints of both; the numbers are those that are
/// predicted of each image (docs/decisions/0042).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Level by level: a level decides only if all levels before it are equal within their tolerances. Offloading:
    /// latency, then energy, bytes, accuracy. A doubtful answer: accuracy first, because the site's answer is out
    /// already and the gate found it not good enough; then energy and bytes.
    #[default]
    Hierarchical,
    /// The smaller weighted sum of seconds, joules, megabytes and points of accuracy.
    Weighted(ObjectiveWeights),
}

impl Objective {
    /// Whether it needs to know what the cloud gains on confident answers, so that some are verified.
    pub fn weighs_accuracy(&self) -> bool {
        matches!(self, Objective::Weighted(weights) if weights.per_point > 0.0)
    }
}

/// Weights of the objective `weighted`, all in one unit of cost of your choice, for example euros.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveWeights {
    /// Cost of a second until an offloaded or locally recognized image is answered. Not of the wait for a verdict: the
    /// provisional answer is out by then.
    pub per_s: f64,
    /// Cost of a joule, at the site or on the link (`energy`).
    pub per_j: f64,
    /// Cost of a megabyte (1,000,000 bytes) sent up.
    pub per_mb: f64,
    /// Value of a point of accuracy on an image: of one chance in a hundred that the cloud corrects the answer. The
    /// points are learned from verdicts; while fewer than 30 are known, doubtful answers go up.
    pub per_point: f64,
}

impl Default for ObjectiveWeights {
    fn default() -> Self {
        Self { per_s: 1.0, per_j: 0.0, per_mb: 0.0, per_point: 0.0 }
    }
}

/// Differences that count as none under the objective `hierarchical`, so that the next level decides. Latency has a
/// tolerance of its own: the cloud must gain a fifth of the time (a twentieth while it is being used) and 50 ms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveTolerances {
    /// Energy of an image, joules.
    pub energy_j: f64,
    /// Sent for an image, megabytes.
    pub sent_mb: f64,
    /// Accuracy gained on an image, points.
    pub accuracy_points: f64,
}

impl Default for ObjectiveTolerances {
    fn default() -> Self {
        Self { energy_j: 0.02, sent_mb: 0.01, accuracy_points: 1.0 }
    }
}

/// When the site counts as overloaded: from above the high mark of any signal until below the low marks of all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadMarks {
    /// CPU usage while images wait, 0 to 1.
    pub cpu_high_ratio: f64,
    /// Low mark, 0 to `cpu_high_ratio`.
    pub cpu_low_ratio: f64,
    /// Memory usage, 0 to 1.
    pub memory_high_ratio: f64,
    /// Low mark, 0 to `memory_high_ratio`.
    pub memory_low_ratio: f64,
    /// Fraction of the time in which some task stalled on memory (PSI), where the kernel reports it, 0 to 1.
    pub memory_pressure_high_ratio: f64,
    /// Low mark, 0 to `memory_pressure_high_ratio`.
    pub memory_pressure_low_ratio: f64,
    /// Queued work, seconds.
    pub queue_high_s: f64,
    /// Low mark, 0 to `queue_high_s`.
    pub queue_low_s: f64,
    /// Shortest time between changes, milliseconds.
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

/// Energy of recognizing and sending where the machine has no counter: guesses to be replaced by
/// measurements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EnergySettings {
    /// Power of a busy core, watts.
    pub watts_per_core: f64,
    /// Energy of a megabyte sent up, joules.
    pub joules_per_mb: f64,
}

impl Default for EnergySettings {
    fn default() -> Self {
        Self { watts_per_core: 8.0, joules_per_mb: 4.0 }
    }
}

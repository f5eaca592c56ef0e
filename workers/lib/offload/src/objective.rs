//! What an objective makes of the predicted numbers of two ways to answer an image: at the site, or in the cloud. Pure.
//!
//! Privacy, deadlines and budgets are no numbers to weigh: what they forbid is decided before, by [`crate::admit`] and
//! [`crate::escalation`].

use crate::policy::{EnergySettings, ObjectiveTolerances, ObjectiveWeights};

/// What is predicted of one way to answer an image, besides its time.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct OptionForecast {
    /// Energy spent at the site and on the link, joules.
    pub energy_j: f64,
    /// Megabytes sent up.
    pub sent_mb: f64,
    /// Accuracy gained over the site's own answer, points; absent before verdicts taught it.
    pub gain_points: Option<f64>,
}

impl OptionForecast {
    /// Of sending this many bytes up.
    pub fn of_sending(bytes: u64, energy: &EnergySettings, gain_points: Option<f64>) -> Self {
        let sent_mb = bytes as f64 / 1e6;
        Self { energy_j: sent_mb * energy.joules_per_mb, sent_mb, gain_points }
    }

    /// The weighted sum; less is better. A gain that is not known yet counts as none.
    pub fn weighted_cost(&self, weights: &ObjectiveWeights) -> f64 {
        weights.per_j * self.energy_j + weights.per_mb * self.sent_mb
            - weights.per_point * self.gain_points.unwrap_or(0.0)
    }
}

/// A level of the objective `hierarchical` below latency and privacy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectiveLevel {
    /// Joules at the site and on the link.
    Energy,
    /// Bytes sent up.
    Bytes,
    /// Accuracy gained.
    Accuracy,
}

/// Which of two options is better at the first level where they differ by more than the tolerance: `Some(true)` for the
/// cloud, `None` if they are equal at all levels.
pub fn prefers_cloud(
    levels: &[ObjectiveLevel],
    tolerance: &ObjectiveTolerances,
    here: &OptionForecast,
    there: &OptionForecast,
) -> Option<bool> {
    let advantage = |level: &ObjectiveLevel| match level {
        ObjectiveLevel::Energy => (here.energy_j - there.energy_j, tolerance.energy_j),
        ObjectiveLevel::Bytes => (here.sent_mb - there.sent_mb, tolerance.sent_mb),
        ObjectiveLevel::Accuracy => {
            (there.gain_points.unwrap_or(0.0) - here.gain_points.unwrap_or(0.0), tolerance.accuracy_points)
        }
    };
    levels
        .iter()
        .map(advantage)
        .find(|(cloud_is_better_by, tie)| cloud_is_better_by.abs() > *tie)
        .map(|(by, _)| by > 0.0)
}

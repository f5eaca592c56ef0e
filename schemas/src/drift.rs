//! How a worker's recent answers differ from its first ones. Part of a heartbeat, not a message of its own.

use serde::{Deserialize, Serialize};

use crate::id::ReleaseId;

/// How far a measure is from its reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftLevel {
    /// Within chance and the reference's own variation, or not enough answers yet.
    #[default]
    Steady,
    /// Beyond that; worth a look.
    Watch,
    /// Far beyond that: the model sees other pictures than it used to.
    Alarm,
}

impl DriftLevel {
    /// The word used on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            DriftLevel::Steady => "steady",
            DriftLevel::Watch => "watch",
            DriftLevel::Alarm => "alarm",
        }
    }
}

/// A worker's recent answers compared with a reference: the first answers of the same release at the same site. A
/// measure is absent until its reference and its recent window are full, and where it is not measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DriftReport {
    /// The release whose answers are compared.
    pub release: ReleaseId,
    /// Answers in the reference so far.
    pub reference_answers: u64,
    /// Answers that fill the reference.
    pub reference_full: u64,
    /// Answers in the recent window so far.
    pub recent_answers: u64,
    /// Answers that fill the recent window.
    pub recent_full: u64,
    /// Recognizers: confidence of the answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<DriftMeasure>,
    /// Recognizers whose model has a novelty score: novelty of the images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub novelty: Option<DriftMeasure>,
    /// Couriers: how often the cloud agrees with confident answers that were sampled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<DriftMeasure>,
}

/// Change of one measure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DriftMeasure {
    /// Its mean over the reference, 0 to 1.
    pub reference_ratio: f64,
    /// Its mean over the recent window, 0 to 1.
    pub recent_ratio: f64,
    /// Distance of the recent window from the reference, 0 (the same) to 1: the Kolmogorov-Smirnov statistic; for
    /// agreement, by how much it fell.
    pub distance_ratio: f64,
    /// Level that the distance amounts to.
    pub level: DriftLevel,
}

impl DriftReport {
    /// The measures that are present, each with its name.
    pub fn measures(&self) -> impl Iterator<Item = (&'static str, &DriftMeasure)> {
        let all = [("confidence", &self.confidence), ("novelty", &self.novelty), ("agreement", &self.agreement)];
        all.into_iter().filter_map(|(name, measure)| Some((name, measure.as_ref()?)))
    }

    /// The highest level of the measures.
    pub fn level(&self) -> DriftLevel {
        self.measures().map(|(_, measure)| measure.level).max().unwrap_or_default()
    }
}

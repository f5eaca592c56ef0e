//! What a worker's answers are like compared with what they used to be. Part of a heartbeat, not a message of its own.

use serde::{Deserialize, Serialize};

use crate::id::ReleaseId;

/// How far from its reference something has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftLevel {
    /// No further than chance and the reference's own unrest explain, or too little is known yet.
    #[default]
    Steady,
    /// Further than that; worth a look.
    Watch,
    /// Much further: the model sees something else than it did.
    Alarm,
}

impl DriftLevel {
    /// Its word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            DriftLevel::Steady => "steady",
            DriftLevel::Watch => "watch",
            DriftLevel::Alarm => "alarm",
        }
    }
}

/// What a worker's answers are like, compared with a reference: the first answers of the same release at the same site. A
/// measure is absent while its reference or its recent window is not full, or where nothing is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DriftReport {
    /// The release whose answers are compared.
    pub release: ReleaseId,
    /// Answers in the reference so far.
    pub reference_answers: u64,
    /// Answers that make the reference full.
    pub reference_full: u64,
    /// Answers in the recent window so far.
    pub recent_answers: u64,
    /// Answers that make the recent window full.
    pub recent_full: u64,
    /// Of a recognizer: confidence of its answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<DriftMeasure>,
    /// Of a recognizer whose model has a novelty score: the novelty of its pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub novelty: Option<DriftMeasure>,
    /// Of a courier: how often the cloud agrees with answers that were sure and drawn to be checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<DriftMeasure>,
}

/// How one number moved.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DriftMeasure {
    /// Its mean over the reference, 0 to 1.
    pub reference_ratio: f64,
    /// Its mean over the recent window, 0 to 1.
    pub recent_ratio: f64,
    /// How far the recent window is from the reference, 0 (the same) to 1: the largest difference between the two
    /// distributions (Kolmogorov-Smirnov); of agreement, by how much it fell.
    pub distance_ratio: f64,
    /// What that means.
    pub level: DriftLevel,
}

impl DriftReport {
    /// Its measures, each with its name.
    pub fn measures(&self) -> impl Iterator<Item = (&'static str, &DriftMeasure)> {
        let all = [("confidence", &self.confidence), ("novelty", &self.novelty), ("agreement", &self.agreement)];
        all.into_iter().filter_map(|(name, measure)| Some((name, measure.as_ref()?)))
    }

    /// The highest level of its measures.
    pub fn level(&self) -> DriftLevel {
        self.measures().map(|(_, measure)| measure.level).max().unwrap_or_default()
    }
}

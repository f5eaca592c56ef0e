//! What a place runs, why not something else, and what came of it: a worker's report to whoever releases models. Version
//! history: 1, first; later with the optional farewell.

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::fault::FaultNote;
use crate::id::{ModelName, ReleaseId, SiteName};

/// One worker's report about one stretch of time. A later one about the same stretch replaces it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Swap {
    /// The site; [`SiteName::cloud`] for verifiers.
    pub site: SiteName,
    /// The process: name and number.
    pub worker: String,
    /// The model.
    pub model: ModelName,
    /// The release it runs.
    pub release: ReleaseId,
    /// Since when, milliseconds since the epoch.
    pub since_ms: u64,
    /// Number of the order it has followed or refused last, 0 for none.
    pub order: u64,
    /// Releases it does not run, and why, the latest last.
    #[serde(default)]
    pub refused: Vec<RefusedRelease>,
    /// Version of its ONNX Runtime.
    pub runtime: String,
    /// Memory that is free for it, MiB; absent where the system does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_free_mib: Option<u64>,
    /// Memory its process has, MiB.
    pub memory_mib: u64,
    /// What its operator calls the site, for rings.
    #[serde(default)]
    pub site_labels: Vec<String>,
    /// Beginning of the stretch, milliseconds since the epoch.
    pub slot_ms: u64,
    /// Its length, milliseconds.
    pub slot_length_ms: u64,
    /// When it was written, milliseconds since the epoch.
    pub said_at_ms: u64,
    /// What came of each release it ran in the stretch.
    #[serde(default)]
    pub counts: Vec<ReleaseCounts>,
    /// Whether it is its last: the worker was told to stop, and did not vanish.
    #[serde(default, skip_serializing_if = "is_false")]
    pub left: bool,
    /// Of verifiers: how often verdicts agreed with what sites had said.
    #[serde(default)]
    pub agreements: Vec<Agreement>,
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

impl Message for Swap {
    const KIND: &'static str = "swap";
    const VERSION: u16 = 1;
}

/// A release that a worker does not run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RefusedRelease {
    /// Which.
    pub release: ReleaseId,
    /// Why.
    pub fault: FaultNote,
}

/// What came of a release at one worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseCounts {
    /// The release.
    pub release: ReleaseId,
    /// Images it recognized.
    pub images: u64,
    /// Of those, images that the gate was in doubt about.
    pub doubtful: u64,
    /// Images it failed on, though nothing was wrong with them.
    pub faults: u64,
    /// Confidence of its answers, 0 to 1.
    pub confidence: MomentSums,
    /// Natural logarithm of what an image cost to recognize, milliseconds.
    pub ln_cost_ms: MomentSums,
}

impl ReleaseCounts {
    /// Nothing yet.
    pub fn for_release(release: ReleaseId) -> Self {
        let (confidence, ln_cost_ms) = (MomentSums::default(), MomentSums::default());
        Self { release, images: 0, doubtful: 0, faults: 0, confidence, ln_cost_ms }
    }
}

/// Sums from which a mean and its error can be had, and which can be added.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct MomentSums {
    /// How many values.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
    /// The sum of their squares.
    pub squares: f64,
}

impl MomentSums {
    /// One more value.
    pub fn add_value(&mut self, value: f64) {
        self.add_moments(&Self { count: 1, sum: value, squares: value * value });
    }

    /// As many more as the other has.
    pub fn add_moments(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.squares += other.squares;
    }
}

/// How often verdicts agreed with what a release had said at a site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// The site.
    pub site: SiteName,
    /// The release.
    pub release: ReleaseId,
    /// Images that the site was in doubt about.
    pub doubtful: AgreementCount,
    /// Images that it was sure of, drawn by lot.
    pub sampled: AgreementCount,
}

/// How many of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AgreementCount {
    /// Verdicts.
    pub asked: u64,
    /// Of those, the same as what the site had said.
    pub agreed: u64,
}

//! A worker's report to the releaser: what it runs, what it refused and why, and the results. Version
//! history: 1, first; later with the optional farewell.

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::fault::FaultNote;
use crate::id::{ModelName, ReleaseId, SiteName};

/// One worker's report about one interval. A later report about the same interval replaces it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Swap {
    /// Site of the worker; [`SiteName::cloud`] for verifiers.
    pub site: SiteName,
    /// The process: name and number.
    pub worker: String,
    /// Model that it runs.
    pub model: ModelName,
    /// Release that it runs.
    pub release: ReleaseId,
    /// Since when it runs that release, milliseconds since the epoch.
    pub since_ms: u64,
    /// Number of the last order it followed or refused; 0 for none.
    pub order: u64,
    /// Releases it refused to run, the latest last.
    #[serde(default)]
    pub refused: Vec<RefusedRelease>,
    /// Version of its ONNX Runtime.
    pub runtime: String,
    /// Memory available to it, MiB; absent where the system does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_free_mib: Option<u64>,
    /// Memory of its process, MiB.
    pub memory_mib: u64,
    /// Labels of the site from its settings, by which rings select.
    #[serde(default)]
    pub site_labels: Vec<String>,
    /// Start of the interval, milliseconds since the epoch.
    pub slot_ms: u64,
    /// Length of the interval, milliseconds.
    pub slot_length_ms: u64,
    /// When it was written, milliseconds since the epoch.
    pub said_at_ms: u64,
    /// Results of each release it ran in the interval.
    #[serde(default)]
    pub counts: Vec<ReleaseCounts>,
    /// Whether this is its last report: the worker was told to stop, and did not crash.
    #[serde(default, skip_serializing_if = "is_false")]
    pub left: bool,
    /// Verifiers: how often verdicts agreed with the sites' answers.
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

/// A release that a worker refused to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RefusedRelease {
    /// Id of the release.
    pub release: ReleaseId,
    /// Why it was refused.
    pub fault: FaultNote,
}

/// Results of a release at one worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseCounts {
    /// Release that was counted.
    pub release: ReleaseId,
    /// Images recognized.
    pub images: u64,
    /// How many of those the gate found doubtful.
    pub doubtful: u64,
    /// Images it failed on although the images were in order.
    pub faults: u64,
    /// Confidence of the answers, 0 to 1.
    pub confidence: MomentSums,
    /// Natural logarithm of the cost of an image in milliseconds.
    pub ln_cost_ms: MomentSums,
}

impl ReleaseCounts {
    /// Counts of zero.
    pub fn for_release(release: ReleaseId) -> Self {
        let (confidence, ln_cost_ms) = (MomentSums::default(), MomentSums::default());
        Self { release, images: 0, doubtful: 0, faults: 0, confidence, ln_cost_ms }
    }
}

/// Sums that yield a mean and its standard error, and can be added.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct MomentSums {
    /// Number of values.
    pub count: u64,
    /// Sum of the values.
    pub sum: f64,
    /// Sum of their squares.
    pub squares: f64,
}

impl MomentSums {
    /// Adds one value.
    pub fn add_value(&mut self, value: f64) {
        self.add_moments(&Self { count: 1, sum: value, squares: value * value });
    }

    /// Adds the values of another.
    pub fn add_moments(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.squares += other.squares;
    }
}

/// How often verdicts agreed with a release's answers at a site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Site that answered.
    pub site: SiteName,
    /// Release that answered.
    pub release: ReleaseId,
    /// Verdicts on doubtful answers.
    pub doubtful: AgreementCount,
    /// Verdicts on confident answers, sampled at random.
    pub sampled: AgreementCount,
}

/// Verdicts, and how many of them agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AgreementCount {
    /// Number of verdicts.
    pub asked: u64,
    /// How many of them gave the site's label.
    pub agreed: u64,
}

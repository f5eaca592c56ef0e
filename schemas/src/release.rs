//! Which release of a model runs where, and what was decided about it. Version history: 1, first.
//!
//! What is decided about a model is told in one stream, each decision in a slot of its own and with everything that holds
//! after it: of many who decide at once one wins, and whoever reads the last message knows how it stands.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::blob::BlobRef;
use crate::codec::Message;
use crate::id::{ModelName, ReleaseId, SiteName};
use crate::root::Signature;
use crate::update::ModelAccuracy;
use crate::vocabulary::WireWord;

/// How a model's releases stand after a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// The model.
    pub model: ModelName,
    /// Number of the decision, from 1: its slot.
    pub number: u64,
    /// When it was decided, milliseconds since the epoch.
    pub said_at_ms: u64,
    /// What was decided.
    pub decision: ReleaseDecision,
    /// What every site runs that is neither in the canary's ring nor pinned.
    pub stable: Release,
    /// What was stable before, the latest last.
    #[serde(default)]
    pub previous: Vec<Release>,
    /// What is tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// What waits to be tried, the oldest first.
    #[serde(default)]
    pub candidates: Vec<Release>,
    /// What was tried and taken back, the latest last.
    #[serde(default)]
    pub withdrawn: Vec<ReleaseId>,
    /// Sites that run what a person chose, whatever is decided.
    #[serde(default)]
    pub pins: BTreeMap<SiteName, Release>,
}

impl Message for Rollout {
    const KIND: &'static str = "rollout";
    const VERSION: u16 = 1;
}

/// A release, and what a site must know before it fetches it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// Digest of the model's folder.
    pub release: ReleaseId,
    /// What it was made from; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ReleaseId>,
    /// Where it comes from, in words: `round 3`, `imported`.
    pub origin: String,
    /// Its package, in pieces, in order: a tar of the model's folder.
    pub package: Vec<BlobRef>,
    /// What a machine must have to run it.
    pub needs: MachineRequirements,
    /// How right its parent and it are on the public set; absent where it was not tried on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<(ModelAccuracy, ModelAccuracy)>,
    /// Where the change of accuracy between the two lies, 95 times of 100, -1 to 1; absent where it was not tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_change_interval: Option<(f64, f64)>,
}

impl Release {
    /// Length of its package, bytes.
    pub fn size_bytes(&self) -> u64 {
        self.package.iter().map(|piece| piece.size_bytes).sum()
    }
}

/// What a machine must have to run a release; measured where it was packaged.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MachineRequirements {
    /// Version of the standard operators (`ai.onnx`) its graph asks for.
    pub opset: u32,
    /// Sets of operators beside the standard ones, such as `com.microsoft`.
    #[serde(default)]
    pub domains: Vec<String>,
    /// Version of the ONNX Runtime that ran it.
    pub runtime: String,
    /// What it added to a process's memory, MiB.
    pub memory_mib: u32,
}

/// A release that is tried on a few sites.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// The release.
    pub release: Release,
    /// Which of the rings it has come to, from 0.
    pub step: u32,
    /// The sites that try it.
    pub ring: Vec<SiteName>,
    /// When this ring was given it, milliseconds since the epoch: each is judged by what comes after.
    pub since_ms: u64,
}

/// What was decided, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseDecision {
    /// What.
    pub stage: ReleaseStage,
    /// About which release.
    pub release: ReleaseId,
    /// Who decided it.
    #[serde(rename = "by")]
    pub origin: WireWord<DecisionOrigin>,
    /// Why, in words for people.
    pub why: String,
    /// Of a pin: which site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<SiteName>,
    /// The numbers it rests on.
    #[serde(default)]
    pub findings: Vec<CanaryFinding>,
}

crate::vocabulary! {
    /// Who decides about releases.
    pub enum DecisionOrigin {
        /// The releaser, by what it measured.
        Releaser = "releaser",
        /// The aggregator, which made the release.
        Aggregator = "aggregator",
        /// A person, with a command.
        Hand = "hand",
    }
}

/// What can be decided about a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseStage {
    /// It waits to be tried.
    Candidate,
    /// A ring of sites, or a wider one, tries it.
    Canary,
    /// Every site runs it.
    Stable,
    /// No site runs it any more.
    Withdrawn,
    /// A person chose it for a site.
    Pinned,
    /// The site follows what is decided again.
    Unpinned,
}

impl ReleaseStage {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            ReleaseStage::Candidate => "candidate",
            ReleaseStage::Canary => "canary",
            ReleaseStage::Stable => "stable",
            ReleaseStage::Withdrawn => "withdrawn",
            ReleaseStage::Pinned => "pinned",
            ReleaseStage::Unpinned => "unpinned",
        }
    }
}

crate::vocabulary! {
    /// What is measured of a canary.
    pub enum CanaryMeasure {
        /// Share of all images on which a verdict says what the release said, 0 to 1.
        Agreement = "agreement",
        /// Share of the images that the gate is in doubt about, 0 to 1.
        SentUp = "sent up",
        /// Mean confidence, 0 to 1.
        Confidence = "confidence",
        /// Mean natural logarithm of what an image costs, milliseconds.
        Cost = "cost",
        /// Share of the images that it fails on, 0 to 1.
        Faults = "faults",
    }
}

/// One measure of a canary against what was stable in the same hours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CanaryFinding {
    /// What is measured.
    pub measure: WireWord<CanaryMeasure>,
    /// In the ring.
    pub canary: f64,
    /// At the sites still on stable; absent without any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<f64>,
    /// How much better the ring became than the others did, below 0 for worse; in the measure's own units.
    pub better: f64,
    /// Its standard error.
    pub error: f64,
    /// How much worse is too bad.
    pub margin: f64,
    /// Logarithm of the odds that it is worse by the margin and not as good.
    pub odds: f64,
    /// Images, or verdicts, of the ring that it rests on.
    pub count: u64,
    /// What follows.
    pub says: FindingOutcome,
}

/// What a measure says about a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingOutcome {
    /// Too little is known.
    Open,
    /// It is not worse.
    Good,
    /// It is worse.
    Worse,
}

/// What one site shall run, for its couriers and recognizers; the latest counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The site.
    pub site: SiteName,
    /// The model.
    pub model: ModelName,
    /// The decision it follows from.
    pub number: u64,
    /// What it shall run.
    pub release: Release,
    /// Whether it tries it for the others, follows them, or was pinned to it.
    pub stage: ReleaseStage,
    /// When it was given, milliseconds since the epoch.
    pub said_at_ms: u64,
    /// Who gave it; absent where nobody signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

impl Message for Order {
    const KIND: &'static str = "order";
    const VERSION: u16 = 1;
}

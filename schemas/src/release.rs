//! Which release of a model runs where, and the rollout decisions about it. Version history: 1, first.
//!
//! All decisions about a model are in one stream. Each takes a slot of its own and holds the complete state after it:
//! of several deciders one wins the slot, and a reader needs only the last message.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::blob::BlobRef;
use crate::codec::Message;
use crate::id::{ModelName, ReleaseId, SiteName};
use crate::root::Signature;
use crate::update::ModelAccuracy;
use crate::vocabulary::WireWord;

/// The state of a model's releases after a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// Model that the decision is about.
    pub model: ModelName,
    /// Number of the decision, from 1; its slot in the stream.
    pub number: u64,
    /// When it was decided, milliseconds since the epoch.
    pub said_at_ms: u64,
    /// The decision.
    pub decision: ReleaseDecision,
    /// Release of every site that is neither in the canary's ring nor pinned.
    pub stable: Release,
    /// Earlier stable releases, the latest last.
    #[serde(default)]
    pub previous: Vec<Release>,
    /// Release under trial; absent while none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// Releases that wait for a trial, the oldest first.
    #[serde(default)]
    pub candidates: Vec<Release>,
    /// Releases that were withdrawn, the latest last.
    #[serde(default)]
    pub withdrawn: Vec<ReleaseId>,
    /// Sites pinned to a release by a person.
    #[serde(default)]
    pub pins: BTreeMap<SiteName, Release>,
}

impl Message for Rollout {
    const KIND: &'static str = "rollout";
    const VERSION: u16 = 1;
}

/// A release, with what a site must know before it fetches the package.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// Digest of the model's folder.
    pub release: ReleaseId,
    /// Release it was derived from; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ReleaseId>,
    /// Origin in words: `round 3`, `imported`.
    pub origin: String,
    /// Pieces of its package in order: a tar of the model's folder.
    pub package: Vec<BlobRef>,
    /// Requirements on the machine that runs it.
    pub needs: MachineRequirements,
    /// Accuracy of the parent and of this release on the public set; absent where it was not tested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<(ModelAccuracy, ModelAccuracy)>,
    /// 95 % confidence interval of the change of accuracy from parent to release, -1 to 1; absent where it was not
    /// tested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_change_interval: Option<(f64, f64)>,
}

impl Release {
    /// Size of the package in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.package.iter().map(|piece| piece.size_bytes).sum()
    }
}

/// What a release needs from a machine; measured where it was packaged.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MachineRequirements {
    /// Version of the standard operators (`ai.onnx`) its graph uses.
    pub opset: u32,
    /// Operator domains beside the standard one, such as `com.microsoft`.
    #[serde(default)]
    pub domains: Vec<String>,
    /// Version of the ONNX Runtime it was tried with.
    pub runtime: String,
    /// Memory it added to a process, MiB.
    pub memory_mib: u32,
}

/// A release under trial at a few sites.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// Release under trial.
    pub release: Release,
    /// Index of the current ring, from 0.
    pub step: u32,
    /// Sites that run it.
    pub ring: Vec<SiteName>,
    /// When this ring received it, milliseconds since the epoch; only later reports count for this ring.
    pub since_ms: u64,
}

/// A rollout decision and its reasons.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseDecision {
    /// Stage the release enters.
    pub stage: ReleaseStage,
    /// Release that the decision is about.
    pub release: ReleaseId,
    /// Who decided.
    #[serde(rename = "by")]
    pub origin: WireWord<DecisionOrigin>,
    /// Why, in words for people.
    pub why: String,
    /// Site of a pin; absent for other decisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<SiteName>,
    /// Measures that the decision rests on.
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

/// Stage that a decision moves a release to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseStage {
    /// It waits for a trial.
    Candidate,
    /// A ring of sites tries it, or a wider ring than before.
    Canary,
    /// Every site runs it.
    Stable,
    /// No site runs it any more.
    Withdrawn,
    /// A person pinned a site to it.
    Pinned,
    /// The site follows the rollout again.
    Unpinned,
}

impl ReleaseStage {
    /// The word used on the wire.
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
    /// A measure of a release.
    pub enum CanaryMeasure {
        /// Share of all images on which a verdict agrees with the release, 0 to 1.
        Agreement = "agreement",
        /// Share of images that the gate finds doubtful, 0 to 1.
        SentUp = "sent up",
        /// Mean confidence, 0 to 1.
        Confidence = "confidence",
        /// Mean natural logarithm of the cost per image in milliseconds.
        Cost = "cost",
        /// Share of images that it fails on, 0 to 1.
        Faults = "faults",
    }
}

/// One measure of a canary against the stable release in the same hours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CanaryFinding {
    /// Name of the measure.
    pub measure: WireWord<CanaryMeasure>,
    /// Value in the ring.
    pub canary: f64,
    /// Value at the sites on stable; absent if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<f64>,
    /// Change in the ring minus change at the others, negative for worse, in units of the measure.
    pub better: f64,
    /// Standard error of `better`.
    pub error: f64,
    /// By how much it may be worse.
    pub margin: f64,
    /// Log-likelihood ratio of "worse by the margin" against "as good".
    pub odds: f64,
    /// Images, or verdicts, of the ring that it rests on.
    pub count: u64,
    /// Outcome of the test.
    pub says: FindingOutcome,
}

/// A canary that is being tried, with what each measure says so far. Releasers send it in their heartbeats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CanaryReport {
    /// Its model.
    pub model: ModelName,
    /// The release.
    pub release: ReleaseId,
    /// One site of its ring.
    pub site: SiteName,
    /// Sites in its ring.
    pub sites: u32,
    /// When this ring began, milliseconds since the epoch.
    pub since_ms: u64,
    /// One finding for each measure that has numbers yet.
    pub findings: Vec<CanaryFinding>,
    /// The other measures that must be known before it is promoted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<MissingMeasure>,
}

/// A measure of a canary without numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingMeasure {
    /// Name of the measure.
    pub measure: WireWord<CanaryMeasure>,
    /// What it waits for, in words.
    pub why: String,
}

/// Outcome of the test of one measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingOutcome {
    /// Not enough data yet.
    Open,
    /// The canary is not worse.
    Good,
    /// The canary is worse.
    Worse,
}

/// The release that one site shall run; the latest order counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Site that the order is for.
    pub site: SiteName,
    /// Model that the order is about.
    pub model: ModelName,
    /// Number of the decision that it follows from.
    pub number: u64,
    /// Release that the site shall run.
    pub release: Release,
    /// Why the site runs it: canary, stable or pinned.
    pub stage: ReleaseStage,
    /// When it was given, milliseconds since the epoch.
    pub said_at_ms: u64,
    /// Signature of the releaser; absent in a fleet without keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

impl Message for Order {
    const KIND: &'static str = "order";
    const VERSION: u16 = 1;
}

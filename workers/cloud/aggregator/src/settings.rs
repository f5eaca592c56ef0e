//! Settings of the aggregator.

use std::collections::BTreeMap;
use std::path::PathBuf;

use autograd::TrainableSelection;
use autograd::trainable::AUTO;
use runtime::settings::check_section;
use schemas::SiteName;
use serde::{Deserialize, Serialize};

use crate::check::CheckSettings;
use crate::rule::MergeSettings;

/// Aggregator settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AggregatorSettings {
    /// Path of the key that signs rounds (`tributary key`, `tributary fleet init`); absent: rounds are unsigned, and
    /// sites of a fleet ignore them.
    pub key: Option<PathBuf>,
    /// Folder of the baseline model; absent: the recognizer's.
    pub model: Option<PathBuf>,
    /// Folder of labelled pictures to score models on, in the layout of `tributary train`; rules that use scores, and
    /// `pick`, need it.
    pub public: Option<PathBuf>,
    /// Pictures used per class, at least 2; the first ones in order, fewer if they do not fit into memory.
    pub public_max_per_class: u32,
    /// Memory limit of the public set in MiB, at least 1.
    pub public_max_mib: u32,
    /// Release store: a folder, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
    pub store: String,
    /// Folder for temporary files; its content can be recreated.
    pub work: PathBuf,
    /// Which updates are refused.
    pub check: CheckSettings,
    /// How updates become a release.
    pub merge: MergeSettings,
    /// Terms and schedule of rounds.
    pub round: RoundSettings,
}

impl Default for AggregatorSettings {
    fn default() -> Self {
        Self {
            key: None,
            model: None,
            public: None,
            public_max_per_class: 200,
            public_max_mib: 512,
            store: "tributary-releases".into(),
            work: PathBuf::from("tributary-aggregator"),
            check: CheckSettings::default(),
            merge: MergeSettings::default(),
            round: RoundSettings::default(),
        }
    }
}

/// Terms and schedule of rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoundSettings {
    /// Sites that may be selected; empty: all.
    pub sites: Vec<SiteName>,
    /// Named sets of sites, such as those that try releases first.
    pub rings: BTreeMap<String, Vec<SiteName>>,
    /// Select from this ring instead of `sites`.
    pub ring: Option<String>,
    /// Sites selected per round from `sites` or the ring; absent: all of them.
    pub sites_per_round: Option<u32>,
    /// How those are selected.
    pub client_selection: ClientSelection,
    /// Quorum: updates needed to close the round, at least 1.
    pub quorum: u32,
    /// Seconds to wait for stragglers after quorum.
    pub grace_s: u32,
    /// Seconds after opening when the round closes in any case, at least 1.
    pub deadline_s: u32,
    /// Weights to train: `auto` (all; a site with few labels trains only the last layers), `all`, `head`, `last N`, or
    /// comma-separated name patterns.
    pub trainable: String,
    /// Name patterns of weights that each site keeps for itself, such as those of the last layer.
    pub local: Vec<String>,
    /// Count updates that no round asked for. With `every_s = 0` this is the asynchronous mode: updates are merged as
    /// soon as `quorum` of them are there.
    pub accept_unsolicited: bool,
    /// Count updates whose base is at most this many releases old, discounted by `merge.staleness`; stragglers then
    /// count in the next round.
    pub max_staleness: u32,
    /// Seconds after the end of a round when the next one opens; absent: rounds open by hand with `tributary round
    /// open`.
    pub every_s: Option<u32>,
    /// Stop opening rounds by the clock after this many in a row gained nothing, at least 1. They resume when a site has
    /// learned from new labels and sends an update that no round asked for, or when `hard_cases` opens one. Absent: never
    /// stop.
    pub stop_after: Option<u32>,
    /// Open a round when `quorum` sites have each reported this many hard cases since the last one was opened, at least
    /// 1; absent: hard cases open no round.
    pub hard_cases: Option<u32>,
    /// How much more often sites train on pictures like the base's hard cases, 0 to 8: with 1, pictures of average
    /// hardness are seen twice as often. 0: sites are not told about other sites' hard cases.
    pub hard_focus: f32,
}

impl Default for RoundSettings {
    fn default() -> Self {
        Self {
            sites: Vec::new(),
            rings: BTreeMap::new(),
            ring: None,
            sites_per_round: None,
            client_selection: ClientSelection::Random,
            quorum: 2,
            grace_s: 60,
            deadline_s: 24 * 3600,
            trainable: AUTO.into(),
            local: Vec::new(),
            accept_unsolicited: false,
            max_staleness: 0,
            every_s: None,
            stop_after: Some(3),
            hard_cases: None,
            hard_focus: 0.0,
        }
    }
}

/// How the sites of a round are selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientSelection {
    /// At random, differently in each round.
    #[default]
    #[serde(alias = "lot")]
    Random,
    /// In the order they are listed, continuing where the last round stopped.
    #[serde(alias = "turn")]
    RoundRobin,
    /// Those whose updates had the lowest loss on the public set when they were last in a release; sites that were in
    /// none come first.
    #[serde(alias = "usefulness")]
    LowestLoss,
}

impl RoundSettings {
    /// The sites that may be selected; empty: all.
    pub fn selectable_sites(&self) -> &[SiteName] {
        let ring = self.ring.as_ref().and_then(|ring| self.rings.get(ring));
        ring.map_or(&self.sites, |sites| sites)
    }
}

impl AggregatorSettings {
    /// Checks the settings and names the first one that is invalid.
    pub fn check(&self) -> Result<(), String> {
        let round = &self.round;
        let wants = [
            (
                self.public_max_per_class >= 2,
                format!("public_max_per_class is {}; it must be at least 2", self.public_max_per_class),
            ),
            (self.public_max_mib > 0, "public_max_mib is 0; it must be at least 1".into()),
            (
                !self.store.is_empty(),
                "store is empty; it must be a folder or an address such as s3://bucket/prefix".into(),
            ),
            (round.quorum > 0, "round.quorum is 0; it must be at least 1".into()),
            (round.stop_after != Some(0), "round.stop_after is 0; it must be at least 1, or omit it".into()),
            (round.hard_cases != Some(0), "round.hard_cases is 0; it must be at least 1, or omit it".into()),
            (
                (0.0..=8.0).contains(&round.hard_focus),
                format!("round.hard_focus is {}; it must be 0 to 8", round.hard_focus),
            ),
            (round.deadline_s > 0, "round.deadline_s is 0; it must be at least 1".into()),
            (
                round
                    .sites_per_round
                    .is_none_or(|ask| ask >= round.quorum && ask as usize <= round.selectable_sites().len()),
                format!(
                    "round.sites_per_round is {}; it must be between round.quorum ({}) and the number of sites ({})",
                    round.sites_per_round.unwrap_or_default(),
                    round.quorum,
                    round.selectable_sites().len()
                ),
            ),
            (
                round.selectable_sites().is_empty() || round.quorum as usize <= round.selectable_sites().len(),
                format!(
                    "round.quorum is {}; it must be at most the number of sites ({})",
                    round.quorum,
                    round.selectable_sites().len()
                ),
            ),
        ];
        if let Some(unknown) = round.ring.as_ref().filter(|ring| !round.rings.contains_key(*ring)) {
            return Err(format!("round.ring is {unknown:?}; it must be one of round.rings"));
        }
        if let Some((_, wanted)) = wants.iter().find(|(is, _)| !is) {
            return Err(wanted.clone());
        }
        if let Err(error) = round.trainable.parse::<TrainableSelection>() {
            return Err(format!("round.trainable: {error}"));
        }
        check_section("check", self.check.check())?;
        check_section("merge", self.merge.check())
    }
}

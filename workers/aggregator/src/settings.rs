//! How a model's rounds are run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use autograd::TrainableSelection;
use autograd::trainable::AUTO;
use schemas::SiteName;
use serde::{Deserialize, Serialize};

use crate::check::CheckSettings;
use crate::rule::MergeSettings;

/// How a model's rounds are run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AggregatorSettings {
    /// File of the key that the opening of a round is signed with (`tributary key`, `tributary fleet init`); absent: unsigned,
    /// and sites of a fleet do not take part.
    pub key: Option<PathBuf>,
    /// Folder of the model that sites were set up with; the recognizer's if absent.
    pub model: Option<PathBuf>,
    /// Folder of labelled pictures that models are tried on, as for `tributary train`; without it rules that
    /// score sites by it cannot be used, nor `pick`.
    pub public: Option<PathBuf>,
    /// Pictures of a class used of it, at least 2, and fewer where they do not fit into the memory; the first ones.
    pub public_max_per_class: u32,
    /// Memory they may take, MiB, at least 1.
    pub public_max_mib: u32,
    /// Where releases are kept: a folder, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
    pub store: String,
    /// Where updates and releases lie while they are worked on; it can be made again.
    pub work: PathBuf,
    /// What updates are refused.
    pub check: CheckSettings,
    /// How updates become a release.
    pub merge: MergeSettings,
    /// What sites are asked for.
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

/// What sites are asked for in a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoundSettings {
    /// The sites that are asked; all if empty.
    pub sites: Vec<SiteName>,
    /// Sets of sites by name, such as those that try things first.
    pub rings: BTreeMap<String, Vec<SiteName>>,
    /// The sites of this ring are asked, in place of `sites`.
    pub ring: Option<String>,
    /// So many of `sites`, or of the ring, are asked in each round; absent: all of them.
    pub sites_per_round: Option<u32>,
    /// Which ones then.
    pub client_selection: ClientSelection,
    /// So many updates are enough, at least 1.
    pub quorum: u32,
    /// How long others are waited for when there are enough, seconds.
    pub grace_s: u32,
    /// When a round is over in any case, seconds after it was opened, at least 1.
    pub deadline_s: u32,
    /// Which weights are trained: `auto` (all, of which a site with few labels trains the last layers alone), `all`, `head`,
    /// `last N`, or patterns of names with commas between them.
    pub trainable: String,
    /// Patterns of names of weights that stay as each site has them, such as those of the last layer.
    pub local: Vec<String>,
    /// Whether updates count that no round asked for; with a new round as soon as one has ended, this is the asynchronous
    /// mode: as soon as `quorum` updates are there, they are merged.
    pub accept_unsolicited: bool,
    /// Updates count whose base is so many releases older, discounted by `merge.staleness`: what came too late counts in
    /// the next round.
    pub max_staleness: u32,
    /// A new round is opened so long after the last one ended, seconds; absent: by hand, with `tributary round open`.
    pub every_s: Option<u32>,
    /// No round opens by itself any more after so many in a row that gained nothing, at least 1, until a site has learned
    /// from new labels and says so with an update that no round asked for, or `hard_cases` opens one; absent: rounds go on.
    pub stop_after: Option<u32>,
    /// A new round is opened when `quorum` sites have found so many hard cases each since the last one was opened, at least
    /// 1; absent: not for that.
    pub hard_cases: Option<u32>,
    /// How much oftener sites see pictures like the hard cases of the release that a round starts from, 0 to 8: with 1,
    /// pictures of average hardness are seen twice as often. 0: sites hear nothing of others' hard cases.
    pub hard_focus: f32,
}

impl Default for RoundSettings {
    fn default() -> Self {
        Self {
            sites: Vec::new(),
            rings: BTreeMap::new(),
            ring: None,
            sites_per_round: None,
            client_selection: ClientSelection::Lot,
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

/// Which sites are asked, where not all are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientSelection {
    /// By lot, others each round.
    #[default]
    Lot,
    /// In turn, in the order they are named in.
    Turn,
    /// Those whose updates had the lowest loss on the public set when they were last in a release; those that were in none
    /// come first.
    Usefulness,
}

impl RoundSettings {
    /// The sites that may be asked; all if empty.
    pub fn selectable_sites(&self) -> &[SiteName] {
        let ring = self.ring.as_ref().and_then(|ring| self.rings.get(ring));
        ring.map_or(&self.sites, |sites| sites)
    }
}

impl AggregatorSettings {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        let round = &self.round;
        let wants = [
            (self.public_max_per_class >= 2, "public_max_per_class: at least 2"),
            (self.public_max_mib > 0, "public_max_mib: at least 1"),
            (!self.store.is_empty(), "store: a folder or an address"),
            (round.quorum > 0, "round.quorum: at least 1"),
            (round.stop_after != Some(0), "round.stop_after: at least 1, or leave it away"),
            (round.hard_cases != Some(0), "round.hard_cases: at least 1, or leave it away"),
            ((0.0..=8.0).contains(&round.hard_focus), "round.hard_focus: 0 to 8"),
            (round.deadline_s > 0, "round.deadline_s: at least 1"),
            (
                round
                    .sites_per_round
                    .is_none_or(|ask| ask >= round.quorum && ask as usize <= round.selectable_sites().len()),
                "round.sites_per_round: at least round.quorum, no more than there are round.sites",
            ),
            (
                round.selectable_sites().is_empty() || round.quorum as usize <= round.selectable_sites().len(),
                "round.quorum: no more than there are round.sites",
            ),
        ];
        if let Some(unknown) = round.ring.as_ref().filter(|ring| !round.rings.contains_key(*ring)) {
            return Err(format!("aggregator.round.ring {unknown:?} is none of aggregator.round.rings"));
        }
        if let Some((_, wanted)) = wants.iter().find(|(is, _)| !is) {
            return Err(format!("aggregator.{wanted}"));
        }
        if let Err(error) = round.trainable.parse::<TrainableSelection>() {
            return Err(format!("aggregator.round.trainable: {error}"));
        }
        self.check.check().and_then(|()| self.merge.check()).map_err(|wrong| format!("aggregator.{wrong}"))
    }
}

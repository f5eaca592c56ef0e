//! How updates become a release: the rule by its name, and the numbers of everything on the way.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::filter::{FilterSettings, UpdateFilter};
use crate::server_optimizer::ServerOptimizerSettings;
use crate::weigh::{self, WeighSettings};

/// Rules besides those that go by scores.
pub(crate) const LAW: &str = "law";
pub(crate) const PICK: &str = "pick";
/// As `fedavg`, the last layer class by class: what says that a picture shows a class is learned from the sites that saw it.
pub(crate) const CLASSES: &str = "classes";
/// As `quality`, the last layer class by class in the same way.
pub(crate) const QUALITY_CLASSES: &str = "quality-classes";
pub(crate) const COMMAND: &str = "command";
/// The rules besides those that go by scores, but for `pick`, which is no rule of its own.
const BESIDES: [&str; 4] = [LAW, CLASSES, QUALITY_CLASSES, COMMAND];
/// A rule by scores that needs every two updates held against each other.
pub(crate) const AGREEMENT: &str = "agreement";
/// Behind the name of a rule: its last layer is trained again on the public set.
pub(crate) const AND_HEAD: &str = "+head";
/// Behind the name of a rule: the whole model is trained on the public set for a little.
pub(crate) const AND_TUNE: &str = "+tune";
/// Behind the name of a rule: as `+tune`, and half of what is aimed at is what the sites' models say together (ensemble
/// distillation, arXiv 2006.07242).
pub(crate) const AND_DISTILL: &str = "+distill";
/// What `pick` took where no candidate is better than the base: the base itself.
pub const PREVIOUS: &str = "previous";

/// How updates become a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MergeSettings {
    /// How sites are weighed: `fedavg`, `uniform`, `agreement` (by how much updates point the same way), `paper`, `quality`,
    /// `law`, `classes` (by samples, the last layer class by class), `quality-classes` (by quality, in the same way),
    /// `command` (by a program of one's own), each also with `+head` (the last layer is trained again on the public set),
    /// `+tune` (the whole model is, for a little) or `+distill` (aiming at what the sites say together, too), or `pick`,
    /// which tries several.
    pub rule: String,
    /// Of `pick`: the rules it tries, the preferred one first. They are fitted on one part of the public set and held against
    /// each other on another: the first is taken unless one has a lower loss there by more than chance. What is taken must
    /// be better than the base by more than chance, or, for up to five releases after such a one, at least as right with a
    /// lower loss; or there is no release.
    pub candidates: Vec<String>,
    /// Of `command`: the program that reads what is known of each site as JSON and writes a weight for each.
    pub command: Option<PathBuf>,
    /// The numbers of the rules.
    pub weigh: WeighSettings,
    /// What is done about updates that stand out.
    pub filter: FilterSettings,
    /// How far the release follows.
    pub server_optimizer: ServerOptimizerSettings,
    /// An update that started from an older base counts (1 + releases between) to the power of minus this, 0 and more
    /// (FedBuff, arXiv 2106.06639, takes 0.5).
    pub staleness: f64,
}

impl Default for MergeSettings {
    fn default() -> Self {
        let candidates = ["quality-classes+tune", "fedavg+tune", "uniform+tune", "quality+distill"];
        Self {
            rule: PICK.into(),
            candidates: candidates.map(str::to_owned).to_vec(),
            command: None,
            weigh: WeighSettings::default(),
            filter: FilterSettings::default(),
            server_optimizer: ServerOptimizerSettings::default(),
            staleness: 0.5,
        }
    }
}

impl MergeSettings {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        let known = |rule: &str| {
            let (plain, _) = split_rule(rule);
            BESIDES.contains(&plain) || weigh::names().any(|name| name == plain)
        };
        let names = || weigh::names().chain(BESIDES).chain([PICK]).collect::<Vec<_>>().join(", ");
        if self.rule != PICK && !known(&self.rule) {
            return Err(format!("merge.rule {:?} is unknown, use one of {}", self.rule, names()));
        }
        if let Some(unknown) = self.candidates.iter().find(|rule| !known(rule)) {
            let names = weigh::names().chain(BESIDES).collect::<Vec<_>>().join(", ");
            return Err(format!("merge.candidates: {unknown:?} is unknown, use {names}"));
        }
        let asks = |rule: &str| split_rule(rule).0 == COMMAND;
        if self.command.is_none()
            && (asks(&self.rule) || self.rule == PICK && self.candidates.iter().any(|rule| asks(rule)))
        {
            return Err("merge.command: name the program that rule command asks".into());
        }
        let weigh = &self.weigh;
        let wants = [
            (!self.candidates.is_empty(), "candidates: at least one"),
            ((0.0..=8.0).contains(&weigh.stability), "weigh.stability: 0 to 8"),
            ((0.0..=8.0).contains(&weigh.capability), "weigh.capability: 0 to 8"),
            ((0.0..=8.0).contains(&weigh.size), "weigh.size: 0 to 8"),
            ((0.0..=8.0).contains(&weigh.coverage), "weigh.coverage: 0 to 8"),
            ((0.0..=1.0).contains(&weigh.floor_ratio), "weigh.floor_ratio: 0 to 1"),
            (self.staleness >= 0.0 && self.staleness.is_finite(), "staleness: 0 and more"),
        ];
        if let Some((_, wanted)) = wants.iter().find(|(is, _)| !is) {
            return Err(format!("merge.{wanted}"));
        }
        self.filter.check().and_then(|()| self.server_optimizer.check()).map_err(|wrong| format!("merge.{wrong}"))
    }

    /// Whether updates are tried on a public set where there is one.
    pub fn uses_public(&self) -> bool {
        self.needs_public() || self.rule == COMMAND
    }

    /// Whether updates are held against each other.
    pub(crate) fn compares(&self) -> bool {
        let compares = |rule: &str| matches!(split_rule(rule).0, AGREEMENT | COMMAND);
        compares(&self.rule) || self.rule == PICK && self.candidates.iter().any(|rule| compares(rule))
    }

    /// Whether a public set is needed.
    pub fn needs_public(&self) -> bool {
        let plain = |rule: &str| matches!(rule, "fedavg" | "uniform" | AGREEMENT | CLASSES | COMMAND);
        !plain(&self.rule) || self.filter.names.contains(&UpdateFilter::LossGate)
    }
}

/// What is done with a model after its sites were merged.
pub(crate) enum PostMergeStep {
    Done,
    Head,
    Tune,
    Distill,
}

/// A rule's name without what follows merging, and that.
pub(crate) fn split_rule(rule: &str) -> (&str, PostMergeStep) {
    let known =
        [(AND_HEAD, PostMergeStep::Head), (AND_TUNE, PostMergeStep::Tune), (AND_DISTILL, PostMergeStep::Distill)];
    let found = known.into_iter().find_map(|(suffix, then)| Some((rule.strip_suffix(suffix)?, then)));
    found.unwrap_or((rule, PostMergeStep::Done))
}

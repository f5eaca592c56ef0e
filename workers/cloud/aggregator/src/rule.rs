//! How updates become a release: the rule by its name, and the settings of every step.

use std::path::PathBuf;

use runtime::settings::check_section;
use serde::{Deserialize, Serialize};

use crate::filter::{FilterSettings, UpdateFilter};
use crate::server_optimizer::ServerOptimizerSettings;
use crate::weigh::{self, WeighSettings};

/// Rules that do not weigh by scores.
pub(crate) const LAW: &str = "law";
pub(crate) const PICK: &str = "pick";
/// Like `fedavg`, but with the last layer merged class by class: a class's weights come from the sites that saw that
/// class.
pub(crate) const CLASSES: &str = "classes";
/// Like `quality`, with the last layer merged in the same way.
pub(crate) const QUALITY_CLASSES: &str = "quality-classes";
pub(crate) const COMMAND: &str = "command";
/// All of these rules but `pick`, which only chooses among others.
const BESIDES: [&str; 4] = [LAW, CLASSES, QUALITY_CLASSES, COMMAND];
/// A rule by scores that needs all pairs of updates compared.
pub(crate) const AGREEMENT: &str = "agreement";
/// Suffix of a rule's name: retrain its last layer on the public set.
pub(crate) const AND_HEAD: &str = "+head";
/// Suffix of a rule's name: fine-tune the whole model on the public set.
pub(crate) const AND_TUNE: &str = "+tune";
/// Suffix of a rule's name: like `+tune`, with half of the target being the mean prediction of the sites' models
/// (ensemble distillation, arXiv 2006.07242).
pub(crate) const AND_DISTILL: &str = "+distill";
/// The name recorded when `pick` found no candidate better than the base and kept the base.
pub const PREVIOUS: &str = "previous";

/// How updates become a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MergeSettings {
    /// Merge rule: `fedavg` (by samples), `uniform`, `agreement` (by how much updates point the same way), `paper`,
    /// `quality`, `law`, `classes` (by samples, the last layer class by class), `quality-classes` (by quality, in the
    /// same way), or `command` (by your own program); each also with `+head` (retrain the last layer on the public
    /// set), `+tune` (fine-tune the whole model) or `+distill` (fine-tune towards the sites' mean prediction). `pick`
    /// tries several.
    pub rule: String,
    /// For `pick`: the rules it tries, the preferred one first. They are fitted on one part of the public set and
    /// compared on another; the first is taken unless another has a lower loss there by more than chance. The winner
    /// must be better than the base by more than chance or, for up to five releases after such a one, at least as right
    /// with a lower loss; otherwise there is no release.
    pub candidates: Vec<String>,
    /// For `command`: the program that reads the sites' scores as JSON and writes a weight for each.
    pub command: Option<PathBuf>,
    /// Settings of the weighing rules.
    pub weigh: WeighSettings,
    /// How updates that stand out are treated.
    pub filter: FilterSettings,
    /// How far the release follows the merged weights.
    pub server_optimizer: ServerOptimizerSettings,
    /// Exponent of the staleness discount, 0 or more: an update whose base is n releases old counts (1 + n) to the
    /// power of minus this (FedBuff, arXiv 2106.06639, takes 0.5).
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
    /// Checks the settings and names the first one that is invalid.
    pub fn check(&self) -> Result<(), String> {
        let known = |rule: &str| {
            let (plain, _) = split_rule(rule);
            BESIDES.contains(&plain) || weigh::names().any(|name| name == plain)
        };
        let names = || weigh::names().chain(BESIDES).chain([PICK]).collect::<Vec<_>>().join(", ");
        if self.rule != PICK && !known(&self.rule) {
            return Err(format!("rule is {:?}; it must be one of {}", self.rule, names()));
        }
        if let Some(unknown) = self.candidates.iter().find(|rule| !known(rule)) {
            let names = weigh::names().chain(BESIDES).collect::<Vec<_>>().join(", ");
            return Err(format!("candidates contains {unknown:?}; each must be one of {names}"));
        }
        let asks = |rule: &str| split_rule(rule).0 == COMMAND;
        if self.command.is_none()
            && (asks(&self.rule) || self.rule == PICK && self.candidates.iter().any(|rule| asks(rule)))
        {
            return Err("command is missing; rule `command` needs the path of a program".into());
        }
        let weigh = &self.weigh;
        let wants = [
            (!self.candidates.is_empty(), "candidates is empty; it needs at least one rule".into()),
            (
                (0.0..=8.0).contains(&weigh.stability),
                format!("weigh.stability is {}; it must be 0 to 8", weigh.stability),
            ),
            (
                (0.0..=8.0).contains(&weigh.capability),
                format!("weigh.capability is {}; it must be 0 to 8", weigh.capability),
            ),
            ((0.0..=8.0).contains(&weigh.size), format!("weigh.size is {}; it must be 0 to 8", weigh.size)),
            ((0.0..=8.0).contains(&weigh.coverage), format!("weigh.coverage is {}; it must be 0 to 8", weigh.coverage)),
            (
                (0.0..=1.0).contains(&weigh.floor_ratio),
                format!("weigh.floor_ratio is {}; it must be 0 to 1", weigh.floor_ratio),
            ),
            (
                self.staleness >= 0.0 && self.staleness.is_finite(),
                format!("staleness is {}; it must be 0 or more", self.staleness),
            ),
        ];
        if let Some((_, wanted)) = wants.iter().find(|(is, _)| !is) {
            return Err(wanted.clone());
        }
        check_section("filter", self.filter.check())?;
        check_section("server_optimizer", self.server_optimizer.check())
    }

    /// Whether the public set is used if there is one.
    pub fn uses_public(&self) -> bool {
        self.needs_public() || self.rule == COMMAND
    }

    /// Whether the rule compares updates with each other.
    pub(crate) fn compares(&self) -> bool {
        let compares = |rule: &str| matches!(split_rule(rule).0, AGREEMENT | COMMAND);
        compares(&self.rule) || self.rule == PICK && self.candidates.iter().any(|rule| compares(rule))
    }

    /// Whether a public set is required.
    pub fn needs_public(&self) -> bool {
        let plain = |rule: &str| matches!(rule, "fedavg" | "uniform" | AGREEMENT | CLASSES | COMMAND);
        !plain(&self.rule) || self.filter.names.contains(&UpdateFilter::LossGate)
    }
}

/// What follows the merge of a rule.
pub(crate) enum PostMergeStep {
    Done,
    Head,
    Tune,
    Distill,
}

/// Splits a rule's name into the rule and what follows the merge.
pub(crate) fn split_rule(rule: &str) -> (&str, PostMergeStep) {
    let known =
        [(AND_HEAD, PostMergeStep::Head), (AND_TUNE, PostMergeStep::Tune), (AND_DISTILL, PostMergeStep::Distill)];
    let found = known.into_iter().find_map(|(suffix, then)| Some((rule.strip_suffix(suffix)?, then)));
    found.unwrap_or((rule, PostMergeStep::Done))
}

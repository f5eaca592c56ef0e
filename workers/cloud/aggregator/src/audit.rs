//! How weights were produced: the part of a release's manifest that explains it.

use std::fmt;

use releases::prepare::ReleaseOrigin;
use schemas::{ModelAccuracy, ReleaseId, SiteName};
use serde::{Deserialize, Serialize};
use training::holdout::HoldoutScores;

use crate::score::ModelScore;

/// One site's part in a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteAudit {
    /// The site that sent the update.
    pub site: SiteName,
    /// Number of images it learned from.
    pub samples: u64,
    /// Update norm: the length of its difference from its base.
    pub norm: f64,
    /// Mean loss on the public pictures that rules learn from; absent without a public set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Accuracy on the same pictures by class, 0 to 1; absent for a class without pictures.
    #[serde(default)]
    pub accuracy: Vec<Option<f64>>,
    /// Weight of its change in the release, 0 to 1.
    pub share: f64,
    /// Why it does not count or counts less; absent if neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Score of one rule that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleTrial {
    /// Name of the rule.
    pub rule: String,
    /// Loss on the part of the public set that candidates are chosen by.
    pub loss: f64,
    /// Mean accuracy over the classes on the same part, 0 to 1.
    pub accuracy_ratio: f64,
}

/// How weights were produced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AggregateAudit {
    /// Every site's part, in the order of their names.
    pub parts: Vec<SiteAudit>,
    /// The rule that produced the release.
    pub rule: String,
    /// The rules that were tried; empty unless `pick` chose.
    #[serde(default)]
    pub candidates: Vec<RuleTrial>,
    /// Index of the class the base does worst on among the pictures that candidates are chosen by, and its accuracy
    /// there, 0 to 1; absent unless `pick` chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weakest: Option<(usize, f64)>,
    /// Whether it is better than its base by more than chance on those pictures; absent unless `pick` chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_clear: Option<bool>,
    /// Why another rule than the configured one was used; absent if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<String>,
    /// Accuracy of the base and of the new weights; absent without a public set, or where the set is too small.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported: Option<AccuracyChange>,
}

/// Accuracy of the base and of the new weights on the reported part of the public set: pictures that nothing was fitted
/// on or chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AccuracyChange {
    /// Accuracy of the base.
    pub before: ModelAccuracy,
    /// Accuracy of the new weights.
    pub after: ModelAccuracy,
    /// 95 % confidence interval of the new weights' accuracy, each bound 0 to 1.
    pub after_interval: (f64, f64),
    /// 95 % confidence interval of the change in accuracy, each bound -1 to 1.
    pub change_interval: (f64, f64),
}

impl AccuracyChange {
    /// Compares two models' predictions on the same pictures; `None` without pictures.
    pub fn of(before: &HoldoutScores, after: &HoldoutScores) -> Option<Self> {
        (!after.is_empty()).then(|| Self {
            before: before.measured(),
            after: after.measured(),
            after_interval: after.accuracy_interval(),
            change_interval: after.change_interval(before),
        })
    }

    /// Whether the change is larger than chance explains with so few pictures.
    pub fn is_measured(&self) -> bool {
        self.change_interval.0 > 0.0 || self.change_interval.1 < 0.0
    }
}

/// `91.2 % right of 167 pictures (85.9 to 94.6), 89.8 % before: no measurable change`.
impl fmt::Display for AccuracyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, after, after_interval: (low, high), change_interval } = self;
        let percent = |ratio: f64| ratio * 100.0;
        write!(
            f,
            "{:.1} % right of {} pictures ({:.1} to {:.1}), {:.1} % before: ",
            percent(after.accuracy_ratio),
            after.images,
            percent(*low),
            percent(*high),
            percent(before.accuracy_ratio)
        )?;
        match self.is_measured() {
            true => write!(f, "{:+.1} to {:+.1} points", percent(change_interval.0), percent(change_interval.1)),
            false => f.write_str("no measurable change"),
        }
    }
}

impl AggregateAudit {
    /// The origin that a release of these weights is described with. `words`: such as `round 3`.
    pub fn origin(&self, parent: Option<ReleaseId>, words: String) -> ReleaseOrigin {
        ReleaseOrigin {
            parent,
            words,
            public: self.reported.map(|reported| (reported.before, reported.after)),
            public_change_interval: self.reported.map(|reported| reported.change_interval),
        }
    }
}

impl RuleTrial {
    pub(crate) fn of(rule: &str, tried: &ModelScore) -> Self {
        Self { rule: rule.into(), loss: tried.loss, accuracy_ratio: tried.mean_accuracy() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(right: usize) -> HoldoutScores {
        let mut scores = HoldoutScores::default();
        (0..100).for_each(|image| scores.push(image < right, 0.1));
        scores
    }

    #[test]
    fn a_change_within_chance_is_reported_as_none() {
        let little = AccuracyChange::of(&scores(89), &scores(90)).unwrap();
        assert_eq!(
            little.to_string(),
            "90.0 % right of 100 pictures (82.6 to 94.5), 89.0 % before: no measurable change"
        );
        let much = AccuracyChange::of(&scores(70), &scores(90)).unwrap();
        assert_eq!(
            much.to_string(),
            "90.0 % right of 100 pictures (82.6 to 94.5), 70.0 % before: +11.7 to +27.5 points"
        );
        assert_eq!(AccuracyChange::of(&HoldoutScores::default(), &HoldoutScores::default()), None);
    }
}

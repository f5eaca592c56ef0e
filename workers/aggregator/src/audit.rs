//! How weights were come by: what stands in a release's manifest, for people and for whoever asks why.

use std::fmt;

use rollout::prepare::ReleaseOrigin;
use schemas::{ModelAccuracy, ReleaseId, SiteName};
use serde::{Deserialize, Serialize};
use training::holdout::HoldoutScores;

use crate::score::ModelScore;

/// What is known of one site's part in a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteAudit {
    /// The site.
    pub site: SiteName,
    /// Pictures it learned from.
    pub samples: u64,
    /// Length of its change.
    pub norm: f64,
    /// On the pictures of the public set that rules learn from; absent without them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// On the same pictures, by class.
    #[serde(default)]
    pub accuracy: Vec<Option<f64>>,
    /// How much of its change is in the release.
    pub share: f64,
    /// Why it does not count, or counts less, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A rule that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleTrial {
    /// Its name.
    pub rule: String,
    /// Loss on the pictures of the public set that are chosen by.
    pub loss: f64,
    /// Mean accuracy over the classes there, 0 to 1.
    pub accuracy_ratio: f64,
}

/// How weights were come by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AggregateAudit {
    /// Every site's part, by its name.
    pub parts: Vec<SiteAudit>,
    /// The rule that made the release.
    pub rule: String,
    /// What was tried, where there was a choice.
    #[serde(default)]
    pub candidates: Vec<RuleTrial>,
    /// The class that the base is least right about on the pictures that are chosen by, and in what share of them; absent
    /// where there was no choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weakest: Option<(usize, f64)>,
    /// Whether it is better than its base by more than chance on those pictures; absent where there was no choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_clear: Option<bool>,
    /// Why another rule than the one asked for was used; absent if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<String>,
    /// How right the base and the new weights are; absent without a public set, or where it is too small.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported: Option<AccuracyChange>,
}

/// How right the base and the new weights are on the pictures of the public set that no weights are fitted on and nothing
/// is chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AccuracyChange {
    /// The base.
    pub before: ModelAccuracy,
    /// The new weights.
    pub after: ModelAccuracy,
    /// Where the accuracy of the new weights lies, 95 times of 100; 0 to 1.
    pub after_interval: (f64, f64),
    /// Where the change of accuracy lies, 95 times of 100; -1 to 1.
    pub change_interval: (f64, f64),
}

impl AccuracyChange {
    /// Of what both say about the same pictures; `None` of no picture.
    pub fn of(before: &HoldoutScores, after: &HoldoutScores) -> Option<Self> {
        (!after.is_empty()).then(|| Self {
            before: before.measured(),
            after: after.measured(),
            after_interval: after.accuracy_interval(),
            change_interval: after.change_interval(before),
        })
    }

    /// Whether the change is more than what chance makes of so few pictures.
    pub fn is_measured(&self) -> bool {
        self.change_interval.0 > 0.0 || self.change_interval.1 < 0.0
    }
}

/// `91.2 % right of 167 pictures (85.9 to 94.6), 89.8 % before: no change measured`.
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
            false => f.write_str("no change measured"),
        }
    }
}

impl AggregateAudit {
    /// Where a release that was come by so is said to come from. `words`: such as `round 3`.
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
    fn a_change_within_chance_is_said_to_be_none() {
        let little = AccuracyChange::of(&scores(89), &scores(90)).unwrap();
        assert_eq!(
            little.to_string(),
            "90.0 % right of 100 pictures (82.6 to 94.5), 89.0 % before: no change measured"
        );
        let much = AccuracyChange::of(&scores(70), &scores(90)).unwrap();
        assert_eq!(
            much.to_string(),
            "90.0 % right of 100 pictures (82.6 to 94.5), 70.0 % before: +11.7 to +27.5 points"
        );
        assert_eq!(AccuracyChange::of(&HoldoutScores::default(), &HoldoutScores::default()), None);
    }
}

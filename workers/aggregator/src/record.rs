//! How weights were come by: what stands in a release's manifest, for people and for whoever asks why.

use schemas::SiteName;
use serde::{Deserialize, Serialize};

use crate::score::Tried;

/// What is known of one site's part in a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The site.
    pub site: SiteName,
    /// Pictures it learned from.
    pub samples: u64,
    /// Length of its change.
    pub norm: f64,
    /// On the public set; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// On the public set, by class.
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
pub struct Candidate {
    /// Its name.
    pub rule: String,
    /// Loss on the half that chooses.
    pub loss: f64,
    /// Mean accuracy over the classes there, 0 to 1.
    pub accuracy_ratio: f64,
}

/// How weights were come by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Every site's part, by its name.
    pub parts: Vec<Part>,
    /// The rule that made the release.
    pub rule: String,
    /// What was tried, where there was a choice.
    #[serde(default)]
    pub candidates: Vec<Candidate>,
    /// Why another rule than the one asked for was used; absent if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<String>,
    /// The base on the public set: loss and mean accuracy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<(f64, f64)>,
    /// The new weights on the public set: loss and mean accuracy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<(f64, f64)>,
}

impl Candidate {
    pub(crate) fn of(rule: &str, tried: &Tried) -> Self {
        Self { rule: rule.into(), loss: tried.loss, accuracy_ratio: tried.mean_accuracy() }
    }
}

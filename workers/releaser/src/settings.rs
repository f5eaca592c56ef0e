//! How releases are let out.

use std::path::PathBuf;

use schemas::SiteName;
use serde::{Deserialize, Serialize};

use crate::canary::CanarySettings;
use crate::pause_window::PauseWindow;

/// How releases are let out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReleaserSettings {
    /// File of the key that orders are signed with (`tributary fleet init` makes one); absent: unsigned, and sites of a fleet
    /// do not obey.
    pub key: Option<PathBuf>,
    /// Files of public keys in PEM (P-256 or P-384). Where there are any, `tributary release import` refuses a model that none
    /// of them signed (OpenSSF Model Signing); what is trained here needs no signature.
    pub trusted_keys: Vec<PathBuf>,
    /// Rings of sites that try a release, one after the other, each by itself judged; the sites of earlier ones stay in.
    pub rings: Vec<RingSettings>,
    /// When a canary is promoted or withdrawn.
    pub canary: CanarySettings,
    /// So many sites at a time are given what is stable, at least 1.
    pub batch: u32,
    /// When nothing new is let out, in UTC, such as `22:00-06:00`; what is bad is taken back all the same.
    pub pause: Vec<PauseWindow>,
    /// How often canaries are judged, seconds, at least 1.
    pub judge_s: u32,
    /// How much less right than its parent a candidate may be on the public set and still be tried, 0 to 1.
    pub public_margin_ratio: f64,
}

impl Default for ReleaserSettings {
    fn default() -> Self {
        Self {
            key: None,
            trusted_keys: Vec::new(),
            rings: vec![RingSettings { share_ratio: Some(0.1), ..RingSettings::default() }],
            canary: CanarySettings::default(),
            batch: 10,
            pause: Vec::new(),
            judge_s: 30,
            public_margin_ratio: 0.02,
        }
    }
}

/// Which sites try a release: all that are named in one way or another.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RingSettings {
    /// These.
    pub sites: Vec<SiteName>,
    /// Those whose operators call them so (recognizer.site_labels).
    pub labels: Vec<String>,
    /// This share of all, above 0 and up to 1, at least one, drawn by lot for each release.
    pub share_ratio: Option<f64>,
}

impl ReleaserSettings {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        let wants = [
            (!self.rings.is_empty(), "rings: at least one"),
            (self.batch > 0, "batch: at least 1"),
            (self.judge_s > 0, "judge_s: at least 1"),
            ((0.0..=1.0).contains(&self.public_margin_ratio), "public_margin_ratio: 0 to 1"),
        ];
        if let Some((_, wanted)) = wants.iter().find(|(is, _)| !is) {
            return Err(format!("releaser.{wanted}"));
        }
        for ring in &self.rings {
            if ring.share_ratio.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
                return Err("releaser.rings: share_ratio must lie above 0 and be at most 1".into());
            }
            if ring.sites.is_empty() && ring.labels.is_empty() && ring.share_ratio.is_none() {
                return Err("releaser.rings: a ring needs sites, labels or share_ratio".into());
            }
        }
        self.canary.check().map_err(|wrong| format!("releaser.{wrong}"))
    }
}

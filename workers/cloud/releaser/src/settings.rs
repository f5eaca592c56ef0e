//! Settings of the releaser.

use std::path::PathBuf;

use runtime::settings::check_section;
use schemas::SiteName;
use serde::{Deserialize, Serialize};

use crate::canary::CanarySettings;
use crate::pause_window::PauseWindow;

/// Releaser settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReleaserSettings {
    /// Path of the key that signs orders (`tributary fleet init` creates one); absent: orders are unsigned, and sites
    /// of a fleet ignore them.
    pub key: Option<PathBuf>,
    /// Paths of public keys in PEM (P-256 or P-384). If there are any, `tributary release import` refuses models that
    /// none of them signed (OpenSSF Model Signing); releases from rounds need no signature.
    pub trusted_keys: Vec<PathBuf>,
    /// Rings of sites that try a release one after another, each judged by itself; sites of earlier rings stay in.
    pub rings: Vec<RingSettings>,
    /// When a canary is promoted or withdrawn.
    pub canary: CanarySettings,
    /// Sites that move to the stable release at a time, at least 1.
    pub batch: u32,
    /// Periods in UTC without rollouts, such as `22:00-06:00`; bad releases are withdrawn all the same.
    pub pause: Vec<PauseWindow>,
    /// Seconds between judgements of a canary, at least 1; `status` tells what the last one waits for.
    pub judge_s: u32,
    /// Allowed drop in accuracy on the public set against its parent for a candidate to be tried, 0 to 1.
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

/// Sites that try a release: the union of the three fields.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RingSettings {
    /// Sites by name.
    pub sites: Vec<SiteName>,
    /// Sites with one of these labels (recognizer.site_labels).
    pub labels: Vec<String>,
    /// Share of all sites, above 0 and up to 1, at least one site, drawn at random for each release.
    pub share_ratio: Option<f64>,
}

impl ReleaserSettings {
    /// Checks the settings and names the first one that is invalid.
    pub fn check(&self) -> Result<(), String> {
        let wants = [
            (!self.rings.is_empty(), "rings is empty; it needs at least one ring".into()),
            (self.batch > 0, "batch is 0; it must be at least 1".into()),
            (self.judge_s > 0, "judge_s is 0; it must be at least 1".into()),
            (
                (0.0..=1.0).contains(&self.public_margin_ratio),
                format!("public_margin_ratio is {}; it must be 0 to 1", self.public_margin_ratio),
            ),
        ];
        if let Some((_, wanted)) = wants.iter().find(|(is, _)| !is) {
            return Err(wanted.clone());
        }
        for ring in &self.rings {
            if let Some(share) = ring.share_ratio.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
                return Err(format!("rings.share_ratio is {share}; it must be above 0 and at most 1"));
            }
            if ring.sites.is_empty() && ring.labels.is_empty() && ring.share_ratio.is_none() {
                return Err("rings has an empty ring; each needs sites, labels or share_ratio".into());
            }
        }
        check_section("canary", self.canary.check())
    }
}

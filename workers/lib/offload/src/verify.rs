//! Settings of what happens to doubtful answers.

use serde::{Deserialize, Serialize};

/// What happens to doubtful answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifySettings {
    /// Whether they are sent up for a verdict; otherwise they are final.
    pub enabled: bool,
    /// What may leave the site: `image`, `features` (if the model outputs them) or `never`; with the latter
    /// two no image is offloaded either.
    pub payload: PayloadKind,
    /// How long a provisional answer waits for its verdict, seconds; a publisher's own deadline can
    /// only shorten it.
    pub deadline_s: u32,
    /// Largest share of all images that may be sent up, 0 to 1; absent: no cap. Further doubtful answers stand.
    pub max_share_ratio: Option<f64>,
    /// Share of the confident answers that are verified all the same, 0 to 1: needed to keep a target accuracy, and to
    /// compare a canary with the stable release.
    pub sample_ratio: f64,
    /// Whether features and scores of doubtful tasks are collected in the cloud as hard cases.
    pub hard_cases: bool,
}

/// What may leave the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PayloadKind {
    /// The image.
    #[default]
    Image,
    /// The input of the model's last layer.
    Features,
    /// Nothing.
    Never,
}

impl Default for VerifySettings {
    fn default() -> Self {
        Self {
            enabled: true,
            payload: PayloadKind::default(),
            deadline_s: 24 * 3600,
            max_share_ratio: None,
            sample_ratio: 0.02,
            hard_cases: true,
        }
    }
}

impl VerifySettings {
    /// Checks the settings.
    pub fn check(&self) -> Result<(), String> {
        let shares = [("max_share_ratio", self.max_share_ratio), ("sample_ratio", Some(self.sample_ratio))];
        for (name, ratio) in shares {
            if let Some(ratio) = ratio.filter(|ratio| !(0.0..=1.0).contains(ratio)) {
                return Err(format!("{name} is {ratio}; it must be between 0 and 1"));
            }
        }
        Ok(())
    }
}

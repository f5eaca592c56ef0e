//! What an operator may choose about what becomes of doubtful answers.

use serde::{Deserialize, Serialize};

/// What becomes of doubtful answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifySettings {
    /// Whether they are sent up for a verdict; without it they are final as they are.
    pub enabled: bool,
    /// What may leave the site: `image`, `features` (of a model that gives them) or `never`; with the latter
    /// two no image is redirected either.
    pub payload: PayloadKind,
    /// How long a provisional answer waits for its verdict, seconds; a publisher's own deadline may
    /// only shorten it.
    pub deadline_s: u32,
    /// Most of the images that may go up, as a share of all, 0 to 1; the others stay as they are.
    pub max_share_ratio: Option<f64>,
    /// Share of the confident answers that are verified all the same, 0 to 1: so that a target can be kept, and so that a
    /// release that is tried can be held against the one before it.
    pub sample_ratio: f64,
    /// Whether features and scores of doubtful tasks are collected in the cloud.
    pub hard_cases: bool,
}

/// What may leave the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PayloadKind {
    /// The image.
    #[default]
    Image,
    /// What the model gives before its last layer.
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
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        let shares = [("max_share_ratio", self.max_share_ratio), ("sample_ratio", Some(self.sample_ratio))];
        for (name, ratio) in shares {
            if let Some(ratio) = ratio.filter(|ratio| !(0.0..=1.0).contains(ratio)) {
                return Err(format!("recognizer.verify.{name} is {ratio}, it must lie between 0 and 1"));
            }
        }
        Ok(())
    }
}

//! What an operator may choose about recognizing.

use std::path::PathBuf;

use scaling::ScaleSettings;
use serde::{Deserialize, Serialize};
use vision::InferSettings;

use crate::gate::GateSettings;
use crate::policy::Policy;

/// What an operator may choose about recognizing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecognizerSettings {
    /// Folder of the site's model.
    pub model: PathBuf,
    /// Replicas, batches and what a picture may cost.
    pub infer: InferSettings,
    /// How many replicas, where that follows the queue; `tributary scale` changes it while it runs.
    pub scale: ScaleSettings,
    /// What makes an answer doubtful; what is absent is the model's own.
    pub gate: GateSettings,
    /// What becomes of doubtful answers.
    pub verify: VerifySettings,
    /// Where a task is recognized.
    pub policy: Policy,
    /// Folder of the releases that the site was given; each worker has a part of it to itself.
    pub work: PathBuf,
    /// What the site is called where rings of sites are chosen, such as `harbour` or `night`.
    pub site_labels: Vec<String>,
    /// How often it is told what came of the release that runs, seconds, at least 1.
    pub report_s: u32,
    /// Length of the stretches of time in which that is counted, seconds, 10 or more where many sites report: hours are told
    /// apart by them, and a release is held against the stretches before it.
    pub count_s: u32,
    /// Deliveries after which an image is given up, at least 1. High, because a restart of a worker
    /// costs one as well.
    pub tries: u64,
}

impl Default for RecognizerSettings {
    fn default() -> Self {
        Self {
            model: PathBuf::from("model"),
            infer: InferSettings::default(),
            scale: ScaleSettings::default(),
            gate: GateSettings::default(),
            verify: VerifySettings::default(),
            policy: Policy::default(),
            work: PathBuf::from("tributary-recognizer"),
            site_labels: Vec::new(),
            report_s: 30,
            count_s: 600,
            tries: 20,
        }
    }
}

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

impl RecognizerSettings {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        self.scale.check("recognizer")?;
        self.gate.check()?;
        self.policy.check()?;
        let shares =
            [("max_share_ratio", self.verify.max_share_ratio), ("sample_ratio", Some(self.verify.sample_ratio))];
        for (name, ratio) in shares {
            if let Some(ratio) = ratio.filter(|ratio| !(0.0..=1.0).contains(ratio)) {
                return Err(format!("recognizer.verify.{name} is {ratio}, it must lie between 0 and 1"));
            }
        }
        if self.report_s == 0 || self.count_s == 0 {
            return Err("recognizer.report_s and recognizer.count_s must be at least 1".into());
        }
        match self.tries {
            0 => Err("recognizer.tries is 0, use at least 1".into()),
            _ => Ok(()),
        }
    }
}

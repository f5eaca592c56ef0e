//! The checks an update must pass before it counts. Pure but for reading the update's own file. Each refusal has a
//! name, a reason and a remedy, and affects no other site.

use std::collections::BTreeMap;

use runtime::site_key::{is_public_key, is_signed};
use schemas::limits::MAX_WEIGHTS_BYTES;
use schemas::{FaultNote, Gain, ModelAccuracy, ReleaseId, SiteName, Update};
use serde::{Deserialize, Serialize};

use crate::weights_file::WeightsFileError;

/// Which updates are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckSettings {
    /// Most images an update may claim to have learned from, at least 1. The claim decides the site's share.
    pub samples_max: u64,
    /// The same limit for single sites, in place of `samples_max`.
    pub max_samples_of_site: BTreeMap<SiteName, u64>,
    /// Public keys by site, as `tributary key` prints them. If any key is set, only updates signed by their site count.
    pub keys: BTreeMap<SiteName, String>,
    /// Largest file of weights in MiB, 1 to 512.
    pub weights_max_mib: u32,
    /// Largest update norm as a multiple of the base's norm, above 0; absent: no limit.
    pub norm_over_base_max: Option<f64>,
    /// Largest update norm as a multiple of the round's median norm, at least 1; absent: no limit.
    pub norm_over_median_max: Option<f64>,
    /// Count updates that are worse than their base on their site's own holdout by more than chance.
    pub accept_worse: bool,
}

impl Default for CheckSettings {
    fn default() -> Self {
        Self {
            samples_max: 1_000_000,
            max_samples_of_site: BTreeMap::new(),
            keys: BTreeMap::new(),
            weights_max_mib: (MAX_WEIGHTS_BYTES >> 20) as u32,
            norm_over_base_max: Some(10.0),
            norm_over_median_max: None,
            accept_worse: false,
        }
    }
}

impl CheckSettings {
    /// Checks the settings and names the first one that is out of range.
    pub fn check(&self) -> Result<(), String> {
        let wants = [
            (self.samples_max > 0, "samples_max is 0; it must be at least 1".into()),
            (
                self.max_samples_of_site.values().all(|most| *most > 0),
                "max_samples_of_site has a 0; every value must be at least 1".into(),
            ),
            (
                (1..=(MAX_WEIGHTS_BYTES >> 20) as u32).contains(&self.weights_max_mib),
                format!("weights_max_mib is {}; it must be 1 to 512", self.weights_max_mib),
            ),
            (
                self.keys.values().all(|key| is_public_key(key)),
                "keys has an invalid key; each must have 64 hexadecimal digits, as `tributary key` prints them".into(),
            ),
            (
                self.norm_over_base_max.is_none_or(|most| most > 0.0),
                format!("norm_over_base_max is {}; it must be above 0", self.norm_over_base_max.unwrap_or_default()),
            ),
            (
                self.norm_over_median_max.is_none_or(|most| most >= 1.0),
                format!(
                    "norm_over_median_max is {}; it must be at least 1",
                    self.norm_over_median_max.unwrap_or_default()
                ),
            ),
        ];
        wants.iter().find(|(is, _)| !is).map_or(Ok(()), |(_, wanted)| Err(wanted.clone()))
    }
}

/// Why an update is refused.
#[derive(Debug, thiserror::Error)]
pub enum UpdateRefusal {
    /// The message cannot be decoded as an update.
    #[error("the update cannot be decoded: {0}")]
    Unreadable(String),
    /// The subject names another site or round than the update.
    #[error("it arrived on subject {subject}, but names site {site} and round {round}")]
    Misdirected {
        /// Subject it arrived on.
        subject: String,
        /// Site named in the update.
        site: SiteName,
        /// Round named in the update.
        round: u64,
    },
    /// The round does not exist.
    #[error("it is for round {round}, but the last round is {last}")]
    UnknownRound {
        /// Round named in the update.
        round: u64,
        /// Number of the last round.
        last: u64,
    },
    /// The round was already closed.
    #[error("it is for round {round}, which was closed before the update arrived")]
    Late {
        /// Round named in the update.
        round: u64,
    },
    /// The site was not selected for the round.
    #[error("site {site} was not selected for round {round}")]
    NotAsked {
        /// The sender.
        site: SiteName,
        /// Number of the round.
        round: u64,
    },
    /// The site has already sent an update for the round.
    #[error("site {site} has already sent an update for round {round}")]
    Second {
        /// The sender.
        site: SiteName,
        /// Number of the round.
        round: u64,
    },
    /// It starts from a release the round does not accept.
    #[error("it starts from release {}; the round accepts {wanted}", found.short())]
    OtherBase {
        /// The release it starts from.
        found: ReleaseId,
        /// The releases the round accepts, in words.
        wanted: String,
    },
    /// It has no valid signature of its site.
    #[error("{0}")]
    NotSigned(&'static str),
    /// It names no image it learned from.
    #[error("it claims to have learned from no images")]
    NoSamples,
    /// It claims more images than allowed.
    #[error("it claims to have learned from {found} images; site {site} may claim at most {most}")]
    TooManySamples {
        /// The sender.
        site: SiteName,
        /// Number it claims.
        found: u128,
        /// Largest number allowed.
        most: u64,
    },
    /// Its weights are larger than allowed.
    #[error("its weights have {found} bytes; at most {most} are accepted")]
    TooLarge {
        /// Size in bytes that it names.
        found: u64,
        /// Largest size allowed, in bytes.
        most: u64,
    },
    /// Its weights are missing, or do not match their digest.
    #[error("its weights could not be fetched: {0}")]
    NoWeights(String),
    /// Its weights do not fit the model.
    #[error(transparent)]
    Values(#[from] WeightsFileError),
    /// It is worse than its base on its own site's holdout.
    #[error(
        "on its site's holdout ({images} images) it is worse than its base: {after:.1} % right instead of {before:.1} %"
    )]
    Worse {
        /// Number of holdout images.
        images: u64,
        /// Accuracy of the base, percent.
        before: f64,
        /// Accuracy of the update, percent.
        after: f64,
    },
    /// Its weights contain NaN or infinity.
    #[error("its weights contain NaN or infinity")]
    NotFinite,
    /// Its update norm is above the limit.
    #[error("its update norm is {found:.3}; at most {most:.3} is accepted ({by})")]
    TooLong {
        /// Its update norm.
        found: f64,
        /// Largest norm allowed.
        most: f64,
        /// The setting that set the limit.
        by: &'static str,
    },
}

impl UpdateRefusal {
    /// The note for a dead letter.
    pub fn fault_note(&self) -> FaultNote {
        let (name, remedy) = match self {
            Self::Unreadable(_) => {
                ("update_unreadable", "run the same version of tributary at the site and in the cloud")
            }
            Self::Misdirected { .. } => ("update_misdirected", "give each site its own name"),
            Self::UnknownRound { .. } => {
                ("round_unknown", "look for a second cloud: rounds of this model are opened here only")
            }
            Self::Late { .. } => (
                "update_late",
                "give sites more time (round.grace_s, round.deadline_s), or accept stragglers in the next round (round.max_staleness)",
            ),
            Self::NotAsked { .. } => ("site_not_asked", "add the site to round.sites"),
            Self::Second { .. } => {
                ("update_second", "look for a second trainer at that site, or a second site of that name")
            }
            Self::OtherBase { .. } => {
                ("base_unknown", "update the site to the latest release, or accept older bases (round.max_staleness)")
            }
            Self::NotSigned(_) => {
                ("signature_wrong", "give the site a key (`tributary key`) and name its public half in check.keys")
            }
            Self::NoSamples => ("samples_none", "check the site's trainer"),
            Self::TooManySamples { .. } => (
                "samples_too_many",
                "if the number is right, raise check.samples_max or check.max_samples_of_site for the site",
            ),
            Self::TooLarge { .. } => {
                ("weights_too_large", "train fewer layers, or send 16-bit floats (trainer.weight_format)")
            }
            Self::NoWeights(_) => {
                ("weights_missing", "keep weights longer (streams.blobs_max_age_s), or find out what changed them")
            }
            Self::Values(error) => {
                (error.name(), "have the site train the model and the layers that the round asks for")
            }
            Self::Worse { .. } => (
                "update_worse",
                "check the site's labels; train with a lower trainer.optimizer.learning_rate or fewer layers \
                 (round.trainable); or accept it anyway (check.accept_worse)",
            ),
            Self::NotFinite => ("weights_not_finite", "use a lower learning rate or clip_norm in the site's trainer"),
            Self::TooLong { .. } => (
                "change_too_long",
                "check the site's trainer; if the update is right, raise check.norm_over_base_max or norm_over_median_max",
            ),
        };
        FaultNote::new(name, self.to_string(), remedy)
    }
}

/// Checks what an update says about itself.
pub fn check_description(update: &Update, settings: &CheckSettings) -> Result<(), UpdateRefusal> {
    let found: u128 = update.samples.values().map(|count| u128::from(*count)).sum();
    let most = settings.max_samples_of_site.get(&update.site).copied().unwrap_or(settings.samples_max);
    if found == 0 {
        return Err(UpdateRefusal::NoSamples);
    }
    if found > u128::from(most) {
        return Err(UpdateRefusal::TooManySamples { site: update.site.clone(), found, most });
    }
    if !settings.accept_worse && is_worse(update) {
        let percent = |measured: ModelAccuracy| measured.accuracy_ratio * 100.0;
        return Err(UpdateRefusal::Worse {
            images: update.after.images,
            before: percent(update.before),
            after: percent(update.after),
        });
    }
    let most = u64::from(settings.weights_max_mib) << 20;
    if update.weights.size_bytes > most {
        return Err(UpdateRefusal::TooLarge { found: update.weights.size_bytes, most });
    }
    Ok(())
}

/// Whether an update is worse on its site's holdout: as its trainer reports, or, if it reports nothing, when far fewer
/// images are right.
fn is_worse(update: &Update) -> bool {
    let Update { before, after, gain, .. } = update;
    let count = after.images.min(before.images) as f64;
    match gain {
        Some(gain) => *gain == Gain::Worse,
        None if count > 0.0 => {
            // Two independent shares of that many images each, compared one-sided at 95 %.
            let both = f64::midpoint(before.accuracy_ratio, after.accuracy_ratio);
            let error = (2.0 * both * (1.0 - both) / count).sqrt();
            before.accuracy_ratio - after.accuracy_ratio > 1.645 * error
        }
        None => false,
    }
}

/// Name of the cloud's ledger note with the public keys of a fleet's sites, as JSON by site. It replaces the keys in
/// the settings.
pub const SITE_KEYS: &str = "site-update-keys";

/// Checks an update's signature, where keys are known. This comes before the site is recorded as heard, so that a
/// forged update cannot take the real one's place.
pub fn signature(update: &Update, settings: &CheckSettings) -> Result<(), UpdateRefusal> {
    if settings.keys.is_empty() {
        return Ok(());
    }
    let key = settings.keys.get(&update.site).ok_or(UpdateRefusal::NotSigned("no key is known for its site"))?;
    let signature = update.signature.as_ref().ok_or(UpdateRefusal::NotSigned("it is not signed"))?;
    let signed = update.signed_bytes().map_err(|_| UpdateRefusal::NotSigned("its signed bytes cannot be encoded"))?;
    match is_signed(key, &signed, signature) {
        true => Ok(()),
        false => Err(UpdateRefusal::NotSigned("its signature does not match its site's key")),
    }
}

/// Checks an update's norm against that of its base. `base`: norm of the base's weights.
pub fn check_update_norm(norm: f64, finite: bool, base: f64, settings: &CheckSettings) -> Result<(), UpdateRefusal> {
    if !finite || !norm.is_finite() {
        return Err(UpdateRefusal::NotFinite);
    }
    match settings.norm_over_base_max.map(|most| most * base) {
        Some(most) if norm > most => Err(UpdateRefusal::TooLong { found: norm, most, by: "check.norm_over_base_max" }),
        _ => Ok(()),
    }
}

/// Checks update norms against the median of their round.
pub fn check_round_norms(norms: &[f64], settings: &CheckSettings) -> Vec<Option<UpdateRefusal>> {
    let most = settings.norm_over_median_max.map(|most| most * crate::filter::median(norms));
    let too_long = |norm: &f64| {
        let most = most.filter(|most| norm > most)?;
        Some(UpdateRefusal::TooLong { found: *norm, most, by: "check.norm_over_median_max" })
    };
    norms.iter().map(too_long).collect()
}

#[cfg(test)]
mod tests {
    use schemas::{BlobRef, WeightFormat};

    use super::*;

    fn update(samples: &[u64], size_bytes: u64) -> Update {
        Update {
            site: "reef".parse().unwrap(),
            model: "light".parse().unwrap(),
            round: 1,
            base: ReleaseId::from_sha256([1; 32]),
            weights: BlobRef::new([2; 32], size_bytes),
            form: WeightFormat::F32,
            samples: samples.iter().enumerate().map(|(label, count)| (label.to_string(), *count)).collect(),
            hard: 0,
            sources: BTreeMap::new(),
            before: ModelAccuracy::default(),
            after: ModelAccuracy::default(),
            gain: None,
            epochs: 1,
            trainable: "all".into(),
            trained_at_ms: 0,
            signature: None,
        }
    }

    fn refused(update: &Update, settings: &CheckSettings) -> String {
        check_description(update, settings).unwrap_err().fault_note().kind.to_string()
    }

    #[test]
    fn claims_of_a_site_are_limited() {
        let settings = CheckSettings { samples_max: 100, ..CheckSettings::default() };
        assert!(check_description(&update(&[60, 40], 1000), &settings).is_ok());
        assert_eq!(refused(&update(&[], 1000), &settings), "samples_none");
        assert_eq!(refused(&update(&[0, 0], 1000), &settings), "samples_none");
        assert_eq!(refused(&update(&[60, 41], 1000), &settings), "samples_too_many");
        // A sum that overflows 64 bits.
        assert_eq!(refused(&update(&[u64::MAX, u64::MAX], 1000), &settings), "samples_too_many");
        assert_eq!(refused(&update(&[1], u64::MAX), &settings), "weights_too_large");
        let own = CheckSettings { max_samples_of_site: [("reef".parse().unwrap(), 200)].into(), ..settings };
        assert!(check_description(&update(&[150], 1000), &own).is_ok());
    }

    #[test]
    fn an_update_worse_on_its_own_holdout_does_not_count() {
        let settings = CheckSettings::default();
        let measured = |accuracy_ratio: f64| ModelAccuracy { images: 100, accuracy_ratio, loss: 1.0 };
        let with = |gain, after| Update { gain, before: measured(0.9), after: measured(after), ..update(&[50], 1000) };
        assert_eq!(refused(&with(Some(Gain::Worse), 0.88), &settings), "update_worse");
        assert_eq!(refused(&with(None, 0.7), &settings), "update_worse");
        assert!(check_description(&with(None, 0.88), &settings).is_ok(), "within chance");
        assert!(
            check_description(&with(Some(Gain::Level), 0.7), &settings).is_ok(),
            "the trainer's own comparison, image by image, comes first"
        );
        let settings = CheckSettings { accept_worse: true, ..settings };
        assert!(check_description(&with(Some(Gain::Worse), 0.1), &settings).is_ok());
    }

    #[test]
    fn with_keys_only_signed_updates_count() {
        let folder = tempfile::tempdir().unwrap();
        let key = runtime::site_key::SiteKey::create(&folder.path().join("key")).unwrap();
        let mut settings =
            CheckSettings { keys: [("reef".parse().unwrap(), key.public())].into(), ..CheckSettings::default() };
        let mut update = update(&[5], 1000);
        assert_eq!(signature(&update, &settings).unwrap_err().fault_note().kind.as_str(), "signature_wrong");
        update.signature = Some(key.sign(&update.signed_bytes().unwrap()));
        assert!(signature(&update, &settings).is_ok());
        update.samples.insert("more".into(), 1000);
        assert_eq!(signature(&update, &settings).unwrap_err().fault_note().kind.as_str(), "signature_wrong");
        update.samples.remove("more");
        update.site = "other".parse().unwrap();
        assert_eq!(signature(&update, &settings).unwrap_err().fault_note().kind.as_str(), "signature_wrong");
        settings.keys.insert("other".parse().unwrap(), "not a key".into());
        assert!(settings.check().is_err());
    }

    #[test]
    fn a_change_that_is_not_finite_or_too_long_is_refused() {
        let settings = CheckSettings { norm_over_median_max: Some(3.0), ..CheckSettings::default() };
        let name = |refused: Result<(), UpdateRefusal>| refused.unwrap_err().fault_note().kind.to_string();
        assert!(check_update_norm(1.0, true, 1.0, &settings).is_ok());
        assert_eq!(name(check_update_norm(1.0, false, 1.0, &settings)), "weights_not_finite");
        assert_eq!(name(check_update_norm(f64::INFINITY, true, 1.0, &settings)), "weights_not_finite");
        assert_eq!(name(check_update_norm(10.1, true, 1.0, &settings)), "change_too_long");
        let among = check_round_norms(&[1.0, 1.0, 2.0, 9.0], &settings);
        assert_eq!(among.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, false, true]);
    }
}

//! What of an update is looked at before it counts. Pure but for reading the update's own file. Each refusal has a name, a
//! reason and a remedy, and concerns nobody else.

use std::collections::BTreeMap;

use runtime::site_key::{is_public_key, is_signed};
use schemas::limits::MAX_WEIGHTS_BYTES;
use schemas::{FaultNote, Gain, ModelAccuracy, ReleaseId, SiteName, Update};
use serde::{Deserialize, Serialize};

use crate::weights_file::WeightsFileError;

/// What updates are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckSettings {
    /// Most images a site may say it learned from, at least 1: what a site says is what it counts by.
    pub samples_max: u64,
    /// The same for single sites.
    pub max_samples_of_site: BTreeMap<SiteName, u64>,
    /// Public keys by site, as `tributary key` prints them. With any key here, an update counts only if its site signed it.
    pub keys: BTreeMap<SiteName, String>,
    /// Largest file of weights, MiB, at least 1.
    pub weights_max_mib: u32,
    /// A change may be so many times as long as the base, above 0; absent: of any length.
    pub norm_over_base_max: Option<f64>,
    /// A change may be so many times as long as the median of its round, at least 1; absent: of any length.
    pub norm_over_median_max: Option<f64>,
    /// Whether an update counts that is worse than its base on what its own site held out, by more than chance.
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
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        let wants = [
            (self.samples_max > 0, "samples_max: at least 1"),
            (self.max_samples_of_site.values().all(|most| *most > 0), "max_samples_of_site: at least 1 each"),
            ((1..=(MAX_WEIGHTS_BYTES >> 20) as u32).contains(&self.weights_max_mib), "weights_max_mib: 1 to 512"),
            (
                self.keys.values().all(|key| is_public_key(key)),
                "keys: 64 hexadecimal digits each, as `tributary key` prints",
            ),
            (self.norm_over_base_max.is_none_or(|most| most > 0.0), "norm_over_base_max: above 0"),
            (self.norm_over_median_max.is_none_or(|most| most >= 1.0), "norm_over_median_max: at least 1"),
        ];
        wants.iter().find(|(is, _)| !is).map_or(Ok(()), |(_, wanted)| Err(format!("check.{wanted}")))
    }
}

/// Why an update does not count.
#[derive(Debug, thiserror::Error)]
pub enum UpdateRefusal {
    /// The message is not an update.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// Its subject names another site or round than it does itself.
    #[error("it came on {subject}, and says it is of site {site} for round {round}")]
    Misdirected {
        /// Where it came.
        subject: String,
        /// What it says.
        site: SiteName,
        /// What it says.
        round: u64,
    },
    /// There is no such round.
    #[error("it is for round {round}, and the last one is {last}")]
    UnknownRound {
        /// What it says.
        round: u64,
        /// The last one.
        last: u64,
    },
    /// The round is over.
    #[error("it is for round {round}, which was closed before it came")]
    Late {
        /// What it says.
        round: u64,
    },
    /// The site was not asked.
    #[error("site {site} was not asked in round {round}")]
    NotAsked {
        /// The site.
        site: SiteName,
        /// The round.
        round: u64,
    },
    /// The site sent one already.
    #[error("site {site} sent an update for round {round} already")]
    Second {
        /// The site.
        site: SiteName,
        /// The round.
        round: u64,
    },
    /// It starts from another release.
    #[error("it starts from release {}, and {wanted} is asked for", found.short())]
    OtherBase {
        /// What it says.
        found: ReleaseId,
        /// What is asked for, in words.
        wanted: String,
    },
    /// Its site did not sign it.
    #[error("{0}")]
    NotSigned(&'static str),
    /// It says it learned from nothing.
    #[error("it says it learned from no image")]
    NoSamples,
    /// It says it learned from more than the site may say.
    #[error("it says it learned from {found} images, and {most} is the most that site {site} may say")]
    TooManySamples {
        /// The site.
        site: SiteName,
        /// What it says.
        found: u128,
        /// The setting.
        most: u64,
    },
    /// Its weights are too large.
    #[error("its weights have {found} bytes, and {most} are accepted")]
    TooLarge {
        /// What it says.
        found: u64,
        /// The setting.
        most: u64,
    },
    /// Its weights are not in the bucket, or are not what their digest says.
    #[error("its weights cannot be had: {0}")]
    NoWeights(String),
    /// Its weights do not fit the model.
    #[error(transparent)]
    Values(#[from] WeightsFileError),
    /// Its own site finds it worse.
    #[error(
        "on the {images} images its site held out it is worse than what it started from: {after:.1} % right instead of {before:.1} %"
    )]
    Worse {
        /// Images held out.
        images: u64,
        /// Right before, percent.
        before: f64,
        /// Right after, percent.
        after: f64,
    },
    /// Its weights are no numbers.
    #[error("its weights hold what is no number")]
    NotFinite,
    /// It is too long.
    #[error("its change is {found:.3} long, and {most:.3} is the most that is accepted ({by})")]
    TooLong {
        /// Its length.
        found: f64,
        /// The most.
        most: f64,
        /// By what.
        by: &'static str,
    },
}

impl UpdateRefusal {
    /// For a dead letter.
    pub fn fault_note(&self) -> FaultNote {
        let (name, remedy) = match self {
            Self::Unreadable(_) => ("update_unreadable", "run the same release of tributary on both sides"),
            Self::Misdirected { .. } => ("update_misdirected", "give each site a name of its own"),
            Self::UnknownRound { .. } => ("round_unknown", "nothing: rounds are opened here alone"),
            Self::Late { .. } => (
                "update_late",
                "give rounds more time (round.grace_s, round.deadline_s), or let what is late count in the next (round.max_staleness)",
            ),
            Self::NotAsked { .. } => ("site_not_asked", "add the site to round.sites"),
            Self::Second { .. } => {
                ("update_second", "look for a second trainer of that site, or another site of that name")
            }
            Self::OtherBase { .. } => {
                ("base_unknown", "let the site take the latest release, or let older bases count (round.max_staleness)")
            }
            Self::NotSigned(_) => {
                ("signature_wrong", "give the site a key (`tributary key`) and name its public half in check.keys")
            }
            Self::NoSamples => ("samples_none", "look at the site's trainer"),
            Self::TooManySamples { .. } => {
                ("samples_too_many", "if it is true, raise check.samples_max or check.max_samples_of_site for the site")
            }
            Self::TooLarge { .. } => {
                ("weights_too_large", "train fewer layers, or send 16-bit floats (trainer.weight_format)")
            }
            Self::NoWeights(_) => {
                ("weights_missing", "keep weights longer (streams.blobs_max_age_s), or look for who changed them")
            }
            Self::Values(error) => {
                (error.name(), "let the site train the model and the layers that the round asks for")
            }
            Self::Worse { .. } => (
                "update_worse",
                "look at the site's labels; learn more slowly (trainer.optimizer.learning_rate) or fewer layers \
                 (round.trainable); or let it count all the same (check.accept_worse)",
            ),
            Self::NotFinite => {
                ("weights_not_finite", "look at the site's trainer: a smaller learning rate, or clip_norm")
            }
            Self::TooLong { .. } => (
                "change_too_long",
                "look at the site's trainer; if it is right, raise check.norm_over_base_max or norm_over_median_max",
            ),
        };
        FaultNote::new(name, self.to_string(), remedy)
    }
}

/// Looks at what an update says of itself.
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

/// Whether an update is worse on what its site held out: as its trainer says, or, of one that does not say so, if far fewer
/// are right.
fn is_worse(update: &Update) -> bool {
    let Update { before, after, gain, .. } = update;
    let count = after.images.min(before.images) as f64;
    match gain {
        Some(gain) => *gain == Gain::Worse,
        None if count > 0.0 => {
            // Two shares of so many images each, as if they were others: 95 of 100, one-sided.
            let both = f64::midpoint(before.accuracy_ratio, after.accuracy_ratio);
            let error = (2.0 * both * (1.0 - both) / count).sqrt();
            before.accuracy_ratio - after.accuracy_ratio > 1.645 * error
        }
        None => false,
    }
}

/// The cloud's note of the public keys of a fleet's sites, JSON by site: it takes the place of the settings' keys.
pub const SITE_KEYS: &str = "site-update-keys";

/// Whether its site says this, where keys are known. Asked before a site counts as heard: what somebody else wrote must not
/// take its place.
pub fn signature(update: &Update, settings: &CheckSettings) -> Result<(), UpdateRefusal> {
    if settings.keys.is_empty() {
        return Ok(());
    }
    let key = settings.keys.get(&update.site).ok_or(UpdateRefusal::NotSigned("no key of its site is known"))?;
    let signature = update.signature.as_ref().ok_or(UpdateRefusal::NotSigned("it is not signed"))?;
    let signed = update.signed_bytes().map_err(|_| UpdateRefusal::NotSigned("what it signs cannot be written"))?;
    match is_signed(key, &signed, signature) {
        true => Ok(()),
        false => Err(UpdateRefusal::NotSigned("its signature is not that of its site")),
    }
}

/// Looks at how long a change is. `base`: the length of the base.
pub fn check_update_norm(norm: f64, finite: bool, base: f64, settings: &CheckSettings) -> Result<(), UpdateRefusal> {
    if !finite || !norm.is_finite() {
        return Err(UpdateRefusal::NotFinite);
    }
    match settings.norm_over_base_max.map(|most| most * base) {
        Some(most) if norm > most => Err(UpdateRefusal::TooLong { found: norm, most, by: "check.norm_over_base_max" }),
        _ => Ok(()),
    }
}

/// Looks at how long changes are among those of their round.
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
    fn what_a_site_says_of_itself_is_bounded() {
        let settings = CheckSettings { samples_max: 100, ..CheckSettings::default() };
        assert!(check_description(&update(&[60, 40], 1000), &settings).is_ok());
        assert_eq!(refused(&update(&[], 1000), &settings), "samples_none");
        assert_eq!(refused(&update(&[0, 0], 1000), &settings), "samples_none");
        assert_eq!(refused(&update(&[60, 41], 1000), &settings), "samples_too_many");
        // A sum that a 64-bit number does not hold.
        assert_eq!(refused(&update(&[u64::MAX, u64::MAX], 1000), &settings), "samples_too_many");
        assert_eq!(refused(&update(&[1], u64::MAX), &settings), "weights_too_large");
        let own = CheckSettings { max_samples_of_site: [("reef".parse().unwrap(), 200)].into(), ..settings };
        assert!(check_description(&update(&[150], 1000), &own).is_ok());
    }

    #[test]
    fn what_is_worse_at_its_own_site_does_not_count() {
        let settings = CheckSettings::default();
        let measured = |accuracy_ratio: f64| ModelAccuracy { images: 100, accuracy_ratio, loss: 1.0 };
        let with = |gain, after| Update { gain, before: measured(0.9), after: measured(after), ..update(&[50], 1000) };
        assert_eq!(refused(&with(Some(Gain::Worse), 0.88), &settings), "update_worse");
        assert_eq!(refused(&with(None, 0.7), &settings), "update_worse");
        assert!(check_description(&with(None, 0.88), &settings).is_ok(), "chance");
        assert!(
            check_description(&with(Some(Gain::Level), 0.7), &settings).is_ok(),
            "its trainer compared image by image"
        );
        let settings = CheckSettings { accept_worse: true, ..settings };
        assert!(check_description(&with(Some(Gain::Worse), 0.1), &settings).is_ok());
    }

    #[test]
    fn with_keys_only_what_a_site_signed_counts() {
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
    fn a_change_that_is_no_number_or_too_long_is_refused() {
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

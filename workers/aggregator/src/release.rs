//! A sealed release: its weights, and a manifest that says how they were come by, in the release store. Put there once and
//! never changed.
//!
//! ```text
//! models/<model>/<release>/manifest.json         how it was come by
//! models/<model>/<release>/weights.safetensors   every weight of the model, 32-bit floats
//! models/<model>/updates/<sha256>.safetensors    what sites sent
//! models/<model>/rounds/<round>.json             which release a round came to: whoever puts this has sealed it
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use schemas::{BlobRef, FaultNote, ModelName, ReleaseId, SiteName, TaskId, WeightFormat};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use streams::store::PutOutcome;
use streams::{CarryError, ReleaseStore};

use crate::aggregate::{LEARNING_RELEASES, is_learning};
use crate::audit::AggregateAudit;
use crate::rule::MergeSettings;

/// Largest manifest that is read, bytes.
const MANIFEST_MAX_BYTES: u64 = 64 << 20;
const FORMAT: u32 = 1;
/// Of how updates become weights; 2 since the public set is divided in three, 3 since losses are held against each other
/// at the best temperature of each. One that was made by another cannot be made again, bit by bit.
pub const DERIVATION: u32 = 3;

/// How a release was come by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of this file; 1.
    pub format: u32,
    /// The model.
    pub model: ModelName,
    /// Digest of the model's folder with these weights.
    pub release: ReleaseId,
    /// The release it started from; absent for the model that sites were set up with.
    pub parent: Option<ReleaseId>,
    /// The round it came of, 0 for none.
    pub round: u64,
    /// What the model tells apart.
    pub labels: Vec<String>,
    /// Every weight of the model.
    pub weights: BlobRef,
    /// Its package, in pieces, in order, in the store: a tar of the model's folder. Empty for one that did not run when it
    /// was tried.
    #[serde(default)]
    pub package: Vec<BlobRef>,
    /// The round; absent for none.
    pub made: Option<ReleaseRound>,
    /// What it takes the place of; absent where it was not remade.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remade: Option<RemakeOrigin>,
    /// Fingerprint of the key that its folder was signed with when it was imported (OpenSSF Model Signing); absent where no
    /// signature was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
}

/// How a release was derived again from the updates of another one, but for some.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RemakeOrigin {
    /// The release whose updates these are.
    pub of: ReleaseId,
    /// The updates of the round that are left out, those left out before included.
    pub without: Vec<ExcludedUpdate>,
    /// Why, in words of whoever asked for it.
    pub why: String,
    /// When, milliseconds since the epoch.
    pub at_ms: u64,
}

/// An update that was in a release and is left out of what it was remade as.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExcludedUpdate {
    /// Its id.
    pub id: TaskId,
    /// The site.
    pub site: SiteName,
}

/// The round a release came of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseRound {
    /// When it was opened, milliseconds since the epoch.
    pub opened_at_ms: u64,
    /// When it was closed, milliseconds since the epoch.
    pub closed_at_ms: u64,
    /// Why then.
    pub closed_because: String,
    /// Which weights were trained.
    pub trainable: String,
    /// Patterns of names of weights that stayed as each site has them.
    pub local: Vec<String>,
    /// How updates became weights: [`DERIVATION`] of the program that did it.
    #[serde(default = "first_derivation")]
    pub derivation: u32,
    /// Whether releases of late were clearly better, so that one as good as its base was good enough.
    #[serde(default)]
    pub is_learning: bool,
    /// How updates were merged.
    pub settings: MergeSettings,
    /// Digest of the public set that models were tried on; absent without one.
    pub public_sha256: Option<String>,
    /// The updates that are in it, by site.
    pub updates: Vec<MergedUpdate>,
    /// The updates that were refused.
    pub refused: Vec<RefusedUpdate>,
    /// Every site's part, and every number that decided.
    pub record: AggregateAudit,
    /// What the server's optimizer remembered before it, and after it, in the store; absent where it remembers nothing.
    pub memory: Option<(Option<BlobRef>, BlobRef)>,
}

fn first_derivation() -> u32 {
    1
}

/// An update in a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergedUpdate {
    /// Its id.
    pub id: TaskId,
    /// The site.
    pub site: SiteName,
    /// The release it started from.
    pub base: ReleaseId,
    /// Releases between that and the parent.
    pub behind: u32,
    /// Its weights.
    pub weights: BlobRef,
    /// How they are written.
    pub form: WeightFormat,
    /// Images learned from.
    pub samples: u64,
    /// Of those, images that the site was in doubt about.
    pub hard: u64,
    /// Images of each label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, u64>,
}

/// An update that is not in a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RefusedUpdate {
    /// The site, as its subject says.
    pub site: SiteName,
    /// Sequence in the stream of updates.
    pub sequence: u64,
    /// Why.
    pub fault: FaultNote,
}

/// Which release a round came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundRelease {
    /// The round.
    pub round: u64,
    /// The release.
    pub release: ReleaseId,
}

/// A model's releases in a store.
#[derive(Debug, Clone)]
pub struct ModelReleases {
    store: ReleaseStore,
    model: ModelName,
}

/// Why a release cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The store.
    #[error(transparent)]
    Store(#[from] CarryError),
    /// It is not there.
    #[error("model {model} has no release {wanted} in the store: `tributary release list` names those it has")]
    Absent {
        /// The model.
        model: ModelName,
        /// What was asked for.
        wanted: String,
    },
    /// Several begin so.
    #[error("{wanted} is the beginning of {count} releases: write more digits")]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// How many.
        count: usize,
    },
    /// Its manifest is none.
    #[error("{path} is no manifest of a release: {why}")]
    Unreadable {
        /// Where.
        path: String,
        /// Why.
        why: String,
    },
}

impl ModelReleases {
    /// Of a model.
    pub fn new(store: ReleaseStore, model: ModelName) -> Self {
        Self { store, model }
    }

    /// Where they lie.
    pub fn store(&self) -> &ReleaseStore {
        &self.store
    }

    fn path(&self, release: &ReleaseId, file: &str) -> String {
        format!("models/{}/{release}/{file}", self.model)
    }

    fn blob_path(&self, blob: &BlobRef) -> String {
        format!("models/{}/updates/{}.safetensors", self.model, blob.sha256)
    }

    /// Puts what a site sent, or what the server's optimizer remembers, where a release can find it again.
    pub async fn keep_file(&self, blob: &BlobRef, file: &Path) -> Result<(), CarryError> {
        self.store.put_file(&self.blob_path(blob), blob, file).await.map(|_| ())
    }

    /// Fetches that again.
    pub async fn fetch_kept(&self, blob: &BlobRef, into: &Path) -> Result<(), CarryError> {
        self.store.fetch(&self.blob_path(blob), blob, blob.size_bytes, into).await
    }

    /// Puts a release: weights first, its manifest last, so that one with a manifest is whole.
    pub async fn put(&self, manifest: &Manifest, weights: &Path) -> Result<PutOutcome, ReleaseError> {
        let path = self.path(&manifest.release, "weights.safetensors");
        self.store.put_file(&path, &manifest.weights, weights).await?;
        let path = self.path(&manifest.release, "manifest.json");
        Ok(self.store.put_new(&path, json(manifest)?).await?)
    }

    /// Says which release a round came to; of two that say it at once one wins, and both are told which.
    pub async fn publish_release(&self, round: u64, release: &ReleaseId) -> Result<RoundRelease, ReleaseError> {
        let path = format!("models/{}/rounds/{round}.json", self.model);
        let own = RoundRelease { round, release: release.clone() };
        match self.store.put_new(&path, json(&own)?).await? {
            PutOutcome::New => Ok(own),
            PutOutcome::Already => {
                let bytes = self.store.get(&path, MANIFEST_MAX_BYTES).await?.unwrap_or_default();
                serde_json::from_slice(&bytes)
                    .map_err(|error| ReleaseError::Unreadable { path, why: error.to_string() })
            }
        }
    }

    /// A release's manifest, if there is such a release.
    pub async fn manifest(&self, release: &ReleaseId) -> Result<Option<Manifest>, ReleaseError> {
        let path = self.path(release, "manifest.json");
        let Some(bytes) = self.store.get(&path, MANIFEST_MAX_BYTES).await? else { return Ok(None) };
        let unreadable = |why: String| ReleaseError::Unreadable { path: path.clone(), why };
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
        if manifest.format != FORMAT || manifest.release != *release {
            return Err(unreadable(format!(
                "it is of format {} and release {}; this program reads {FORMAT}",
                manifest.format,
                manifest.release.short()
            )));
        }
        Ok(Some(manifest))
    }

    /// Whether the releases up to this one were clearly better than what they came after, of late
    /// ([`crate::derive::is_learning`]).
    pub async fn is_learning(&self, base: Option<&Manifest>) -> Result<bool, ReleaseError> {
        let (mut clear, mut next) = (Vec::new(), base.cloned());
        while let Some(manifest) = next.take().filter(|_| clear.len() < LEARNING_RELEASES) {
            let Some(made) = manifest.made else { break };
            clear.insert(0, made.record.is_clear.unwrap_or(false));
            if let Some(parent) = &manifest.parent {
                next = self.manifest(parent).await?;
            }
        }
        Ok(is_learning(&clear))
    }

    /// All of them, in the order of their rounds.
    pub async fn list(&self) -> Result<Vec<Manifest>, ReleaseError> {
        let mut manifests = Vec::new();
        for path in self.store.list(&format!("models/{}", self.model)).await? {
            let release = path.strip_suffix("/manifest.json").and_then(|path| path.rsplit('/').next());
            if let Some(release) = release.and_then(|release| release.parse().ok())
                && let Some(manifest) = self.manifest(&release).await?
            {
                manifests.push(manifest);
            }
        }
        manifests.sort_by(|a, b| (a.round, &a.release).cmp(&(b.round, &b.release)));
        Ok(manifests)
    }

    /// The release whose digest begins so.
    pub async fn find(&self, beginning: &str) -> Result<Manifest, ReleaseError> {
        let wanted = beginning.to_ascii_lowercase();
        let mut found: Vec<Manifest> = self.list().await?;
        found.retain(|manifest| manifest.release.as_str().starts_with(&wanted));
        match found.len() {
            0 => Err(ReleaseError::Absent { model: self.model.clone(), wanted }),
            1 => Ok(found.remove(0)),
            count => Err(ReleaseError::Ambiguous { wanted, count }),
        }
    }

    /// Writes a release's weights to a file.
    pub async fn fetch(&self, manifest: &Manifest, into: &Path) -> Result<(), CarryError> {
        let path = self.path(&manifest.release, "weights.safetensors");
        self.store.fetch(&path, &manifest.weights, manifest.weights.size_bytes, into).await
    }
}

impl Manifest {
    /// Of the model that sites were set up with, or of one that was made elsewhere.
    pub fn first(model: ModelName, release: ReleaseId, labels: Vec<String>, weights: BlobRef) -> Self {
        let package = Vec::new();
        let (parent, made, remade, signed_by) = (None, None, None, None);
        Self { format: FORMAT, model, release, parent, round: 0, labels, weights, package, made, remade, signed_by }
    }

    /// With its package.
    pub fn packaged(self, package: Vec<BlobRef>) -> Self {
        Self { package, ..self }
    }

    /// Of what a round came to.
    pub fn of_round(self, parent: ReleaseId, round: u64, made: ReleaseRound) -> Self {
        Self { parent: Some(parent), round, made: Some(made), ..self }
    }

    /// Of what was derived again without some updates.
    pub fn remade(self, from: RemakeOrigin) -> Self {
        Self { remade: Some(from), ..self }
    }
}

/// Models that a store has releases of.
pub async fn models(store: &ReleaseStore) -> Result<Vec<ModelName>, CarryError> {
    let paths = store.list("models").await?;
    let mut models: Vec<ModelName> =
        paths.iter().filter_map(|path| path.strip_prefix("models/")?.split('/').next()?.parse().ok()).collect();
    models.dedup();
    Ok(models)
}

/// Writes bytes to a file, and says what they are.
pub fn write(path: &Path, bytes: &[u8]) -> std::io::Result<BlobRef> {
    let beside: PathBuf = path.with_extension("part");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&beside, bytes)?;
    std::fs::rename(&beside, path)?;
    Ok(BlobRef::new(Sha256::digest(bytes).into(), bytes.len() as u64))
}

/// Tensors of a file of weights, by name.
pub type WeightTensors = BTreeMap<String, Vec<f32>>;

fn json(value: &impl Serialize) -> Result<Bytes, ReleaseError> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|error| ReleaseError::Unreadable { path: "a manifest".into(), why: error.to_string() })?;
    Ok(text.into())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A release of a round that these sites' updates are in.
    pub(crate) fn manifest(release: u8, parent: Option<u8>, round: u64, updates: &[(&str, TaskId)]) -> Manifest {
        let digest = |number: u8| ReleaseId::from_sha256([number; 32]);
        let merged = |(site, id): &(&str, TaskId)| MergedUpdate {
            id: *id,
            site: site.parse().unwrap(),
            base: digest(parent.unwrap_or(0)),
            behind: 0,
            weights: BlobRef::new([9; 32], 7),
            form: WeightFormat::F32,
            samples: 1,
            hard: 0,
            labels: BTreeMap::new(),
        };
        let record = AggregateAudit {
            parts: Vec::new(),
            rule: "fedavg".into(),
            candidates: Vec::new(),
            weakest: None,
            is_clear: None,
            instead: None,
            reported: None,
        };
        let made = ReleaseRound {
            derivation: DERIVATION,
            opened_at_ms: 1,
            closed_at_ms: 2,
            closed_because: "enough".into(),
            trainable: "all".into(),
            local: Vec::new(),
            is_learning: false,
            settings: MergeSettings::default(),
            public_sha256: None,
            updates: updates.iter().map(merged).collect(),
            refused: Vec::new(),
            record,
            memory: None,
        };
        let first =
            Manifest::first(ModelName::from_name("light"), digest(release), Vec::new(), BlobRef::new([release; 32], 7));
        Manifest { parent: parent.map(digest), round, made: Some(made), ..first }
    }

    #[test]
    fn a_manifest_of_before_releases_were_remade_or_signed_is_read_and_written_as_ever() {
        let old = serde_json::to_string(&manifest(1, Some(0), 1, &[("reef", TaskId::from_name("a"))])).unwrap();
        assert!(!old.contains("remade") && !old.contains("signed"), "{old}");
        let read: Manifest = serde_json::from_str(&old).unwrap();
        assert_eq!(
            (read.remade, serde_json::to_string(&serde_json::from_str::<Manifest>(&old).unwrap()).unwrap()),
            (None, old)
        );
    }

    #[tokio::test]
    async fn a_release_is_followed_back_to_the_last_that_was_clearly_better() {
        let folder = tempfile::tempdir().unwrap();
        let releases = ModelReleases::new(
            ReleaseStore::open(&folder.path().display().to_string()).unwrap(),
            ModelName::from_name("light"),
        );
        let weights = folder.path().join("weights");
        std::fs::write(&weights, b"weights").unwrap();
        let mut all = Vec::new();
        for number in 1..=7_u8 {
            let mut manifest = manifest(number, Some(number - 1), number.into(), &[]);
            manifest.weights = BlobRef::new(Sha256::digest(b"weights").into(), 7);
            manifest.made.as_mut().unwrap().record.is_clear = Some(number == 2);
            releases.put(&manifest, &weights).await.unwrap();
            all.push(releases.is_learning(Some(&manifest)).await.unwrap());
        }
        assert_eq!(all, [false, true, true, true, true, true, false]);
        assert!(!releases.is_learning(None).await.unwrap());
    }

    #[test]
    fn manifests_that_were_bent_are_read_or_refused() {
        let whole = manifest(1, Some(0), 1, &[("reef", TaskId::from_name("a")), ("kelp", TaskId::from_name("b"))]);
        bend::bend_all("manifests of releases", &[serde_json::to_vec(&whole).unwrap()], bend::turns() / 4, |bytes| {
            let _read = serde_json::from_slice::<Manifest>(bytes).is_ok();
            let _sealed = serde_json::from_slice::<RoundRelease>(bytes).is_ok();
            2
        });
    }
}

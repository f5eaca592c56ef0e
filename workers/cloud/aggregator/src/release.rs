//! A sealed release in the release store: its weights, and a manifest that says how they were produced. Written once
//! and never changed.
//!
//! ```text
//! models/<model>/<release>/manifest.json         how it was produced
//! models/<model>/<release>/weights.safetensors   every weight of the model, 32-bit floats
//! models/<model>/updates/<sha256>.safetensors    the sites' weights
//! models/<model>/rounds/<round>.json             which release the round ended with; the first to write this seals it
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

/// Largest manifest that is read, in bytes.
const MANIFEST_MAX_BYTES: u64 = 64 << 20;
const FORMAT: u32 = 1;
/// Version of the derivation from updates to weights: 2 since the public set has three parts, 3 since losses are
/// compared at each model's best temperature. A release of another version cannot be derived again bit by bit.
pub const DERIVATION: u32 = 3;

/// How a release was produced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this file's format; 1.
    pub format: u32,
    /// Name of the model.
    pub model: ModelName,
    /// Digest of the model's folder with these weights.
    pub release: ReleaseId,
    /// The release it started from; absent for the baseline and for imported models.
    pub parent: Option<ReleaseId>,
    /// Number of the round that produced it; 0 for none.
    pub round: u64,
    /// Labels the model distinguishes, in output order.
    pub labels: Vec<String>,
    /// File with every weight of the model.
    pub weights: BlobRef,
    /// Pieces of its package (a tar of the model's folder) in the store, in order. Empty if the release failed its
    /// trial.
    #[serde(default)]
    pub package: Vec<BlobRef>,
    /// The round that produced it; absent for none.
    pub made: Option<ReleaseRound>,
    /// What it was remade from; absent where it was not remade.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remade: Option<RemakeOrigin>,
    /// Fingerprint of the key that its folder was signed with when it was imported (OpenSSF Model Signing); absent
    /// where no signature was required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
}

/// How a release was derived again without some of the updates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RemakeOrigin {
    /// The release whose updates were used.
    pub of: ReleaseId,
    /// Updates of the round that are left out, including those left out of earlier remakes.
    pub without: Vec<ExcludedUpdate>,
    /// Reason, as the person who ran the command gave it.
    pub why: String,
    /// Time of the remake, milliseconds since the epoch.
    pub at_ms: u64,
}

/// An update of the original release that a remake leaves out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExcludedUpdate {
    /// Id of the update.
    pub id: TaskId,
    /// The site that sent it.
    pub site: SiteName,
}

/// The round that produced a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseRound {
    /// When it was opened, milliseconds since the epoch.
    pub opened_at_ms: u64,
    /// When it was closed, milliseconds since the epoch.
    pub closed_at_ms: u64,
    /// Reason it was closed.
    pub closed_because: String,
    /// Which weights were trained, as in the round's terms.
    pub trainable: String,
    /// Name patterns of weights that every site keeps for itself.
    pub local: Vec<String>,
    /// [`DERIVATION`] of the program that made it.
    #[serde(default = "first_derivation")]
    pub derivation: u32,
    /// Whether recent releases were clear improvements, so that one as good as its base was good enough.
    #[serde(default)]
    pub is_learning: bool,
    /// Settings that the updates were merged with.
    pub settings: MergeSettings,
    /// Digest of the public set; absent without one.
    pub public_sha256: Option<String>,
    /// The updates in it, by site.
    pub updates: Vec<MergedUpdate>,
    /// Updates that were refused.
    pub refused: Vec<RefusedUpdate>,
    /// Every site's part, and every number the decision rests on.
    pub record: AggregateAudit,
    /// State of the server optimizer before and after the round, in the store; absent where it keeps none.
    pub memory: Option<(Option<BlobRef>, BlobRef)>,
}

fn first_derivation() -> u32 {
    1
}

/// An update in a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergedUpdate {
    /// Id of the update.
    pub id: TaskId,
    /// The site that sent it.
    pub site: SiteName,
    /// The release it started from.
    pub base: ReleaseId,
    /// Releases between its base and the parent.
    pub behind: u32,
    /// File of its weights.
    pub weights: BlobRef,
    /// Number format of that file.
    pub form: WeightFormat,
    /// Number of images it learned from.
    pub samples: u64,
    /// Number of those that the site found doubtful.
    pub hard: u64,
    /// Images per label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, u64>,
}

/// An update that is not in a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RefusedUpdate {
    /// The site, from the subject of the message.
    pub site: SiteName,
    /// Sequence in the stream of updates.
    pub sequence: u64,
    /// Reason, as in its dead letter.
    pub fault: FaultNote,
}

/// Which release a round ended with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundRelease {
    /// Number of the round.
    pub round: u64,
    /// The sealed release.
    pub release: ReleaseId,
}

/// A model's releases in a store.
#[derive(Debug, Clone)]
pub struct ModelReleases {
    store: ReleaseStore,
    model: ModelName,
}

/// Why a release cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] CarryError),
    /// The release does not exist.
    #[error("model {model} has no release {wanted} in the store; `tributary release list` shows the releases it has")]
    Absent {
        /// Name of the model.
        model: ModelName,
        /// The release that was asked for.
        wanted: String,
    },
    /// Several releases match.
    #[error("{wanted} matches {count} releases; give more digits")]
    Ambiguous {
        /// The prefix that was given.
        wanted: String,
        /// Number of matches.
        count: usize,
    },
    /// The manifest is invalid.
    #[error("{path} is not a valid release manifest: {why}")]
    Unreadable {
        /// Path in the store.
        path: String,
        /// Reason.
        why: String,
    },
}

impl ModelReleases {
    /// The releases of one model in this store.
    pub fn new(store: ReleaseStore, model: ModelName) -> Self {
        Self { store, model }
    }

    /// The store they are in.
    pub fn store(&self) -> &ReleaseStore {
        &self.store
    }

    fn path(&self, release: &ReleaseId, file: &str) -> String {
        format!("models/{}/{release}/{file}", self.model)
    }

    fn blob_path(&self, blob: &BlobRef) -> String {
        format!("models/{}/updates/{}.safetensors", self.model, blob.sha256)
    }

    /// Stores a site's weights or the server optimizer's state, so that a release can be derived again.
    pub async fn keep_file(&self, blob: &BlobRef, file: &Path) -> Result<(), CarryError> {
        self.store.put_file(&self.blob_path(blob), blob, file).await.map(|_| ())
    }

    /// Fetches a file that [`Self::keep_file`] stored.
    pub async fn fetch_kept(&self, blob: &BlobRef, into: &Path) -> Result<(), CarryError> {
        self.store.fetch(&self.blob_path(blob), blob, blob.size_bytes, into).await
    }

    /// Stores a release: weights first and manifest last, so that a release with a manifest is complete.
    pub async fn put(&self, manifest: &Manifest, weights: &Path) -> Result<PutOutcome, ReleaseError> {
        let path = self.path(&manifest.release, "weights.safetensors");
        self.store.put_file(&path, &manifest.weights, weights).await?;
        let path = self.path(&manifest.release, "manifest.json");
        Ok(self.store.put_new(&path, json(manifest)?).await?)
    }

    /// Records which release a round ended with. If two writers race, the first wins and both get the winner's release.
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

    /// A release's manifest; `None` if there is no such release.
    pub async fn manifest(&self, release: &ReleaseId) -> Result<Option<Manifest>, ReleaseError> {
        let path = self.path(release, "manifest.json");
        let Some(bytes) = self.store.get(&path, MANIFEST_MAX_BYTES).await? else { return Ok(None) };
        let unreadable = |why: String| ReleaseError::Unreadable { path: path.clone(), why };
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
        if manifest.format != FORMAT || manifest.release != *release {
            return Err(unreadable(format!(
                "it has format {} and release {}; this program reads format {FORMAT}",
                manifest.format,
                manifest.release.short()
            )));
        }
        Ok(Some(manifest))
    }

    /// Whether recent releases up to this one were clear improvements ([`crate::aggregate::is_learning`]).
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

    /// All releases of the model, in the order of their rounds.
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

    /// Finds the only release whose digest starts with this prefix.
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
    /// The manifest of a release that came from no round: the baseline, or an imported model.
    pub fn first(model: ModelName, release: ReleaseId, labels: Vec<String>, weights: BlobRef) -> Self {
        let package = Vec::new();
        let (parent, made, remade, signed_by) = (None, None, None, None);
        Self { format: FORMAT, model, release, parent, round: 0, labels, weights, package, made, remade, signed_by }
    }

    /// Adds the pieces of its package.
    pub fn packaged(self, package: Vec<BlobRef>) -> Self {
        Self { package, ..self }
    }

    /// Adds the round that produced it.
    pub fn of_round(self, parent: ReleaseId, round: u64, made: ReleaseRound) -> Self {
        Self { parent: Some(parent), round, made: Some(made), ..self }
    }

    /// Adds what it was remade from.
    pub fn remade(self, from: RemakeOrigin) -> Self {
        Self { remade: Some(from), ..self }
    }
}

/// Models that have releases in a store.
pub async fn models(store: &ReleaseStore) -> Result<Vec<ModelName>, CarryError> {
    let paths = store.list("models").await?;
    let mut models: Vec<ModelName> =
        paths.iter().filter_map(|path| path.strip_prefix("models/")?.split('/').next()?.parse().ok()).collect();
    models.dedup();
    Ok(models)
}

/// Writes bytes to a file and returns their digest and size.
pub fn write(path: &Path, bytes: &[u8]) -> std::io::Result<BlobRef> {
    let beside: PathBuf = path.with_extension("part");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&beside, bytes)?;
    std::fs::rename(&beside, path)?;
    Ok(BlobRef::new(Sha256::digest(bytes).into(), bytes.len() as u64))
}

/// Tensors of a weights file, by name.
pub type WeightTensors = BTreeMap<String, Vec<f32>>;

fn json(value: &impl Serialize) -> Result<Bytes, ReleaseError> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|error| ReleaseError::Unreadable { path: "a manifest".into(), why: error.to_string() })?;
    Ok(text.into())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A release of a round with these updates.
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
    fn an_old_manifest_is_read_and_written_unchanged() {
        let old = serde_json::to_string(&manifest(1, Some(0), 1, &[("reef", TaskId::from_name("a"))])).unwrap();
        assert!(!old.contains("remade") && !old.contains("signed"), "{old}");
        let read: Manifest = serde_json::from_str(&old).unwrap();
        assert_eq!(
            (read.remade, serde_json::to_string(&serde_json::from_str::<Manifest>(&old).unwrap()).unwrap()),
            (None, old)
        );
    }

    #[tokio::test]
    async fn is_learning_looks_back_to_the_last_clear_gain() {
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

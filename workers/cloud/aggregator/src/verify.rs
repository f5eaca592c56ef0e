//! Derives a release again from its updates and compares the weights.

use std::path::Path;
use std::sync::Arc;

use schemas::ReleaseId;
use streams::Blobs;
use training::{TrainError, weights};
use vision::Model;

use crate::parameter_layout::ParameterLayout;
use crate::public_set::PublicSet;
use crate::release::{DERIVATION, Manifest, MergedUpdate, ModelReleases, ReleaseError, ReleaseRound, WeightTensors};
use crate::release_builder::{self, FetchedUpdate, ReleaseBuildError, RoundBase};
use crate::server_optimizer::ServerOptimizerState;
use crate::weights_file::{WeightsFile, WeightsFileError};

/// Why a release could not be derived again.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseVerifyError {
    /// A part of it is not in the store.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] streams::CarryError),
    /// The updates could not be merged.
    #[error(transparent)]
    Seal(#[from] ReleaseBuildError),
    /// A model cannot be read, written or scored.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// An update in the store does not fit this model.
    #[error("the update of site {site} {why}")]
    Update {
        /// The site that sent it.
        site: String,
        /// Reason, in words that follow the site's name.
        #[source]
        why: WeightsFileError,
    },
    /// The public set has changed.
    #[error(
        "release {} was made with another public set (SHA-256 {wanted}, this one {found}); set aggregator.public to that one",
        release.short()
    )]
    OtherPublic {
        /// The release to verify.
        release: ReleaseId,
        /// The digest in its manifest.
        wanted: String,
        /// The digest of the current public set.
        found: String,
    },
    /// It was made by another version of the derivation.
    #[error(
        "release {} was made by another version of tributary, whose merge gives other weights; verify it with that version",
        .0.short()
    )]
    OtherRules(ReleaseId),
    /// It came from no round.
    #[error("release {} came from no round, so there is nothing to derive it from", .0.short())]
    First(ReleaseId),
    /// A blocking task panicked.
    #[error("a blocking task stopped unexpectedly: {0}")]
    Broke(String),
}

/// Result of a verification.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleaseVerification {
    /// The release that was derived.
    pub made: ReleaseId,
    /// Whether it equals the sealed one, bit by bit.
    pub same: bool,
    /// Number of updates in it.
    pub updates: usize,
}

/// Where releases are unpacked: the baseline model, and a folder for temporary files.
#[derive(Debug, Clone)]
pub struct ReleaseWorkspace {
    /// ONNX Runtime to score models with.
    pub runtime: vision::OnnxRuntime,
    /// The baseline model.
    pub root: Arc<Model>,
    /// Folder for temporary files.
    pub work: std::path::PathBuf,
}

impl ReleaseWorkspace {
    /// Path of a release's weights file.
    pub fn weights(&self, release: &ReleaseId) -> std::path::PathBuf {
        self.work.join("weights").join(format!("{release}.safetensors"))
    }

    /// A release as a model folder: fetched and checked against its digest.
    pub async fn folder(&self, releases: &ModelReleases, release: &ReleaseId) -> Result<Model, ReleaseVerifyError> {
        if *release == self.root.release {
            return Ok((*self.root).clone());
        }
        let path = self.weights(release);
        if !path.is_file() {
            let manifest = releases.manifest(release).await?;
            let manifest = manifest.ok_or_else(|| ReleaseError::Absent {
                model: schemas::ModelName::from_name(&self.root.description.name),
                wanted: release.to_string(),
            })?;
            make_folder(path.parent())?;
            releases.fetch(&manifest, &path).await?;
        }
        let (root, release, into) = (self.root.clone(), release.clone(), self.work.join("releases"));
        spawn_blocking(move || Ok(release_builder::folder_of(&root, &release, &path, &into)?)).await
    }

    /// A release's weights as a row.
    pub async fn row(
        &self,
        releases: &ModelReleases,
        release: &ReleaseId,
        layout: &ParameterLayout,
    ) -> Result<Vec<f32>, ReleaseVerifyError> {
        let model = self.folder(releases, release).await?;
        let (layout, release) = (layout.clone(), release.clone());
        spawn_blocking(move || {
            let graph = autograd::onnx::read(&model.graph).map_err(TrainError::from)?;
            let mut tensors = WeightTensors::new();
            for place in layout.places() {
                tensors.insert(place.name.clone(), graph.weight(&place.name).map_err(TrainError::from)?);
            }
            Ok(layout.row(&tensors).ok_or(ReleaseBuildError::Incomplete(release))?)
        })
        .await
    }

    /// State of the server optimizer after a release.
    pub async fn memory(
        &self,
        releases: &ModelReleases,
        manifest: Option<&Manifest>,
    ) -> Result<ServerOptimizerState, ReleaseVerifyError> {
        let kept = manifest.and_then(|manifest| manifest.made.as_ref()?.memory.as_ref());
        match kept {
            None => Ok(ServerOptimizerState::default()),
            Some((_, after)) => self.remembered(releases, after).await,
        }
    }

    async fn remembered(
        &self,
        releases: &ModelReleases,
        blob: &schemas::BlobRef,
    ) -> Result<ServerOptimizerState, ReleaseVerifyError> {
        let path = self.work.join("updates").join(format!("{}.safetensors", blob.sha256));
        make_folder(path.parent())?;
        releases.fetch_kept(blob, &path).await?;
        Ok(release_builder::read_optimizer_state(&path)?)
    }
}

/// Fetches a site's weights from the bucket into a file, unless they are already there.
pub async fn fetch_update(
    blobs: &Blobs,
    weights: &schemas::BlobRef,
    work: &Path,
    limit_bytes: u64,
) -> Result<std::path::PathBuf, streams::CarryError> {
    let path = work.join("updates").join(format!("{}.safetensors", weights.sha256));
    let there = tokio::fs::metadata(&path).await.is_ok_and(|found| found.len() == weights.size_bytes);
    if !there {
        let made = tokio::fs::create_dir_all(work.join("updates")).await;
        made.map_err(|source| streams::CarryError::File { path: path.clone(), source })?;
        blobs.fetch_to_file(weights, limit_bytes, &path).await?;
    }
    Ok(path)
}

/// Derives a release again and compares. `public`: the public set, if there is one.
pub async fn verify_release(
    place: &ReleaseWorkspace,
    releases: &ModelReleases,
    manifest: &Manifest,
    public: Option<Arc<PublicSet>>,
) -> Result<ReleaseVerification, ReleaseVerifyError> {
    let made = release_round(manifest)?;
    if made.derivation != DERIVATION {
        return Err(ReleaseVerifyError::OtherRules(manifest.release.clone()));
    }
    let public = public_of(manifest, made, public)?.filter(|_| made.settings.uses_public());
    let ReleaseInputs { base, held, memory } = ingredients(place, releases, manifest, &made.updates).await?;
    let (settings, here) = (made.settings.clone(), place.clone());
    let round = (manifest.round, made.is_learning);
    let again = spawn_blocking(move || {
        let derived = release_builder::merge(&here.runtime, &base, &held, public.as_deref(), memory, &settings, round)?;
        let into = here.work.join("verify");
        let (model, weights, _) = release_builder::folder_with(&here.root, &base, &derived.row, &into)?;
        let _made_again_when_asked = std::fs::remove_dir_all(into);
        Ok((model.release, weights))
    })
    .await?;
    let same = again.0 == manifest.release && again.1 == manifest.weights;
    Ok(ReleaseVerification { made: again.0, same, updates: made.updates.len() })
}

/// The round that produced a release.
pub(crate) fn release_round(manifest: &Manifest) -> Result<&ReleaseRound, ReleaseVerifyError> {
    manifest.made.as_ref().ok_or_else(|| ReleaseVerifyError::First(manifest.release.clone()))
}

/// The public set, if it is the one the release was made with; an error if one is needed and another was given.
pub(crate) fn public_of(
    manifest: &Manifest,
    made: &ReleaseRound,
    public: Option<Arc<PublicSet>>,
) -> Result<Option<Arc<PublicSet>>, ReleaseVerifyError> {
    let found = public.as_ref().map(|public| public.sha256.clone());
    if made.public_sha256 == found {
        return Ok(public);
    }
    if !made.settings.uses_public() || made.public_sha256.is_none() {
        return Ok(None);
    }
    let (wanted, found) = (made.public_sha256.clone().unwrap_or_default(), found.unwrap_or("none".into()));
    Err(ReleaseVerifyError::OtherPublic { release: manifest.release.clone(), wanted, found })
}

/// The inputs of a release, fetched from the store.
pub(crate) struct ReleaseInputs {
    /// The base of its round.
    pub(crate) base: RoundBase,
    /// Its updates.
    pub(crate) held: Vec<FetchedUpdate>,
    /// State of the server optimizer before the round.
    pub(crate) memory: ServerOptimizerState,
}

/// Fetches the inputs of a release, with only these of its updates.
pub(crate) async fn ingredients(
    place: &ReleaseWorkspace,
    releases: &ModelReleases,
    manifest: &Manifest,
    updates: &[MergedUpdate],
) -> Result<ReleaseInputs, ReleaseVerifyError> {
    let made = release_round(manifest)?;
    let parent = manifest.parent.as_ref().ok_or_else(|| ReleaseVerifyError::First(manifest.release.clone()))?;
    let model = place.folder(releases, parent).await?;
    let (runtime, trainable, local) = (place.runtime.clone(), made.trainable.clone(), made.local.clone());
    let base = spawn_blocking(move || {
        Ok(RoundBase::open(&runtime, model, &trainable.parse().map_err(TrainError::from)?, &local)?)
    })
    .await?;
    let mut held = Vec::with_capacity(updates.len());
    for update in updates {
        held.push(hold(place, releases, &base, update).await?);
    }
    let memory = match &made.memory {
        Some((Some(before), _)) => place.remembered(releases, before).await?,
        _ => ServerOptimizerState::default(),
    };
    Ok(ReleaseInputs { base, held, memory })
}

async fn hold(
    place: &ReleaseWorkspace,
    releases: &ModelReleases,
    base: &RoundBase,
    update: &MergedUpdate,
) -> Result<FetchedUpdate, ReleaseVerifyError> {
    let path = place.work.join("updates").join(format!("{}.safetensors", update.weights.sha256));
    make_folder(path.parent())?;
    releases.fetch_kept(&update.weights, &path).await?;
    let file = WeightsFile::open(&path, update.form, &base.ground.layout)
        .map_err(|why| ReleaseVerifyError::Update { site: update.site.to_string(), why })?;
    let older = match update.behind {
        0 => None,
        _ => Some(Arc::new(place.row(releases, &update.base, &base.ground.layout).await?)),
    };
    Ok(FetchedUpdate { merged: update.clone(), sequence: 0, file: Arc::new(file), path, base: older })
}

pub(crate) fn make_folder(folder: Option<&Path>) -> Result<(), TrainError> {
    folder.map_or(Ok(()), |folder| std::fs::create_dir_all(folder).map_err(TrainError::write(folder)))
}

/// Runs blocking work off the async threads.
pub(crate) async fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReleaseVerifyError> + Send + 'static,
) -> Result<T, ReleaseVerifyError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ReleaseVerifyError::Broke(error.to_string()))?
}

/// Difference between two sets of weights: for each tensor its name, the root mean square of the first, and that of the
/// difference.
pub fn weight_differences(a: &weights::NamedTensors, b: &weights::NamedTensors) -> Vec<(String, f64, f64)> {
    let root = |values: &mut dyn Iterator<Item = f64>| {
        let (sum, count) = values.fold((0.0, 0.0_f64), |(sum, count), value| (sum + value * value, count + 1.0));
        (sum / count.max(1.0)).sqrt()
    };
    let both = a.iter().filter_map(|(name, (_, own))| Some((name, own, &b.get(name)?.1)));
    both.map(|(name, own, other)| {
        let size = root(&mut own.iter().map(|value| f64::from(*value)));
        let moved = root(&mut own.iter().zip(other).map(|(a, b)| f64::from(a - b)));
        (name.clone(), size, moved)
    })
    .collect()
}

//! Makes a release from the sites' updates: opens the base, merges, and writes the new model's folder, whose digest is
//! the release. Blocking; callers run it off the async threads.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use autograd::{OnnxDocument, TrainableSelection, onnx};
use schemas::{BlobRef, ReleaseId, WeightFormat};
use training::{TrainError, folder, weights};
use vision::Model;

use crate::aggregate::{AggregateContext, AggregateError, AggregateResult, SiteContribution, aggregate};
use crate::merge::SiteDelta;
use crate::public_set::PublicSet;
use crate::release::{MergedUpdate, WeightTensors, write};
use crate::rule::MergeSettings;
use crate::score::{ModelScorer, ScoringModel};
use crate::server_optimizer::ServerOptimizerState;
use crate::verify::ReleaseVerifyError;
use crate::weights_file::{WeightRow, WeightsFile};

/// Why no release was made.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseBuildError {
    /// The updates could not be merged.
    #[error(transparent)]
    Derive(#[from] AggregateError),
    /// A model cannot be read, written or scored.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The weights in the store belong to another model.
    #[error("the weights of release {} give release {} with the model in {}; set aggregator.model to the model that sites were set up with", wanted.short(), found.short(), folder.display())]
    OtherModel {
        /// The release that was wanted.
        wanted: ReleaseId,
        /// The release its weights gave.
        found: ReleaseId,
        /// Folder of the model.
        folder: PathBuf,
    },
    /// A tensor is missing from the weights file.
    #[error("the weights of release {} lack tensors of this model; set aggregator.model to the model that sites were set up with", .0.short())]
    Incomplete(ReleaseId),
}

/// The base of a round, ready to compare updates with.
#[derive(Debug)]
pub struct RoundBase {
    /// The release's folder.
    pub model: Model,
    /// Its weights, and the graphs to score models with.
    pub ground: ScoringModel,
    /// Norm of its trained weights.
    pub norm: f64,
}

impl RoundBase {
    /// Opens a release's folder. `trainable`, `local`: as in a round's terms.
    pub fn open(
        runtime: &vision::OnnxRuntime,
        model: Model,
        trainable: &TrainableSelection,
        local: &[String],
    ) -> Result<Self, TrainError> {
        let ground = ScoringModel::for_model(runtime, &model, trainable, local)?;
        let nothing = vec![0.0; ground.base.len()];
        let whole = SiteDelta { values: WeightRow::Memory(&ground.base), base: &nothing, times: 1.0 };
        let (norm, _) = whole.norm(&ground.layout);
        Ok(Self { model, ground, norm })
    }
}

/// An update whose weights are on disk.
#[derive(Debug, Clone)]
pub struct FetchedUpdate {
    /// Its entry for the manifest.
    pub merged: MergedUpdate,
    /// Its sequence in the stream of updates; 0 if it was read from the store.
    pub sequence: u64,
    /// Its weights, mapped into memory.
    pub file: Arc<WeightsFile>,
    /// Path of that file.
    pub path: PathBuf,
    /// The weights it started from, if they are not the round's base.
    pub base: Option<Arc<Vec<f32>>>,
}

impl FetchedUpdate {
    /// Its change relative to its base.
    pub fn change<'a>(&'a self, base: &'a RoundBase) -> SiteDelta<'a> {
        let from = self.base.as_ref().map_or(&base.ground.base, |own| own);
        SiteDelta { values: WeightRow::File(&self.file), base: from, times: 1.0 }
    }
}

/// Merges the fetched updates into the next weights. `round`, `is_learning`: as in
/// [`AggregateContext`](crate::aggregate::AggregateContext).
pub fn merge(
    runtime: &vision::OnnxRuntime,
    base: &RoundBase,
    held: &[FetchedUpdate],
    public: Option<&PublicSet>,
    memory: ServerOptimizerState,
    settings: &MergeSettings,
    (round, is_learning): (u64, bool),
) -> Result<AggregateResult, ReleaseBuildError> {
    let sent = held.iter().map(|held| SiteContribution {
        site: held.merged.site.clone(),
        values: WeightRow::File(&held.file),
        base: held.base.as_ref().map_or(&base.ground.base, |own| own),
        behind: held.merged.behind,
        samples: held.merged.samples,
        hard: held.merged.hard,
        of_class: base.model.labels.iter().map(|label| held.merged.labels.get(label).copied().unwrap_or(0)).collect(),
    });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let count = if public.is_some() { cores.min(held.len().max(1)) } else { 0 };
    let mut judges = (0..count).map(|_| ModelScorer::new(runtime, &base.ground, 1)).collect::<Result<Vec<_>, _>>()?;
    let mut around = AggregateContext { layout: &base.ground.layout, public, judges: &mut judges, round, is_learning };
    Ok(aggregate(&base.ground.base, sent.collect(), memory, settings, &mut around)?)
}

/// All weights of a model, with these in place of its own, encoded as a safetensors file.
pub fn complete_weights(graph: &OnnxDocument, with: &WeightTensors) -> Result<Vec<u8>, TrainError> {
    let mut tensors = weights::NamedTensors::new();
    for (name, shape) in graph.floats()? {
        let values = match with.get(&name) {
            Some(values) => values.clone(),
            None => graph.weight(&name)?,
        };
        tensors.insert(name, (shape, values));
    }
    weights::encode(&tensors, &WeightTensors::new(), WeightFormat::F32, None)
}

/// Writes all weights of a model to a file in `work`.
pub fn weights_of(model: &Model, work: &Path) -> Result<(BlobRef, PathBuf), ReleaseVerifyError> {
    let graph = onnx::read(&model.graph).map_err(TrainError::from)?;
    let path = work.join(format!("{}.safetensors", model.release.short()));
    let blob = write(&path, &complete_weights(&graph, &WeightTensors::new())?).map_err(TrainError::write(&path))?;
    Ok((blob, path))
}

/// Reads a weights file.
pub fn read(path: &Path) -> Result<WeightTensors, TrainError> {
    let bytes = std::fs::read(path).map_err(TrainError::read(path))?;
    let (tensors, _) = weights::decode(&bytes)?;
    Ok(tensors.into_iter().map(|(name, (_, values))| (name, values)).collect())
}

/// The folder of a release: the baseline model with the release's weights. Written once.
pub fn folder_of(root: &Model, release: &ReleaseId, weights: &Path, into: &Path) -> Result<Model, ReleaseBuildError> {
    let target = into.join(release.as_str());
    if let Ok(model) = Model::load(&target)
        && model.release == *release
    {
        return Ok(model);
    }
    remove(&target)?;
    let model = folder::write(root, &onnx::read(&root.graph).map_err(TrainError::from)?, &read(weights)?, &target)?;
    if model.release != *release {
        let (wanted, found) = (release.clone(), model.release);
        remove(&target)?;
        return Err(ReleaseBuildError::OtherModel { wanted, found, folder: root.folder.clone() });
    }
    Ok(model)
}

/// Writes a new model: its folder, named by its digest, and its weights as a file beside it.
pub fn folder_with(
    root: &Model,
    base: &RoundBase,
    row: &[f32],
    into: &Path,
) -> Result<(Model, BlobRef, PathBuf), ReleaseBuildError> {
    let merged: WeightTensors =
        base.ground.layout.tensors(row).into_iter().map(|(name, (_, values))| (name, values)).collect();
    let bytes = complete_weights(&base.ground.graph, &merged)?;
    let path = into.join("weights.safetensors");
    let blob = write(&path, &bytes).map_err(TrainError::write(&path))?;
    let fresh = into.join("new");
    remove(&fresh)?;
    let all = read(&path)?;
    let model = folder::write(root, &onnx::read(&root.graph).map_err(TrainError::from)?, &all, &fresh)?;
    let target = into.join(model.release.as_str());
    if target.exists() {
        remove(&fresh)?;
    } else {
        std::fs::rename(&fresh, &target).map_err(TrainError::write(&target))?;
    }
    Ok((Model::load(&target).map_err(TrainError::from)?, blob, path))
}

fn remove(folder: &Path) -> Result<(), TrainError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(TrainError::write(folder)(error)),
        _ => Ok(()),
    }
}

/// Encodes the server optimizer's state as a file; `None` if it is empty.
pub fn memory_bytes(memory: &ServerOptimizerState) -> Result<Option<Vec<u8>>, TrainError> {
    let rows = [("first", &memory.first), ("second", &memory.second)];
    let tensors: weights::NamedTensors = rows
        .into_iter()
        .filter(|(_, row)| !row.is_empty())
        .map(|(name, row)| (name.to_owned(), (vec![row.len()], row.clone())))
        .collect();
    if tensors.is_empty() {
        return Ok(None);
    }
    weights::encode(&tensors, &WeightTensors::new(), WeightFormat::F32, None).map(Some)
}

/// Decodes the server optimizer's state.
pub fn read_optimizer_state(path: &Path) -> Result<ServerOptimizerState, TrainError> {
    let mut rows = read(path)?;
    let mut take = |name: &str| rows.remove(name).unwrap_or_default();
    Ok(ServerOptimizerState { first: take("first"), second: take("second") })
}

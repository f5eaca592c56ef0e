//! Makes a release from a model's folder: tried, packaged, kept in the release store, offered to couriers.

use std::path::{Path, PathBuf};

use schemas::{FaultNote, ModelAccuracy, ModelName, Release, ReleaseId};
use streams::{Blobs, ReleaseStore};
use vision::{InferenceSettings, Model, Replicas};

use crate::package::{self, PackageError};
use crate::trial::{PROBE, ReleaseProbe, TrialRunner, needs};

/// Where a release comes from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ReleaseOrigin {
    /// The release it was made from; absent for none.
    pub parent: Option<ReleaseId>,
    /// Description for people, such as `round 3` or `imported`.
    pub words: String,
    /// Accuracy of its parent and of itself on the public set; absent without one.
    pub public: Option<(ModelAccuracy, ModelAccuracy)>,
    /// 95 % confidence interval of the change in accuracy between the two.
    pub public_change_interval: Option<(f64, f64)>,
}

/// Tries a model's folder in a process of its own and packages it. `work`: folder for the package.
///
/// # Errors
/// Why it is not usable as a release, with a remedy.
pub async fn prepare(
    model: &Model,
    origin: ReleaseOrigin,
    trial: &TrialRunner,
    work: &Path,
) -> Result<(Release, PathBuf), FaultNote> {
    let infer = InferenceSettings { replicas: Replicas::Count(1), ..InferenceSettings::default() };
    let tried = trial.run_trial(&model.folder, &infer).await?;
    let needs = needs(model, &tried).map_err(|error| {
        FaultNote::new(error.name(), streams::error::error_chain(&error), "correct the model's folder")
    })?;
    let probe = ReleaseProbe { runtime: tried.runtime.clone(), logits: tried.logits };
    let (model, file) = (model.clone(), work.join(format!("{}.tar", model.release.short())));
    let release = model.release.clone();
    let packing = {
        let file = file.clone();
        move || {
            let probe = serde_json::to_vec(&probe).unwrap_or_default();
            package::pack(&model, &[(PROBE, &probe)], &file)?;
            package::split(&file)
        }
    };
    let packed = tokio::task::spawn_blocking(packing).await;
    let packed = packed.map_err(|error| FaultNote::new("package_broke", error.to_string(), "report it"))?;
    let package = packed.map_err(unpacked)?;
    let ReleaseOrigin { parent, words, public, public_change_interval } = origin;
    Ok((Release { release, parent, origin: words, package, needs, public, public_change_interval }, file))
}

/// Keeps a package in the release store permanently and offers it to couriers.
pub async fn keep_and_offer(
    store: &ReleaseStore,
    blobs: &Blobs,
    model: &ModelName,
    release: &Release,
    file: &Path,
) -> Result<(), PackageError> {
    package::keep(store, model, file, &release.package).await?;
    package::offer(store, model, blobs, &release.package).await
}

fn unpacked(error: PackageError) -> FaultNote {
    FaultNote::new(error.kind(), streams::error::error_chain(&error), "free disk space, or use a smaller model")
}

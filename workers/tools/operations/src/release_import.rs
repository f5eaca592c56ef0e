//! Importing a model's folder as a release: loaded, checked against what sites run, tried, kept, and offered as a
//! candidate; the first release of a model becomes its baseline.
//!
//! [`LoadedFolder`] → [`CheckedImport`] → [`ImportedRelease`]: the last step takes long, so a caller can say what it is
//! about to do.

use std::path::{Path, PathBuf};

use aggregator::ModelReleases;
use aggregator::release::{Manifest, ReleaseError};
use aggregator::release_builder;
use aggregator::verify::ReleaseVerifyError;
use model_signature::{SignatureError, SignedFolder};
use releases::decision_log;
use releases::package::PackageError;
use releases::prepare::{self, ReleaseOrigin};
use releases::stage::{self, DecisionContext};
use releases::trial::TrialRunner;
use runtime::clock;
use schemas::{
    DecisionOrigin, FaultNote, MachineRequirements, ModelName, ReleaseId, ReleaseStage, Rollout, SiteName, Swap,
};
use serde::Serialize;
use streams::store::PutOutcome;
use streams::{Blobs, Bus, CarryError, Publisher, ReleaseStore};
use tempfile::TempDir;
use vision::{Model, ModelError};

use crate::PUBLISH_TIMEOUT;
use crate::audit::record_change;
use crate::words::list;

/// Why a folder was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseImportError {
    /// There is no place for temporary files.
    #[error("a folder for temporary files")]
    Temporary(#[source] std::io::Error),
    /// The folder holds no model.
    #[error("model {}", folder.display())]
    NoModel {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        why: ModelError,
    },
    /// A file is not as it was signed.
    #[error("{} cannot be imported as it was signed", folder.display())]
    NotAsSigned {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        why: SignatureError,
    },
    /// The signed files alone are no model.
    #[error("signed files of {}", folder.display())]
    SignedFiles {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        why: ModelError,
    },
    /// Files that were not signed belong to the model.
    #[error("unsigned files in {} change the model: remove them", folder.display())]
    UnsignedFiles {
        /// The folder.
        folder: PathBuf,
    },
    /// It is a release already.
    #[error("release {} is already {}", release.short(), stage.as_str())]
    Known {
        /// The release.
        release: ReleaseId,
        /// Its stage.
        stage: ReleaseStage,
    },
    /// Sites run another release, to which they could not return.
    #[error(
        "site {site} runs release {} of {model}, which is not in the store: import that one first, so that sites can return to it",
        release.short()
    )]
    NotTheFirst {
        /// The site.
        site: SiteName,
        /// What it runs.
        release: ReleaseId,
        /// The model.
        model: ModelName,
    },
    /// It drops a label.
    #[error(
        "it has no label {labels}, which {} has: a release may add and reorder labels, but must not drop one, because sites, thresholds and training go by their names",
        stable.short()
    )]
    DroppedLabels {
        /// The labels.
        labels: String,
        /// The release that has them.
        stable: ReleaseId,
    },
    /// Its trial failed, or it cannot be packaged.
    #[error("{} ({}): {}", note.reason, note.kind, note.remedy)]
    Unusable {
        /// Why.
        note: FaultNote,
    },
    /// Its weights cannot be read.
    #[error(transparent)]
    Weights(#[from] ReleaseVerifyError),
    /// Its package was not kept.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The store failed.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// Somebody else imported it.
    #[error("it was imported by someone else at the same moment")]
    Raced,
    /// The server failed.
    #[error(transparent)]
    Carry(#[from] CarryError),
    /// A blocking task panicked.
    #[error("a blocking task stopped unexpectedly; report it")]
    Broke(#[from] tokio::task::JoinError),
}

/// A model's folder, loaded; of a signed folder, from a copy of the signed files only.
#[derive(Debug)]
pub struct LoadedFolder {
    model: Model,
    /// Fingerprint of the key that signed it.
    signed_by: Option<String>,
    /// Folder for temporary files.
    work: TempDir,
}

/// A folder that may become a release.
pub struct CheckedImport {
    folder: LoadedFolder,
    cloud: Bus,
    releases: ModelReleases,
    name: ModelName,
    parent: Option<ReleaseId>,
    relabelled: Option<String>,
}

/// A release that was imported.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImportedRelease {
    /// The release.
    pub release: ReleaseId,
    /// Its model.
    pub model: ModelName,
    /// Its stage.
    pub stage: ReleaseStage,
    /// What it needs from a machine.
    pub needs: MachineRequirements,
    /// Size of its package.
    pub package_bytes: u64,
    /// Number of pieces of its package.
    #[serde(skip)]
    pub package_pieces: usize,
    /// How its labels differ from those of the stable release, in words; absent if they do not.
    pub relabelled: Option<String>,
    /// Fingerprint of the key that signed its folder; absent where no signature was required.
    pub signed_by: Option<String>,
    /// Whether it was in the store already, with another signer.
    #[serde(skip)]
    pub had_another_signer: bool,
}

impl LoadedFolder {
    /// Loads a folder; of a signed one, the signed files only.
    pub async fn load(folder: &Path, signed: Option<&SignedFolder>) -> Result<Self, ReleaseImportError> {
        let work = tempfile::tempdir().map_err(ReleaseImportError::Temporary)?;
        let model = match signed {
            Some(signed) => load_signed(signed, folder, &work.path().join("signed")).await?,
            None => load_model(folder)?,
        };
        Ok(Self { model, signed_by: signed.map(|signed| signed.fingerprint().to_owned()), work })
    }

    /// Checks that the folder may become a release of a model. `name`: the model, where it is not the folder's own.
    pub async fn check(
        self,
        cloud: &Bus,
        store: ReleaseStore,
        name: Option<ModelName>,
    ) -> Result<CheckedImport, ReleaseImportError> {
        let model = &self.model;
        let name = name.unwrap_or_else(|| ModelName::from_name(&model.description.name));
        let releases = ModelReleases::new(store, name.clone());
        let now = decision_log::latest(cloud, &name).await?;
        let relabelled = match &now {
            Some(now) => {
                if let Some(stage) = stage::stage_of(now, &model.release) {
                    return Err(ReleaseImportError::Known { release: model.release.clone(), stage });
                }
                relabelling(&releases, now, &model.labels).await?
            }
            None => {
                check_first(cloud, &name, &model.release).await?;
                None
            }
        };
        let parent = now.map(|now| now.stable.release);
        Ok(CheckedImport { folder: self, cloud: cloud.clone(), releases, name, parent, relabelled })
    }
}

impl CheckedImport {
    /// Tries the model in a process of its own, keeps it, and offers it to sites.
    pub async fn import(self, trial: &TrialRunner) -> Result<ImportedRelease, ReleaseImportError> {
        let Self { folder: LoadedFolder { model, signed_by, work }, cloud, releases, name, parent, relabelled } = self;
        let blobs = Blobs::open_in_cloud(&cloud).await?;
        let origin = ReleaseOrigin { parent: parent.clone(), words: "imported".into(), ..ReleaseOrigin::default() };
        let prepared = prepare::prepare(&model, origin, trial, work.path()).await;
        let (release, file) = prepared.map_err(|note| ReleaseImportError::Unusable { note })?;
        let (weights, weights_file) = {
            let (model, work) = (model.clone(), work.path().to_owned());
            tokio::task::spawn_blocking(move || release_builder::weights_of(&model, &work)).await??
        };
        prepare::keep_and_offer(releases.store(), &blobs, &name, &release, &file).await?;
        let manifest = Manifest::first(name.clone(), model.release.clone(), model.labels.clone(), weights);
        let manifest = Manifest { parent, signed_by, ..manifest.packaged(release.package.clone()) };
        let had_another_signer = match releases.put(&manifest, &weights_file).await? {
            PutOutcome::Already => {
                let kept = releases.manifest(&model.release).await?;
                kept.is_some_and(|kept| kept.signed_by != manifest.signed_by)
            }
            _ => false,
        };
        let publisher = Publisher::new(cloud.clone(), PUBLISH_TIMEOUT);
        let decided = decision_log::decide(&cloud, &publisher, &name, |now| {
            let context = |why| DecisionContext::new(DecisionOrigin::Hand, why, clock::now_ms());
            Ok::<_, CarryError>(match now {
                None => Some(stage::first(name.clone(), release.clone(), context("imported as the first"))),
                Some(now) => stage::candidate(now, release.clone(), context("imported")).ok(),
            })
        });
        let decided = decided.await?.ok_or(ReleaseImportError::Raced)?;
        let by = manifest.signed_by.as_ref().map_or(String::new(), |key| format!(", signed by key {key}"));
        let about = format!("{name} {}{by}", release.release.as_str());
        record_change(&cloud, &SiteName::cloud(), "release import", about).await;
        Ok(ImportedRelease {
            package_bytes: release.size_bytes(),
            package_pieces: release.package.len(),
            release: release.release,
            model: name,
            stage: decided.decision.stage,
            needs: release.needs,
            relabelled,
            signed_by: manifest.signed_by,
            had_another_signer,
        })
    }
}

fn load_model(folder: &Path) -> Result<Model, ReleaseImportError> {
    Model::load(folder).map_err(|why| ReleaseImportError::NoModel { folder: folder.to_owned(), why })
}

/// Loads the model of a signed folder from a copy of the signed files only.
async fn load_signed(signed: &SignedFolder, folder: &Path, copy: &Path) -> Result<Model, ReleaseImportError> {
    let (signed, folder, copy) = (signed.clone(), folder.to_owned(), copy.to_owned());
    let load = move || {
        let named = load_model(&folder)?;
        let copied = signed.copy_files(&named.files, &copy);
        copied.map_err(|why| ReleaseImportError::NotAsSigned { folder: folder.clone(), why })?;
        let model =
            Model::load(&copy).map_err(|why| ReleaseImportError::SignedFiles { folder: folder.clone(), why })?;
        if model.release != named.release {
            return Err(ReleaseImportError::UnsignedFiles { folder });
        }
        Ok(model)
    };
    tokio::task::spawn_blocking(load).await?
}

/// A first release must be what the sites already run, or they could not return to it.
async fn check_first(cloud: &Bus, model: &ModelName, release: &ReleaseId) -> Result<(), ReleaseImportError> {
    let reports = decision_log::reports(cloud).await?;
    let others = reports.into_iter().filter(|swap| swap.model == *model && swap.release != *release);
    match others.min_by(|a, b| (&a.site, &a.release).cmp(&(&b.site, &b.release))) {
        None => Ok(()),
        Some(Swap { site, release, .. }) => {
            Err(ReleaseImportError::NotTheFirst { site, release, model: model.clone() })
        }
    }
}

/// How the labels differ from those of the stable release, in words; an error if one is missing.
async fn relabelling(
    releases: &ModelReleases,
    now: &Rollout,
    labels: &[String],
) -> Result<Option<String>, ReleaseImportError> {
    let Some(stable) = releases.manifest(&now.stable.release).await? else { return Ok(None) };
    let dropped = |labels| ReleaseImportError::DroppedLabels { labels, stable: now.stable.release.clone() };
    changed_labels(&stable.labels, labels).map_err(dropped)
}

/// How labels differ from those before, in words; `None` if they do not.
///
/// # Errors
/// The labels that are missing.
fn changed_labels(before: &[String], labels: &[String]) -> Result<Option<String>, String> {
    let missing: Vec<&String> = before.iter().filter(|label| !labels.contains(label)).collect();
    if !missing.is_empty() {
        return Err(list(&missing));
    }
    let place = |label: &String| before.iter().position(|known| known == label);
    let added: Vec<&String> = labels.iter().filter(|label| place(label).is_none()).collect();
    let moved = labels.iter().enumerate().filter_map(|(to, label)| Some((label, place(label)?, to)));
    let moved: Vec<String> =
        moved.filter(|(_, from, to)| from != to).map(|(label, from, to)| format!("{label} {from} to {to}")).collect();
    let mut words = Vec::new();
    if !added.is_empty() {
        words.push(format!("new: {}", list(&added)));
    }
    if !moved.is_empty() {
        words.push(format!("moved in the output: {}", list(&moved)));
    }
    Ok((!words.is_empty()).then(|| words.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_may_be_added_and_moved_and_not_dropped() {
        let change = |before: &[&str], labels: &[&str]| {
            let owned = |labels: &[&str]| labels.iter().map(|&label| label.to_owned()).collect::<Vec<_>>();
            changed_labels(&owned(before), &owned(labels))
        };
        assert_eq!(change(&["a", "b"], &["a", "b"]), Ok(None));
        assert_eq!(
            change(&["a", "b"], &["b", "a", "c"]).unwrap().unwrap(),
            "new: c; moved in the output: b 1 to 0,a 0 to 1"
        );
        assert_eq!(change(&["a", "b", "c"], &["b"]), Err("a,c".to_owned()));
    }
}

//! Deriving a release again without some of its updates, and offering the result as a candidate. The derivation itself
//! is [`aggregator::remake`].

use std::path::Path;
use std::str::FromStr;

use aggregator::ModelReleases;
use aggregator::release::{ExcludedUpdate, Manifest, ReleaseError};
use aggregator::remake::{RemadeRelease, RemakeExclusions};
use aggregator::{round_open, tainted_release};
use releases::decision_log;
use releases::package::PackageError;
use releases::prepare;
use releases::stage::{self, DecisionContext};
use releases::trial::TrialRunner;
use runtime::{Fault, clock};
use schemas::{DecisionOrigin, FaultNote, ModelName, Release, ReleaseId, RoundEvent, SiteName, TaskId};
use serde::{Serialize, Serializer};
use streams::{Blobs, Bus, CarryError, Publisher};
use trainer::learned_images::{self, RetractionTimes};

use crate::PUBLISH_TIMEOUT;
use crate::audit::record_change;

/// The word for all labels that were retracted at a site.
const LABELS: &str = "labels";

/// One thing to exclude from a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemakeExclusion {
    /// All updates of a site.
    Site(SiteName),
    /// An update, or those that learned from a task whose label was retracted.
    Id(TaskId),
    /// The updates that learned from any label that was retracted.
    Labels,
}

/// A text that names nothing to exclude.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a site, nor the id of an update or a task, nor the word {LABELS}")]
pub struct RemakeExclusionError(String);

impl FromStr for RemakeExclusion {
    type Err = RemakeExclusionError;

    fn from_str(text: &str) -> Result<Self, RemakeExclusionError> {
        if text == LABELS {
            return Ok(RemakeExclusion::Labels);
        }
        // A site whose name reads as an id cannot be named here: ids win.
        if let Ok(id) = text.parse() {
            return Ok(RemakeExclusion::Id(id));
        }
        let named = text.parse().map(RemakeExclusion::Site);
        named.map_err(|_| RemakeExclusionError(text.to_owned()))
    }
}

/// What is excluded from a release: what is known of it in the cloud, and what only a site can tell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExclusionPlan {
    /// Sites and updates.
    pub known: RemakeExclusions,
    /// Tasks whose labels were retracted: the site knows which updates learned from them.
    pub tasks: Vec<TaskId>,
    /// Whether all labels are meant that were retracted at the site.
    pub all_labels: bool,
}

impl ExclusionPlan {
    /// Sorts what is to be excluded from a release. Pure.
    pub fn new(manifest: &Manifest, asked: &[RemakeExclusion]) -> Self {
        let merged = |id: &TaskId| manifest.made.iter().flat_map(|made| &made.updates).any(|merged| merged.id == *id);
        let mut plan = Self::default();
        for exclusion in asked {
            match exclusion {
                RemakeExclusion::Site(site) => plan.known.sites.extend([site.clone()]),
                RemakeExclusion::Id(id) if merged(id) => plan.known.updates.extend([*id]),
                RemakeExclusion::Id(task) => plan.tasks.push(*task),
                RemakeExclusion::Labels => plan.all_labels = true,
            }
        }
        plan
    }

    /// Whether a site must be asked which updates learned from labels.
    pub fn needs_site(&self) -> bool {
        self.all_labels || !self.tasks.is_empty()
    }

    /// Adds the updates that learned from the labels, as the site's own record names them.
    pub async fn trace_labels(mut self, bus: &Bus, site: &SiteName) -> Result<RemakeExclusions, RetractedLabelError> {
        let retracted = learned_images::retracted(bus).await?;
        let retracted = select_retracted(site, retracted, &self.tasks, self.all_labels)?;
        let traced = learned_images::trace_updates(bus, site, &retracted).await?;
        self.known.updates.extend(traced.into_iter().map(|traced| traced.update));
        Ok(self.known)
    }
}

/// Why the updates that learned from labels are unknown.
#[derive(Debug, thiserror::Error)]
pub enum RetractedLabelError {
    /// The label of a task was not retracted.
    #[error(
        "{task} is neither an update of this release nor a task whose label was retracted at site {site}: retract it with `tributary label retract {task} --why TEXT`"
    )]
    NotRetracted {
        /// The task.
        task: TaskId,
        /// The site.
        site: SiteName,
    },
    /// No label was.
    #[error("no label was retracted at site {site}: retract labels with `tributary label retract` first")]
    NoneRetracted {
        /// The site.
        site: SiteName,
    },
    /// The site's server failed.
    #[error(transparent)]
    Carry(#[from] CarryError),
}

/// The retracted labels that were named. Pure.
fn select_retracted(
    site: &SiteName,
    retracted: RetractionTimes,
    tasks: &[TaskId],
    all: bool,
) -> Result<RetractionTimes, RetractedLabelError> {
    if let Some(task) = tasks.iter().find(|task| !retracted.contains_key(task)) {
        return Err(RetractedLabelError::NotRetracted { task: *task, site: site.clone() });
    }
    if all && retracted.is_empty() {
        return Err(RetractedLabelError::NoneRetracted { site: site.clone() });
    }
    Ok(retracted.into_iter().filter(|(task, _)| all || tasks.contains(task)).collect())
}

/// Why a remade release was not offered.
#[derive(Debug, thiserror::Error)]
pub enum RemakeOfferError {
    /// Its trial failed, or it cannot be packaged.
    #[error("{} ({}): {}", note.reason, note.kind, note.remedy)]
    Unusable {
        /// Why.
        note: FaultNote,
    },
    /// Its package was not kept.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The store failed.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// It was not announced.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The server failed.
    #[error(transparent)]
    Carry(#[from] CarryError),
}

/// What came of a remake.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RemakeOffer {
    /// The release.
    pub release: ReleaseId,
    /// The release that it was remade from.
    pub of: ReleaseId,
    /// Number of updates in it.
    pub updates: usize,
    /// The updates that were left out.
    pub without: Vec<ExcludedUpdate>,
    /// Its stage, in a word.
    pub stage: &'static str,
    /// Whether the offer is new; false if the same was remade before.
    pub is_new: bool,
    /// Other releases that learned from what was left out.
    #[serde(rename = "still_learned_from_them", serialize_with = "as_short_ids")]
    pub still_tainted: Vec<ReleaseId>,
}

fn as_short_ids<S: Serializer>(releases: &[ReleaseId], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(releases.iter().map(ReleaseId::short))
}

/// Tries a remade release in a process of its own, keeps it, offers it as a candidate, and announces that rounds start
/// from it. `work`: folder for its package. Repeating it completes what was interrupted.
pub async fn offer_remade(
    cloud: &Bus,
    releases: &ModelReleases,
    name: &ModelName,
    (of, remade): (&Manifest, &RemadeRelease),
    (trial, work): (&TrialRunner, &Path),
    why: &str,
) -> Result<RemakeOffer, RemakeOfferError> {
    let release = keep(cloud, releases, name, remade, (trial, work)).await?;
    let manifest = &remade.manifest;
    let (stage, is_new) = offer(cloud, name, manifest, &release, why).await?;
    let without = manifest.remade.as_ref().map(|remade| remade.without.clone()).unwrap_or_default();
    let ids = without.iter().map(|excluded| excluded.id).collect();
    let tainted = tainted_release::tainted_releases(&releases.list().await?, &ids).into_iter();
    Ok(RemakeOffer {
        release: manifest.release.clone(),
        of: of.release.clone(),
        updates: manifest.made.as_ref().map_or(0, |made| made.updates.len()),
        without,
        stage,
        is_new,
        still_tainted: tainted.map(|other| other.release).filter(|other| *other != of.release).collect(),
    })
}

/// Tries the release in a separate process, and adds it to the store: files first, its manifest last. Package and
/// weights go where couriers fetch them.
async fn keep(
    cloud: &Bus,
    releases: &ModelReleases,
    name: &ModelName,
    remade: &RemadeRelease,
    (trial, work): (&TrialRunner, &Path),
) -> Result<Release, RemakeOfferError> {
    let blobs = Blobs::open_in_cloud(cloud).await?;
    let prepared = prepare::prepare(&remade.model, remade.origin.clone(), trial, work).await;
    let (release, file) = prepared.map_err(|note| RemakeOfferError::Unusable { note })?;
    prepare::keep_and_offer(releases.store(), &blobs, name, &release, &file).await?;
    // Couriers fetch the weights when a round starts from this release.
    blobs.store_file(&remade.weights).await?;
    if let Some((blob, path)) = &remade.memory {
        releases.keep_file(blob, path).await?;
    }
    let manifest = remade.manifest.clone().packaged(release.package.clone());
    releases.put(&manifest, &remade.weights).await?;
    Ok(release)
}

/// Offers the release as a candidate, and announces that rounds start from it; its stage, and whether anything is new.
async fn offer(
    cloud: &Bus,
    name: &ModelName,
    manifest: &Manifest,
    release: &Release,
    why: &str,
) -> Result<(&'static str, bool), RemakeOfferError> {
    let publisher = Publisher::new(cloud.clone(), PUBLISH_TIMEOUT);
    let why = format!("{}: {why}", release.origin);
    let decided = decision_log::decide(cloud, &publisher, name, |now| {
        let context = DecisionContext::new(DecisionOrigin::Hand, why.clone(), clock::now_ms());
        Ok::<_, CarryError>(now.and_then(|now| stage::candidate(now, release.clone(), context).ok()))
    });
    let decided = decided.await?;
    let is_announced = publish_remade(&publisher, name, manifest).await?;
    let about = format!("{name} {}: {why}", manifest.release.as_str());
    record_change(cloud, &SiteName::cloud(), "release remake", about).await;
    let now = decision_log::latest(cloud, name).await?;
    let stage = now.as_ref().and_then(|now| stage::stage_of(now, &manifest.release));
    Ok((stage.map_or("passed over", |stage| stage.as_str()), is_announced || decided.is_some()))
}

/// Announces in the stream of rounds what a release was remade as; false if it was announced before.
async fn publish_remade(publisher: &Publisher, name: &ModelName, manifest: &Manifest) -> Result<bool, Fault> {
    let Some(remade) = &manifest.remade else { return Ok(false) };
    let updates = manifest.made.as_ref().map_or(0, |made| made.updates.len());
    let event = RoundEvent::Remade {
        release: manifest.release.clone(),
        of: remade.of.clone(),
        weights: manifest.weights.clone(),
        updates: u32::try_from(updates).unwrap_or(u32::MAX),
    };
    round_open::publish_round_event(publisher, None, name, manifest.round, event).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_ids_and_labels_are_told_apart() {
        let id = TaskId::from_name("a");
        assert_eq!("reef".parse(), Ok(RemakeExclusion::Site("reef".parse().unwrap())));
        assert_eq!(id.to_string().parse(), Ok(RemakeExclusion::Id(id)));
        assert_eq!("labels".parse(), Ok(RemakeExclusion::Labels));
        assert!("a site".parse::<RemakeExclusion>().unwrap_err().to_string().contains("neither a site"));
    }

    #[test]
    fn a_task_whose_label_was_not_retracted_is_refused_by_name() {
        let site: SiteName = "reef".parse().unwrap();
        let (a, b) = (TaskId::from_name("a"), TaskId::from_name("b"));
        let retracted = RetractionTimes::from([(a, 1), (b, 2)]);
        assert_eq!(select_retracted(&site, retracted.clone(), &[a], false).unwrap(), RetractionTimes::from([(a, 1)]));
        assert_eq!(select_retracted(&site, retracted.clone(), &[a], true).unwrap(), retracted);
        let other = TaskId::from_name("c");
        let refused = select_retracted(&site, retracted, &[other], false).unwrap_err().to_string();
        assert!(refused.contains(&format!("label retract {other}")), "{refused}");
        assert!(
            select_retracted(&site, RetractionTimes::new(), &[], true)
                .unwrap_err()
                .to_string()
                .contains("no label was retracted")
        );
    }
}

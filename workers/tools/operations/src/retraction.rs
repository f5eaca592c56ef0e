//! Retracting labels, and naming every update and release that learned from them.

use std::collections::{BTreeMap, BTreeSet};

use aggregator::release::{self, ModelReleases, ReleaseError};
use aggregator::tainted_release::{self, TaintedRelease};
use runtime::clock;
use schemas::limits::MAX_NOTE_BYTES;
use schemas::{Answer, CameraName, CodecError, Label, ModelName, SiteName, TaskId, decode, encode};
use serde::Serialize;
use streams::reader::{self, StreamRange};
use streams::{Bus, CarryError, Publication, Publisher, ReleaseStore, subject, topology};
use trainer::learned_images::{self, RetractionTimes, TracedUpdate};

use crate::audit::record_change;
use crate::words::count;
use crate::{PUBLISH_TIMEOUT, release_stage};

/// Which labels to retract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelSelection {
    /// Those of these tasks.
    Tasks(Vec<TaskId>),
    /// Those that persons gave and that still count.
    Given {
        /// Who gave them; anybody if absent.
        by: Option<String>,
        /// When they were given at the earliest; at any time if absent.
        since: Option<LabelledSince>,
    },
}

/// A moment, and how a person named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledSince {
    /// The moment, milliseconds since the epoch.
    pub at_ms: u64,
    /// In the person's words, such as `2d`; errors repeat them.
    pub words: String,
}

/// Who retracts, and why.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RetractionReason {
    /// Reason; it goes into the labels and into the audit log.
    pub why: String,
    /// Name of the person; absent if not given.
    pub by: Option<String>,
}

impl RetractionReason {
    /// Checks the reason's length.
    ///
    /// # Errors
    /// It is too long.
    pub fn check(&self) -> Result<(), RetractionError> {
        let size_bytes = self.why.len();
        if size_bytes > MAX_NOTE_BYTES { Err(RetractionError::ReasonLength { size_bytes }) } else { Ok(()) }
    }
}

/// Why nothing was retracted.
#[derive(Debug, thiserror::Error)]
pub enum RetractionError {
    /// The reason is too long.
    #[error("--why has {size_bytes} bytes; the limit is {MAX_NOTE_BYTES}")]
    ReasonLength {
        /// Its size, bytes.
        size_bytes: usize,
    },
    /// No label is selected.
    #[error(
        "no label by {who}{when} counts at this site: only labels given with `tributary label --by NAME` have a name, and retracted ones do not count"
    )]
    NoneCounts {
        /// Whose labels were meant.
        who: String,
        /// Since when, as the end of a sentence; empty for any time.
        when: String,
    },
    /// An answer cannot be read, or a retraction not be written.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The server failed.
    #[error(transparent)]
    Carry(#[from] CarryError),
}

/// Why the releases that learned from updates are unknown.
#[derive(Debug, thiserror::Error)]
pub enum TaintedReleasesError {
    /// The store failed.
    #[error("release store {url}")]
    Store {
        /// Address of the store.
        url: String,
        /// How.
        #[source]
        why: CarryError,
    },
    /// It is another aggregator's store.
    #[error("release store {url} has no release of model {model}: name the aggregator's store with --release-store")]
    NoRelease {
        /// Address of the store.
        url: String,
        /// The model.
        model: ModelName,
    },
    /// A release cannot be read.
    #[error(transparent)]
    Release(#[from] ReleaseError),
}

/// Labels that were retracted, or would be, and the updates that learned from them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RetractedLabels {
    /// The site.
    pub site: SiteName,
    /// Tasks whose labels count no more.
    pub retracted: BTreeSet<TaskId>,
    /// Tasks that the site knows nothing of.
    pub unknown: Vec<TaskId>,
    /// Updates of the site that learned from the labels.
    pub updates: Vec<TracedUpdate>,
}

/// A release that learned from updates, and its stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NamedRelease {
    /// Its model.
    pub model: ModelName,
    /// Its stage, in a word; empty if it is unknown.
    pub stands: String,
    /// What it learned from.
    #[serde(flatten)]
    pub tainted: TaintedRelease,
}

/// The releases that learned from updates.
#[derive(Debug, Default)]
pub struct NamedReleases {
    /// The releases, by model.
    pub releases: Vec<NamedRelease>,
    /// Why stages are unknown, once for each model of which they are.
    pub unknown_stages: Vec<CarryError>,
}

/// Finds the labels of a site that are selected, retracts them if there is a reason, and names the updates that learned
/// from them. Without a reason, nothing is changed.
pub async fn retract_labels(
    bus: &Bus,
    site: &SiteName,
    selection: LabelSelection,
    reason: Option<&RetractionReason>,
) -> Result<RetractedLabels, RetractionError> {
    reason.map_or(Ok(()), RetractionReason::check)?;
    let standing = StandingLabels::read(bus).await?;
    let wanted = selected_tasks(selection, &standing)?;
    let (known, unknown) = known_tasks(bus, site, wanted, &standing).await?;
    if let Some(reason) = reason {
        publish_retractions(bus, site, reason, &known).await?;
        let about = format!("{}: {}", count(known.len() as u64, "task"), reason.why);
        record_change(bus, site, "label retract", about).await;
    }
    let retracted: BTreeSet<TaskId> = known.keys().copied().collect();
    let images: RetractionTimes = retracted.iter().map(|task| (*task, i128::MAX)).collect();
    // After the retraction is published: a trainer records what it learned first, then looks for retractions.
    let updates = learned_images::trace_updates(bus, site, &images).await?;
    Ok(RetractedLabels { site: site.clone(), retracted, unknown, updates })
}

/// The releases that contain these updates or descend from one that does. `url`: address of the release store.
pub async fn find_tainted_releases(
    cloud: &Bus,
    url: &str,
    updates: &[TracedUpdate],
) -> Result<NamedReleases, TaintedReleasesError> {
    let mut of_model: BTreeMap<&ModelName, BTreeSet<TaskId>> = BTreeMap::new();
    for update in updates {
        of_model.entry(&update.model).or_default().insert(update.update);
    }
    let mut found = NamedReleases::default();
    if of_model.is_empty() {
        return Ok(found);
    }
    let failed = |why| TaintedReleasesError::Store { url: url.to_owned(), why };
    let store = ReleaseStore::open(url).map_err(failed)?;
    let models = release::models(&store).await.map_err(failed)?;
    for (model, updates) in of_model {
        if !models.contains(model) {
            return Err(TaintedReleasesError::NoRelease { url: url.to_owned(), model: model.clone() });
        }
        let manifests = ModelReleases::new(store.clone(), model.clone()).list().await?;
        let history = releases::decision_log::history(cloud, model).await.unwrap_or_else(|why| {
            found.unknown_stages.push(why);
            Vec::new()
        });
        let tainted = tainted_release::tainted_releases(&manifests, &updates).into_iter();
        found.releases.extend(tainted.map(|tainted| NamedRelease {
            model: model.clone(),
            stands: release_stage::stage_word(&history, &tainted.release).into(),
            tainted,
        }));
    }
    Ok(found)
}

/// A label that counts: the latest of its task, not retracted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct StandingLabel {
    camera: CameraName,
    by: Option<String>,
    labelled_at_ms: u64,
    /// Whether a person gave it; false for one that was republished.
    is_own: bool,
}

/// The labels of a site that count, by task.
#[derive(Debug, Default)]
struct StandingLabels(BTreeMap<TaskId, StandingLabel>);

impl StandingLabels {
    async fn read(bus: &Bus) -> Result<Self, CarryError> {
        let mut standing = Self::default();
        let last = reader::stream_level(bus, topology::LABELS).await?;
        if last.messages > 0 {
            reader::read_range(
                bus,
                topology::LABELS,
                StreamRange::default(),
                last.last_sequence,
                |record| match decode::<Label>(&record.payload) {
                    Ok(label) => standing.apply_label(&label, camera(&record.subject)),
                    Err(error) => tracing::warn!(sequence = record.sequence, %error, "label skipped"),
                },
            )
            .await?;
        }
        Ok(standing)
    }

    fn apply_label(&mut self, label: &Label, camera: CameraName) {
        if label.retracted.is_some() {
            self.0.remove(&label.task);
            return;
        }
        let is_own = label.source.is_none();
        // A republished label repeats an earlier one, which names the person.
        if is_own || !self.0.contains_key(&label.task) {
            let (by, labelled_at_ms) = (label.by.clone(), label.labelled_at_ms);
            self.0.insert(label.task, StandingLabel { camera, by, labelled_at_ms, is_own });
        }
    }

    /// Tasks labelled by this person, or by anybody, since a moment.
    fn by(&self, name: Option<&str>, since_ms: u64) -> BTreeSet<TaskId> {
        let meant = |label: &StandingLabel| {
            label.is_own
                && label.labelled_at_ms >= since_ms
                && name.is_none_or(|name| label.by.as_deref() == Some(name))
        };
        self.0.iter().filter(|(_, label)| meant(label)).map(|(task, _)| *task).collect()
    }
}

/// The camera in the subject of a label.
fn camera(subject: &str) -> CameraName {
    subject.rsplit('.').next().and_then(|camera| camera.parse().ok()).unwrap_or_else(CameraName::unknown)
}

/// The tasks whose labels are selected. Pure.
fn selected_tasks(selection: LabelSelection, standing: &StandingLabels) -> Result<BTreeSet<TaskId>, RetractionError> {
    let (by, since) = match selection {
        LabelSelection::Tasks(tasks) => return Ok(tasks.into_iter().collect()),
        LabelSelection::Given { by, since } => (by, since),
    };
    let found = standing.by(by.as_deref(), since.as_ref().map_or(0, |since| since.at_ms));
    if found.is_empty() {
        let who = by.map_or("anybody".to_owned(), |name| format!("{name:?}"));
        let when = since.map(|since| format!(" since {}", since.words)).unwrap_or_default();
        return Err(RetractionError::NoneCounts { who, when });
    }
    Ok(found)
}

/// The tasks that the site knows, each with its camera; and those that it does not.
async fn known_tasks(
    bus: &Bus,
    site: &SiteName,
    wanted: BTreeSet<TaskId>,
    standing: &StandingLabels,
) -> Result<(BTreeMap<TaskId, CameraName>, Vec<TaskId>), RetractionError> {
    let (mut known, mut silent) = (BTreeMap::new(), BTreeSet::new());
    for task in wanted {
        if let Some(label) = standing.0.get(&task) {
            known.insert(task, label.camera.clone());
            continue;
        }
        let slot = subject::final_answer_of_any_camera(site, task);
        match reader::last_message(bus, topology::ANSWERS, &slot).await? {
            Some(record) => drop(known.insert(task, decode::<Answer>(&record.payload)?.camera)),
            None => silent.extend([task]),
        }
    }
    // Answers are purged earlier than the record of what was learned from them.
    let images: RetractionTimes = silent.iter().map(|task| (*task, i128::MAX)).collect();
    for update in learned_images::trace_updates(bus, site, &images).await? {
        known.extend(update.images.into_iter().map(|task| (task, CameraName::unknown())));
    }
    silent.retain(|task| !known.contains_key(task));
    Ok((known, silent.into_iter().collect()))
}

async fn publish_retractions(
    bus: &Bus,
    site: &SiteName,
    reason: &RetractionReason,
    tasks: &BTreeMap<TaskId, CameraName>,
) -> Result<(), RetractionError> {
    let publisher = Publisher::new(bus.clone(), PUBLISH_TIMEOUT);
    for (task, camera) in tasks {
        let at_ms = clock::now_ms();
        let label = Label::retraction(*task, reason.by.clone(), reason.why.as_str(), at_ms);
        let id = task.child(&format!("retracted-{at_ms}")).to_string();
        publisher.publish(&Publication::with_id(subject::label(site, camera), encode(&label)?, id)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(task: &str, by: Option<&str>, at_ms: u64) -> Label {
        Label {
            task: TaskId::from_name(task),
            label: "coat".into(),
            objects: None,
            by: by.map(str::to_owned),
            labelled_at_ms: at_ms,
            source: None,
            retracted: None,
        }
    }

    fn standing(labels: &[Label]) -> StandingLabels {
        let mut standing = StandingLabels::default();
        labels.iter().for_each(|label| standing.apply_label(label, CameraName::unknown()));
        standing
    }

    #[test]
    fn a_persons_labels_are_those_that_still_count() {
        let replayed =
            Label { source: Some(schemas::LabelSource::Person), by: Some("replay".into()), ..label("a", None, 50) };
        let all = standing(&[
            label("a", Some("anna"), 10),
            replayed,
            label("b", Some("anna"), 20),
            label("b", Some("bert"), 30),
            label("c", Some("anna"), 40),
            Label::retraction(TaskId::from_name("c"), None, "mistaken", 45),
            label("d", Some("anna"), 50),
        ]);
        let tasks = |names: &[&str]| names.iter().map(|name| TaskId::from_name(name)).collect::<BTreeSet<_>>();
        assert_eq!(all.by(Some("anna"), 0), tasks(&["a", "d"]));
        assert_eq!(all.by(Some("anna"), 11), tasks(&["d"]));
        assert_eq!(all.by(None, 0), tasks(&["a", "b", "d"]));
    }

    #[test]
    fn the_camera_is_the_end_of_the_subject() {
        assert_eq!(camera("label.reef.cam-1").as_str(), "cam-1");
        assert_eq!(camera("label.reef.").as_str(), "unknown");
    }

    #[test]
    fn labels_that_nobody_gave_are_refused_in_the_persons_words() {
        let since = Some(LabelledSince { at_ms: 100, words: "2d".into() });
        let selection = LabelSelection::Given { by: Some("anna".into()), since };
        let refused = selected_tasks(selection, &standing(&[label("a", Some("anna"), 10)])).unwrap_err().to_string();
        assert!(refused.starts_with("no label by \"anna\" since 2d counts at this site"), "{refused}");
    }
}

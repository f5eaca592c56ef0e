//! `tributary label retract`: retracts labels, and names what learned from them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aggregator::release::{self, ModelReleases};
use aggregator::tainted_release::{self, TaintedRelease};
use anyhow::{Context, bail};
use clap::builder::NonEmptyStringValueParser;
use replay::timestamp;
use runtime::clock;
use runtime::settings::LoadedSettings;
use schemas::limits::MAX_NOTE_BYTES;
use schemas::{Answer, CameraName, Label, ModelName, Rollout, TaskId, decode, encode};
use serde::Serialize;
use streams::reader::{self, StreamRange};
use streams::{Bus, Publication, Publisher, ReleaseStore, subject, topology};
use trainer::learned_images::{self, RetractionTimes, TracedUpdate};

use crate::release::standing;
use crate::settings::Settings;
use crate::site_target::SiteTarget;
use crate::{audit, format, site_target, stdout, task_lookup};

const EXAMPLES: &str = "\
No label of these images counts any more, not even the publisher's or the cloud's verdict: the site's next training \
omits them until they are labelled again.

Updates that learned from them are found in the site's own record, which never leaves the site \
(streams.learned_max_mib), and the releases with these updates in the release store, if it can be reached from here. \
`tributary release remake` derives a release again without them.

Examples:
  tributary label retract 0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6 --why 'wrong shelf'
  tributary label retract --labelled-by anna --since 2d --why 'mixed up coat and shirt'
  tributary label retract --labelled-by anna --dry-run";

/// Retract labels, and name every update and release that learned from them.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RetractArgs {
    /// Tasks whose labels to retract, named by the first digits of their ids.
    #[arg(value_name = "TASK", required_unless_present_any = ["labelled_by", "since"])]
    tasks: Vec<String>,
    /// Retract every label by this person that still counts.
    #[arg(long, value_name = "NAME", conflicts_with = "tasks")]
    labelled_by: Option<String>,
    /// Retract every label by persons since TIME: a date, a time or an age (2h, 7d).
    #[arg(long, value_name = "TIME", conflicts_with = "tasks")]
    since: Option<String>,
    /// Reason, kept in the audit log.
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run", value_parser = NonEmptyStringValueParser::new())]
    why: Option<String>,
    /// Name of the person who retracts.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Only name what learned from the labels; retract nothing.
    #[arg(long)]
    dry_run: bool,
    /// Release store [default: aggregator.store].
    #[arg(long, value_name = "URL")]
    release_store: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The retracted labels, and what learned from them.
#[derive(Debug, Default, Serialize)]
struct Consequences {
    site: String,
    retracted: BTreeSet<TaskId>,
    unknown: Vec<TaskId>,
    updates: Vec<TracedUpdate>,
    releases: Vec<NamedRelease>,
    /// Why the releases are unknown; absent if they are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    releases_unknown: Option<String>,
}

/// A release and its stage.
#[derive(Debug, Serialize)]
struct NamedRelease {
    model: ModelName,
    stands: String,
    #[serde(flatten)]
    tainted: TaintedRelease,
}

/// Retracts labels.
pub async fn command(loaded: &LoadedSettings<Settings>, args: &RetractArgs) -> anyhow::Result<()> {
    let why = args.why.as_deref().unwrap_or_default();
    if why.len() > MAX_NOTE_BYTES {
        bail!("--why has {} bytes; the limit is {MAX_NOTE_BYTES}", why.len());
    }
    let here = site_target::open(loaded, "label").await?;
    let standing = StandingLabels::read(&here.bus).await?;
    let mut tasks = BTreeSet::new();
    for task in &args.tasks {
        tasks.insert(task_lookup::find_task(&here, task).await?);
    }
    let wanted = wanted(args, tasks, &standing)?;
    let (known, unknown) = known(&here, wanted, &standing).await?;
    if !args.dry_run {
        publish(&here, args.by.as_ref(), why, &known).await?;
        let about = format!("{}: {why}", format::count(known.len() as u64, "task"));
        audit::record_command(&here.bus, &here.name, "label retract", about).await;
    }
    let retracted: BTreeSet<TaskId> = known.keys().copied().collect();
    let images: RetractionTimes = retracted.iter().map(|task| (*task, i128::MAX)).collect();
    // After the retraction is published: a trainer records what it learned first, then looks for retractions.
    let updates = learned_images::trace_updates(&here.bus, &here.name, &images).await?;
    let releases = match here.whole_cloud() {
        Ok(cloud) => releases(loaded, args, cloud, &updates).await,
        Err(error) => Err(error),
    };
    let (releases, releases_unknown) = match releases {
        Ok(releases) => (releases, None),
        Err(error) => (Vec::new(), Some(stdout::with_causes(&error, ": "))),
    };
    let site = here.name.to_string();
    let all = Consequences { site, retracted, unknown, updates, releases, releases_unknown };
    if args.json {
        stdout::json(&all)?;
    } else {
        print_consequences(args, &all)?;
    }
    match &all.unknown[..] {
        [] => Ok(()),
        [first, ..] => bail!(
            "{} of unknown tasks skipped, the first {first}: site {} has no answer, no label and no update for it",
            format::count(all.unknown.len() as u64, "label"),
            all.site
        ),
    }
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
    async fn read(bus: &Bus) -> anyhow::Result<Self> {
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

/// The tasks to retract.
fn wanted(args: &RetractArgs, tasks: BTreeSet<TaskId>, standing: &StandingLabels) -> anyhow::Result<BTreeSet<TaskId>> {
    if !tasks.is_empty() {
        return Ok(tasks);
    }
    let since = args.since.as_deref().map(|text| timestamp::parse_timestamp(text, Some(clock::now_ms()))).transpose();
    let since_ms = since.map_err(|why| anyhow::anyhow!("--since: {why}"))?;
    let found = standing.by(args.labelled_by.as_deref(), since_ms.unwrap_or(0));
    if found.is_empty() {
        let who = args.labelled_by.as_deref().map_or("anybody".to_owned(), |name| format!("{name:?}"));
        let when = args.since.as_deref().map(|since| format!(" since {since}")).unwrap_or_default();
        bail!(
            "no label by {who}{when} counts at this site: only labels given with `tributary label --by NAME` have a name, and retracted ones do not count"
        );
    }
    Ok(found)
}

/// The tasks that the site knows, each with its camera; and those that it does not.
async fn known(
    here: &SiteTarget,
    wanted: BTreeSet<TaskId>,
    standing: &StandingLabels,
) -> anyhow::Result<(BTreeMap<TaskId, CameraName>, Vec<TaskId>)> {
    let (mut known, mut silent) = (BTreeMap::new(), BTreeSet::new());
    for task in wanted {
        if let Some(label) = standing.0.get(&task) {
            known.insert(task, label.camera.clone());
            continue;
        }
        match reader::last_message(&here.bus, topology::ANSWERS, &subject::final_answer_of_any_camera(&here.name, task))
            .await?
        {
            Some(record) => drop(known.insert(task, decode::<Answer>(&record.payload)?.camera)),
            None => silent.extend([task]),
        }
    }
    // Answers are purged earlier than the record of what was learned from them.
    let images: RetractionTimes = silent.iter().map(|task| (*task, i128::MAX)).collect();
    for update in learned_images::trace_updates(&here.bus, &here.name, &images).await? {
        known.extend(update.images.into_iter().map(|task| (task, CameraName::unknown())));
    }
    silent.retain(|task| !known.contains_key(task));
    Ok((known, silent.into_iter().collect()))
}

async fn publish(
    here: &SiteTarget,
    by: Option<&String>,
    why: &str,
    tasks: &BTreeMap<TaskId, CameraName>,
) -> anyhow::Result<()> {
    let publisher = Publisher::new(here.bus.clone(), Duration::from_secs(10));
    for (task, camera) in tasks {
        let at_ms = clock::now_ms();
        let label = Label::retraction(*task, by.cloned(), why, at_ms);
        let id = task.child(&format!("retracted-{at_ms}")).to_string();
        publisher.publish(&Publication::with_id(subject::label(&here.name, camera), encode(&label)?, id)).await?;
    }
    Ok(())
}

/// The releases that contain these updates or descend from one that does, by model.
async fn releases(
    loaded: &LoadedSettings<Settings>,
    args: &RetractArgs,
    cloud: &Bus,
    updates: &[TracedUpdate],
) -> anyhow::Result<Vec<NamedRelease>> {
    let mut of_model: BTreeMap<&ModelName, BTreeSet<TaskId>> = BTreeMap::new();
    for update in updates {
        of_model.entry(&update.model).or_default().insert(update.update);
    }
    if of_model.is_empty() {
        return Ok(Vec::new());
    }
    let url = args.release_store.clone().unwrap_or_else(|| loaded.settings.aggregator.store.clone());
    let store = ReleaseStore::open(&url).with_context(|| format!("release store {url}"))?;
    let models = release::models(&store).await.with_context(|| format!("release store {url}"))?;
    let mut found = Vec::new();
    for (model, updates) in of_model {
        if !models.contains(model) {
            bail!(
                "release store {url} has no release of model {model}: name the aggregator's store with --release-store"
            );
        }
        let manifests = ModelReleases::new(store.clone(), model.clone()).list().await?;
        let history = history(cloud, model).await;
        found.extend(tainted_release::tainted_releases(&manifests, &updates).into_iter().map(|tainted| NamedRelease {
            model: model.clone(),
            stands: standing::standing_of(&history, &tainted.release).into(),
            tainted,
        }));
    }
    Ok(found)
}

/// The rollout decisions about a model; empty, with a note, if the cloud cannot be reached.
async fn history(cloud: &Bus, model: &ModelName) -> Vec<Rollout> {
    releases::decision_log::history(cloud, model).await.unwrap_or_else(|error| {
        stdout::print_note(format_args!("the stages of releases are unknown: {error}"));
        Vec::new()
    })
}

fn print_consequences(args: &RetractArgs, all: &Consequences) -> anyhow::Result<()> {
    let count = format::count(all.retracted.len() as u64, "label");
    match args.dry_run {
        true => stdout::print_line(format_args!("{count} would be retracted at site {}", all.site))?,
        false => stdout::print_line(format_args!("{count} retracted at site {}", all.site))?,
    }
    if all.updates.is_empty() {
        return stdout::print_line("No recorded update of this site learned from them.");
    }
    let row = |update: &TracedUpdate| {
        let round = if update.round == 0 { "none".to_owned() } else { update.round.to_string() };
        let images = update.images.len().to_string();
        let trained = format::format_time(update.trained_at_ms);
        vec![update.update.to_string(), update.model.to_string(), round, trained, images]
    };
    let rows: Vec<Vec<String>> = all.updates.iter().map(row).collect();
    stdout::print_line(format::table(&["update", "model", "round", "trained", "learned from"], &rows))?;
    if let Some(why) = &all.releases_unknown {
        return stdout::print_line(format_args!(
            "Which releases contain these updates is unknown here: {why}\nRun the command with --dry-run where the release store can be reached (--release-store), or look for the updates in `tributary release show`."
        ));
    }
    print_releases(&all.releases)
}

fn print_releases(releases: &[NamedRelease]) -> anyhow::Result<()> {
    if releases.is_empty() {
        return stdout::print_line("None of these updates is in a release.");
    }
    let row = |named: &NamedRelease| {
        let tainted = &named.tainted;
        let how = match (&tainted.through, tainted.updates.len()) {
            (Some(through), 0) => format!("starts from release {}", through.short()),
            (_, count) => format!("contains {count} of these updates"),
        };
        let round = if tainted.round == 0 { "none".to_owned() } else { tainted.round.to_string() };
        vec![tainted.release.short().to_owned(), named.model.to_string(), round, named.stands.clone(), how]
    };
    let rows: Vec<Vec<String>> = releases.iter().map(row).collect();
    stdout::print_line(format::table(&["release", "model", "round", "stage", ""], &rows))?;
    let held = releases.iter().rev().find(|named| !named.tainted.updates.is_empty());
    let Some(NamedRelease { tainted, .. }) = held else { return Ok(()) };
    let updates: Vec<String> = tainted.updates.iter().map(|update| format!(" --exclude {update}")).collect();
    let (release, updates) = (tainted.release.short(), updates.concat());
    stdout::print_line(format_args!(
        "To derive it again without them, where the release store is: `tributary release remake {release}{updates} --why TEXT`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(task: &str, by: Option<&str>, at_ms: u64) -> Label {
        Label {
            task: TaskId::from_name(task),
            label: "coat".into(),
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
}

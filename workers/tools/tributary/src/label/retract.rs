//! `tributary label retract`: takes labels back, and names what learned from them.

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
use crate::{audit, format, site_target, stdout};

const EXAMPLES: &str = "\
Everything said of these images so far stops counting, the publisher's label and the cloud's
verdict included: the site's next training starts without them. An image that is labelled again
later is learned from again.

Updates that learned from them are found in the site's own record, which never leaves it
(streams.learned_max_mib). The releases these updates are in are found in the release store, where
it can be reached from here; `tributary release remake` derives one again without them.

Examples:
  tributary label retract 0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6 --why 'wrong shelf'
  tributary label retract --labelled-by anna --since 2d --why 'mixed up coat and shirt'
  tributary label retract --labelled-by anna --dry-run     name what learned, take nothing back";

/// Take labels back, and name every update and release that learned from them.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RetractArgs {
    /// Tasks whose labels are taken back.
    #[arg(value_name = "TASK", required_unless_present_any = ["labelled_by", "since"])]
    tasks: Vec<TaskId>,
    /// Take back every label that this person gave and that still counts.
    #[arg(long, value_name = "NAME", conflicts_with = "tasks")]
    labelled_by: Option<String>,
    /// Take back every label that persons gave since then: a date, a time, or how long ago, such as 2h or 7d.
    #[arg(long, value_name = "TIME", conflicts_with = "tasks")]
    since: Option<String>,
    /// Why, for whoever asks later.
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run", value_parser = NonEmptyStringValueParser::new())]
    why: Option<String>,
    /// Who takes them back.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Name what learned from them, and take nothing back.
    #[arg(long)]
    dry_run: bool,
    /// The release store; that of the settings if absent.
    #[arg(long, value_name = "URL")]
    release_store: Option<String>,
    /// JSON.
    #[arg(long)]
    json: bool,
}

/// What learned from the labels.
#[derive(Debug, Default, Serialize)]
struct Consequences {
    site: String,
    retracted: BTreeSet<TaskId>,
    unknown: Vec<TaskId>,
    updates: Vec<TracedUpdate>,
    releases: Vec<NamedRelease>,
    /// Why releases are not known; absent where they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    releases_unknown: Option<String>,
}

/// A release with how it stands.
#[derive(Debug, Serialize)]
struct NamedRelease {
    model: ModelName,
    stands: String,
    #[serde(flatten)]
    tainted: TaintedRelease,
}

/// Takes labels back.
pub async fn command(loaded: &LoadedSettings<Settings>, args: &RetractArgs) -> anyhow::Result<()> {
    let why = args.why.as_deref().unwrap_or_default();
    if why.len() > MAX_NOTE_BYTES {
        bail!("--why has {} bytes; at most {MAX_NOTE_BYTES} are allowed", why.len());
    }
    let here = site_target::open(loaded, "label").await?;
    let standing = StandingLabels::read(&here.bus).await?;
    let wanted = wanted(args, &standing)?;
    let (known, unknown) = known(&here, wanted, &standing).await?;
    if !args.dry_run {
        publish(&here, args.by.as_ref(), why, &known).await?;
        let about = format!("{}: {why}", format::count(known.len() as u64, "task"));
        audit::record_command(&here.bus, &here.name, "label retract", about).await;
    }
    let retracted: BTreeSet<TaskId> = known.keys().copied().collect();
    let images: RetractionTimes = retracted.iter().map(|task| (*task, i128::MAX)).collect();
    // After the retraction was said: a trainer writes first and looks for retractions then.
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
            "{} of unknown tasks passed over, the first is {first}: site {} knows no answer and no label of it, and no update learned from it",
            format::count(all.unknown.len() as u64, "label"),
            all.site
        ),
    }
}

/// A label that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct StandingLabel {
    camera: CameraName,
    by: Option<String>,
    labelled_at_ms: u64,
    /// Whether a person gave it, and no replay.
    is_own: bool,
}

/// The labels of a site that count, the latest of each task.
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
                    Err(error) => tracing::warn!(sequence = record.sequence, %error, "label passed over"),
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
        // A replay says again what somebody said; who that was stands in the label before it.
        if is_own || !self.0.contains_key(&label.task) {
            let (by, labelled_at_ms) = (label.by.clone(), label.labelled_at_ms);
            self.0.insert(label.task, StandingLabel { camera, by, labelled_at_ms, is_own });
        }
    }

    /// Tasks that persons labelled: this one, or anybody, since then.
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

/// The tasks that are meant.
fn wanted(args: &RetractArgs, standing: &StandingLabels) -> anyhow::Result<BTreeSet<TaskId>> {
    if !args.tasks.is_empty() {
        return Ok(args.tasks.iter().copied().collect());
    }
    let since = args.since.as_deref().map(|text| timestamp::parse_timestamp(text, Some(clock::now_ms()))).transpose();
    let since_ms = since.map_err(|why| anyhow::anyhow!("--since: {why}"))?;
    let found = standing.by(args.labelled_by.as_deref(), since_ms.unwrap_or(0));
    if found.is_empty() {
        let who = args.labelled_by.as_deref().map_or("anybody".to_owned(), |name| format!("{name:?}"));
        let when = args.since.as_deref().map(|since| format!(" since {since}")).unwrap_or_default();
        bail!(
            "no label by {who}{when} counts at this site: `tributary label` takes a name with --by, and what was taken back already does not count"
        );
    }
    Ok(found)
}

/// The tasks that the site knows, each with its camera, and those that it does not.
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
    // Answers go before what was learned from them does.
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

/// The releases that learned from these updates, by model.
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
                "release store {url} has no release of model {model}: name the one of the aggregator with --release-store"
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

/// What was decided about a model's releases; nothing where the cloud cannot be reached, which is said.
async fn history(cloud: &Bus, model: &ModelName) -> Vec<Rollout> {
    releases::decision_log::history(cloud, model).await.unwrap_or_else(|error| {
        stdout::print_note(format_args!("how releases stand is not known: {error}"));
        Vec::new()
    })
}

fn print_consequences(args: &RetractArgs, all: &Consequences) -> anyhow::Result<()> {
    let count = format::count(all.retracted.len() as u64, "label");
    match args.dry_run {
        true => stdout::print_line(format_args!("{count} would be taken back at site {}", all.site))?,
        false => stdout::print_line(format_args!("{count} taken back at site {}", all.site))?,
    }
    if all.updates.is_empty() {
        return stdout::print_line("No update that this site remembers learned from them.");
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
            "Which releases learned from them is not known here: {why}\nAsk again where the release store can be reached (--release-store, --dry-run), or look for these updates in `tributary release show`."
        ));
    }
    tell_releases(&all.releases)
}

fn tell_releases(releases: &[NamedRelease]) -> anyhow::Result<()> {
    if releases.is_empty() {
        return stdout::print_line("None of these updates is in a release.");
    }
    let row = |named: &NamedRelease| {
        let tainted = &named.tainted;
        let how = match (&tainted.through, tainted.updates.len()) {
            (Some(through), 0) => format!("starts from release {}", through.short()),
            (_, count) => format!("holds {count} of these updates"),
        };
        let round = if tainted.round == 0 { "none".to_owned() } else { tainted.round.to_string() };
        vec![tainted.release.short().to_owned(), named.model.to_string(), round, named.stands.clone(), how]
    };
    let rows: Vec<Vec<String>> = releases.iter().map(row).collect();
    stdout::print_line(format::table(&["release", "model", "round", "stands", ""], &rows))?;
    let held = releases.iter().rev().find(|named| !named.tainted.updates.is_empty());
    let Some(NamedRelease { tainted, .. }) = held else { return Ok(()) };
    let updates: Vec<String> = tainted.updates.iter().map(|update| format!(" --without {update}")).collect();
    let (release, updates) = (tainted.release.short(), updates.concat());
    stdout::print_line(format_args!(
        "Where the release store is: `tributary release remake {release}{updates} --why TEXT`"
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
    fn of_a_persons_labels_those_are_meant_that_still_count() {
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

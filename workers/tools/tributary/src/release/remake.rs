//! `tributary release remake`: a release once more, without some of its updates, as a candidate.

use std::path::PathBuf;
use std::time::Duration;

use aggregator::ModelReleases;
use aggregator::release::Manifest;
use aggregator::remake::{self, RemadeRelease, RemakeExclusions};
use aggregator::round_open;
use aggregator::tainted_release;
use aggregator::verify::ReleaseWorkspace;
use anyhow::{Context, bail};
use clap::builder::NonEmptyStringValueParser;
use releases::decision_log;
use releases::prepare;
use releases::stage::{self, DecisionContext};
use releases::trial::TrialRunner;
use runtime::clock;
use runtime::settings::LoadedSettings;
use schemas::{DecisionOrigin, ModelName, Release, RoundEvent, SiteName, TaskId};
use serde_json::json;
use streams::{Blobs, Bus, CarryError, Publisher};
use trainer::learned_images::{self, RetractionTimes};
use vision::OnnxRuntime;

use super::public_set;
use crate::settings::Settings;
use crate::{audit, format, roles, round, site_target, stdout};

/// Stands for all labels that were taken back at a site.
const LABELS: &str = "labels";

/// Which release, and what is left out of it.
#[derive(clap::Args)]
pub struct RemakeArgs {
    /// First digits of the release.
    release: String,
    /// What to leave out; may be repeated. A site: all that it sent. An update, as `tributary label retract` names it. A task
    /// whose label was taken back at the site at hand (--site): the updates that learned from it. `labels`: those that
    /// learned from any label taken back there.
    #[arg(long, value_name = "SITE|UPDATE|TASK|labels", required = true)]
    without: Vec<ExclusionArg>,
    /// Why, for whoever asks later.
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    why: String,
    /// Folder of the model that sites were set up with; that of the settings if absent.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder of the public set it was made with; that of the settings if absent.
    #[arg(long, value_name = "DIR")]
    public: Option<PathBuf>,
}

/// One thing to leave out.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ExclusionArg {
    Site(SiteName),
    /// An update, or a task.
    Id(TaskId),
    Labels,
}

impl std::str::FromStr for ExclusionArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == LABELS {
            return Ok(ExclusionArg::Labels);
        }
        // A site could be called like an id, and is none then: ids are what is asked for by such names.
        if let Ok(id) = text.parse() {
            return Ok(ExclusionArg::Id(id));
        }
        let named = text.parse().map(ExclusionArg::Site);
        named.map_err(|_| {
            format!("{text:?} is neither a site, nor the id of an update or a task, nor the word {LABELS}")
        })
    }
}

/// Derives a release again, and offers what comes of it.
pub async fn command(
    loaded: &LoadedSettings<Settings>,
    releases: &ModelReleases,
    name: &ModelName,
    args: &RemakeArgs,
    json: bool,
) -> anyhow::Result<()> {
    let manifest = releases.find(&args.release).await?;
    let (without, cloud) = what(loaded, &manifest, &args.without).await?;
    if decision_log::latest(&cloud, name).await?.is_none() {
        bail!(
            "nothing was decided about model {name} yet: a running aggregator begins with the model sites were set up with"
        );
    }
    let model = round::model(loaded, args.model.as_ref())?;
    let public = args.public.clone().or_else(|| loaded.settings.aggregator.public.clone());
    let public = public_set(loaded, &model, public).await?;
    let runtime = OnnxRuntime::find_and_load(loaded.settings.onnxruntime.as_deref())?;
    let work = tempfile::tempdir().context("a folder for temporary files")?;
    let place = ReleaseWorkspace { runtime, root: std::sync::Arc::new(model), work: work.path().to_owned() };
    let why = (args.why.as_str(), clock::now_ms());
    let remade = remake::remake_release(&place, releases, &manifest, public, &without, why).await?;
    let release = keep(loaded, releases, &cloud, name, &remade, work.path()).await?;
    let offered = offer(&cloud, name, &remade.manifest, &release, &args.why).await?;
    print_remake(releases, &manifest, &remade.manifest, &offered, json).await
}

/// What is left out, and a connection to the cloud.
async fn what(
    loaded: &LoadedSettings<Settings>,
    manifest: &Manifest,
    asked: &[ExclusionArg],
) -> anyhow::Result<(RemakeExclusions, Bus)> {
    let merged = |id: &TaskId| manifest.made.iter().flat_map(|made| &made.updates).any(|merged| merged.id == *id);
    let (mut without, mut tasks, mut all) = (RemakeExclusions::default(), Vec::new(), false);
    for left_out in asked {
        match left_out {
            ExclusionArg::Site(site) => without.sites.extend([site.clone()]),
            ExclusionArg::Id(id) if merged(id) => without.updates.extend([*id]),
            ExclusionArg::Id(task) => tasks.push(*task),
            ExclusionArg::Labels => all = true,
        }
    }
    if tasks.is_empty() && !all {
        return Ok((without, site_target::cloud(loaded, "release").await?));
    }
    let here = site_target::open(loaded, "release").await?;
    let read = async {
        let retracted = meant(&here.name, learned_images::retracted(&here.bus).await?, &tasks, all)?;
        anyhow::Ok(learned_images::trace_updates(&here.bus, &here.name, &retracted).await?)
    };
    let traced = read.await.with_context(|| {
        format!(
            "what learned from labels of site {} cannot be told here: run this where the site's server is, or name the updates that `tributary label retract` printed there",
            here.name
        )
    })?;
    without.updates.extend(traced.into_iter().map(|traced| traced.update));
    let cloud = here.whole_cloud().context("name the updates that `tributary label retract` printed at the site")?;
    Ok((without, cloud.clone()))
}

/// The retracted labels that are meant. Pure.
fn meant(site: &SiteName, retracted: RetractionTimes, tasks: &[TaskId], all: bool) -> anyhow::Result<RetractionTimes> {
    if let Some(task) = tasks.iter().find(|task| !retracted.contains_key(task)) {
        bail!(
            "{task} is neither an update of this release nor a task whose label was taken back at site {site}: `tributary label retract {task} --why TEXT` takes it back"
        );
    }
    if all && retracted.is_empty() {
        bail!("no label was taken back at site {site}: `tributary label retract` does");
    }
    Ok(retracted.into_iter().filter(|(task, _)| all || tasks.contains(task)).collect())
}

/// Tries the release in a process of its own, and keeps it in the store: files first, its manifest last. Its package and its
/// weights lie where couriers fetch them.
async fn keep(
    loaded: &LoadedSettings<Settings>,
    releases: &ModelReleases,
    cloud: &Bus,
    name: &ModelName,
    remade: &RemadeRelease,
    work: &std::path::Path,
) -> anyhow::Result<Release> {
    let blobs = Blobs::open_in_cloud(cloud).await?;
    stdout::print_note(format_args!("release {} is tried in a process of its own …", remade.manifest.release.short()));
    let trial = TrialRunner::of_this_program(loaded.settings.onnxruntime.clone());
    let prepared = prepare::prepare(&remade.model, remade.origin.clone(), &trial, work).await;
    let (release, file) =
        prepared.map_err(|fault| anyhow::anyhow!("{} ({}): {}", fault.reason, fault.kind, fault.remedy))?;
    prepare::keep_and_offer(releases.store(), &blobs, name, &release, &file).await?;
    // Couriers come for it when a round starts from it.
    let weights = tokio::fs::read(&remade.weights).await;
    blobs.store_blob(&weights.with_context(|| format!("{} cannot be read", remade.weights.display()))?).await?;
    if let Some((blob, path)) = &remade.memory {
        releases.keep_file(blob, path).await?;
    }
    let manifest = remade.manifest.clone().packaged(release.package.clone());
    releases.put(&manifest, &remade.weights).await?;
    Ok(release)
}

/// How a remade release stands.
struct RemakeOffer {
    /// In a word.
    stands: &'static str,
    /// Whether something was said of it that was not said before.
    is_new: bool,
}

/// Offers it to be tried by sites, and says that rounds start from it. What was broken off in between is done by the same
/// command.
async fn offer(
    cloud: &Bus,
    name: &ModelName,
    manifest: &Manifest,
    release: &Release,
    why: &str,
) -> anyhow::Result<RemakeOffer> {
    let publisher = Publisher::new(cloud.clone(), Duration::from_secs(10));
    let why = format!("{}: {why}", release.origin);
    let decided = decision_log::decide(cloud, &publisher, name, |now| {
        let said = DecisionContext::new(DecisionOrigin::Hand, why.clone(), clock::now_ms());
        Ok::<_, CarryError>(now.and_then(|now| stage::candidate(now, release.clone(), said).ok()))
    });
    let decided = decided.await?;
    let is_said = publish_release_offer(&publisher, name, manifest).await?;
    audit::record_command(
        cloud,
        &SiteName::cloud(),
        "release remake",
        format!("{name} {}: {why}", manifest.release.as_str()),
    )
    .await;
    let now = decision_log::latest(cloud, name).await?;
    let stage = now.as_ref().and_then(|now| stage::stage_of(now, &manifest.release));
    Ok(RemakeOffer {
        stands: stage.map_or("passed over", |stage| stage.as_str()),
        is_new: is_said || decided.is_some(),
    })
}

/// Says in the stream of rounds what a release was remade as; false if that was said before.
async fn publish_release_offer(publisher: &Publisher, name: &ModelName, manifest: &Manifest) -> anyhow::Result<bool> {
    let Some(remade) = &manifest.remade else { return Ok(false) };
    let updates = manifest.made.as_ref().map_or(0, |made| made.updates.len());
    let event = RoundEvent::Remade {
        release: manifest.release.clone(),
        of: remade.of.clone(),
        weights: manifest.weights.clone(),
        updates: u32::try_from(updates).unwrap_or(u32::MAX),
    };
    round_open::publish_round_event(publisher, None, name, manifest.round, event).await.map_err(roles::into_anyhow)
}

async fn print_remake(
    releases: &ModelReleases,
    before: &Manifest,
    manifest: &Manifest,
    offered: &RemakeOffer,
    json: bool,
) -> anyhow::Result<()> {
    let left_out = manifest.remade.as_ref().map(|remade| remade.without.clone()).unwrap_or_default();
    let updates = manifest.made.as_ref().map_or(0, |made| made.updates.len());
    let ids = left_out.iter().map(|left_out| left_out.id).collect();
    let others = tainted_release::tainted_releases(&releases.list().await?, &ids);
    let others: Vec<&str> =
        others.iter().filter(|other| other.release != before.release).map(|other| other.release.short()).collect();
    let RemakeOffer { stands, is_new } = offered;
    if json {
        return stdout::json(&json!({
            "release": manifest.release, "of": before.release, "updates": updates, "without": left_out,
            "stage": stands, "is_new": is_new, "still_learned_from_them": others,
        }));
    }
    let (new, old) = (manifest.release.short(), before.release.short());
    stdout::print_line(format_args!(
        "release {new} is {stands}: release {old} once more, of {} and without {}",
        format::count(updates as u64, "update"),
        left_out.len()
    ))?;
    if !is_new {
        stdout::print_line("It was remade so before; nothing new was decided.")?;
    }
    if !others.is_empty() {
        stdout::print_line(format_args!(
            "These learned from what was left out as well, and stay as they are: {}. Withdraw or roll back those that sites run.",
            format::list(&others)
        ))?;
    }
    stdout::print_line(format_args!(
        "Rounds start from it where they would have started from {old}. A running `tributary releaser` lets sites try it; `tributary release promote {new}` lets all sites run it now."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_ids_and_labels_are_told_apart() {
        let id = TaskId::from_name("a");
        assert_eq!("reef".parse(), Ok(ExclusionArg::Site("reef".parse().unwrap())));
        assert_eq!(id.to_string().parse(), Ok(ExclusionArg::Id(id)));
        assert_eq!("labels".parse(), Ok(ExclusionArg::Labels));
        assert!("a site".parse::<ExclusionArg>().unwrap_err().contains("neither a site"));
    }

    #[test]
    fn a_task_whose_label_stands_is_refused_by_name() {
        let site: SiteName = "reef".parse().unwrap();
        let (a, b) = (TaskId::from_name("a"), TaskId::from_name("b"));
        let retracted = RetractionTimes::from([(a, 1), (b, 2)]);
        assert_eq!(meant(&site, retracted.clone(), &[a], false).unwrap(), RetractionTimes::from([(a, 1)]));
        assert_eq!(meant(&site, retracted.clone(), &[a], true).unwrap(), retracted);
        let other = TaskId::from_name("c");
        let refused = meant(&site, retracted, &[other], false).unwrap_err().to_string();
        assert!(refused.contains(&format!("label retract {other}")), "{refused}");
        assert!(
            meant(&site, RetractionTimes::new(), &[], true)
                .unwrap_err()
                .to_string()
                .contains("no label was taken back")
        );
    }
}

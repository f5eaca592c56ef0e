//! `tributary release remake`: derives a release again without some of its updates, as a candidate.

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

/// The word for all labels that were retracted at a site.
const LABELS: &str = "labels";

/// Which release, and what to exclude from it.
#[derive(clap::Args)]
pub struct RemakeArgs {
    /// First digits of the release.
    release: String,
    /// Exclude a site, an update, a task or `labels`; repeatable.
    ///
    /// A site excludes all its updates; an update is named by `tributary label retract`; a task whose label was
    /// retracted at this site (--site) excludes the updates that learned from it; `labels` excludes those that learned
    /// from any label retracted there.
    #[arg(long, value_name = "SITE|UPDATE|TASK|labels", required = true)]
    exclude: Vec<ExclusionArg>,
    /// Reason, kept in the release and in the audit log.
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    why: String,
    /// Folder of the baseline model that sites were set up with [default: aggregator.model].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder of the public set that the release was made with [default: aggregator.public].
    #[arg(long, value_name = "DIR")]
    public: Option<PathBuf>,
}

/// One thing to exclude.
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
        // A site whose name reads as an id cannot be named here: ids win.
        if let Ok(id) = text.parse() {
            return Ok(ExclusionArg::Id(id));
        }
        let named = text.parse().map(ExclusionArg::Site);
        named.map_err(|_| {
            format!("{text:?} is neither a site, nor the id of an update or a task, nor the word {LABELS}")
        })
    }
}

/// Derives a release again, and offers the result as a candidate.
pub async fn command(
    loaded: &LoadedSettings<Settings>,
    releases: &ModelReleases,
    name: &ModelName,
    args: &RemakeArgs,
    json: bool,
) -> anyhow::Result<()> {
    let manifest = releases.find(&args.release).await?;
    let (without, cloud) = exclusions(loaded, &manifest, &args.exclude).await?;
    if decision_log::latest(&cloud, name).await?.is_none() {
        bail!(
            "model {name} has no rollout yet: start an aggregator, or import the model that sites were set up with (`tributary release import`)"
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

/// What is excluded, and a connection to the cloud.
async fn exclusions(
    loaded: &LoadedSettings<Settings>,
    manifest: &Manifest,
    asked: &[ExclusionArg],
) -> anyhow::Result<(RemakeExclusions, Bus)> {
    let merged = |id: &TaskId| manifest.made.iter().flat_map(|made| &made.updates).any(|merged| merged.id == *id);
    let (mut without, mut tasks, mut all) = (RemakeExclusions::default(), Vec::new(), false);
    for exclusion in asked {
        match exclusion {
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
        let retracted = select_retracted(&here.name, learned_images::retracted(&here.bus).await?, &tasks, all)?;
        anyhow::Ok(learned_images::trace_updates(&here.bus, &here.name, &retracted).await?)
    };
    let traced = read.await.with_context(|| {
        format!(
            "the record of what learned from labels of site {} cannot be read from here: run this where the site's server is, or name the updates that `tributary label retract` printed there",
            here.name
        )
    })?;
    without.updates.extend(traced.into_iter().map(|traced| traced.update));
    let cloud = here.whole_cloud().context("name the updates that `tributary label retract` printed at the site")?;
    Ok((without, cloud.clone()))
}

/// The retracted labels that were named. Pure.
fn select_retracted(
    site: &SiteName,
    retracted: RetractionTimes,
    tasks: &[TaskId],
    all: bool,
) -> anyhow::Result<RetractionTimes> {
    if let Some(task) = tasks.iter().find(|task| !retracted.contains_key(task)) {
        bail!(
            "{task} is neither an update of this release nor a task whose label was retracted at site {site}: retract it with `tributary label retract {task} --why TEXT`"
        );
    }
    if all && retracted.is_empty() {
        bail!("no label was retracted at site {site}: retract labels with `tributary label retract` first");
    }
    Ok(retracted.into_iter().filter(|(task, _)| all || tasks.contains(task)).collect())
}

/// Tries the release in a separate process, and adds it to the store: files first, its manifest last. Package and
/// weights go where couriers fetch them.
async fn keep(
    loaded: &LoadedSettings<Settings>,
    releases: &ModelReleases,
    cloud: &Bus,
    name: &ModelName,
    remade: &RemadeRelease,
    work: &std::path::Path,
) -> anyhow::Result<Release> {
    let blobs = Blobs::open_in_cloud(cloud).await?;
    stdout::print_note(format_args!("trying release {} in a separate process …", remade.manifest.release.short()));
    let trial = TrialRunner::of_this_program(loaded.settings.onnxruntime.clone());
    let prepared = prepare::prepare(&remade.model, remade.origin.clone(), &trial, work).await;
    let (release, file) =
        prepared.map_err(|fault| anyhow::anyhow!("{} ({}): {}", fault.reason, fault.kind, fault.remedy))?;
    prepare::keep_and_offer(releases.store(), &blobs, name, &release, &file).await?;
    // Couriers fetch the weights when a round starts from this release.
    let weights = tokio::fs::read(&remade.weights).await;
    blobs.store_blob(&weights.with_context(|| format!("{} cannot be read", remade.weights.display()))?).await?;
    if let Some((blob, path)) = &remade.memory {
        releases.keep_file(blob, path).await?;
    }
    let manifest = remade.manifest.clone().packaged(release.package.clone());
    releases.put(&manifest, &remade.weights).await?;
    Ok(release)
}

/// The stage of a remade release.
struct RemakeOffer {
    /// Its stage, in a word.
    stage: &'static str,
    /// Whether the offer is new; false if the same was remade before.
    is_new: bool,
}

/// Offers the release as a candidate, and announces that rounds start from it. Idempotent: the same command completes
/// an interrupted one.
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
        let context = DecisionContext::new(DecisionOrigin::Hand, why.clone(), clock::now_ms());
        Ok::<_, CarryError>(now.and_then(|now| stage::candidate(now, release.clone(), context).ok()))
    });
    let decided = decided.await?;
    let is_announced = publish_release_offer(&publisher, name, manifest).await?;
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
        stage: stage.map_or("passed over", |stage| stage.as_str()),
        is_new: is_announced || decided.is_some(),
    })
}

/// Announces in the stream of rounds what a release was remade as; false if it was announced before.
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
    let excluded = manifest.remade.as_ref().map(|remade| remade.without.clone()).unwrap_or_default();
    let updates = manifest.made.as_ref().map_or(0, |made| made.updates.len());
    let ids = excluded.iter().map(|excluded| excluded.id).collect();
    let others = tainted_release::tainted_releases(&releases.list().await?, &ids);
    let others: Vec<&str> =
        others.iter().filter(|other| other.release != before.release).map(|other| other.release.short()).collect();
    let RemakeOffer { stage, is_new } = offered;
    if json {
        return stdout::json(&json!({
            "release": manifest.release, "of": before.release, "updates": updates, "without": excluded,
            "stage": stage, "is_new": is_new, "still_learned_from_them": others,
        }));
    }
    let (new, old) = (manifest.release.short(), before.release.short());
    stdout::print_line(format_args!(
        "release {new} is {stage}: release {old} derived again from {}, without {}",
        format::count(updates as u64, "update"),
        excluded.len()
    ))?;
    if !is_new {
        stdout::print_line("The same was remade before; nothing is new.")?;
    }
    if !others.is_empty() {
        stdout::print_line(format_args!(
            "These releases also learned from what was excluded and are unchanged: {}. Withdraw or roll back those that sites run.",
            format::list(&others)
        ))?;
    }
    stdout::print_line(format_args!(
        "Rounds start from it in place of {old}. A running `tributary releaser` canaries it; `tributary release promote {new}` promotes it to all sites now."
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

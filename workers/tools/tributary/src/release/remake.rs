//! `tributary release remake`: derives a release again without some of its updates, as a candidate.

use std::path::PathBuf;

use aggregator::ModelReleases;
use aggregator::release::Manifest;
use aggregator::remake::{self, RemakeExclusions};
use aggregator::verify::ReleaseWorkspace;
use anyhow::Context;
use clap::builder::NonEmptyStringValueParser;
use operations::release_decision::check_has_rollout;
use operations::release_remake::{self, ExclusionPlan, RemakeExclusion, RemakeOffer};
use releases::trial::TrialRunner;
use runtime::clock;
use runtime::settings::LoadedSettings;
use schemas::{ModelName, ReleaseId};
use streams::Bus;
use vision::OnnxRuntime;

use super::public_set;
use crate::settings::Settings;
use crate::{format, round, site_target, stdout};

/// Which release, and what to exclude from it.
#[derive(clap::Args)]
pub(super) struct RemakeArgs {
    /// First digits of the release.
    release: String,
    /// Exclude a site, an update, a task or `labels`; repeatable.
    ///
    /// A site excludes all its updates; an update is named by `tributary label retract`; a task whose label was
    /// retracted at this site (--site) excludes the updates that learned from it; `labels` excludes those that learned
    /// from any label retracted there.
    #[arg(long, value_name = "SITE|UPDATE|TASK|labels", required = true)]
    exclude: Vec<RemakeExclusion>,
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

/// Derives a release again, and offers the result as a candidate.
pub(super) async fn command(
    loaded: &LoadedSettings<Settings>,
    releases: &ModelReleases,
    name: &ModelName,
    args: &RemakeArgs,
    json: bool,
) -> anyhow::Result<()> {
    let manifest = releases.find(&args.release).await?;
    let (without, cloud) = exclusions(loaded, &manifest, &args.exclude).await?;
    check_has_rollout(&cloud, name).await?;
    let model = round::model(loaded, args.model.as_ref())?;
    let public = args.public.clone().or_else(|| loaded.settings.aggregator.public.clone());
    let public = public_set(loaded, &model, public).await?;
    let runtime = OnnxRuntime::find_and_load(loaded.settings.onnxruntime.as_deref())?;
    let work = tempfile::tempdir().context("a folder for temporary files")?;
    let place = ReleaseWorkspace { runtime, root: std::sync::Arc::new(model), work: work.path().to_owned() };
    let why = (args.why.as_str(), clock::now_ms());
    let remade = remake::remake_release(&place, releases, &manifest, public, &without, why).await?;
    stdout::print_note(format_args!("trying release {} in a separate process …", remade.manifest.release.short()));
    let trial = TrialRunner::of_this_program(loaded.settings.onnxruntime.clone());
    let (made, tried) = ((&manifest, &remade), (&trial, work.path()));
    let offered = release_remake::offer_remade(&cloud, releases, name, made, tried, &args.why).await?;
    if json { stdout::json(&offered) } else { print_offer(&offered) }
}

/// What is excluded, and a connection to the cloud.
async fn exclusions(
    loaded: &LoadedSettings<Settings>,
    manifest: &Manifest,
    asked: &[RemakeExclusion],
) -> anyhow::Result<(RemakeExclusions, Bus)> {
    let plan = ExclusionPlan::new(manifest, asked);
    if !plan.needs_site() {
        return Ok((plan.known, site_target::cloud(loaded, "release").await?));
    }
    let here = site_target::open(loaded, "release").await?;
    let without = plan.trace_labels(&here.bus, &here.name).await.with_context(|| {
        format!(
            "the record of what learned from labels of site {} cannot be read from here: run this where the site's server is, or name the updates that `tributary label retract` printed there",
            here.name
        )
    })?;
    let cloud = here.whole_cloud().context("name the updates that `tributary label retract` printed at the site")?;
    Ok((without, cloud.clone()))
}

fn print_offer(offered: &RemakeOffer) -> anyhow::Result<()> {
    let (new, old) = (offered.release.short(), offered.of.short());
    stdout::print_line(format_args!(
        "release {new} is {}: release {old} derived again from {}, without {}",
        offered.stage,
        format::count(offered.updates as u64, "update"),
        offered.without.len()
    ))?;
    if !offered.is_new {
        stdout::print_line("The same was remade before; nothing is new.")?;
    }
    if !offered.still_tainted.is_empty() {
        let others: Vec<&str> = offered.still_tainted.iter().map(ReleaseId::short).collect();
        stdout::print_line(format_args!(
            "These releases also learned from what was excluded and are unchanged: {}. Withdraw or roll back those that sites run.",
            format::list(&others)
        ))?;
    }
    stdout::print_line(format_args!(
        "Rounds start from it in place of {old}. A running `tributary releaser` canaries it; `tributary release promote {new}` promotes it to all sites now."
    ))
}

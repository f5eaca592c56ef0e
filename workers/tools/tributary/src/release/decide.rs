//! Rollout decisions by hand, which take effect at once.

use std::time::Duration;

use aggregator::ModelReleases;
use anyhow::Context;
use releases::decision_log;
use releases::stage::{self, DecisionContext, StageRefusal};
use runtime::clock;
use runtime::settings::LoadedSettings;
use schemas::{DecisionOrigin, ModelName, Release, ReleaseDecision, ReleaseId, Rollout, SiteName};
use streams::{Bus, CarryError, Publisher};

use crate::settings::Settings;
use crate::{audit, format, site_target, stdout};

/// The reason for a decision.
#[derive(clap::Args)]
pub struct ReasonArgs {
    /// Reason, kept in the audit log and in the release's history.
    #[arg(long, value_name = "TEXT", default_value = "chosen by a person")]
    why: String,
}

/// A release to decide about.
#[derive(clap::Args)]
pub struct ReleaseDecisionArgs {
    /// First digits of the release.
    release: String,
    #[command(flatten)]
    why: ReasonArgs,
}

/// A site to pin, and its release.
#[derive(clap::Args)]
pub struct PinArgs {
    /// Site to pin; `cloud` for the verifiers.
    #[arg(id = "pinned", value_name = "SITE")]
    site: SiteName,
    /// First digits of the release.
    release: String,
    #[command(flatten)]
    why: ReasonArgs,
}

/// A site to unpin.
#[derive(clap::Args)]
pub struct UnpinArgs {
    /// Site to unpin; `cloud` for the verifiers.
    #[arg(id = "pinned", value_name = "SITE")]
    site: SiteName,
    #[command(flatten)]
    why: ReasonArgs,
}

/// Promotes a release to all sites.
pub async fn promote(
    loaded: &LoadedSettings<Settings>,
    releases: &ModelReleases,
    model: &ModelName,
    args: &ReleaseDecisionArgs,
    json: bool,
) -> anyhow::Result<()> {
    let wanted = releases.find(&args.release).await?.release;
    let decided =
        decide(loaded, model, |now, history| Ok(stage::stable(now, known(history, &wanted)?, context(&args.why))?));
    print_decision(&decided.await?, json)
}

/// Withdraws a candidate or canary.
pub async fn withdraw(
    loaded: &LoadedSettings<Settings>,
    releases: &ModelReleases,
    model: &ModelName,
    args: &ReleaseDecisionArgs,
    json: bool,
) -> anyhow::Result<()> {
    let wanted = releases.find(&args.release).await?.release;
    let decided = decide(loaded, model, |now, _| Ok(stage::withdraw(now, &wanted, context(&args.why))?));
    print_decision(&decided.await?, json)
}

/// Returns all sites to the previous stable release.
pub async fn roll_back(
    loaded: &LoadedSettings<Settings>,
    model: &ModelName,
    why: &ReasonArgs,
    json: bool,
) -> anyhow::Result<()> {
    print_decision(&decide(loaded, model, |now, _| Ok(stage::roll_back(now, context(why))?)).await?, json)
}

/// Pins a site to a release.
pub async fn pin(
    loaded: &LoadedSettings<Settings>,
    releases: &ModelReleases,
    model: &ModelName,
    args: &PinArgs,
    json: bool,
) -> anyhow::Result<()> {
    let wanted = releases.find(&args.release).await?.release;
    warn_of_unknown_sites(&site_target::cloud(loaded, "release").await?, std::slice::from_ref(&args.site)).await?;
    let decided = decide(loaded, model, |now, history| {
        Ok(stage::pin(now, args.site.clone(), known(history, &wanted)?, context(&args.why)))
    });
    print_decision(&decided.await?, json)
}

/// Unpins a site.
pub async fn unpin(
    loaded: &LoadedSettings<Settings>,
    model: &ModelName,
    args: &UnpinArgs,
    json: bool,
) -> anyhow::Result<()> {
    let decided = decide(loaded, model, |now, _| Ok(stage::unpin(now, args.site.clone(), context(&args.why))?));
    print_decision(&decided.await?, json)
}

/// Says which sites have not reported a release yet: they may come later, or be misspelled.
pub async fn warn_of_unknown_sites(cloud: &Bus, sites: &[SiteName]) -> anyhow::Result<()> {
    let mut known: Vec<SiteName> = decision_log::reports(cloud).await?.into_iter().map(|swap| swap.site).collect();
    known.sort();
    known.dedup();
    for site in sites.iter().filter(|site| !known.contains(site)) {
        let known = if known.is_empty() { "none".to_owned() } else { format::list(&known) };
        stdout::print_note(format_args!(
            "warning: no site {site} has reported a release yet: it takes effect once one does (known: {known})"
        ));
    }
    Ok(())
}

fn context(why: &ReasonArgs) -> DecisionContext {
    DecisionContext::new(DecisionOrigin::Hand, &why.why, clock::now_ms())
}

/// Why no decision was made.
#[derive(Debug, thiserror::Error)]
enum DecisionFailure {
    #[error(transparent)]
    Refused(#[from] StageRefusal),
    #[error(transparent)]
    Carry(#[from] CarryError),
    #[error(
        "model {0} has no rollout yet: start an aggregator, or import the model that sites were set up with (`tributary release import`)"
    )]
    Nothing(ModelName),
    #[error("release {0} has no package that sites could fetch: its trial failed, or an older version made it")]
    Unpackaged(String),
}

/// The release as it was offered to sites.
fn known(history: &[Rollout], wanted: &ReleaseId) -> Result<Release, DecisionFailure> {
    let found = decision_log::releases(history).into_iter().find(|release| release.release == *wanted);
    found.ok_or_else(|| DecisionFailure::Unpackaged(wanted.short().into()))
}

async fn decide(
    loaded: &LoadedSettings<Settings>,
    model: &ModelName,
    decide: impl Fn(&Rollout, &[Rollout]) -> Result<Rollout, DecisionFailure>,
) -> anyhow::Result<Rollout> {
    let cloud = site_target::cloud(loaded, "release").await?;
    let publisher = Publisher::new(cloud.clone(), Duration::from_secs(10));
    let history = decision_log::history(&cloud, model).await?;
    let decided = decision_log::decide(&cloud, &publisher, model, |now| {
        let now = now.ok_or_else(|| DecisionFailure::Nothing(model.clone()))?;
        decide(now, &history).map(Some)
    });
    let decided = decided.await?.context("no decision was made")?;
    let ReleaseDecision { stage, release, site, why, .. } = &decided.decision;
    let at = site.as_ref().map(|site| format!(" at {site}")).unwrap_or_default();
    let about = format!("{model} {}{at}: {why}", release.as_str());
    audit::record_command(&cloud, &SiteName::cloud(), &format!("release {}", stage.as_str()), about).await;
    Ok(decided)
}

fn print_decision(decided: &Rollout, json: bool) -> anyhow::Result<()> {
    if json {
        return stdout::json(decided);
    }
    let decision = &decided.decision;
    let site = decision.site.as_ref().map(|site| format!(" at {site}")).unwrap_or_default();
    stdout::print_line(format_args!("release {} is {}{site}", decision.release.short(), decision.stage.as_str()))?;
    if decided.stable.release != decision.release {
        stdout::print_line(format_args!("stable is {}", decided.stable.release.short()))?;
    }
    stdout::print_line("A running `tributary releaser` sends the orders; `tributary status` shows what each site runs.")
}

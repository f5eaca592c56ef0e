//! Deciding by hand: at once, whatever is known.

use std::time::Duration;

use aggregator::ModelReleases;
use anyhow::Context;
use releases::decision_log;
use releases::stage::{self, DecisionContext, StageRefusal};
use runtime::clock;
use runtime::settings::LoadedSettings;
use schemas::{DecisionOrigin, ModelName, Release, ReleaseDecision, ReleaseId, Rollout, SiteName};
use streams::{CarryError, Publisher};

use crate::settings::Settings;
use crate::{audit, site_target, stdout};

/// Why.
#[derive(clap::Args)]
pub struct ReasonArgs {
    /// Why, for whoever asks later.
    #[arg(long, value_name = "TEXT", default_value = "chosen by a person")]
    why: String,
}

/// A release, and why.
#[derive(clap::Args)]
pub struct ReleaseDecisionArgs {
    /// First digits of the release.
    release: String,
    #[command(flatten)]
    why: ReasonArgs,
}

/// A site and a release.
#[derive(clap::Args)]
pub struct PinArgs {
    /// The site; `cloud` for the verifiers.
    #[arg(id = "pinned", value_name = "SITE")]
    site: SiteName,
    /// First digits of the release.
    release: String,
    #[command(flatten)]
    why: ReasonArgs,
}

/// A site.
#[derive(clap::Args)]
pub struct UnpinArgs {
    /// The site.
    #[arg(id = "pinned", value_name = "SITE")]
    site: SiteName,
    #[command(flatten)]
    why: ReasonArgs,
}

/// All sites are to run a release.
pub async fn promote(
    loaded: &LoadedSettings<Settings>,
    releases: &ModelReleases,
    model: &ModelName,
    args: &ReleaseDecisionArgs,
    json: bool,
) -> anyhow::Result<()> {
    let wanted = releases.find(&args.release).await?.release;
    let decided =
        decide(loaded, model, |now, history| Ok(stage::stable(now, known(history, &wanted)?, said(&args.why))?));
    print_decision(&decided.await?, json)
}

/// No site is to run a release that is tried or waits.
pub async fn withdraw(
    loaded: &LoadedSettings<Settings>,
    releases: &ModelReleases,
    model: &ModelName,
    args: &ReleaseDecisionArgs,
    json: bool,
) -> anyhow::Result<()> {
    let wanted = releases.find(&args.release).await?.release;
    let decided = decide(loaded, model, |now, _| Ok(stage::withdraw(now, &wanted, said(&args.why))?));
    print_decision(&decided.await?, json)
}

/// All sites are to run what was stable before.
pub async fn roll_back(
    loaded: &LoadedSettings<Settings>,
    model: &ModelName,
    why: &ReasonArgs,
    json: bool,
) -> anyhow::Result<()> {
    print_decision(&decide(loaded, model, |now, _| Ok(stage::roll_back(now, said(why))?)).await?, json)
}

/// A site is to run a release, whatever is decided.
pub async fn pin(
    loaded: &LoadedSettings<Settings>,
    releases: &ModelReleases,
    model: &ModelName,
    args: &PinArgs,
    json: bool,
) -> anyhow::Result<()> {
    let wanted = releases.find(&args.release).await?.release;
    let decided = decide(loaded, model, |now, history| {
        Ok(stage::pin(now, args.site.clone(), known(history, &wanted)?, said(&args.why)))
    });
    print_decision(&decided.await?, json)
}

/// A site follows what is decided again.
pub async fn unpin(
    loaded: &LoadedSettings<Settings>,
    model: &ModelName,
    args: &UnpinArgs,
    json: bool,
) -> anyhow::Result<()> {
    let decided = decide(loaded, model, |now, _| Ok(stage::unpin(now, args.site.clone(), said(&args.why))?));
    print_decision(&decided.await?, json)
}

fn said(why: &ReasonArgs) -> DecisionContext {
    DecisionContext::new(DecisionOrigin::Hand, &why.why, clock::now_ms())
}

/// Why nothing was decided.
#[derive(Debug, thiserror::Error)]
enum DecisionFailure {
    #[error(transparent)]
    Refused(#[from] StageRefusal),
    #[error(transparent)]
    Carry(#[from] CarryError),
    #[error(
        "nothing was decided about model {0} yet: a running aggregator begins with the model sites were set up with, or `tributary release import` does"
    )]
    Nothing(ModelName),
    #[error(
        "release {0} has no package that sites could fetch: it did not run when it was tried, or was sealed by an older version"
    )]
    Unpackaged(String),
}

/// The release as it was offered to sites once.
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
    let decided = decided.await?.context("nothing was decided")?;
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
    stdout::print_line(
        "A running `tributary releaser` gives sites their orders; `tributary status` says what each runs.",
    )
}

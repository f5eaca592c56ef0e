//! Rollout decisions by hand, which take effect at once.

use aggregator::ModelReleases;
use operations::release_decision;
use runtime::settings::LoadedSettings;
use schemas::{ModelName, Rollout, SiteName};

use crate::settings::Settings;
use crate::{site_target, stdout};

/// The reason for a decision.
#[derive(clap::Args)]
pub(super) struct ReasonArgs {
    /// Reason, kept in the audit log and in the release's history.
    #[arg(long, value_name = "TEXT", default_value = "chosen by a person")]
    why: String,
}

/// A release to decide about.
#[derive(clap::Args)]
pub(super) struct ReleaseDecisionArgs {
    /// First digits of the release.
    release: String,
    #[command(flatten)]
    why: ReasonArgs,
}

/// A site to pin, and its release.
#[derive(clap::Args)]
pub(super) struct PinArgs {
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
pub(super) struct UnpinArgs {
    /// Site to unpin; `cloud` for the verifiers.
    #[arg(id = "pinned", value_name = "SITE")]
    site: SiteName,
    #[command(flatten)]
    why: ReasonArgs,
}

/// Promotes a release to all sites.
pub(super) async fn promote(
    loaded: &LoadedSettings<Settings>,
    releases: &ModelReleases,
    model: &ModelName,
    args: &ReleaseDecisionArgs,
    json: bool,
) -> anyhow::Result<()> {
    let wanted = releases.find(&args.release).await?.release;
    let cloud = site_target::cloud(loaded, "release").await?;
    print_decision(&release_decision::promote(&cloud, model, &wanted, &args.why.why).await?, json)
}

/// Withdraws a candidate or canary.
pub(super) async fn withdraw(
    loaded: &LoadedSettings<Settings>,
    releases: &ModelReleases,
    model: &ModelName,
    args: &ReleaseDecisionArgs,
    json: bool,
) -> anyhow::Result<()> {
    let wanted = releases.find(&args.release).await?.release;
    let cloud = site_target::cloud(loaded, "release").await?;
    print_decision(&release_decision::withdraw(&cloud, model, &wanted, &args.why.why).await?, json)
}

/// Returns all sites to the previous stable release.
pub(super) async fn roll_back(
    loaded: &LoadedSettings<Settings>,
    model: &ModelName,
    why: &ReasonArgs,
    json: bool,
) -> anyhow::Result<()> {
    let cloud = site_target::cloud(loaded, "release").await?;
    print_decision(&release_decision::roll_back(&cloud, model, &why.why).await?, json)
}

/// Pins a site to a release.
pub(super) async fn pin(
    loaded: &LoadedSettings<Settings>,
    releases: &ModelReleases,
    model: &ModelName,
    args: &PinArgs,
    json: bool,
) -> anyhow::Result<()> {
    let wanted = releases.find(&args.release).await?.release;
    let cloud = site_target::cloud(loaded, "release").await?;
    print_decision(&release_decision::pin(&cloud, model, &args.site, &wanted, &args.why.why).await?, json)
}

/// Unpins a site.
pub(super) async fn unpin(
    loaded: &LoadedSettings<Settings>,
    model: &ModelName,
    args: &UnpinArgs,
    json: bool,
) -> anyhow::Result<()> {
    let cloud = site_target::cloud(loaded, "release").await?;
    print_decision(&release_decision::unpin(&cloud, model, &args.site, &args.why.why).await?, json)
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

//! Rollout decisions by hand, which take effect at once: a running releaser sends the orders. Each returns the state
//! after it.

use releases::decision_log;
use releases::stage::{self, DecisionContext, StageRefusal};
use runtime::clock;
use schemas::{DecisionOrigin, ModelName, Release, ReleaseDecision, ReleaseId, Rollout, SiteName};
use streams::{Bus, CarryError, Publisher};

use crate::PUBLISH_TIMEOUT;
use crate::audit::record_change;

/// Why no decision was made.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseDecisionError {
    /// What may follow the present state does not include it.
    #[error(transparent)]
    Refused(#[from] StageRefusal),
    /// The server failed, or others decided first every time.
    #[error(transparent)]
    Carry(#[from] CarryError),
    /// Nothing was decided about the model yet.
    #[error(
        "model {0} has no rollout yet: start an aggregator, or import the model that sites were set up with (`tributary release import`)"
    )]
    NoRollout(ModelName),
    /// Sites could not fetch the release.
    #[error("release {0} has no package that sites could fetch: its trial failed, or an older version made it")]
    Unpackaged(String),
    /// There was nothing to decide.
    #[error("no decision was made")]
    Nothing,
}

/// Promotes a release to all sites, without a canary.
pub async fn promote(
    cloud: &Bus,
    model: &ModelName,
    release: &ReleaseId,
    why: &str,
) -> Result<Rollout, ReleaseDecisionError> {
    let decide = |now: &Rollout, history: &[Rollout]| Ok(stage::stable(now, offered(history, release)?, context(why))?);
    decide_and_record(cloud, model, decide).await
}

/// Withdraws a candidate or canary.
pub async fn withdraw(
    cloud: &Bus,
    model: &ModelName,
    release: &ReleaseId,
    why: &str,
) -> Result<Rollout, ReleaseDecisionError> {
    decide_and_record(cloud, model, |now, _| Ok(stage::withdraw(now, release, context(why))?)).await
}

/// Returns all sites to the previous stable release, and withdraws the current one.
pub async fn roll_back(cloud: &Bus, model: &ModelName, why: &str) -> Result<Rollout, ReleaseDecisionError> {
    decide_and_record(cloud, model, |now, _| Ok(stage::roll_back(now, context(why))?)).await
}

/// Pins a site to a release, whatever the rollout decides. The site `cloud` is the verifiers.
pub async fn pin(
    cloud: &Bus,
    model: &ModelName,
    site: &SiteName,
    release: &ReleaseId,
    why: &str,
) -> Result<Rollout, ReleaseDecisionError> {
    let decide = |now: &Rollout, history: &[Rollout]| {
        Ok(stage::pin(now, site.clone(), offered(history, release)?, context(why)))
    };
    decide_and_record(cloud, model, decide).await
}

/// Unpins a site, so that it follows the rollout again.
pub async fn unpin(
    cloud: &Bus,
    model: &ModelName,
    site: &SiteName,
    why: &str,
) -> Result<Rollout, ReleaseDecisionError> {
    decide_and_record(cloud, model, |now, _| Ok(stage::unpin(now, site.clone(), context(why))?)).await
}

/// Checks that something was decided about the model, so that a release can become a candidate.
pub async fn check_has_rollout(cloud: &Bus, model: &ModelName) -> Result<(), ReleaseDecisionError> {
    match decision_log::latest(cloud, model).await? {
        Some(_) => Ok(()),
        None => Err(ReleaseDecisionError::NoRollout(model.clone())),
    }
}

fn context(why: &str) -> DecisionContext {
    DecisionContext::new(DecisionOrigin::Hand, why, clock::now_ms())
}

/// The release as it was offered to sites.
fn offered(history: &[Rollout], wanted: &ReleaseId) -> Result<Release, ReleaseDecisionError> {
    let found = decision_log::releases(history).into_iter().find(|release| release.release == *wanted);
    found.ok_or_else(|| ReleaseDecisionError::Unpackaged(wanted.short().into()))
}

async fn decide_and_record(
    cloud: &Bus,
    model: &ModelName,
    decide: impl Fn(&Rollout, &[Rollout]) -> Result<Rollout, ReleaseDecisionError>,
) -> Result<Rollout, ReleaseDecisionError> {
    let publisher = Publisher::new(cloud.clone(), PUBLISH_TIMEOUT);
    let history = decision_log::history(cloud, model).await?;
    let decided = decision_log::decide(cloud, &publisher, model, |now| {
        let now = now.ok_or_else(|| ReleaseDecisionError::NoRollout(model.clone()))?;
        decide(now, &history).map(Some)
    });
    let decided = decided.await?.ok_or(ReleaseDecisionError::Nothing)?;
    let ReleaseDecision { stage, release, site, why, .. } = &decided.decision;
    let at = site.as_ref().map(|site| format!(" at {site}")).unwrap_or_default();
    let about = format!("{model} {}{at}: {why}", release.as_str());
    record_change(cloud, &SiteName::cloud(), &format!("release {}", stage.as_str()), about).await;
    Ok(decided)
}

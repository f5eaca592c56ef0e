//! State of a model's rounds and releases, read from the cloud's streams.

use std::collections::BTreeMap;
use std::time::Duration;

use aggregator::round_open::{self, RoundHistory};
use aggregator::settings::RoundSettings;
use anyhow::{Context, bail, ensure};
use releases::{decision_log, stage};
use schemas::{
    CanaryFinding, FindingOutcome, ModelName, ReleaseDecision, ReleaseId, ReleaseStage, RoundEvent, SiteName, Swap,
};
use streams::{Bus, Publisher};
use tokio::time::Instant;

use tributary::roles;

const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// Time limit for a swap, which normally takes seconds.
const SWAP_TIMEOUT: Duration = Duration::from_secs(90);

/// Access to a model's rounds and releases.
pub(super) struct ModelStanding {
    /// Connection to the cloud.
    pub cloud: Bus,
    /// Name of the model.
    pub model: ModelName,
    /// The release that the sites started with.
    pub baseline: ReleaseId,
    /// The sites that run the model.
    pub sites: Vec<SiteName>,
}

/// The result of a round.
pub(super) enum RoundOutcome {
    /// A release, and its number of updates.
    Sealed(ReleaseId, u32),
    /// No release, with the reason.
    Failed(String),
}

impl ModelStanding {
    /// Waits until every site has its first order. From then on sites send random samples, which canaries need.
    pub(super) async fn wait_for_first_orders(&self) -> anyhow::Result<()> {
        self.poll_until("an order for every site", SWAP_TIMEOUT, async || {
            let swaps = self.latest_swaps().await?;
            Ok(self.sites.iter().all(|site| swaps.get(site).is_some_and(|swap| swap.order > 0)).then_some(()))
        })
        .await
    }

    /// Waits until every site runs the stable release, and returns it.
    pub(super) async fn wait_for_stable_release(&self) -> anyhow::Result<ReleaseId> {
        self.poll_until("every site to run the stable release", SWAP_TIMEOUT, async || {
            let Some(latest) = decision_log::latest(&self.cloud, &self.model).await? else { return Ok(None) };
            let (stable, swaps) = (latest.stable.release, self.latest_swaps().await?);
            let runs_stable = |site| swaps.get(site).is_some_and(|swap: &Swap| swap.release == stable);
            Ok(self.sites.iter().all(runs_stable).then_some(stable))
        })
        .await
    }

    /// The latest swap report of each site.
    async fn latest_swaps(&self) -> anyhow::Result<BTreeMap<SiteName, Swap>> {
        let mut latest: BTreeMap<SiteName, Swap> = BTreeMap::new();
        for swap in decision_log::reports(&self.cloud).await? {
            if latest.get(&swap.site).is_none_or(|earlier| swap.said_at_ms >= earlier.said_at_ms) {
                latest.insert(swap.site.clone(), swap);
            }
        }
        Ok(latest)
    }

    /// Opens the next round, as `tributary round open` does.
    pub(super) async fn open_round(&self, settings: &RoundSettings) -> anyhow::Result<u64> {
        let history = RoundHistory::read(&self.cloud, &self.model).await?;
        let withdrawn =
            decision_log::latest(&self.cloud, &self.model).await?.map(|latest| latest.withdrawn).unwrap_or_default();
        let (base, weights) = history.base(&withdrawn, &self.baseline);
        let number = history.last() + 1;
        let sites = round_open::sites(settings, number, &BTreeMap::new());
        let focus = round_open::read_focus(&self.cloud, &base, settings).await?;
        let terms = round_open::round_terms(base, weights, sites, focus, settings);
        let publisher = Publisher::new(self.cloud.clone(), Duration::from_secs(10));
        let published =
            round_open::publish_round_event(&publisher, None, &self.model, number, RoundEvent::Opened(terms)).await;
        ensure!(published.map_err(roles::into_anyhow)?, "round {number} was opened by another client");
        Ok(number)
    }

    /// Waits until a round has ended, and returns its result.
    pub(super) async fn wait_for_round_end(&self, number: u64, deadline_s: u32) -> anyhow::Result<RoundOutcome> {
        let timeout = Duration::from_secs(deadline_s.into()) + SWAP_TIMEOUT;
        self.poll_until("the end of the round", timeout, async || {
            let history = RoundHistory::read(&self.cloud, &self.model).await?;
            Ok(match history.ended(number) {
                Some(RoundEvent::Sealed { release, updates, .. }) => {
                    Some(RoundOutcome::Sealed(release.clone(), *updates))
                }
                Some(RoundEvent::Failed(note)) => {
                    Some(RoundOutcome::Failed(format!("{} ({})", note.reason, note.kind)))
                }
                _ => None,
            })
        })
        .await
    }

    /// Whether a release was offered to sites; one whose trial failed is not.
    pub(super) async fn is_offered(&self, release: &ReleaseId) -> anyhow::Result<bool> {
        let history = decision_log::history(&self.cloud, &self.model).await?;
        Ok(decision_log::releases(&history).iter().any(|offered| offered.release == *release))
    }

    /// Waits until a release is stable or withdrawn, and returns the decision.
    pub(super) async fn wait_for_decision(
        &self,
        release: &ReleaseId,
        max_duration_s: u64,
    ) -> anyhow::Result<ReleaseDecision> {
        let timeout = Duration::from_secs(max_duration_s) + SWAP_TIMEOUT;
        self.poll_until("a decision about the release", timeout, async || {
            let Some(latest) = decision_log::latest(&self.cloud, &self.model).await? else { return Ok(None) };
            let stage = stage::stage_of(&latest, release);
            let is_final = matches!(stage, Some(ReleaseStage::Stable | ReleaseStage::Withdrawn));
            Ok((is_final && latest.decision.release == *release).then_some(latest.decision))
        })
        .await
    }

    /// Sites of a release's first canary; empty if there was none.
    pub(super) async fn canary_sites(&self, release: &ReleaseId) -> anyhow::Result<Vec<SiteName>> {
        let history = decision_log::history(&self.cloud, &self.model).await?;
        let canaries = history.iter().filter_map(|entry| entry.canary.as_ref());
        Ok(canaries
            .into_iter()
            .find(|canary| canary.release.release == *release)
            .map_or(Vec::new(), |canary| canary.ring.clone()))
    }

    /// Polls `check` until it returns a value. `what`: the condition, for errors.
    async fn poll_until<T>(
        &self,
        what: &str,
        timeout: Duration,
        check: impl AsyncFn() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let started = Instant::now();
        loop {
            if let Some(value) = check().await.with_context(|| format!("failed while waiting for {what}"))? {
                return Ok(value);
            }
            if started.elapsed() > timeout {
                bail!(
                    "timed out after {} s waiting for {what}: check whether the machine is overloaded",
                    timeout.as_secs()
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

/// The finding that decided: the first worse one, or else the first open one, or else the first.
pub(super) fn deciding_finding(decision: &ReleaseDecision) -> Option<&CanaryFinding> {
    let worse = decision.findings.iter().find(|finding| finding.says == FindingOutcome::Worse);
    let open = || decision.findings.iter().find(|finding| finding.says == FindingOutcome::Open);
    worse.or_else(open).or_else(|| decision.findings.first())
}

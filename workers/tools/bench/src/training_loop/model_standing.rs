//! The state of rounds and releases, read from the cloud's streams.

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

const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Time limit for a swap, which normally takes seconds.
const SWAP_TIMEOUT: Duration = Duration::from_secs(90);

/// A model's rounds and releases.
pub(super) struct ModelStanding {
    /// Connection to the cloud.
    pub cloud: Bus,
    /// Name of the model.
    pub model: ModelName,
    /// The baseline that sites were set up with.
    pub first: ReleaseId,
    /// The sites that run the model.
    pub sites: Vec<SiteName>,
}

/// The result of a round.
pub(super) enum RoundOutcome {
    /// A release, and its number of updates.
    Sealed(ReleaseId, u32),
    /// No release, and why.
    Failed(String),
}

impl ModelStanding {
    /// Waits until every site has its first order; from then on it samples, which canaries need.
    pub(super) async fn all_have_orders(&self) -> anyhow::Result<()> {
        self.until("an order for every site", SWAP_TIMEOUT, async || {
            let swaps = self.swaps().await?;
            Ok(self.sites.iter().all(|site| swaps.get(site).is_some_and(|swap| swap.order > 0)).then_some(()))
        })
        .await
    }

    /// Waits until every site runs the stable release, and returns it.
    pub(super) async fn all_run_stable(&self) -> anyhow::Result<ReleaseId> {
        self.until("every site runs the stable release", SWAP_TIMEOUT, async || {
            let Some(now) = decision_log::latest(&self.cloud, &self.model).await? else { return Ok(None) };
            let (stable, swaps) = (now.stable.release, self.swaps().await?);
            let all = self.sites.iter().all(|site| swaps.get(site).is_some_and(|swap| swap.release == stable));
            Ok(all.then_some(stable))
        })
        .await
    }

    /// The latest report of each site.
    async fn swaps(&self) -> anyhow::Result<BTreeMap<SiteName, Swap>> {
        let mut latest: BTreeMap<SiteName, Swap> = BTreeMap::new();
        for swap in decision_log::reports(&self.cloud).await? {
            if latest.get(&swap.site).is_none_or(|known| swap.said_at_ms >= known.said_at_ms) {
                latest.insert(swap.site.clone(), swap);
            }
        }
        Ok(latest)
    }

    /// Opens the next round, as `tributary round open` does.
    pub(super) async fn open_round(&self, settings: &RoundSettings) -> anyhow::Result<u64> {
        let history = RoundHistory::read(&self.cloud, &self.model).await?;
        let withdrawn =
            decision_log::latest(&self.cloud, &self.model).await?.map(|now| now.withdrawn).unwrap_or_default();
        let (base, weights) = history.base(&withdrawn, &self.first);
        let number = history.last() + 1;
        let asked = round_open::sites(settings, number, &BTreeMap::new());
        let focus = round_open::read_focus(&self.cloud, &base, settings).await?;
        let terms = round_open::round_terms(base, weights, asked, focus, settings);
        let publisher = Publisher::new(self.cloud.clone(), Duration::from_secs(10));
        let published =
            round_open::publish_round_event(&publisher, None, &self.model, number, RoundEvent::Opened(terms)).await;
        ensure!(published.map_err(roles::into_anyhow)?, "round {number} was opened by someone else");
        Ok(number)
    }

    /// Waits until a round has ended.
    pub(super) async fn ended(&self, number: u64, deadline_s: u32) -> anyhow::Result<RoundOutcome> {
        let timeout = Duration::from_secs(deadline_s.into()) + SWAP_TIMEOUT;
        self.until("the end of the round", timeout, async || {
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
        Ok(decision_log::releases(&history).iter().any(|known| known.release == *release))
    }

    /// Waits until a release is stable or withdrawn, and returns the decision.
    pub(super) async fn decided(&self, release: &ReleaseId, longest_s: u64) -> anyhow::Result<ReleaseDecision> {
        let timeout = Duration::from_secs(longest_s) + SWAP_TIMEOUT;
        self.until("a decision about the release", timeout, async || {
            let Some(now) = decision_log::latest(&self.cloud, &self.model).await? else { return Ok(None) };
            let stands = stage::stage_of(&now, release);
            let is = matches!(stands, Some(ReleaseStage::Stable | ReleaseStage::Withdrawn));
            Ok((is && now.decision.release == *release).then_some(now.decision))
        })
        .await
    }

    /// The sites of a release's first canary; none without one.
    pub(super) async fn tried_by(&self, release: &ReleaseId) -> anyhow::Result<Vec<SiteName>> {
        let history = decision_log::history(&self.cloud, &self.model).await?;
        let tried = history.iter().filter_map(|then| then.canary.as_ref());
        Ok(tried
            .into_iter()
            .find(|canary| canary.release.release == *release)
            .map_or(Vec::new(), |canary| canary.ring.clone()))
    }

    async fn until<T>(
        &self,
        what: &str,
        timeout: Duration,
        look: impl AsyncFn() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let begun = Instant::now();
        loop {
            if let Some(found) = look().await.with_context(|| format!("waiting for {what}"))? {
                return Ok(found);
            }
            if begun.elapsed() > timeout {
                bail!("{what}: not within {} s; is the machine very busy?", timeout.as_secs());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// The measure that decided: the one that was worse, or else one that stayed open.
pub(super) fn deciding_finding(decision: &ReleaseDecision) -> Option<&CanaryFinding> {
    let worse = decision.findings.iter().find(|finding| finding.says == FindingOutcome::Worse);
    let open = || decision.findings.iter().find(|finding| finding.says == FindingOutcome::Open);
    worse.or_else(open).or_else(|| decision.findings.first())
}

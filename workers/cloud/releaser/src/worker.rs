//! The releaser's main loop: reports → evidence → decide → order. Decisions are kept only in the stream, so that a
//! restarted or a second releaser arrives at the same state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use releases::{decision_log, package};
use runtime::consumer::WorkerStats;
use runtime::site_key::SiteKey;
use runtime::trust;
use runtime::{Fault, Shutdown, clock, heartbeat, retry_until_found};
use schemas::{CanaryReport, FaultNote, ModelName, ReleaseId, Role, Rollout, SiteName, Swap};
use streams::backoff::wait_about;
use streams::reader::{self, StreamLevel, StreamRange};
use streams::{Blobs, Bus, Publisher, ReleaseStore, topology};
use tokio::time::{Instant, MissedTickBehavior};

use crate::action::{ReleaserAction, canary_report, next_action};
use crate::evidence::ReleaseEvidence;
use crate::ring::{StandingOrder, blocked_sites, due_orders, relevant_sites};
use crate::settings::ReleaserSettings;

const ROLE: Role = Role::Releaser;
/// How long a publication is retried.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// Delay before retrying after a temporary failure.
const RETRY_DELAY: Duration = Duration::from_secs(3);
/// Most canaries in a heartbeat.
const MOST_CANARIES: usize = 64;
/// Interval of checking for decisions by others and for due orders.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Status of each model for the heartbeat: in text, and the figures of its canary.
type ReleaserStatus = heartbeat::WorkerReport<BTreeMap<ModelName, (String, Option<CanaryReport>)>>;

/// Rolls out releases of every model until shutdown. `store`: where packages are kept.
pub async fn run(bus: Bus, store: ReleaseStore, settings: &ReleaserSettings, shutdown: Shutdown) -> Result<(), Fault> {
    let key = settings.key.as_deref().map(SiteKey::read).transpose().map_err(|error| {
        let reason = runtime::fault::error_chain(&error);
        Fault::Stop(FaultNote::new("key_unusable", reason, "correct releaser.key, or the file it names"))
    })?;
    let Some(blobs) = retry_until_found(&shutdown, || Blobs::open_in_cloud(&bus)).await else { return Ok(()) };
    let state = ReleaserStatus::default();
    let tally = Arc::new(WorkerStats::default());
    let status = state.clone();
    let heartbeats = heartbeat::send_heartbeats(
        bus.clone(),
        ROLE,
        None,
        tally.clone(),
        shutdown.clone(),
        state.pace(),
        move |beat| {
            let models = status.current_beat();
            beat.releases = models.iter().map(|(model, (text, _))| format!("{model}: {text}")).collect();
            beat.canaries = models.into_values().filter_map(|(_, canary)| canary).take(MOST_CANARIES).collect();
        },
    );
    let releaser = Releaser {
        publisher: Publisher::new(bus.clone(), PUBLISH_TIMEOUT),
        bus,
        store,
        blobs,
        key,
        settings: settings.clone(),
        state,
        tally,
        latest: BTreeMap::new(),
        evidence: BTreeMap::new(),
        standing: BTreeMap::new(),
        judged_at: None,
        weighed: BTreeMap::new(),
    };
    tracing::info!(role = ROLE.as_str(), "started");
    let worker = async {
        tokio::select! {
            biased;
            () = shutdown.wait_for_request() => {}
            () = releaser.run_worker() => {}
        }
    };
    tokio::join!(worker, heartbeats);
    tracing::info!(role = ROLE.as_str(), "stopped");
    Ok(())
}

struct Releaser {
    bus: Bus,
    publisher: Publisher,
    store: ReleaseStore,
    blobs: Blobs,
    /// Signs orders; absent: they are unsigned.
    key: Option<SiteKey>,
    settings: ReleaserSettings,
    state: ReleaserStatus,
    tally: Arc<WorkerStats>,
    /// Rollout state of each model.
    latest: BTreeMap<ModelName, Rollout>,
    /// Evidence about each model.
    evidence: BTreeMap<ModelName, ReleaseEvidence>,
    /// Latest order of each site.
    standing: BTreeMap<ModelName, BTreeMap<SiteName, StandingOrder>>,
    judged_at: Option<Instant>,
    /// The decision of each model that its evidence was last weighed for.
    weighed: BTreeMap<ModelName, u64>,
}

impl Releaser {
    async fn run_worker(mut self) {
        loop {
            // Starts over after a failure and reads everything again.
            if let Err(fault) = self.follow().await {
                tracing::warn!(role = ROLE.as_str(), ?fault, "retrying");
            }
            wait_about(RETRY_DELAY).await;
        }
    }

    async fn follow(&mut self) -> Result<(), Fault> {
        (self.evidence, self.standing, self.weighed) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (order, at_ms) in decision_log::orders(&self.bus).await? {
            let standing = StandingOrder { release: order.release.release, at_ms };
            self.standing.entry(order.model).or_default().insert(order.site, standing);
        }
        // Read before any report: reports only count for models with decisions.
        let decided = reader::stream_level(&self.bus, topology::RELEASES).await?;
        let mut known = Vec::new();
        if decided.messages > 0 {
            let all = reader::read_range(
                &self.bus,
                topology::RELEASES,
                StreamRange::default(),
                decided.last_sequence,
                |record| {
                    known.extend(decision_log::read_decision(&record));
                },
            );
            all.await?;
        }
        for rollout in known {
            self.stands(rollout);
        }
        let there = [
            reader::stream_level(&self.bus, topology::SWAPS).await?,
            reader::stream_level(&self.bus, topology::RELEASES).await?,
        ];
        let mut reports =
            std::pin::pin!(reader::follow_range(&self.bus, topology::SWAPS, StreamRange::default()).await?);
        let mut decisions =
            std::pin::pin!(reader::follow_range(&self.bus, topology::RELEASES, StreamRange::default()).await?);
        let mut checks = tokio::time::interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut read_to = [0, 0];
        loop {
            tokio::select! {
                biased;
                // Before all reports and decisions are read, it would decide on half of them.
                _ = checks.tick() => {
                    let read = |level: &StreamLevel, to: u64| level.messages == 0 || to >= level.last_sequence;
                    if there.iter().zip(read_to).all(|(level, to)| read(level, to)) {
                        self.decide_next().await?;
                    }
                }
                record = decisions.next() => {
                    let Some(record) = record else { return Ok(()) };
                    let record = record?;
                    read_to[1] = record.sequence;
                    if let Some(rollout) = decision_log::read_decision(&record) {
                        let is_first = !self.latest.contains_key(&rollout.model);
                        self.stands(rollout);
                        if is_first {
                            // Earlier reports count from now on.
                            decision_log::reports(&self.bus).await?.iter().for_each(|swap| self.add_report(swap));
                        }
                    }
                }
                record = reports.next() => {
                    let Some(record) = record else { return Ok(()) };
                    let record = record?;
                    read_to[0] = record.sequence;
                    if let Some(swap) = decision_log::read_report(&record) {
                        self.add_report(&swap);
                    }
                }
            }
        }
    }

    fn stands(&mut self, rollout: Rollout) {
        let known = self.latest.get(&rollout.model).map_or(0, |known| known.number);
        if rollout.number > known {
            self.latest.insert(rollout.model.clone(), rollout);
        }
    }

    /// Adds a report for its own model, and a verifier's agreements for all others. Models without any decision are
    /// ignored.
    fn add_report(&mut self, swap: &Swap) {
        let now_ms = clock::now_ms();
        if self.latest.contains_key(&swap.model) {
            self.evidence.entry(swap.model.clone()).or_insert_with(|| ReleaseEvidence::of(swap.model.clone()));
        }
        for evidence in self.evidence.values_mut() {
            evidence.add_report(swap.clone(), now_ms);
        }
    }

    /// Weighs the evidence when it is time to judge, and for the status when somebody decided meanwhile; gives the orders
    /// that are due at every check.
    async fn decide_next(&mut self) -> Result<(), Fault> {
        let every = Duration::from_secs(self.settings.judge_s.into());
        let judges = self.judged_at.is_none_or(|at| at.elapsed() >= every);
        if judges {
            self.judged_at = Some(Instant::now());
        }
        for (model, rollout) in self.latest.clone() {
            let is_weighed = self.weighed.insert(model.clone(), rollout.number) == Some(rollout.number);
            let rollout = match judges || !is_weighed {
                true => self.weigh_evidence(&model, rollout, judges).await?,
                false => Some(rollout),
            };
            if let Some(rollout) = rollout {
                self.order(&model, &rollout).await?;
            }
        }
        Ok(())
    }

    /// Decides if it is time to judge, and says otherwise what is waited for; returns what holds then.
    async fn weigh_evidence(
        &mut self,
        model: &ModelName,
        rollout: Rollout,
        judges: bool,
    ) -> Result<Option<Rollout>, Fault> {
        let now_ms = clock::now_ms();
        let evidence = self.evidence.entry(model.clone()).or_insert_with(|| ReleaseEvidence::of(model.clone()));
        let sites = relevant_sites(evidence.sites(now_ms), &rollout);
        let held_up = blocked_sites(&rollout, &sites);
        match next_action(&rollout, evidence, &sites, &self.settings, now_ms) {
            // `None` if another releaser was faster: its decision arrives through the stream.
            ReleaserAction::Decide(decided) if judges => return self.decide(*decided).await,
            ReleaserAction::Decide(_) => {}
            ReleaserAction::Wait(why) => {
                let canary = canary_report(&rollout, evidence, &self.settings, now_ms);
                let text = [why].into_iter().chain(held_up).collect::<Vec<_>>().join("; ");
                self.set_status(model, text, canary);
            }
        }
        Ok(Some(rollout))
    }

    fn set_status(&self, model: &ModelName, text: String, canary: Option<CanaryReport>) {
        let status = (text, canary);
        if self.state.current_beat().get(model) != Some(&status) {
            self.state.update_report(|report| drop(report.insert(model.clone(), status)));
        }
    }

    /// Publishes a decision; `None` if another releaser was faster.
    async fn decide(&mut self, decided: Rollout) -> Result<Option<Rollout>, Fault> {
        if !decision_log::publish_decision(&self.publisher, &decided).await? {
            return Ok(None);
        }
        let (stage, why) = (decided.decision.stage.as_str(), &decided.decision.why);
        tracing::info!(role = ROLE.as_str(), model = %decided.model, release = decided.decision.release.short(), stage, why, "rollout decided");
        self.set_status(&decided.model, format!("{} is {stage}: {why}", decided.decision.release.short()), None);
        self.tally.finished.fetch_add(1, Ordering::Relaxed);
        self.stands(decided.clone());
        Ok(Some(decided))
    }

    /// Gives the orders that are due.
    async fn order(&mut self, model: &ModelName, rollout: &Rollout) -> Result<(), Fault> {
        let now_ms = clock::now_ms();
        let Some(evidence) = self.evidence.get(model) else { return Ok(()) };
        let standing = self.standing.entry(model.clone()).or_default();
        let sites = relevant_sites(evidence.sites(now_ms), rollout);
        let due = due_orders(rollout, &sites, standing, self.settings.batch as usize, now_ms);
        let mut offered: Vec<&ReleaseId> = Vec::new();
        for (order, with_package) in &due {
            let release = &order.release;
            if *with_package && !offered.contains(&&release.release) {
                let kept = package::offer(&self.store, model, &self.blobs, &release.package).await;
                kept.map_err(|error| Fault::retry(error.kind(), runtime::fault::error_chain(&error)))?;
                offered.push(&release.release);
            }
            let signed = self.key.as_ref().map(|key| trust::sign(order.clone(), key, now_ms)).transpose()?;
            decision_log::publish_order(&self.publisher, signed.as_ref().unwrap_or(order), *with_package).await?;
            let (release, stage) = (release.release.clone(), order.stage.as_str());
            match with_package {
                true => {
                    tracing::info!(role = ROLE.as_str(), site = %order.site, release = release.short(), stage, "order given")
                }
                // The site runs it already: it only learns that it should.
                false => {
                    tracing::debug!(role = ROLE.as_str(), site = %order.site, release = release.short(), stage, "order given")
                }
            }
            standing.insert(order.site.clone(), StandingOrder { release, at_ms: now_ms });
        }
        Ok(())
    }
}

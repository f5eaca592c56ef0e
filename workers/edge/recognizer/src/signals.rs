//! Gathers the inputs of the decisions: the courier's report on link and cloud, the machine's load, the queue,
//! the current policy, and the calibration of the gate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use offload::calibration::{Calibration, CalibrationEvidence, cloud_gain};
use offload::gate::Gate;
use offload::policy::{Policy, PolicyName};
use offload::target_reach::{AccuracyTarget, TargetReach};
use runtime::Shutdown;
use schemas::{LinkReport, ReleaseId, Role, SiteName};
use serde::{Deserialize, Serialize};
use streams::backoff::wait_about;
use streams::fleet::{HeartbeatBucket, Ledger};
use streams::{Bus, CarryError, reader, topology};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::learner;
use crate::machine_vitals::{MachineVitals, VitalsMeter};
use schemas::decision_trace::{CloudLoad, Network};

/// Key of the ledger note with the current policy.
pub const POLICY_NOTE: &str = "policy";
/// The courier reports twice a second; after this much silence the link counts as down.
const STALE: Duration = Duration::from_millis(2500);
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// A policy chosen at runtime; the other numbers stay as in the settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyOverride {
    /// Name of the policy.
    pub name: PolicyName,
}

/// The policy in a note, with the other numbers from the settings; the settings' policy where the override was cleared.
///
/// # Errors
/// The note is invalid, or asks for what the settings would not allow either.
pub fn read_policy(note: &str, settings: &Policy) -> Result<Policy, String> {
    let chosen = serde_json::from_str::<Option<PolicyOverride>>(note).map_err(|error| error.to_string())?;
    let Some(PolicyOverride { name }) = chosen else { return Ok(settings.clone()) };
    let policy = Policy { name, ..settings.clone() };
    policy.check().map(|()| policy)
}

/// The gate of a release.
#[derive(Debug, Clone)]
struct ReleaseGate {
    release: ReleaseId,
    /// As settings and model define it.
    own: Gate,
    /// With the calibration applied.
    gate: Gate,
    belief: Option<Calibration>,
    reach: Option<TargetReach>,
}

/// The latest value of every signal; clones share them.
#[derive(Clone)]
pub struct Signals {
    link: watch::Sender<Option<(LinkReport, Instant)>>,
    up: watch::Sender<bool>,
    vitals: watch::Sender<MachineVitals>,
    policy: watch::Sender<Policy>,
    gates: watch::Sender<Vec<ReleaseGate>>,
    /// Images in the stream that were not yet delivered.
    pub pending: Arc<AtomicU64>,
    /// Notified whenever something changed that a held task may wait for.
    pub changed: Arc<Notify>,
}

impl Signals {
    /// Signals of which only the policy is known.
    pub fn new(policy: Policy) -> Self {
        Self {
            link: watch::Sender::new(None),
            up: watch::Sender::new(false),
            vitals: watch::Sender::new(MachineVitals::default()),
            policy: watch::Sender::new(policy),
            gates: watch::Sender::default(),
            pending: Arc::default(),
            changed: Arc::default(),
        }
    }

    /// The current policy.
    pub fn policy(&self) -> Policy {
        self.policy.borrow().clone()
    }

    /// Adds the gate of a release that starts to serve; images of its predecessor may still be in flight.
    pub fn serve(&self, release: &ReleaseId, own: Gate) {
        self.gates.send_modify(|gates| {
            gates.retain(|held| held.release != *release);
            let surplus = gates.len().saturating_sub(1);
            gates.drain(..surplus);
            let (belief, reach) = (None, None);
            gates.push(ReleaseGate { release: release.clone(), gate: own.clone(), own, belief, reach });
        });
    }

    /// The gate of a release.
    pub fn gate(&self, release: &ReleaseId) -> Option<Gate> {
        let gates = self.gates.borrow();
        gates.iter().rev().find(|held| held.release == *release).map(|held| held.gate.clone())
    }

    /// The calibration of the serving release, if there is a target.
    pub fn belief(&self) -> Option<Calibration> {
        self.gates.borrow().last().and_then(|held| held.belief.clone())
    }

    /// What can become of the target accuracy, by what verdicts say of the serving release.
    pub fn target_reach(&self) -> Option<TargetReach> {
        self.gates.borrow().last().and_then(|held| held.reach)
    }

    /// Load and energy of the machine.
    pub fn vitals(&self) -> MachineVitals {
        *self.vitals.borrow()
    }

    /// Signals of a machine with these vitals.
    #[cfg(test)]
    pub(crate) fn with_vitals(policy: Policy, vitals: MachineVitals) -> Self {
        let signals = Self::new(policy);
        signals.set_vitals(vitals);
        signals
    }

    /// Changes the vitals.
    #[cfg(test)]
    pub(crate) fn set_vitals(&self, vitals: MachineVitals) {
        self.vitals.send_replace(vitals);
    }

    /// State of the link and the cloud, according to the courier's latest heartbeat.
    pub fn network(&self, away: u64, most_away: u64) -> Network {
        let latest = *self.link.borrow();
        let Some((report, _)) = latest.filter(|(_, received_at)| received_at.elapsed() < STALE) else {
            return Network { away, most_away, ..Network::default() };
        };
        Network {
            up: report.up,
            available: report.available,
            round_trip_s: report.rtt_min_ms / 1000.0,
            rate_bytes_per_s: report.rate_max_bytes_per_s,
            slowdown_ratio: report.slowdown_ratio,
            waiting_bytes: report.waiting_bytes,
            budget_left_bytes: report.budget_left_bytes,
            cloud: report.cloud.map(|cloud| CloudLoad {
                waiting: cloud.waiting,
                replicas: cloud.replicas.max(1),
                cost_s: cloud.cost_ms / 1000.0,
                still_s: cloud.still_s,
            }),
            away,
            most_away,
            gain: report.verdicts.as_ref().and_then(cloud_gain),
        }
    }

    /// Waits until the link is down.
    pub async fn link_gone(&self) {
        // Fails only when nobody gathers signals any more.
        let _ = self.up.subscribe().wait_for(|up| !up).await;
    }

    /// Publishes whether the link is up, and only when that changes: hundreds may wait for it.
    fn update_link_state(&self) {
        let latest = *self.link.borrow();
        let now_up = latest.is_some_and(|(report, received_at)| report.up && received_at.elapsed() < STALE);
        self.up.send_if_modified(|up| std::mem::replace(up, now_up) != now_up);
    }

    /// Keeps all signals up to date until told to stop. `target`: accuracy that the gates are calibrated for.
    pub async fn gather(
        &self,
        bus: &Bus,
        site: &SiteName,
        settings: &Policy,
        target: Option<&AccuracyTarget>,
        shutdown: Shutdown,
    ) {
        tokio::select! {
            () = retry(|| self.follow_courier(bus, site)) => {}
            () = retry(|| self.follow_policy(bus, settings)) => {}
            () = retry(|| self.follow_evidence(bus, target)) => {}
            () = retry(|| self.count_pending(bus, site)) => {}
            () = self.sample_load() => {}
            () = shutdown.wait_for_request() => {}
        }
    }

    async fn follow_courier(&self, bus: &Bus, site: &SiteName) -> Result<(), CarryError> {
        let mut beats = HeartbeatBucket::open(bus).await?.follow_heartbeats(Role::Courier).await?;
        while let Some(beat) = beats.next().await {
            let Some(report) = beat.link.filter(|_| beat.site.as_ref() == Some(site)) else { continue };
            // By our own clock, because the courier may run on another machine. A report from before we subscribed is
            // at most as old as a heartbeat can be, and is stale soon if nothing follows.
            let before = self.link.send_replace(Some((report, Instant::now())));
            self.update_link_state();
            let state = |latest: Option<(LinkReport, Instant)>| latest.map(|(report, _)| (report.up, report.available));
            if state(before) != Some((report.up, report.available)) {
                self.changed.notify_waiters();
            }
        }
        Ok(())
    }

    async fn follow_policy(&self, bus: &Bus, settings: &Policy) -> Result<(), CarryError> {
        let mut notes = Ledger::open(bus).await?.follow_note(POLICY_NOTE).await?;
        while let Some(note) = notes.next().await {
            let policy = match read_policy(&note, settings) {
                Ok(policy) => policy,
                Err(error) => {
                    tracing::warn!(%error, "policy override unreadable; ignored");
                    continue;
                }
            };
            let name = policy.name;
            if self.policy.send_replace(policy).name != name {
                tracing::info!(policy = name.as_str(), "policy changed");
            }
            self.changed.notify_waiters();
        }
        Ok(())
    }

    /// Follows the evidence about the serving release.
    async fn follow_evidence(&self, bus: &Bus, target: Option<&AccuracyTarget>) -> Result<(), CarryError> {
        let Some(target) = target else { return std::future::pending().await };
        let mut gates = self.gates.subscribe();
        let serving = |gates: &[ReleaseGate]| gates.last().map(|held| held.release.clone());
        let mut before: Option<ReleaseId> = None;
        loop {
            let Some(release) = serving(&gates.borrow_and_update()) else {
                // Fails only when nobody serves any more.
                let _ = gates.changed().await;
                continue;
            };
            // Until there is evidence, everything is doubtful.
            self.update_calibration(&release, &CalibrationEvidence::default(), target);
            if let Some(before) = before.replace(release.clone()).filter(|before| *before != release) {
                learner::inherit_evidence(bus, &before, &release).await?;
            }
            let mut notes = Ledger::open(bus).await?.follow_note(&learner::calibration_note(&release)).await?;
            loop {
                tokio::select! {
                    note = notes.next() => match note {
                        Some(text) => match serde_json::from_str::<CalibrationEvidence>(&text) {
                            Ok(evidence) => self.update_calibration(&release, &evidence, target),
                            Err(error) => tracing::warn!(%error, "calibration unreadable; starting over"),
                        },
                        None => return Ok(()),
                    },
                    _ = gates.wait_for(|gates| serving(gates).is_some_and(|now| now != release)) => break,
                }
            }
        }
    }

    fn update_calibration(&self, release: &ReleaseId, evidence: &CalibrationEvidence, target: &AccuracyTarget) {
        let (calibration, reach) = (evidence.calibration(target.ratio), target.reach(evidence));
        let mut before = None;
        self.gates.send_modify(|gates| {
            if let Some(held) = gates.iter_mut().find(|held| held.release == *release) {
                held.gate = held.own.with_calibration(&calibration);
                held.belief = Some(calibration);
                before = held.reach.replace(reach);
            }
        });
        let is_same = |before: &TargetReach| std::mem::discriminant(before) == std::mem::discriminant(&reach);
        let was_fault = before.and_then(|before| target.fault(&before)).is_some();
        match (target.describe(&reach), target.fault(&reach)) {
            (Some(why), Some(fault)) if !was_fault => {
                tracing::warn!(why, remedy = fault.remedy, "target accuracy not reached");
            }
            (Some(why), None) if !before.is_some_and(|before| is_same(&before)) => {
                tracing::info!(why, "target accuracy under a cap");
            }
            _ => {}
        }
    }

    async fn count_pending(&self, bus: &Bus, site: &SiteName) -> Result<(), CarryError> {
        loop {
            let progress =
                reader::consumer_progress(bus, topology::IMAGES, &topology::recognizer_durable(site)).await?;
            self.pending.store(progress.pending, Ordering::Relaxed);
            tokio::time::sleep(SAMPLE_INTERVAL * 2).await;
        }
    }

    async fn sample_load(&self) {
        let mut meter = VitalsMeter::open();
        loop {
            let sampled = tokio::task::spawn_blocking(move || {
                let vitals = meter.read();
                (meter, vitals)
            });
            let Ok((returned, vitals)) = sampled.await else { return std::future::pending().await };
            meter = returned;
            self.vitals.send_replace(vitals);
            // So that silence of the courier is noticed too.
            self.update_link_state();
            self.changed.notify_waiters();
            tokio::time::sleep(SAMPLE_INTERVAL).await;
        }
    }
}

/// Repeats a task that ends because of a broken connection or a missing bucket.
async fn retry<F: Future<Output = Result<(), CarryError>>>(task: impl Fn() -> F) {
    loop {
        if let Err(error) = task().await {
            tracing::debug!(%error, "subscription restarted");
        }
        wait_about(RETRY_DELAY).await;
    }
}

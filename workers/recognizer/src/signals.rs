//! Gathers what the decisions go by: the courier's word on link and cloud, the machine's load, the queue,
//! the policy in force, and what verdicts have taught the gate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use decisions::calibration::{Calibration, CalibrationEvidence};
use decisions::gate::Gate;
use decisions::policy::{Policy, PolicyName};
use futures::StreamExt;
use runtime::Shutdown;
use schemas::{LinkReport, ReleaseId, Role, SiteName};
use serde::{Deserialize, Serialize};
use streams::fleet::{HeartbeatBucket, Ledger};
use streams::{Bus, CarryError, reader, topology};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::learner;
use crate::machine_vitals::{MachineVitals, VitalsMeter};
use schemas::decision_trace::{CloudLoad, Network};

/// The ledger's note of the policy in force.
pub const POLICY_NOTE: &str = "policy";
/// The courier says something twice a second; without a word for this long its link counts as gone.
const STALE: Duration = Duration::from_millis(2500);
const LOOK_EVERY: Duration = Duration::from_millis(250);
const AGAIN: Duration = Duration::from_millis(500);

/// A policy chosen while the site runs; the other numbers stay as the settings have them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyOverride {
    /// Its name.
    pub name: PolicyName,
    /// Share of the images that `random` sends up, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_ratio: Option<f64>,
}

/// The policy that a note asks for, with the other numbers of the settings; the settings' own where the choice was taken back.
///
/// # Errors
/// A note that is none, or that asks for what settings may not have either.
pub fn read_policy(note: &str, settings: &Policy) -> Result<Policy, String> {
    let chosen = serde_json::from_str::<Option<PolicyOverride>>(note).map_err(|error| error.to_string())?;
    let Some(PolicyOverride { name, share_ratio }) = chosen else { return Ok(settings.clone()) };
    let share_ratio = share_ratio.unwrap_or(settings.share_ratio);
    let policy = Policy { name, share_ratio, ..settings.clone() };
    policy.check().map(|()| policy)
}

/// The gate that belongs to a release.
#[derive(Debug, Clone)]
struct ReleaseGate {
    release: ReleaseId,
    /// As the settings and the model say.
    own: Gate,
    /// With what verdicts have taught it.
    gate: Gate,
    belief: Option<Calibration>,
}

/// The latest of every signal; clones share them.
#[derive(Clone)]
pub struct Signals {
    link: watch::Sender<Option<(LinkReport, Instant)>>,
    up: watch::Sender<bool>,
    vitals: watch::Sender<MachineVitals>,
    policy: watch::Sender<Policy>,
    gates: watch::Sender<Vec<ReleaseGate>>,
    /// Images in the stream that nobody has taken.
    pub pending: Arc<AtomicU64>,
    /// Told whenever something changed that a held task may wait for.
    pub changed: Arc<Notify>,
}

impl Signals {
    /// Nothing is known yet but what the settings say.
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

    /// The policy in force.
    pub fn policy(&self) -> Policy {
        self.policy.borrow().clone()
    }

    /// A release serves from now on, with this gate; the one before it may have images in hand.
    pub fn serve(&self, release: &ReleaseId, own: Gate) {
        self.gates.send_modify(|gates| {
            gates.retain(|held| held.release != *release);
            let surplus = gates.len().saturating_sub(1);
            gates.drain(..surplus);
            let belief = None;
            gates.push(ReleaseGate { release: release.clone(), gate: own.clone(), own, belief });
        });
    }

    /// The gate that belongs to a release.
    pub fn gate(&self, release: &ReleaseId) -> Option<Gate> {
        let gates = self.gates.borrow();
        gates.iter().rev().find(|held| held.release == *release).map(|held| held.gate.clone())
    }

    /// What verdicts have taught about what serves, if there is a target.
    pub fn belief(&self) -> Option<Calibration> {
        self.gates.borrow().last().and_then(|held| held.belief.clone())
    }

    /// What the machine is like.
    pub fn vitals(&self) -> MachineVitals {
        *self.vitals.borrow()
    }

    /// What the link and the cloud are like, by the courier's latest word.
    pub fn network(&self, away: u64, most_away: u64) -> Network {
        let said = *self.link.borrow();
        let Some((report, _)) = said.filter(|(_, said_at)| said_at.elapsed() < STALE) else {
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
        }
    }

    /// Waits until the link is gone.
    pub async fn link_gone(&self) {
        // Fails only when nobody gathers any more.
        let _ = self.up.subscribe().wait_for(|up| !up).await;
    }

    /// Tells whether the link is there, and only when that changes: hundreds may wait for it.
    fn tell_up(&self) {
        let said = *self.link.borrow();
        let now_up = said.is_some_and(|(report, said_at)| report.up && said_at.elapsed() < STALE);
        self.up.send_if_modified(|up| std::mem::replace(up, now_up) != now_up);
    }

    /// Keeps everything up to date until told to stop. `target_ratio`: the accuracy that verdicts teach the gates to keep.
    pub async fn gather(
        &self,
        bus: &Bus,
        site: &SiteName,
        settings: &Policy,
        target_ratio: Option<f64>,
        shutdown: Shutdown,
    ) {
        tokio::select! {
            () = retry(|| self.follow_courier(bus, site)) => {}
            () = retry(|| self.follow_policy(bus, settings)) => {}
            () = retry(|| self.follow_evidence(bus, target_ratio)) => {}
            () = retry(|| self.count_pending(bus, site)) => {}
            () = self.sample_load() => {}
            () = shutdown.wait_for_request() => {}
        }
    }

    async fn follow_courier(&self, bus: &Bus, site: &SiteName) -> Result<(), CarryError> {
        let mut beats = HeartbeatBucket::open(bus).await?.follow_heartbeats(Role::Courier).await?;
        while let Some(beat) = beats.next().await {
            let Some(report) = beat.link.filter(|_| beat.site.as_ref() == Some(site)) else { continue };
            // By our own clock, for the courier's may be another machine's. What was said before we listened is
            // at most as old as a sign of life gets, and is stale soon if nothing follows.
            let before = self.link.send_replace(Some((report, Instant::now())));
            self.tell_up();
            let state = |said: Option<(LinkReport, Instant)>| said.map(|(report, _)| (report.up, report.available));
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
                    tracing::warn!(%error, "the policy that was chosen cannot be read and is ignored");
                    continue;
                }
            };
            let name = policy.name;
            if self.policy.send_replace(policy).name != name {
                tracing::info!(policy = name.as_str(), "another policy is in force");
            }
            self.changed.notify_waiters();
        }
        Ok(())
    }

    /// Follows the evidence about what serves.
    async fn follow_evidence(&self, bus: &Bus, target_ratio: Option<f64>) -> Result<(), CarryError> {
        let Some(target_ratio) = target_ratio else { return std::future::pending().await };
        let mut gates = self.gates.subscribe();
        let serving = |gates: &[ReleaseGate]| gates.last().map(|held| held.release.clone());
        let mut before: Option<ReleaseId> = None;
        loop {
            let Some(release) = serving(&gates.borrow_and_update()) else {
                // Fails only when nobody serves any more.
                let _ = gates.changed().await;
                continue;
            };
            // Until there is evidence, everything is in doubt.
            self.update_calibration(&release, &CalibrationEvidence::default(), target_ratio);
            if let Some(before) = before.replace(release.clone()).filter(|before| *before != release) {
                learner::inherit_evidence(bus, &before, &release).await?;
            }
            let mut notes = Ledger::open(bus).await?.follow_note(&learner::calibration_note(&release)).await?;
            loop {
                tokio::select! {
                    note = notes.next() => match note {
                        Some(text) => match serde_json::from_str::<CalibrationEvidence>(&text) {
                            Ok(evidence) => self.update_calibration(&release, &evidence, target_ratio),
                            Err(error) => tracing::warn!(%error, "what was learned cannot be read; it is learned anew"),
                        },
                        None => return Ok(()),
                    },
                    _ = gates.wait_for(|gates| serving(gates).is_some_and(|now| now != release)) => break,
                }
            }
        }
    }

    fn update_calibration(&self, release: &ReleaseId, evidence: &CalibrationEvidence, target_ratio: f64) {
        let belief = evidence.calibration(target_ratio);
        self.gates.send_modify(|gates| {
            if let Some(held) = gates.iter_mut().find(|held| held.release == *release) {
                held.gate = held.own.with_calibration(&belief);
                held.belief = Some(belief);
            }
        });
    }

    async fn count_pending(&self, bus: &Bus, site: &SiteName) -> Result<(), CarryError> {
        loop {
            let progress =
                reader::consumer_progress(bus, topology::IMAGES, &topology::recognizer_durable(site)).await?;
            self.pending.store(progress.pending, Ordering::Relaxed);
            tokio::time::sleep(LOOK_EVERY * 2).await;
        }
    }

    async fn sample_load(&self) {
        let mut meter = VitalsMeter::open();
        loop {
            let felt = tokio::task::spawn_blocking(move || {
                let vitals = meter.read();
                (meter, vitals)
            });
            let Ok((returned, vitals)) = felt.await else { return std::future::pending().await };
            meter = returned;
            self.vitals.send_replace(vitals);
            // Silence of the courier is noticed as well.
            self.tell_up();
            self.changed.notify_waiters();
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// What ends, for a broken connection or a bucket that is not there yet, is begun again.
async fn retry<F: Future<Output = Result<(), CarryError>>>(begin: impl Fn() -> F) {
    loop {
        if let Err(error) = begin().await {
            tracing::debug!(%error, "listening again");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

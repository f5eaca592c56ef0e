//! Makes the [`admit`](offload::admit) decision for each task, holds tasks that must wait, and counts. A slot that gets
//! free goes to the most urgent of the held tasks.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use offload::EffectiveSettings;
use offload::admit::{
    AdmitDecision, AdmitInput, AdmitState, decide_admission, finish_s, is_short_of_memory, offload_reason, overload,
    queue_s,
};
use schemas::{DecisionReport, DecisionTrace, Reason, TaskId};
use tokio::sync::watch;
use tokio::time::Instant;
use vision::{InferencePool, ProcessorContention, Urgency, UrgencyRank};

use crate::offload_window::OffloadWindow;
use crate::signals::Signals;
use schemas::decision_trace::{Network, SiteLoad};

/// Tasks recognized here per slot of a batch: one in the model, one waiting for it.
const LOCAL_PER_SLOT: u64 = 2;
/// Longest time before a held task is decided again.
const REDECIDE_INTERVAL: Duration = Duration::from_millis(50);

/// Smoothing of the memory stalls that the cost of an image holds: that of the cost itself, about the last sixteen batches.
const COST_BATCHES: f64 = 16.0;
/// Without a batch for this long, contention is over if the processor is not busy.
const CONTENTION_AGE: Duration = Duration::from_secs(1);

/// What an image costs here at present, as the replicas measure it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CostReading {
    /// Cost of an image on one replica, milliseconds.
    pub cost_ms: f64,
    /// How much of it is waiting for a processor.
    pub contention: Option<ProcessorContention>,
}

impl CostReading {
    /// The present reading.
    pub(crate) fn of(infer: &InferencePool) -> Self {
        Self { cost_ms: infer.cost_ms(), contention: infer.contention() }
    }
}

/// Energy that was spent, joules.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct SpentEnergy {
    /// On recognizing here.
    pub inference_j: f64,
    /// On sending up.
    pub uplink_j: f64,
}

/// Decides where tasks go, and counts them.
pub(crate) struct Admission {
    /// Inputs of the decisions.
    pub signals: Signals,
    started_at: Instant,
    replicas: AtomicU32,
    slots: AtomicU64,
    state: Mutex<AdmitState>,
    /// Mean of the memory stalls over the images that the cost of an image is the mean of; absent before the first.
    cost_stall: Mutex<Option<f64>>,
    energy: Mutex<SpentEnergy>,
    worker: String,
    /// The effective settings and their digest, to be noted so that decisions can be made again.
    pub noted: watch::Sender<(EffectiveSettings, String)>,
    local: Arc<AtomicU64>,
    holding: AtomicU64,
    /// Ranks of the held tasks.
    held: Mutex<BTreeSet<UrgencyRank>>,
    /// Number of the next task that is decided.
    next_number: AtomicU64,
    window: Mutex<OffloadWindow>,
    /// Offloaded tasks without an answer.
    pub away: AtomicU64,
    /// Counts for the heartbeat.
    pub counts: AdmissionCounts,
}

/// Numbers of tasks since the start.
#[derive(Debug, Default)]
pub(crate) struct AdmissionCounts {
    /// Recognized here.
    pub local: AtomicU64,
    /// Offloaded and answered by the cloud.
    pub redirected: AtomicU64,
    /// Offloaded and reclaimed.
    pub taken_back: AtomicU64,
    /// Held before anything else.
    pub held: AtomicU64,
    /// Doubtful and sent up.
    pub verified: AtomicU64,
    /// Doubtful and kept.
    pub kept: AtomicU64,
}

/// A task that is recognized here; its slot is free again when dropped.
pub(crate) struct LocalTask {
    local: Arc<AtomicU64>,
    signals: Signals,
}

impl Drop for LocalTask {
    fn drop(&mut self) {
        self.local.fetch_sub(1, Ordering::Relaxed);
        self.signals.changed.notify_waiters();
    }
}

/// Where a task finally goes.
pub(crate) enum Placement {
    /// It is recognized here.
    Local(LocalTask),
    /// It is offloaded to the cloud, for this reason.
    Redirect(Reason),
}

impl Admission {
    /// Admission for this number of replicas and this batch size.
    pub(crate) fn new(signals: Signals, replicas: usize, batch: usize, effective: EffectiveSettings) -> Self {
        let digest = digest(&effective);
        Self {
            signals,
            worker: runtime::heartbeat::worker_name(),
            noted: watch::Sender::new((effective, digest)),
            started_at: Instant::now(),
            replicas: AtomicU32::new(u32::try_from(replicas).unwrap_or(u32::MAX)),
            slots: AtomicU64::new((replicas * batch) as u64 * LOCAL_PER_SLOT),
            state: Mutex::default(),
            cost_stall: Mutex::default(),
            energy: Mutex::default(),
            local: Arc::default(),
            holding: AtomicU64::new(0),
            held: Mutex::default(),
            next_number: AtomicU64::new(0),
            window: Mutex::default(),
            away: AtomicU64::new(0),
            counts: AdmissionCounts::default(),
        }
    }

    /// Updates the number of replicas and the batch size.
    pub(crate) fn resized(&self, replicas: usize, batch: usize) {
        self.replicas.store(u32::try_from(replicas).unwrap_or(u32::MAX), Ordering::Relaxed);
        self.slots.store((replicas * batch) as u64 * LOCAL_PER_SLOT, Ordering::Relaxed);
        self.signals.changed.notify_waiters();
    }

    /// Changes the effective settings.
    pub(crate) fn set_effective_settings(&self, change: impl Fn(&mut EffectiveSettings)) {
        self.noted.send_if_modified(|(effective, digest)| {
            let before = effective.clone();
            change(effective);
            let changed = *effective != before;
            if changed {
                *digest = self::digest(effective);
            }
            changed
        });
    }

    /// Waits until it is decided where a task goes; also returns the trace.
    pub(crate) async fn decide(&self, mut task: AdmitInput, cost: CostReading) -> (Placement, DecisionTrace) {
        let since = Instant::now();
        let left_s = task.left_s;
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let now_us = runtime::clock::micros(self.started_at.elapsed());
        let rank = UrgencyRank::of(urgency(task.priority, left_s), now_us, number);
        let mut held = None;
        loop {
            // Subscribed before deciding, so that no change is missed in between.
            let changed = self.signals.changed.notified();
            task.held_s = if held.is_some() { since.elapsed().as_secs_f64() } else { 0.0 };
            task.left_s = left_s.map(|left_s| left_s - task.held_s);
            let (admit, reason, trace) = self.decide_once(&task, &rank, &cost, held.is_some());
            match admit {
                AdmitDecision::Local => return (Placement::Local(self.local_task()), trace),
                AdmitDecision::Redirect => return (Placement::Redirect(reason), trace),
                AdmitDecision::Listen => {
                    held.get_or_insert_with(|| {
                        self.counts.held.fetch_add(1, Ordering::Relaxed);
                        (CountGuard::new(&self.holding), HeldTask::new(&self.held, rank))
                    });
                }
            }
            let _changed_or_time = tokio::time::timeout(REDECIDE_INTERVAL, changed).await;
        }
    }

    /// A task that is recognized here whatever the decision: it was reclaimed.
    pub(crate) fn reclaim_task(&self) -> LocalTask {
        self.local.fetch_add(1, Ordering::Relaxed);
        self.local_task()
    }

    fn local_task(&self) -> LocalTask {
        LocalTask { local: self.local.clone(), signals: self.signals.clone() }
    }

    /// Decides, with the reason that an offloaded task's answer gives.
    fn decide_once(
        &self,
        task: &AdmitInput,
        rank: &UrgencyRank,
        cost: &CostReading,
        held: bool,
    ) -> (AdmitDecision, Reason, DecisionTrace) {
        let policy = self.signals.policy();
        if self.noted.borrow().0.policy != policy {
            self.set_effective_settings(|effective| effective.policy.clone_from(&policy));
        }
        let settings = self.noted.borrow().1.clone();
        let network = self.network();
        let now_s = self.started_at.elapsed().as_secs_f64();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.held.lock().unwrap_or_else(PoisonError::into_inner).range(..*rank).count() as u64;
        let mut load = self.load(cost, before);
        // The task itself, unless it is already counted among the held ones.
        load.waiting += u64::from(!held);
        let (next, admit) = decide_admission(&policy, *state, &load, &network, task, now_s);
        let trace = DecisionTrace {
            worker: self.worker.clone(),
            settings,
            bytes: task.bytes,
            left_s: task.left_s,
            held_s: task.held_s,
            priority: task.priority,
            at_s: now_s,
            mode: state.mode,
            overloaded: state.overloaded,
            changed_at_s: Some(state.changed_at_s).filter(|at_s| at_s.is_finite()),
            load,
            network,
            redirected: admit == AdmitDecision::Redirect,
            doubt: None,
        };
        *state = next;
        let reason = offload_reason(&policy, &next);
        if admit == AdmitDecision::Local {
            // Counted under the lock: two tasks must not see the same free slot.
            self.local.fetch_add(1, Ordering::Relaxed);
            self.note_stall(trace.load.stall_ratio);
        }
        (admit, reason, trace)
    }

    /// Seconds since the admission started.
    pub(crate) fn now_s(&self) -> f64 {
        self.started_at.elapsed().as_secs_f64()
    }

    /// Counts the stalls under which an image is recognized: its cost will hold them.
    fn note_stall(&self, stall_ratio: Option<f64>) {
        let Some(stall_ratio) = stall_ratio else { return };
        let slots = self.slots.load(Ordering::Relaxed).max(1);
        let share = (self.replicas.load(Ordering::Relaxed).max(1) as f64 * LOCAL_PER_SLOT as f64) / slots as f64;
        let mut mean = self.cost_stall.lock().unwrap_or_else(PoisonError::into_inner);
        let before = mean.unwrap_or(stall_ratio);
        *mean = Some(before + (stall_ratio - before) * share / COST_BATCHES);
    }

    /// Adds the energy of one image.
    pub(crate) fn count_energy(&self, spent: SpentEnergy) {
        let mut energy = self.energy.lock().unwrap_or_else(PoisonError::into_inner);
        energy.inference_j += spent.inference_j;
        energy.uplink_j += spent.uplink_j;
    }

    /// Present load of the machine and the queue, for a task with this many more urgent ones before it.
    fn load(&self, cost: &CostReading, before: u64) -> SiteLoad {
        let vitals = self.signals.vitals();
        let low_ratio = self.signals.policy().load.cpu_low_ratio;
        let is_over = |contention: &ProcessorContention| {
            contention.age > CONTENTION_AGE && vitals.cpu_ratio.is_some_and(|ratio| ratio < low_ratio)
        };
        let contention_ratio =
            cost.contention.map(|contention| if is_over(&contention) { 1.0 } else { contention.recent_ratio });
        let local = self.local.load(Ordering::Relaxed);
        SiteLoad {
            cpu_ratio: vitals.cpu_ratio,
            memory_ratio: vitals.memory_ratio,
            stall_ratio: vitals.stall_ratio,
            waiting: self.signals.pending.load(Ordering::Relaxed) + local + self.holding.load(Ordering::Relaxed),
            free: local + before < self.slots.load(Ordering::Relaxed),
            replicas: self.replicas.load(Ordering::Relaxed),
            cost_s: cost.cost_ms / 1000.0,
            contention_ratio,
            cost_contention_ratio: cost.contention.map(|contention| contention.mean_ratio),
            cost_stall_ratio: *self.cost_stall.lock().unwrap_or_else(PoisonError::into_inner),
            watts_per_core: vitals.watts_per_core,
        }
    }

    /// Present state of the link and the cloud.
    pub(crate) fn network(&self) -> Network {
        let policy = self.signals.policy();
        let max = match policy.name.ignores_cloud_estimate() {
            true => policy.max_offloaded.into(),
            false => self.with_window(|window, now_s| window.tasks(now_s)).min(policy.max_offloaded.into()),
        };
        self.signals.network(self.away.load(Ordering::Relaxed), max)
    }

    /// Records that an offloaded task was answered in time, or was reclaimed.
    pub(crate) fn record_offload(&self, answered: bool) {
        let max = self.signals.policy().max_offloaded.into();
        self.with_window(
            |window, now_s| if answered { window.record_answer(max) } else { window.record_timeout(now_s) },
        );
    }

    /// Records that a task that was offloaded at this time ([`Admission::now_s`]) was reclaimed for its deadline.
    pub(crate) fn record_near_deadline(&self, sent_at_s: f64) {
        self.with_window(|window, now_s| window.record_near_deadline(sent_at_s, now_s));
    }

    fn with_window<T>(&self, act: impl FnOnce(&mut OffloadWindow, f64) -> T) -> T {
        let now_s = self.started_at.elapsed().as_secs_f64();
        act(&mut self.window.lock().unwrap_or_else(PoisonError::into_inner), now_s)
    }

    /// Whether nothing waits here and no replica is busy.
    pub(crate) fn is_idle(&self) -> bool {
        self.local.load(Ordering::Relaxed) == 0 && self.signals.pending.load(Ordering::Relaxed) == 0
    }

    /// Whether the site is short of memory, so that nothing is better recognized here.
    pub(crate) fn is_short_of_memory(&self) -> bool {
        let vitals = self.signals.vitals();
        is_short_of_memory(&self.signals.policy(), vitals.memory_ratio, vitals.stall_ratio)
    }

    /// The decisions and their inputs, for the heartbeat.
    pub(crate) fn report(&self, cost: &CostReading) -> DecisionReport {
        let (load, network, policy) = (self.load(cost, 0), self.network(), self.signals.policy());
        let state = {
            // Without tasks no decision is made, but the overload must end even so.
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            *state = overload(&policy, *state, &load, self.started_at.elapsed().as_secs_f64());
            *state
        };
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let SpentEnergy { inference_j, uplink_j } = *self.energy.lock().unwrap_or_else(PoisonError::into_inner);
        DecisionReport {
            policy: policy.name.to_string(),
            state: state.mode.into(),
            why: why(&state, &load, &network),
            cpu_ratio: load.cpu_ratio,
            memory_ratio: load.memory_ratio,
            queue_s: queue_s(&load),
            local: count(&self.counts.local),
            redirected: count(&self.counts.redirected),
            taken_back: count(&self.counts.taken_back),
            held: count(&self.counts.held),
            verified: count(&self.counts.verified),
            kept: count(&self.counts.kept),
            stall_ratio: load.stall_ratio,
            contention_ratio: load.contention_ratio,
            gain: network.gain,
            inference_j: Some(inference_j),
            uplink_j: Some(uplink_j),
            reuse: None,
            belief: self.signals.belief().map(|calibration| {
                format!(
                    "{:.0} % of the answers can stay at an accuracy of at least {:.1} % (95 % certainty); from {} verdicts{}",
                    calibration.stays_ratio * 100.0,
                    calibration.accuracy_at_least * 100.0,
                    calibration.verdicts,
                    calibration.temperature.map(|temperature| format!(", temperature {temperature:.2}")).unwrap_or_default()
                )
            }),
        }
    }
}

/// Digest of settings: the first half of an id derived from them.
fn digest(effective: &EffectiveSettings) -> String {
    let text = serde_json::to_string(effective).unwrap_or_default();
    TaskId::from_name(&text).to_string().chars().filter(char::is_ascii_hexdigit).take(16).collect()
}

fn why(state: &AdmitState, load: &SiteLoad, network: &Network) -> String {
    let queue = format!("{:.2} s of work queued", queue_s(load));
    let site = if state.overloaded { format!("overloaded ({queue})") } else { format!("not overloaded ({queue})") };
    let there = finish_s(network, 40_000).map(|finish_s| format!(", a verdict would take {finish_s:.2} s"));
    let link = match (network.up, network.available) {
        (false, _) => "link down",
        (true, false) => "link slow",
        (true, true) => "link available",
    };
    format!("{site}, {link}{}", there.unwrap_or_default())
}

/// How urgent a task is that has this much time to its deadline, seconds.
pub(crate) fn urgency(priority: u8, left_s: Option<f64>) -> Urgency {
    // No deadline is further away than a day.
    Urgency { priority, left: left_s.map(|left_s| Duration::from_secs_f64(left_s.clamp(0.0, 86_400.0))) }
}

/// A held task's place in the order for as long as it lives.
struct HeldTask<'a> {
    held: &'a Mutex<BTreeSet<UrgencyRank>>,
    rank: UrgencyRank,
}

impl<'a> HeldTask<'a> {
    fn new(held: &'a Mutex<BTreeSet<UrgencyRank>>, rank: UrgencyRank) -> Self {
        held.lock().unwrap_or_else(PoisonError::into_inner).insert(rank);
        Self { held, rank }
    }
}

impl Drop for HeldTask<'_> {
    fn drop(&mut self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.rank);
    }
}

/// Counts one for as long as it lives.
pub(crate) struct CountGuard<'a>(&'a AtomicU64);

impl<'a> CountGuard<'a> {
    pub(crate) fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for CountGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine_vitals::MachineVitals;

    const TASK: AdmitInput = AdmitInput { bytes: 40_000, left_s: None, held_s: 0.0, may_leave: true, priority: 5 };

    fn admission(vitals: MachineVitals) -> Admission {
        let effective = EffectiveSettings::default();
        Admission::new(Signals::with_vitals(effective.policy.clone(), vitals), 2, 4, effective)
    }

    fn cost(recent_ratio: f64, age: Duration) -> CostReading {
        let contention = Some(ProcessorContention { recent_ratio, mean_ratio: 1.25, age });
        CostReading { cost_ms: 10.0, contention }
    }

    fn rank() -> UrgencyRank {
        UrgencyRank::of(Urgency::default(), 0, 0)
    }

    #[test]
    fn every_number_that_decides_stands_in_the_trace() {
        let vitals = MachineVitals {
            cpu_ratio: Some(0.9),
            memory_ratio: Some(0.5),
            stall_ratio: Some(0.1),
            watts_per_core: Some(6.0),
        };
        let admission = admission(vitals);
        let (admit, _, trace) = admission.decide_once(&TASK, &rank(), &cost(2.0, Duration::ZERO), false);
        let load = trace.load;
        assert_eq!((load.contention_ratio, load.cost_contention_ratio), (Some(2.0), Some(1.25)));
        assert_eq!((load.cpu_ratio, load.stall_ratio, load.watts_per_core), (Some(0.9), Some(0.1), Some(6.0)));
        let policy = admission.signals.policy();
        let state = AdmitState::default();
        let again = decide_admission(&policy, state, &load, &trace.network, &TASK, trace.at_s);
        assert_eq!(again.1, admit);
    }

    #[test]
    fn contention_is_over_when_the_processor_is_free_and_nothing_was_measured_lately() {
        let ratio = |cpu_ratio: f64, age: Duration| {
            let admission = admission(MachineVitals { cpu_ratio: Some(cpu_ratio), ..MachineVitals::default() });
            admission.load(&cost(2.0, age), 0).contention_ratio
        };
        assert_eq!(ratio(0.2, Duration::from_secs(5)), Some(1.0));
        assert_eq!(ratio(0.2, Duration::from_millis(100)), Some(2.0), "measured just now");
        assert_eq!(ratio(1.0, Duration::from_secs(5)), Some(2.0), "the processor is still busy");
    }

    #[test]
    fn stalls_become_part_of_the_cost_as_images_are_recognized_under_them() {
        let stalled = admission(MachineVitals { stall_ratio: Some(0.1), ..MachineVitals::default() });
        let decide = || stalled.decide_once(&TASK, &rank(), &cost(1.0, Duration::ZERO), false).2.load.cost_stall_ratio;
        assert_eq!(decide(), None, "before the first image");
        assert_eq!(decide(), Some(0.1));
        stalled.signals.set_vitals(MachineVitals { stall_ratio: Some(0.5), ..MachineVitals::default() });
        let after = |images: u32| (0..images).fold(None, |_, _| decide()).unwrap();
        let early = after(4);
        // Sixteen batches of four are about the span of the mean.
        let late = after(300);
        assert!(early < 0.15 && (0.45..0.5).contains(&late), "{early}, {late}");
    }
}

//! Decides where a task is recognized: here, in the cloud, or not yet. The first decision, made before anything is
//! fetched. A pure state machine; time is passed in as seconds on a steady clock.
//!
//! The policy `paper` goes by load and network: while the site is overloaded, the excess is offloaded if the
//! network is available, and held (*listen*) if it is not, until load falls, the network returns, the hold time is over
//! or the task's deadline forces it to be recognized here. `earliest-finish` predicts both completion times instead,
//! with what processor and memory lose to other work, and never holds. Confidence, the third signal of cloud-edge
//! collaborative recognition, is not known before an image is recognized: it decides in `escalation`.

use std::time::Duration;

use schemas::Reason;
use schemas::decision_trace::{Network, RoutingMode, SiteLoad};

use crate::objective::{ObjectiveLevel, OptionForecast, prefers_cloud};
use crate::policy::{EnergySettings, Objective, Policy, PolicyName};

/// The cloud must be predicted to finish within this fraction of the site's time before the first task is offloaded,
/// and within a larger one to continue. Guesses; the gap keeps a fluctuating prediction from changing the decision
/// every time.
const BEGIN_RATIO: f64 = 0.8;
const KEEP_RATIO: f64 = 0.95;
/// Smallest gain for which a task is offloaded, seconds: the transfer costs work at both ends that no
/// prediction counts.
const MIN_GAIN_S: f64 = 0.05;
/// A task of at least this priority is recognized here at once: it is at the head of the queue, so nothing is
/// faster, and it is never held. Policies that send everything up ignore this.
const URGENT: u8 = 8;
/// Time to spare before a deadline, seconds; a guess.
const GUARD_S: f64 = 0.05;

/// Contention from which a full processor is full of other work: an image takes half as long again. A guess.
const CONTENDED_RATIO: f64 = 1.5;
/// Largest stall that is taken at its word: an image in twenty times its time is late anyway.
const MAX_STALL_RATIO: f64 = 0.95;

/// How much longer an image takes at present than the mean `cost_s`: contention for the processor and stalls on memory
/// count as far as the mean does not hold them already.
fn slowdown_ratio(load: &SiteLoad) -> f64 {
    let contention = load.contention_ratio.unwrap_or(1.0) / load.cost_contention_ratio.unwrap_or(1.0).max(1.0);
    let running = |stall: Option<f64>| 1.0 - stall.unwrap_or(0.0).clamp(0.0, MAX_STALL_RATIO);
    let stalled_before = load.cost_stall_ratio.or(load.stall_ratio);
    contention * running(stalled_before) / running(load.stall_ratio)
}

/// Time of one image on one replica under the present load, seconds.
pub fn image_s(load: &SiteLoad) -> f64 {
    load.cost_s * slowdown_ratio(load)
}

/// Queued work at the site under the present load, seconds.
pub fn queue_s(load: &SiteLoad) -> f64 {
    load.waiting as f64 * image_s(load) / f64::from(load.replicas.max(1))
}

/// Energy of one image at the site, joules: a processor is paid for while it works, not while an image waits for it.
fn image_j(load: &SiteLoad, energy: &EnergySettings) -> f64 {
    let work_s = load.cost_s / load.cost_contention_ratio.unwrap_or(1.0).max(1.0);
    work_s * load.watts_per_core.unwrap_or(energy.watts_per_core)
}

/// When a verdict on this many bytes would be back, seconds from now; `None` if there is nobody to judge
/// them. The cloud's queue is what it reports or what we sent there, whichever is more. A stalled cloud
/// is expected to stall for as long again: for an interruption of unknown kind there is no better
/// guess (Gott, Nature 363, 1993).
pub fn finish_s(network: &Network, bytes: u64) -> Option<f64> {
    let cloud = network.cloud.filter(|_| network.up)?;
    let rate = network.rate_bytes_per_s.unwrap_or(f64::INFINITY);
    let upload_s = network.round_trip_s + network.waiting_bytes.saturating_add(bytes) as f64 / rate;
    let queue = cloud.waiting.max(network.away) as f64 * cloud.cost_s / f64::from(cloud.replicas.max(1));
    let still_s = (cloud.still_s - cloud.cost_s).max(0.0);
    Some(upload_s * network.slowdown_ratio.max(1.0) + queue + cloud.cost_s + still_s)
}

fn has_capacity(network: &Network, bytes: u64) -> bool {
    network.away < network.most_away && network.budget_left_bytes.is_none_or(|left| left >= bytes)
}

/// A task that waits for the decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdmitInput {
    /// Size of its image, bytes.
    pub bytes: u64,
    /// Time to its deadline, seconds, negative once it passed; absent without one.
    pub left_s: Option<f64>,
    /// Time it was held already, seconds.
    pub held_s: f64,
    /// Whether its image may leave the site.
    pub may_leave: bool,
    /// 0 (bulk) to 9 (first).
    pub priority: u8,
}

/// Where a task goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdmitDecision {
    /// It is recognized here.
    Local,
    /// It is offloaded: it goes to the cloud without being recognized here.
    Redirect,
    /// It is held; decide again when something changes.
    Listen,
}

/// State of the decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdmitState {
    /// Routing mode.
    pub mode: RoutingMode,
    /// Whether the site counts as overloaded.
    pub overloaded: bool,
    /// When `overloaded` last changed, seconds.
    pub changed_at_s: f64,
}

impl Default for AdmitState {
    fn default() -> Self {
        Self { mode: RoutingMode::Local, overloaded: false, changed_at_s: f64::NEG_INFINITY }
    }
}

/// How long an offloaded task may be away so that it can still be recognized here before its deadline; `None` if it
/// cannot any more, so that its deadline decides nothing. `back_s`: from reclaiming it to its result.
pub fn reclaim_within(left_s: f64, back_s: f64) -> Option<Duration> {
    let away_s = left_s - back_s - GUARD_S;
    (away_s > 0.0).then(|| Duration::try_from_secs_f64(away_s).unwrap_or(Duration::MAX))
}

/// Whether a task with a deadline may be offloaded: if its answer would come so early that, if it does not come, the
/// task can still be recognized here. A deadline that cannot be met here any more binds nothing.
fn answers_in_time(load: &SiteLoad, task: &AdmitInput, there_s: f64) -> bool {
    let away_s = task.left_s.and_then(|left_s| reclaim_within(left_s, image_s(load)));
    away_s.is_none_or(|away_s| there_s <= away_s.as_secs_f64())
}

/// Decides about one task: returns the new state, and where the task goes.
pub fn decide_admission(
    policy: &Policy,
    state: AdmitState,
    load: &SiteLoad,
    network: &Network,
    task: &AdmitInput,
    now_s: f64,
) -> (AdmitState, AdmitDecision) {
    let state = overload(policy, state, load, now_s);
    let admit = match policy.name {
        PolicyName::EdgeOnly => AdmitDecision::Local,
        PolicyName::CloudOnly if can_offload(network, task) => AdmitDecision::Redirect,
        PolicyName::CloudOnly if task.may_leave => hold(policy, load, task),
        PolicyName::CloudOnly => AdmitDecision::Local,
        PolicyName::Paper => paper(policy, &state, load, network, task),
        PolicyName::EarliestFinish => earliest_finish(policy, &state, load, network, task),
    };
    let mode = match admit {
        // A task that finds a free replica says nothing about the excess.
        AdmitDecision::Local if load.free && state.overloaded => state.mode,
        AdmitDecision::Local => RoutingMode::Local,
        AdmitDecision::Redirect => RoutingMode::Redirect,
        AdmitDecision::Listen => RoutingMode::Listen,
    };
    (AdmitState { mode, ..state }, admit)
}

/// Why a task is offloaded, once `state` follows from the decision.
pub fn offload_reason(policy: &Policy, state: &AdmitState) -> Reason {
    match policy.name {
        // It sends every image up, whatever the load.
        PolicyName::CloudOnly => Reason::Offloaded,
        _ if state.overloaded => Reason::Overload,
        _ => Reason::Offloaded,
    }
}

/// Updates whether the site counts as overloaded: from above the high mark of any signal until below the low
/// marks of all, and never changed sooner than the dwell time allows.
pub fn overload(policy: &Policy, state: AdmitState, load: &SiteLoad, now_s: f64) -> AdmitState {
    let marks = &policy.load;
    let above = |value: Option<f64>, mark: f64| value.is_some_and(|value| value > mark);
    let overloaded = match state.overloaded {
        false => {
            above(load.cpu_ratio, marks.cpu_high_ratio) && load.waiting > u64::from(load.replicas)
                || above(load.memory_ratio, marks.memory_high_ratio)
                || above(load.stall_ratio, marks.memory_pressure_high_ratio)
                || queue_s(load) > marks.queue_high_s
        }
        true => {
            above(load.cpu_ratio, marks.cpu_low_ratio) && load.waiting > u64::from(load.replicas)
                || above(load.memory_ratio, marks.memory_low_ratio)
                || above(load.stall_ratio, marks.memory_pressure_low_ratio)
                || queue_s(load) > marks.queue_low_s
        }
    };
    let dwelt = now_s - state.changed_at_s >= policy.load.dwell_ms as f64 / 1000.0;
    match overloaded == state.overloaded || !dwelt {
        true => state,
        false => AdmitState { overloaded, changed_at_s: now_s, ..state },
    }
}

fn can_offload(network: &Network, task: &AdmitInput) -> bool {
    task.may_leave && network.up && has_capacity(network, task.bytes)
}

fn paper(policy: &Policy, state: &AdmitState, load: &SiteLoad, network: &Network, task: &AdmitInput) -> AdmitDecision {
    // Only the excess is offloaded or held: a free replica takes the task.
    if !state.overloaded || task.priority >= URGENT || load.free && !above_memory(policy, load) {
        return AdmitDecision::Local;
    }
    let in_time = task.left_s.is_none()
        || finish_s(network, task.bytes).is_some_and(|there_s| answers_in_time(load, task, there_s));
    match can_offload(network, task) && network.available && in_time {
        true => AdmitDecision::Redirect,
        false => hold(policy, load, task),
    }
}

fn above_memory(policy: &Policy, load: &SiteLoad) -> bool {
    load.memory_ratio.is_some_and(|ratio| ratio > policy.load.memory_low_ratio)
        || load.stall_ratio.is_some_and(|ratio| ratio > policy.load.memory_pressure_low_ratio)
}

/// Held until something changes, but not past its deadline, nor longer than the policy allows.
fn hold(policy: &Policy, load: &SiteLoad, task: &AdmitInput) -> AdmitDecision {
    let held_too_long = task.held_s * 1000.0 >= policy.hold_ms as f64;
    let is_due = task.left_s.is_some_and(|left_s| left_s <= image_s(load) + GUARD_S);
    if held_too_long || is_due || task.priority >= URGENT { AdmitDecision::Local } else { AdmitDecision::Listen }
}

fn earliest_finish(
    policy: &Policy,
    state: &AdmitState,
    load: &SiteLoad,
    network: &Network,
    task: &AdmitInput,
) -> AdmitDecision {
    if task.priority >= URGENT || !network.available || !can_offload(network, task) {
        return AdmitDecision::Local;
    }
    let limits = ResourceLimits::of(policy, load);
    if load.free && !limits.memory && !limits.processor {
        return AdmitDecision::Local;
    }
    let Some(there_s) = finish_s(network, task.bytes) else { return AdmitDecision::Local };
    // All tasks at the site are alike, so whichever is offloaded saves the last one its turn: the cloud
    // must be faster than the end of the whole queue. A free replica waits for nobody: it must be slower by itself.
    let here_s = if load.free { image_s(load) } else { queue_s(load) + image_s(load) };
    if !answers_in_time(load, task, there_s) {
        return AdmitDecision::Local;
    }
    let misses_deadline = |finish_s: f64| task.left_s.is_some_and(|left_s| finish_s > left_s);
    let ratio = if state.mode == RoutingMode::Redirect { KEEP_RATIO } else { BEGIN_RATIO };
    let offloads = match (misses_deadline(here_s), misses_deadline(there_s)) {
        // Deadlines are constraints of both objectives.
        (true, false) => true,
        (false, true) => false,
        _ if limits.memory => there_s <= here_s + policy.hold_ms as f64 / 1000.0,
        _ => prefers_offloading(policy, load, network, task, (here_s, there_s), ratio),
    };
    if offloads { AdmitDecision::Redirect } else { AdmitDecision::Local }
}

/// Whether a site is short of memory: above a high mark of its use, or of the time that tasks stall on it.
pub fn is_short_of_memory(policy: &Policy, memory_ratio: Option<f64>, stall_ratio: Option<f64>) -> bool {
    let above = |value: Option<f64>, mark: f64| value.is_some_and(|value| value > mark);
    above(memory_ratio, policy.load.memory_high_ratio) || above(stall_ratio, policy.load.memory_pressure_high_ratio)
}

/// What the site is short of.
struct ResourceLimits {
    memory: bool,
    processor: bool,
}

impl ResourceLimits {
    /// Only the high marks count: a queue must not keep a site short of memory that it has enough of.
    fn of(policy: &Policy, load: &SiteLoad) -> Self {
        let above = |value: Option<f64>, mark: f64| value.is_some_and(|value| value > mark);
        let marks = &policy.load;
        Self {
            memory: is_short_of_memory(policy, load.memory_ratio, load.stall_ratio),
            // A processor that is full of our own images is no reason to leave a replica idle.
            processor: above(load.cpu_ratio, marks.cpu_high_ratio) && above(load.contention_ratio, CONTENDED_RATIO),
        }
    }
}

/// Whether the objective prefers the cloud for a task that misses its deadline in both places or in none.
fn prefers_offloading(
    policy: &Policy,
    load: &SiteLoad,
    network: &Network,
    task: &AdmitInput,
    (here_s, there_s): (f64, f64),
    ratio: f64,
) -> bool {
    // What the site itself doubts would go up anyway: only on its confident answers offloading gains accuracy.
    let gain_points = network.gain.and_then(|gain| gain.confident_points);
    let there = OptionForecast::of_sending(task.bytes, &policy.energy, gain_points);
    let here = OptionForecast { energy_j: image_j(load, &policy.energy), ..OptionForecast::default() };
    match &policy.objective {
        Objective::Weighted(weights) => {
            let here = weights.per_s * here_s + here.weighted_cost(weights);
            weights.per_s * there_s + there.weighted_cost(weights) < here * ratio
        }
        Objective::Hierarchical if there_s < here_s * ratio && here_s - there_s > MIN_GAIN_S => true,
        // A tie is a gain too small to count, never a loss; and a free replica stays where its time is no worse.
        Objective::Hierarchical if there_s > here_s || load.free => false,
        Objective::Hierarchical => {
            const LEVELS: [ObjectiveLevel; 3] =
                [ObjectiveLevel::Energy, ObjectiveLevel::Bytes, ObjectiveLevel::Accuracy];
            prefers_cloud(&LEVELS, &policy.tolerance, &here, &there).unwrap_or(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use schemas::decision_trace::{CloudGain, CloudLoad};

    use crate::policy::{LoadMarks, ObjectiveTolerances, ObjectiveWeights, POLICIES};

    fn policy(name: PolicyName) -> Policy {
        Policy { name, ..Policy::default() }
    }

    const BUSY: SiteLoad = SiteLoad {
        cpu_ratio: None,
        memory_ratio: None,
        stall_ratio: None,
        waiting: 1000,
        free: false,
        replicas: 2,
        cost_s: 0.01,
        contention_ratio: None,
        cost_contention_ratio: None,
        cost_stall_ratio: None,
        watts_per_core: None,
    };
    const IDLE: SiteLoad = SiteLoad { waiting: 1, free: true, ..BUSY };
    const THERE: Network = Network {
        up: true,
        available: true,
        round_trip_s: 0.02,
        rate_bytes_per_s: Some(1e6),
        slowdown_ratio: 1.0,
        waiting_bytes: 0,
        budget_left_bytes: None,
        cloud: Some(CloudLoad { waiting: 0, replicas: 4, cost_s: 0.01, still_s: 0.0 }),
        away: 0,
        most_away: 256,
        gain: None,
    };
    const GONE: Network = Network { up: false, available: false, cloud: None, ..THERE };
    const TASK: AdmitInput = AdmitInput { bytes: 40_000, left_s: None, held_s: 0.0, may_leave: true, priority: 5 };

    fn admit(policy: &Policy, load: &SiteLoad, network: &Network, task: &AdmitInput) -> AdmitDecision {
        decide_admission(policy, AdmitState::default(), load, network, task, 100.0).1
    }

    #[test]
    fn the_decision_table_of_the_paper_holds() {
        let paper = policy(PolicyName::Paper);
        assert_eq!(admit(&paper, &IDLE, &THERE, &TASK), AdmitDecision::Local);
        assert_eq!(admit(&paper, &BUSY, &THERE, &TASK), AdmitDecision::Redirect);
        assert_eq!(admit(&paper, &BUSY, &GONE, &TASK), AdmitDecision::Listen);
        assert_eq!(admit(&paper, &BUSY, &Network { available: false, ..THERE }, &TASK), AdmitDecision::Listen);
    }

    #[test]
    fn an_offloaded_task_gives_overload_as_its_reason_only_where_the_site_was_overloaded() {
        let reason = |name: PolicyName, load: &SiteLoad| {
            let policy = policy(name);
            let (state, admit) = decide_admission(&policy, AdmitState::default(), load, &THERE, &TASK, 100.0);
            (admit, offload_reason(&policy, &state))
        };
        let queued = SiteLoad { waiting: 40, ..BUSY };
        assert_eq!(reason(PolicyName::CloudOnly, &IDLE), (AdmitDecision::Redirect, Reason::Offloaded));
        assert_eq!(reason(PolicyName::CloudOnly, &BUSY), (AdmitDecision::Redirect, Reason::Offloaded));
        assert_eq!(reason(PolicyName::Paper, &BUSY), (AdmitDecision::Redirect, Reason::Overload));
        assert_eq!(reason(PolicyName::EarliestFinish, &BUSY), (AdmitDecision::Redirect, Reason::Overload));
        assert_eq!(reason(PolicyName::EarliestFinish, &queued), (AdmitDecision::Redirect, Reason::Offloaded));
    }

    #[test]
    fn holding_ends_when_load_falls_the_network_returns_or_the_deadline_comes() {
        let paper = policy(PolicyName::Paper);
        let (listening, first) = decide_admission(&paper, AdmitState::default(), &BUSY, &GONE, &TASK, 0.0);
        assert_eq!((listening.mode, first), (RoutingMode::Listen, AdmitDecision::Listen));
        let next = |load: &SiteLoad, network: &Network, task: &AdmitInput| {
            decide_admission(&paper, listening, load, network, task, 5.0).1
        };
        assert_eq!(next(&SiteLoad { waiting: 0, ..BUSY }, &GONE, &TASK), AdmitDecision::Local, "load fell");
        assert_eq!(next(&SiteLoad { free: true, ..BUSY }, &GONE, &TASK), AdmitDecision::Local, "a replica is free");
        assert_eq!(next(&BUSY, &THERE, &TASK), AdmitDecision::Redirect, "the network returned");
        assert_eq!(next(&BUSY, &GONE, &AdmitInput { left_s: Some(0.03), ..TASK }), AdmitDecision::Local, "deadline");
        assert_eq!(next(&BUSY, &GONE, &AdmitInput { held_s: 60.0, ..TASK }), AdmitDecision::Local, "held too long");
        assert_eq!(
            next(&BUSY, &GONE, &AdmitInput { left_s: Some(3.0), ..TASK }),
            AdmitDecision::Listen,
            "none of them"
        );
    }

    #[test]
    fn earliest_finish_offloads_while_that_shortens_the_queue() {
        let policy = policy(PolicyName::EarliestFinish);
        assert_eq!(admit(&policy, &BUSY, &THERE, &TASK), AdmitDecision::Redirect);
        assert_eq!(
            admit(&policy, &SiteLoad { waiting: 4, ..BUSY }, &THERE, &TASK),
            AdmitDecision::Local,
            "faster here"
        );
        let queued =
            Network { cloud: Some(CloudLoad { waiting: 4000, replicas: 4, cost_s: 0.01, still_s: 0.0 }), ..THERE };
        assert_eq!(admit(&policy, &BUSY, &queued, &TASK), AdmitDecision::Local, "the cloud has a longer queue");
        let still =
            Network { cloud: Some(CloudLoad { waiting: 1, replicas: 4, cost_s: 0.01, still_s: 60.0 }), ..THERE };
        assert_eq!(admit(&policy, &BUSY, &still, &TASK), AdmitDecision::Local, "it is stalled");
        let sent = Network {
            away: 250,
            cloud: Some(CloudLoad { waiting: 0, replicas: 1, cost_s: 0.1, still_s: 0.0 }),
            ..THERE
        };
        assert_eq!(
            admit(&policy, &BUSY, &sent, &TASK),
            AdmitDecision::Local,
            "what we sent counts before the cloud reports it"
        );
        assert_eq!(
            admit(&policy, &BUSY, &Network { rate_bytes_per_s: Some(1e3), ..THERE }, &TASK),
            AdmitDecision::Local
        );
        assert_eq!(admit(&policy, &BUSY, &GONE, &TASK), AdmitDecision::Local, "never held");
        assert_eq!(
            admit(&policy, &BUSY, &Network { cloud: None, ..THERE }, &TASK),
            AdmitDecision::Local,
            "nobody to judge"
        );
        assert_eq!(admit(&policy, &BUSY, &THERE, &AdmitInput { may_leave: false, ..TASK }), AdmitDecision::Local);
        assert_eq!(
            admit(&policy, &BUSY, &Network { away: 256, ..THERE }, &TASK),
            AdmitDecision::Local,
            "the window is full"
        );
    }

    #[test]
    fn deadlines_take_precedence_over_the_objective() {
        let hierarchical = policy(PolicyName::EarliestFinish);
        let weights = ObjectiveWeights { per_mb: 1e9, ..ObjectiveWeights::default() };
        let frugal = Policy { objective: Objective::Weighted(weights), ..hierarchical.clone() };
        assert_eq!(admit(&frugal, &BUSY, &THERE, &TASK), AdmitDecision::Local, "bytes are expensive");
        let urgent = AdmitInput { left_s: Some(1.0), ..TASK };
        assert_eq!(
            admit(&frugal, &BUSY, &THERE, &urgent),
            AdmitDecision::Redirect,
            "only the cloud meets the deadline"
        );
        let eager = ObjectiveWeights { per_point: 1e9, ..ObjectiveWeights::default() };
        let eager = Policy { objective: Objective::Weighted(eager), ..hierarchical };
        let slow = Network { rate_bytes_per_s: Some(5e3), ..THERE };
        assert_eq!(admit(&eager, &BUSY, &slow, &TASK), AdmitDecision::Local, "no verdict told of a gain");
        let slow = Network { gain: Some(CloudGain { confident_points: Some(5.0), doubtful_points: None }), ..slow };
        assert_eq!(admit(&eager, &BUSY, &slow, &TASK), AdmitDecision::Redirect, "accuracy is worth more");
        assert_eq!(
            admit(&eager, &BUSY, &slow, &AdmitInput { left_s: Some(6.0), ..TASK }),
            AdmitDecision::Local,
            "misses the deadline"
        );
    }

    #[test]
    fn contention_and_stalls_lengthen_the_predicted_time_here_and_are_not_counted_twice() {
        let policy = policy(PolicyName::EarliestFinish);
        let short = SiteLoad { waiting: 20, ..BUSY };
        assert_eq!(admit(&policy, &short, &THERE, &TASK), AdmitDecision::Local, "0.11 s here, 0.07 s there");
        let contended = SiteLoad { contention_ratio: Some(2.0), cost_contention_ratio: Some(1.0), ..short };
        assert_eq!(admit(&policy, &contended, &THERE, &TASK), AdmitDecision::Redirect, "others have the processor");
        let known = SiteLoad { cost_contention_ratio: Some(2.0), ..contended };
        assert_eq!(admit(&policy, &known, &THERE, &TASK), AdmitDecision::Local, "the cost holds it already");
        assert!((image_s(&known) - 0.01).abs() < 1e-12 && (image_s(&contended) - 0.02).abs() < 1e-12);
        let relieved = SiteLoad { contention_ratio: Some(1.0), ..known };
        assert!((image_s(&relieved) - 0.005).abs() < 1e-12, "the others have gone: half the mean");
        // Below its mark a stall is no limit, only lost time.
        let stalling = Policy { load: LoadMarks { memory_pressure_high_ratio: 0.9, ..LoadMarks::default() }, ..policy };
        let stalled = SiteLoad { stall_ratio: Some(0.5), cost_stall_ratio: Some(0.0), ..short };
        assert_eq!(admit(&stalling, &stalled, &THERE, &TASK), AdmitDecision::Redirect, "half of the time is lost");
        let known = SiteLoad { cost_stall_ratio: Some(0.5), ..stalled };
        assert_eq!(admit(&stalling, &known, &THERE, &TASK), AdmitDecision::Local, "the cost holds it already");
    }

    #[test]
    fn a_site_short_of_memory_sends_even_what_finds_a_free_replica_if_the_cloud_can_take_it() {
        let policy = policy(PolicyName::EarliestFinish);
        for short in [
            SiteLoad { memory_ratio: Some(0.95), ..IDLE },
            SiteLoad { stall_ratio: Some(0.3), cost_stall_ratio: Some(0.0), ..IDLE },
        ] {
            let admit = |network: &Network, task: &AdmitInput| admit(&policy, &short, network, task);
            assert_eq!(admit(&THERE, &TASK), AdmitDecision::Redirect, "{short:?}");
            assert_eq!(admit(&GONE, &TASK), AdmitDecision::Local, "never held: {short:?}");
            assert_eq!(admit(&THERE, &AdmitInput { may_leave: false, ..TASK }), AdmitDecision::Local);
            assert_eq!(admit(&THERE, &AdmitInput { left_s: Some(0.03), ..TASK }), AdmitDecision::Local, "deadline");
            let still =
                Network { cloud: Some(CloudLoad { waiting: 1, replicas: 4, cost_s: 0.01, still_s: 60.0 }), ..THERE };
            assert_eq!(admit(&still, &TASK), AdmitDecision::Local, "a cloud that stands still is no relief");
        }
        let enough = SiteLoad { memory_ratio: Some(0.9), stall_ratio: Some(0.1), ..IDLE };
        assert_eq!(admit(&policy, &enough, &THERE, &TASK), AdmitDecision::Local, "below the high marks");
    }

    #[test]
    fn on_a_full_processor_a_free_replica_keeps_a_task_unless_the_cloud_is_faster_for_this_one() {
        let policy = policy(PolicyName::EarliestFinish);
        let slow = SiteLoad { waiting: 1, free: true, cost_s: 0.1, ..BUSY };
        let full = SiteLoad { cpu_ratio: Some(1.0), ..slow };
        assert_eq!(admit(&policy, &full, &THERE, &TASK), AdmitDecision::Local, "0.10 s here, 0.07 s there");
        let contended = SiteLoad { contention_ratio: Some(3.0), cost_contention_ratio: Some(1.0), ..full };
        assert_eq!(admit(&policy, &contended, &THERE, &TASK), AdmitDecision::Redirect, "0.30 s here");
        let queue = SiteLoad { waiting: 1000, cost_contention_ratio: Some(3.0), ..contended };
        assert_eq!(admit(&policy, &queue, &THERE, &TASK), AdmitDecision::Local, "the queue is not this task's");
        let ours = SiteLoad { cost_s: 0.3, contention_ratio: Some(1.1), ..full };
        assert_eq!(admit(&policy, &ours, &THERE, &TASK), AdmitDecision::Local, "full of our own images");
        let spare = SiteLoad { cpu_ratio: Some(0.5), ..contended };
        assert_eq!(admit(&policy, &spare, &THERE, &TASK), AdmitDecision::Local, "the processor is not full");
    }

    /// A queue that ends here just after the cloud would be done: a tie.
    const TIED: SiteLoad = SiteLoad { waiting: 15, ..BUSY };

    #[test]
    fn each_level_decides_where_those_before_it_are_tied() {
        let policy = policy(PolicyName::EarliestFinish);
        // 40 kB cost 0.16 J and 0.04 MB; recognizing here costs 0.08 J.
        let decide = |policy: &Policy, load: &SiteLoad, gain: f64| {
            let gain = Some(CloudGain { confident_points: Some(gain), doubtful_points: None });
            admit(policy, load, &Network { gain, ..THERE }, &TASK)
        };
        let tolerant = |energy_j: f64, sent_mb: f64| Policy {
            tolerance: ObjectiveTolerances { energy_j, sent_mb, accuracy_points: 1.0 },
            ..policy.clone()
        };
        let (local, redirect) = (AdmitDecision::Local, AdmitDecision::Redirect);
        // Latency: more than a tie either way, whatever the other levels say.
        assert_eq!(decide(&policy, &BUSY, 0.0), redirect, "the cloud is faster");
        let frugal = SiteLoad { waiting: 1, watts_per_core: Some(1e6), ..TIED };
        assert_eq!(decide(&tolerant(1.0, 1.0), &frugal, 50.0), local, "the site is faster");
        // Energy.
        assert_eq!(
            decide(&policy, &TIED, 50.0),
            local,
            "the site needs less energy, though the cloud is more accurate"
        );
        let hungry = SiteLoad { watts_per_core: Some(40.0), ..TIED };
        assert_eq!(decide(&policy, &hungry, 0.0), redirect, "the cloud needs less energy, though it costs bytes");
        // Bytes.
        assert_eq!(decide(&tolerant(1.0, 0.01), &TIED, 50.0), local, "nothing is sent from the site");
        // Accuracy.
        assert_eq!(decide(&tolerant(1.0, 0.1), &TIED, 5.0), redirect, "the cloud is more accurate");
        assert_eq!(decide(&tolerant(1.0, 0.1), &TIED, 0.5), local, "all levels are tied: it stays");
    }

    #[test]
    fn a_task_is_offloaded_only_if_its_answer_comes_early_enough_to_take_it_back() {
        // The answer takes 70 ms; recognizing it here takes 10 ms, with 50 ms to spare.
        let with = |left_s| AdmitInput { left_s: Some(left_s), ..TASK };
        for name in [PolicyName::EarliestFinish, PolicyName::Paper] {
            let policy = policy(name);
            let stays = if name == PolicyName::Paper { AdmitDecision::Listen } else { AdmitDecision::Local };
            assert_eq!(admit(&policy, &BUSY, &THERE, &with(0.14)), AdmitDecision::Redirect, "{name}");
            assert_eq!(admit(&policy, &BUSY, &THERE, &with(0.12)), stays, "{name}");
        }
        let earliest = policy(PolicyName::EarliestFinish);
        assert_eq!(admit(&earliest, &BUSY, &THERE, &with(0.05)), AdmitDecision::Redirect, "it is late in any case");
        assert_eq!(reclaim_within(0.4, 0.1), Some(Duration::from_millis(250)));
        assert_eq!((reclaim_within(0.1, 0.1), reclaim_within(-1.0, 0.0)), (None, None));
    }

    #[test]
    fn urgent_tasks_are_neither_held_nor_offloaded() {
        let urgent = AdmitInput { priority: 9, ..TASK };
        for name in [PolicyName::Paper, PolicyName::EarliestFinish] {
            assert_eq!(admit(&policy(name), &BUSY, &THERE, &urgent), AdmitDecision::Local, "{name}");
        }
        for name in [PolicyName::Paper, PolicyName::CloudOnly] {
            assert_eq!(admit(&policy(name), &BUSY, &GONE, &urgent), AdmitDecision::Local, "{name}");
        }
    }

    #[test]
    fn the_fixed_policies_do_what_their_names_say() {
        assert_eq!(admit(&policy(PolicyName::EdgeOnly), &BUSY, &THERE, &TASK), AdmitDecision::Local);
        let cloud_only = policy(PolicyName::CloudOnly);
        assert_eq!(admit(&cloud_only, &IDLE, &THERE, &TASK), AdmitDecision::Redirect);
        assert_eq!(admit(&cloud_only, &IDLE, &GONE, &TASK), AdmitDecision::Listen);
    }

    fn loads() -> impl Strategy<Value = SiteLoad> {
        (prop::option::of(0.0_f64..1.0), prop::option::of(0.0_f64..1.0), 0_u64..5000, prop::bool::ANY, 0.0001_f64..0.5)
            .prop_map(|(cpu_ratio, memory_ratio, waiting, free, cost_s)| SiteLoad {
                cpu_ratio,
                memory_ratio,
                stall_ratio: None,
                waiting,
                free,
                replicas: 2,
                cost_s,
                ..BUSY
            })
    }

    fn networks() -> impl Strategy<Value = Network> {
        (prop::bool::ANY, prop::bool::ANY, 0.0_f64..2.0, prop::option::of(1e3_f64..1e8), 0_u64..300, prop::bool::ANY)
            .prop_map(|(up, available, round_trip_s, rate_bytes_per_s, away, cloud)| Network {
                up,
                available: up && available,
                round_trip_s,
                rate_bytes_per_s,
                slowdown_ratio: 1.0,
                waiting_bytes: 0,
                budget_left_bytes: None,
                cloud: cloud.then_some(CloudLoad { waiting: 3, replicas: 2, cost_s: 0.01, still_s: 0.0 }),
                away,
                most_away: 256,
                gain: None,
            })
    }

    fn names() -> impl Strategy<Value = PolicyName> {
        prop::sample::select(POLICIES.to_vec())
    }

    proptest! {
        #[test]
        fn overload_never_changes_faster_than_allowed(
            name in names(),
            steps in prop::collection::vec((0.0_f64..0.4, loads(), networks()), 1..200),
        ) {
            let policy = policy(name);
            let (mut state, mut now_s, mut changed_at_s) = (AdmitState::default(), 0.0, f64::NEG_INFINITY);
            for (gap_s, load, network) in steps {
                now_s += gap_s;
                let (next, _) = decide_admission(&policy, state, &load, &network, &TASK, now_s);
                if next.overloaded != state.overloaded {
                    prop_assert!(now_s - changed_at_s >= policy.load.dwell_ms as f64 / 1000.0);
                    changed_at_s = now_s;
                }
                state = next;
            }
        }

        #[test]
        fn no_task_is_held_past_its_deadline_or_longer_than_allowed(
            name in names(), load in loads(), network in networks(), left_s in -1.0_f64..10.0, held_s in 0.0_f64..20.0,
            priority in 0_u8..10,
        ) {
            let policy = policy(name);
            let task = AdmitInput { left_s: Some(left_s), held_s, priority, ..TASK };
            if admit(&policy, &load, &network, &task) == AdmitDecision::Listen {
                prop_assert!(priority < URGENT);
                prop_assert!(left_s > load.cost_s);
                prop_assert!(held_s * 1000.0 < policy.hold_ms as f64);
            }
        }

        #[test]
        fn nothing_is_offloaded_against_the_policy_or_to_an_unreachable_cloud(
            name in names(), load in loads(), network in networks(), may_leave in prop::bool::ANY,
        ) {
            let task = AdmitInput { may_leave, ..TASK };
            if admit(&policy(name), &load, &network, &task) == AdmitDecision::Redirect {
                prop_assert!(may_leave && network.up && network.away < network.most_away);
            }
        }

        #[test]
        fn only_paper_and_cloud_only_hold(name in names(), load in loads(), network in networks()) {
            if admit(&policy(name), &load, &network, &TASK) == AdmitDecision::Listen {
                prop_assert!(matches!(name, PolicyName::Paper | PolicyName::CloudOnly));
            }
        }
    }
}

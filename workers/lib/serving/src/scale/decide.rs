//! Decides how many replicas a queue needs. Pure; time is passed in as seconds on a steady clock.
//!
//! The measure is seconds of queued work: images that wait, times the cost of one, divided by the replicas. Counting
//! images would not do, because an image costs 1 ms with one model and 500 ms with another.

use crate::scale::settings::ScaleSettings;

/// Replicas are sized to be busy at most this fraction of the time, because images arrive unevenly. A guess.
const BUSY_RATIO: f64 = 0.7;
/// Cooldowns before a number of replicas that did not help is tried again.
const USELESS_COOLDOWNS: f64 = 20.0;

/// What was observed at a given time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueueObservation {
    /// Time of the observation, seconds.
    pub now_s: f64,
    /// This worker's share of the images that wait or are being processed.
    pub waiting: f64,
    /// Cost of an image on one replica, seconds.
    pub cost_s: f64,
    /// Replicas of this worker.
    pub replicas: usize,
    /// Images this worker finished since it started.
    pub finished: u64,
}

impl QueueObservation {
    /// Queued work, seconds.
    pub fn queued_s(&self) -> f64 {
        self.waiting * self.cost_s / self.replicas.max(1) as f64
    }
}

/// State of the decision.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScaleState {
    /// When the number last changed, seconds.
    changed_at_s: Option<f64>,
    /// Since when fewer replicas would do, seconds.
    idle_since_s: Option<f64>,
    /// Throughput being measured while the number is unchanged.
    measured: Option<ThroughputSample>,
    /// Number of replicas before the last one was added, and its images per second.
    before: Option<(usize, f64)>,
    /// More replicas than this do not help, until the given time.
    useless_above: Option<(usize, f64)>,
}

/// Images finished while the number was unchanged.
#[derive(Debug, Clone, Copy, PartialEq)]
struct ThroughputSample {
    since_s: f64,
    finished: u64,
    replicas: usize,
}

/// Number of replicas to run.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaTarget {
    /// Replicas.
    pub replicas: usize,
    /// Why, in a sentence for people.
    pub why: String,
}

/// Decides on the number of replicas: returns the new state and the target.
pub fn decide_replicas(
    settings: &ScaleSettings,
    state: &ScaleState,
    seen: &QueueObservation,
) -> (ScaleState, ReplicaTarget) {
    let mut state = state.clone();
    let queued_s = seen.queued_s();
    let stay = |why: String| ReplicaTarget { replicas: seen.replicas, why };
    let (min, max) = (settings.min_replicas, settings.max_replicas.max(settings.min_replicas));
    if !(min..=max).contains(&seen.replicas) {
        let target =
            ReplicaTarget { replicas: seen.replicas.clamp(min, max), why: format!("{min} to {max} are allowed") };
        return (changed(state, seen, None), target);
    }
    if state.useless_above.is_some_and(|(_, until_s)| seen.now_s >= until_s) {
        state.useless_above = None;
    }
    let rate = rate(&mut state, seen);
    let busy = queued_s > settings.target_s;
    let cooled = state.changed_at_s.is_none_or(|at_s| seen.now_s - at_s >= settings.up_cooldown_s);
    if busy {
        state.idle_since_s = None;
        if !cooled {
            return (
                state,
                stay(format!("{queued_s:.1} s of work queued; waiting for the last change to take effect")),
            );
        }
        if let (Some((fewer, before)), Some(rate)) = (state.before, rate)
            && rate < before * (1.0 + settings.min_gain_ratio)
            && seen.replicas > fewer
        {
            let why = format!(
                "{} replicas did {rate:.0} images per second, {fewer} did {before:.0}: more do not help here, another resource is \
                 the bottleneck",
                seen.replicas
            );
            let until_s = seen.now_s + USELESS_COOLDOWNS * settings.up_cooldown_s;
            state = changed(state, seen, None);
            state.useless_above = Some((fewer, until_s));
            return (state, ReplicaTarget { replicas: fewer, why });
        }
        let useful = state.useless_above.map_or(max, |(useful, _)| useful.min(max));
        if seen.replicas >= useful {
            let why = if useful < max { "more would not help" } else { "more are not allowed" };
            return (state, stay(format!("{queued_s:.1} s of work queued with {} replicas; {why}", seen.replicas)));
        }
        // As many as bring the queue down to the target, but at most twice as many at a time.
        let needed = (seen.waiting * seen.cost_s / settings.target_s).ceil() as usize;
        let replicas = needed.clamp(seen.replicas + 1, seen.replicas * 2).min(useful);
        let why = format!("{queued_s:.1} s of work queued, more than the target of {:.1} s", settings.target_s);
        let before = rate.map(|rate| (seen.replicas, rate));
        return (changed(state, seen, before), ReplicaTarget { replicas, why });
    }
    // Replicas needed for the present rate of images.
    let needed = (rate.unwrap_or(0.0) * seen.cost_s / BUSY_RATIO).ceil().max(min as f64) as usize;
    if needed >= seen.replicas || rate.is_none() {
        state.idle_since_s = None;
        return (state, stay(format!("{queued_s:.1} s of work queued; all {} are needed", seen.replicas)));
    }
    let idle_since_s = *state.idle_since_s.get_or_insert(seen.now_s);
    let idle_s = seen.now_s - idle_since_s;
    if idle_s < settings.down_cooldown_s {
        return (
            state,
            stay(format!(
                "{needed} would have sufficed for {idle_s:.0} s; one is removed after {:.0} s",
                settings.down_cooldown_s
            )),
        );
    }
    let why = format!("{needed} would have sufficed for {idle_s:.0} s");
    (changed(state, seen, None), ReplicaTarget { replicas: seen.replicas - 1, why })
}

/// Images per second since the number last changed; `None` until enough time has passed.
fn rate(state: &mut ScaleState, seen: &QueueObservation) -> Option<f64> {
    const MIN_S: f64 = 1.0;
    /// Older measurements say little about the present.
    const WINDOW_S: f64 = 10.0;
    let new_sample = ThroughputSample { since_s: seen.now_s, finished: seen.finished, replicas: seen.replicas };
    let measured = match state.measured {
        Some(measured) if measured.replicas == seen.replicas => measured,
        _ => new_sample,
    };
    let over_s = seen.now_s - measured.since_s;
    let done = seen.finished.saturating_sub(measured.finished) as f64;
    state.measured = Some(if over_s > WINDOW_S { new_sample } else { measured });
    (over_s >= MIN_S).then(|| done / over_s)
}

fn changed(state: ScaleState, seen: &QueueObservation, before: Option<(usize, f64)>) -> ScaleState {
    ScaleState { changed_at_s: Some(seen.now_s), idle_since_s: None, measured: None, before, ..state }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: ScaleSettings = ScaleSettings {
        min_replicas: 1,
        max_replicas: 8,
        target_s: 1.0,
        up_cooldown_s: 3.0,
        down_cooldown_s: 30.0,
        min_gain_ratio: 0.1,
    };

    /// A worker whose replicas do 10 images per second each, up to the number that helps.
    struct SimulatedWorker {
        state: ScaleState,
        replicas: usize,
        waiting: f64,
        finished: f64,
        now_s: f64,
        helpful: usize,
        history: Vec<usize>,
        why: Vec<String>,
    }

    impl SimulatedWorker {
        fn new(helpful: usize) -> Self {
            Self {
                state: ScaleState::default(),
                replicas: 1,
                waiting: 0.0,
                finished: 0.0,
                now_s: 0.0,
                helpful,
                history: Vec::new(),
                why: Vec::new(),
            }
        }

        fn second(&mut self, comes: f64) {
            self.now_s += 1.0;
            self.waiting += comes;
            let done = self.waiting.min(10.0 * self.replicas.min(self.helpful) as f64);
            self.waiting -= done;
            self.finished += done;
            let seen = QueueObservation {
                now_s: self.now_s,
                waiting: self.waiting,
                cost_s: 0.1,
                replicas: self.replicas,
                finished: self.finished as u64,
            };
            let (state, target) = decide_replicas(&SETTINGS, &self.state, &seen);
            (self.state, self.replicas) = (state, target.replicas);
            self.history.push(target.replicas);
            self.why.push(target.why);
        }

        fn seconds(&mut self, count: usize, comes: f64) {
            (0..count).for_each(|_| self.second(comes));
        }
    }

    #[test]
    fn a_step_in_load_is_followed_and_the_queue_shrinks_again() {
        let mut worker = SimulatedWorker::new(8);
        worker.seconds(20, 5.0);
        assert_eq!(worker.replicas, 1);
        worker.seconds(60, 45.0);
        assert!((5..=8).contains(&worker.replicas), "{:?}", worker.history);
        assert!(worker.waiting * 0.1 / worker.replicas as f64 <= 1.0, "{} wait: {:?}", worker.waiting, worker.history);
        worker.seconds(300, 5.0);
        assert_eq!(worker.replicas, 1, "{:?}", worker.history);
    }

    #[test]
    fn replicas_that_do_not_help_are_removed_and_not_retried_at_once() {
        let mut worker = SimulatedWorker::new(2);
        worker.seconds(60, 100.0);
        assert_eq!(worker.replicas, 2, "{:?}\n{:#?}", worker.history, worker.why);
        assert!(worker.why.iter().any(|why| why.contains("more do not help here")), "{:#?}", worker.why);
        assert_eq!(*worker.history.iter().max().unwrap(), 4);
        assert!(worker.history[20..].iter().all(|replicas| *replicas == 2), "{:?}", worker.history);
    }

    #[test]
    fn replicas_that_are_needed_are_not_removed() {
        let mut worker = SimulatedWorker::new(8);
        worker.seconds(30, 60.0);
        let settled = worker.replicas;
        worker.seconds(200, 40.0);
        assert!(worker.replicas >= 5, "{settled}, then {:?}", worker.history);
    }

    #[test]
    fn numbers_outside_the_limits_are_corrected_at_once() {
        for (replicas, wanted) in [(20, 8), (0, 1)] {
            let seen = QueueObservation { now_s: 0.0, waiting: 0.0, cost_s: 0.1, replicas, finished: 0 };
            assert_eq!(decide_replicas(&SETTINGS, &ScaleState::default(), &seen).1.replicas, wanted);
        }
    }

    proptest! {
        #[test]
        fn under_any_load_it_stays_within_limits_and_cooldowns_and_gives_reasons(
            load in prop::collection::vec(0f64..200.0, 1..200), helpful in 1usize..9,
        ) {
            let mut worker = SimulatedWorker::new(helpful);
            load.into_iter().for_each(|comes| worker.second(comes));
            let history = [&[1][..], &worker.history].concat();
            prop_assert!(history.iter().all(|replicas| (1..=8).contains(replicas)));
            prop_assert!(worker.why.iter().all(|why| !why.is_empty()));
            let ups: Vec<usize> = (1..history.len()).filter(|at| history[*at] > history[at - 1]).collect();
            prop_assert!(ups.windows(2).all(|pair| pair[1] - pair[0] >= 3), "{:?}", worker.history);
            prop_assert!(history.windows(2).all(|pair| pair[1] <= pair[0] * 2));
        }
    }
}

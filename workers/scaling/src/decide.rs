//! How many replicas a queue needs. Pure; time comes in as seconds on a clock that does not jump.
//!
//! The measure is seconds of queued work: what waits, times what an image costs, over the replicas there are. Images alone
//! would not do, for an image costs 1 ms with one model and 500 ms with another.

use crate::settings::ScaleSettings;

/// Replicas are kept busy no more than this share of their time: what comes unevenly needs room. A guess.
const BUSY_RATIO: f64 = 0.7;
/// A number that was found to be useless is not tried again for so many cooldowns.
const USELESS_COOLDOWNS: f64 = 20.0;

/// What was seen at this moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueueObservation {
    /// When, seconds.
    pub now_s: f64,
    /// Images that wait or are in work, of which this worker takes its share.
    pub waiting: f64,
    /// What an image costs one replica, seconds.
    pub cost_s: f64,
    /// Replicas of this worker.
    pub replicas: usize,
    /// Images this worker finished since it started.
    pub finished: u64,
}

impl QueueObservation {
    /// Seconds of work that wait.
    pub fn queued_s(&self) -> f64 {
        self.waiting * self.cost_s / self.replicas.max(1) as f64
    }
}

/// What was decided before.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScaleState {
    /// When the number changed last, seconds.
    changed_at_s: Option<f64>,
    /// Since when fewer would do, seconds.
    idle_since_s: Option<f64>,
    /// What is measured while the number stays the same.
    measured: Option<ThroughputSample>,
    /// What was done a second with one number before the last replica was added.
    before: Option<(usize, f64)>,
    /// More than this many do no more, until that moment.
    useless_above: Option<(usize, f64)>,
}

/// Images done while the number stayed the same, and something waited all the time.
#[derive(Debug, Clone, Copy, PartialEq)]
struct ThroughputSample {
    since_s: f64,
    finished: u64,
    replicas: usize,
}

/// How many there shall be.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaTarget {
    /// Replicas.
    pub replicas: usize,
    /// Why, in a sentence for people.
    pub why: String,
}

/// Decides: the new state, and how many there shall be.
pub fn decide_replicas(
    settings: &ScaleSettings,
    state: &ScaleState,
    seen: &QueueObservation,
) -> (ScaleState, ReplicaTarget) {
    let mut state = state.clone();
    let queued_s = seen.queued_s();
    let stay = |why: String| ReplicaTarget { replicas: seen.replicas, why };
    let (least, most) = (settings.min_replicas, settings.max_replicas.max(settings.min_replicas));
    if !(least..=most).contains(&seen.replicas) {
        let wish = ReplicaTarget {
            replicas: seen.replicas.clamp(least, most),
            why: format!("there are to be {least} to {most}"),
        };
        return (changed(state, seen, None), wish);
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
            return (state, stay(format!("{queued_s:.1} s of work wait; what was changed last is given time")));
        }
        if let (Some((fewer, before)), Some(rate)) = (state.before, rate)
            && rate < before * (1.0 + settings.min_gain_ratio)
            && seen.replicas > fewer
        {
            let why = format!(
                "{} replicas did {rate:.0} images a second where {fewer} did {before:.0}: more do not help here, something else \
                 is used up",
                seen.replicas
            );
            let until_s = seen.now_s + USELESS_COOLDOWNS * settings.up_cooldown_s;
            state = changed(state, seen, None);
            state.useless_above = Some((fewer, until_s));
            return (state, ReplicaTarget { replicas: fewer, why });
        }
        let useful = state.useless_above.map_or(most, |(useful, _)| useful.min(most));
        if seen.replicas >= useful {
            let why = if useful < most { "more do no more" } else { "more are not allowed" };
            return (state, stay(format!("{queued_s:.1} s of work wait, and {} run: {why}", seen.replicas)));
        }
        // As many as bring it down to the target, but no more than twice as many at a time.
        let needed = (seen.waiting * seen.cost_s / settings.target_s).ceil() as usize;
        let replicas = needed.clamp(seen.replicas + 1, seen.replicas * 2).min(useful);
        let why = format!("{queued_s:.1} s of work wait, more than {:.1} s", settings.target_s);
        let before = rate.map(|rate| (seen.replicas, rate));
        return (changed(state, seen, before), ReplicaTarget { replicas, why });
    }
    // How many what comes needs, at the rate of this moment.
    let needed = (rate.unwrap_or(0.0) * seen.cost_s / BUSY_RATIO).ceil().max(least as f64) as usize;
    if needed >= seen.replicas || rate.is_none() {
        state.idle_since_s = None;
        return (state, stay(format!("{queued_s:.1} s of work wait, and {} are needed", seen.replicas)));
    }
    let idle_since_s = *state.idle_since_s.get_or_insert(seen.now_s);
    let idle_s = seen.now_s - idle_since_s;
    if idle_s < settings.down_cooldown_s {
        return (
            state,
            stay(format!("{needed} would do for {idle_s:.0} s; after {:.0} s one goes", settings.down_cooldown_s)),
        );
    }
    let why = format!("{needed} would have done for {idle_s:.0} s");
    (changed(state, seen, None), ReplicaTarget { replicas: seen.replicas - 1, why })
}

/// Images a second since the number changed last, once that has been for a while.
fn rate(state: &mut ScaleState, seen: &QueueObservation) -> Option<f64> {
    const LEAST_S: f64 = 1.0;
    /// What came earlier says little about now.
    const WINDOW_S: f64 = 10.0;
    let anew = ThroughputSample { since_s: seen.now_s, finished: seen.finished, replicas: seen.replicas };
    let measured = match state.measured {
        Some(measured) if measured.replicas == seen.replicas => measured,
        _ => anew,
    };
    let over_s = seen.now_s - measured.since_s;
    let done = seen.finished.saturating_sub(measured.finished) as f64;
    state.measured = Some(if over_s > WINDOW_S { anew } else { measured });
    (over_s >= LEAST_S).then(|| done / over_s)
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

    /// A worker whose replicas do 10 images a second each, up to so many that help.
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
            let (state, wish) = decide_replicas(&SETTINGS, &self.state, &seen);
            (self.state, self.replicas) = (state, wish.replicas);
            self.history.push(wish.replicas);
            self.why.push(wish.why);
        }

        fn seconds(&mut self, count: usize, comes: f64) {
            (0..count).for_each(|_| self.second(comes));
        }
    }

    #[test]
    fn a_step_of_load_is_followed_and_the_queue_comes_down_again() {
        let mut played = SimulatedWorker::new(8);
        played.seconds(20, 5.0);
        assert_eq!(played.replicas, 1);
        played.seconds(60, 45.0);
        assert!((5..=8).contains(&played.replicas), "{:?}", played.history);
        assert!(played.waiting * 0.1 / played.replicas as f64 <= 1.0, "{} wait: {:?}", played.waiting, played.history);
        played.seconds(300, 5.0);
        assert_eq!(played.replicas, 1, "{:?}", played.history);
    }

    #[test]
    fn what_does_not_help_goes_again_and_is_not_tried_at_once() {
        let mut played = SimulatedWorker::new(2);
        played.seconds(60, 100.0);
        assert_eq!(played.replicas, 2, "{:?}\n{:#?}", played.history, played.why);
        assert!(played.why.iter().any(|why| why.contains("more do not help here")), "{:#?}", played.why);
        assert_eq!(*played.history.iter().max().unwrap(), 4);
        assert!(played.history[20..].iter().all(|replicas| *replicas == 2), "{:?}", played.history);
    }

    #[test]
    fn nothing_is_taken_away_while_what_comes_needs_it() {
        let mut played = SimulatedWorker::new(8);
        played.seconds(30, 60.0);
        let settled = played.replicas;
        played.seconds(200, 40.0);
        assert!(played.replicas >= 5, "{settled}, then {:?}", played.history);
    }

    #[test]
    fn too_many_or_too_few_are_put_right_at_once() {
        for (replicas, wanted) in [(20, 8), (0, 1)] {
            let seen = QueueObservation { now_s: 0.0, waiting: 0.0, cost_s: 0.1, replicas, finished: 0 };
            assert_eq!(decide_replicas(&SETTINGS, &ScaleState::default(), &seen).1.replicas, wanted);
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_it_stays_in_its_bounds_changes_no_faster_than_it_may_and_says_why(
            load in prop::collection::vec(0f64..200.0, 1..200), helpful in 1usize..9,
        ) {
            let mut played = SimulatedWorker::new(helpful);
            load.into_iter().for_each(|comes| played.second(comes));
            let history = [&[1][..], &played.history].concat();
            prop_assert!(history.iter().all(|replicas| (1..=8).contains(replicas)));
            prop_assert!(played.why.iter().all(|why| !why.is_empty()));
            let ups: Vec<usize> = (1..history.len()).filter(|at| history[*at] > history[at - 1]).collect();
            prop_assert!(ups.windows(2).all(|pair| pair[1] - pair[0] >= 3), "{:?}", played.history);
            prop_assert!(history.windows(2).all(|pair| pair[1] <= pair[0] * 2));
        }
    }
}

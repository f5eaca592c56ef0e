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
    parallelism: usize,
    /// What is left of the throughput.
    left: f64,
    history: Vec<usize>,
    queued_s: Vec<f64>,
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
            parallelism: 8,
            left: 1.0,
            history: Vec::new(),
            queued_s: Vec::new(),
            why: Vec::new(),
        }
    }

    fn second(&mut self, comes: f64) {
        self.now_s += 1.0;
        self.waiting += comes;
        let done = self.waiting.min((self.left * 10.0 * self.replicas.min(self.helpful) as f64).round());
        self.waiting -= done;
        self.finished += done;
        let seen = QueueObservation {
            now_s: self.now_s,
            waiting: self.waiting,
            cost_s: 0.1,
            replicas: self.replicas,
            parallelism: self.parallelism,
            finished: self.finished as u64,
        };
        let (state, target) = decide_replicas(&SETTINGS, &self.state, &seen);
        (self.state, self.replicas) = (state, target.replicas);
        self.history.push(target.replicas);
        self.queued_s.push(seen.queued_s());
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
    assert!(*worker.queued_s.last().unwrap() <= 1.0, "{:?}", worker.queued_s);
    worker.seconds(300, 5.0);
    assert_eq!(worker.replicas, 1, "{:?}", worker.history);
}

#[test]
fn five_times_the_load_takes_no_five_steps() {
    let mut worker = SimulatedWorker::new(8);
    worker.seconds(20, 9.0);
    worker.seconds(10, 45.0);
    let mut numbers = worker.history[20..].to_vec();
    numbers.dedup();
    assert!(numbers.len() <= 3 && worker.replicas >= 5, "{:?}", worker.history);
}

#[test]
fn replicas_that_do_not_help_are_removed_and_not_retried_at_once() {
    let mut worker = SimulatedWorker::new(2);
    worker.seconds(300, 100.0);
    assert!(worker.why.iter().any(|why| why.contains("do not help here")), "{:#?}", worker.why);
    let late = &worker.history[100..];
    assert!(late.iter().all(|replicas| (2..=5).contains(replicas)), "{:?}", worker.history);
    assert!(late.iter().filter(|replicas| **replicas <= 4).count() > 150, "{:?}", worker.history);
    let tried = late.windows(2).filter(|pair| pair[1] > pair[0]).count();
    assert!((1..=3).contains(&tried), "tried again {tried} times: {:?}", worker.history);
}

#[test]
fn a_few_bad_seconds_after_a_replica_was_added_do_not_leave_one_behind_for_good() {
    let mut worker = SimulatedWorker::new(8);
    worker.seconds(20, 5.0);
    while worker.replicas == 1 {
        worker.second(25.0);
    }
    worker.left = 0.3;
    worker.seconds(6, 25.0);
    worker.left = 1.0;
    worker.seconds(40, 25.0);
    assert!(worker.replicas >= 3, "{:?}\n{:#?}", worker.history, worker.why);
    assert!(*worker.queued_s.last().unwrap() <= 1.0, "{:?}", worker.queued_s);
}

#[test]
fn a_hiccup_of_replicas_that_suffice_brings_no_others() {
    let mut worker = SimulatedWorker::new(8);
    worker.seconds(30, 6.0);
    worker.left = 0.0;
    worker.seconds(3, 6.0);
    worker.left = 1.0;
    worker.seconds(10, 6.0);
    assert!(worker.history.iter().all(|replicas| *replicas == 1), "{:?}\n{:#?}", worker.history, worker.why);
}

#[test]
fn no_more_are_started_than_the_processors_can_run() {
    let mut worker = SimulatedWorker::new(8);
    worker.parallelism = 2;
    worker.seconds(120, 100.0);
    assert_eq!(worker.history.iter().max(), Some(&2));
    assert!(worker.why.last().unwrap().contains("same processors"), "{:?}", worker.why.last());
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
        let seen = QueueObservation { now_s: 0.0, waiting: 0.0, cost_s: 0.1, replicas, parallelism: 8, finished: 0 };
        assert_eq!(decide_replicas(&SETTINGS, &ScaleState::default(), &seen).1.replicas, wanted);
    }
}

proptest! {
    #[test]
    fn under_any_load_it_stays_within_limits_and_cooldowns_and_gives_reasons(
        load in prop::collection::vec((0f64..200.0, 0f64..1.5), 1..200), helpful in 1usize..9, parallelism in 1usize..9,
    ) {
        let mut worker = SimulatedWorker::new(helpful);
        worker.parallelism = parallelism;
        for (comes, left) in load {
            worker.left = left;
            worker.second(comes);
        }
        let history = [&[1][..], &worker.history].concat();
        prop_assert!(history.iter().all(|replicas| (1..=parallelism).contains(replicas)));
        prop_assert!(worker.why.iter().all(|why| !why.is_empty()));
        let ups: Vec<usize> = (1..history.len()).filter(|at| history[*at] > history[at - 1]).collect();
        prop_assert!(ups.windows(2).all(|pair| pair[1] - pair[0] >= 3), "{:?}", worker.history);
        let leaps = history.windows(2).zip(&worker.why).filter(|(pair, _)| pair[1] > pair[0] * LARGEST_LEAP);
        prop_assert!(leaps.into_iter().all(|(_, why)| why.contains(" replicas did ")), "{:?}", worker.why);
    }

    #[test]
    fn fewer_run_only_where_little_waits_or_as_many_were_seen_to_do_as_much(
        load in prop::collection::vec((0f64..200.0, 0f64..1.5), 1..300), helpful in 1usize..9,
    ) {
        let mut worker = SimulatedWorker::new(helpful);
        for (comes, left) in load {
            worker.left = left;
            worker.second(comes);
        }
        let history = [&[1][..], &worker.history].concat();
        for at in (1..history.len()).filter(|at| history[*at] < history[at - 1]) {
            let (queued_s, why) = (&worker.queued_s, &worker.why[at - 1]);
            if queued_s[at - 1] > SETTINGS.target_s {
                prop_assert!(why.contains("do not help here"), "{why}");
                let lately = &history[at.saturating_sub(121)..at];
                prop_assert!(lately.iter().any(|before| *before <= history[at]), "{why}: {lately:?}");
            } else {
                let low = &queued_s[at.saturating_sub(30)..at];
                prop_assert!(low.len() == 30 && low.iter().all(|queued_s| *queued_s <= 0.5), "{why}: {low:?}");
            }
        }
    }
}

//! The order in which waiting pictures are recognized: by priority, within a priority the earliest deadline first, and
//! nothing waits for ever. Pure: times are microseconds on one steady clock.
//!
//! - Earliest deadline first meets every deadline that any order can meet on one replica (Liu and Layland, JACM 1973).
//! - A picture without a deadline is due [`MAX_WAIT`] after it came: it comes after those that are due sooner, and
//!   before those that come much later. A later deadline counts as that.
//! - A deadline that has passed hurries nobody: such a picture is due like one without, so that under overload one
//!   late picture does not make the next one late.
//! - Whoever has waited for [`MAX_WAIT`] goes first whatever the priorities, the oldest before the others. So only those
//!   that came before it, or less than [`MAX_WAIT`] after it, can be recognized before it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

/// Time after which a waiting picture goes before all younger ones; a guess, long against what a pool holds.
pub const MAX_WAIT: Duration = Duration::from_secs(5);
const MAX_WAIT_US: u64 = MAX_WAIT.as_micros() as u64;

/// How urgent a picture is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Urgency {
    /// 0 (bulk) to 9 (first).
    pub priority: u8,
    /// Time left to its deadline, zero once it passed; absent without one.
    pub left: Option<Duration>,
}

impl Default for Urgency {
    /// Priority 5, as of an image whose publisher stated none, and no deadline.
    fn default() -> Self {
        Self { priority: 5, left: None }
    }
}

/// Place of an item in the order; smaller ones go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UrgencyRank {
    priority: Reverse<u8>,
    due_us: u64,
    /// Number in the order of arrival; tells equal ones apart.
    number: u64,
}

impl UrgencyRank {
    /// The rank of an item that comes now as the given number.
    pub fn of(urgency: Urgency, now_us: u64, number: u64) -> Self {
        let left_us = urgency
            .left
            .filter(|left| !left.is_zero())
            .map_or(MAX_WAIT_US, |left| u64::try_from(left.as_micros()).unwrap_or(u64::MAX).min(MAX_WAIT_US));
        Self { priority: Reverse(urgency.priority), due_us: now_us.saturating_add(left_us), number }
    }
}

/// An item that waits.
#[derive(Debug)]
struct WaitingItem<T> {
    since_us: u64,
    item: T,
}

/// Waiting items, the most urgent first.
#[derive(Debug)]
pub struct UrgencyQueue<T> {
    ordered: BTreeMap<UrgencyRank, WaitingItem<T>>,
    /// The same items in the order of arrival, by their numbers.
    arrivals: BTreeMap<u64, UrgencyRank>,
    next_number: u64,
}

impl<T> Default for UrgencyQueue<T> {
    fn default() -> Self {
        Self { ordered: BTreeMap::new(), arrivals: BTreeMap::new(), next_number: 0 }
    }
}

impl<T> UrgencyQueue<T> {
    /// Adds an item that comes now. Times must not decrease from call to call.
    pub fn push(&mut self, urgency: Urgency, now_us: u64, item: T) {
        let number = self.next_number;
        self.next_number += 1;
        let rank = UrgencyRank::of(urgency, now_us, number);
        self.arrivals.insert(number, rank);
        self.ordered.insert(rank, WaitingItem { since_us: now_us, item });
    }

    /// Takes the item that goes next.
    pub fn pop(&mut self, now_us: u64) -> Option<T> {
        let oldest = *self.arrivals.first_key_value()?.1;
        let has_waited = |waiting: &WaitingItem<T>| now_us.saturating_sub(waiting.since_us) >= MAX_WAIT_US;
        let rank = match self.ordered.get(&oldest).is_some_and(has_waited) {
            true => oldest,
            false => self.first_in_time(now_us)?,
        };
        self.arrivals.remove(&rank.number);
        self.ordered.remove(&rank).map(|waiting| waiting.item)
    }

    /// The first in the order after moving those whose deadlines have passed behind the ones that can still be met.
    fn first_in_time(&mut self, now_us: u64) -> Option<UrgencyRank> {
        loop {
            let entry = self.ordered.first_entry()?;
            let rank = *entry.key();
            let at_last_us = entry.get().since_us.saturating_add(MAX_WAIT_US);
            if rank.due_us >= now_us || rank.due_us >= at_last_us {
                return Some(rank);
            }
            // Each item moves once at most.
            let waiting = entry.remove();
            let moved = UrgencyRank { due_us: at_last_us, ..rank };
            self.arrivals.insert(rank.number, moved);
            self.ordered.insert(moved, waiting);
        }
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.ordered.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.ordered.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1000;

    fn urgency(priority: u8, left_ms: Option<u64>) -> Urgency {
        Urgency { priority, left: left_ms.map(Duration::from_millis) }
    }

    fn order(items: &[(u8, Option<u64>)], now_us: u64) -> Vec<usize> {
        let mut queue = UrgencyQueue::default();
        for (number, (priority, left_ms)) in items.iter().enumerate() {
            queue.push(urgency(*priority, *left_ms), 0, number);
        }
        std::iter::from_fn(|| queue.pop(now_us)).collect()
    }

    #[test]
    fn the_earliest_deadline_of_the_highest_priority_goes_first_and_none_last() {
        let items = [(5, None), (5, Some(900)), (9, None), (5, Some(400)), (0, Some(1)), (9, Some(2000))];
        assert_eq!(order(&items, 0), [5, 2, 3, 1, 0, 4]);
    }

    #[test]
    fn equal_ones_go_in_the_order_of_arrival() {
        assert_eq!(order(&[(5, None); 4], 0), [0, 1, 2, 3]);
        assert_eq!(order(&[(5, Some(400)); 4], 0), [0, 1, 2, 3]);
    }

    #[test]
    fn a_deadline_that_has_passed_makes_no_other_late() {
        assert_eq!(order(&[(5, Some(100)), (5, Some(400)), (5, Some(300))], 200 * MS), [2, 1, 0]);
        // It stays in its priority, and before what comes later.
        assert_eq!(order(&[(5, Some(100)), (0, Some(400)), (5, None)], 200 * MS), [0, 2, 1]);
        assert_eq!(order(&[(5, Some(0)), (5, Some(300))], 0), [1, 0]);
    }

    #[test]
    fn bulk_goes_before_a_never_ending_stream_of_urgent_ones_once_it_has_waited() {
        let mut queue = UrgencyQueue::default();
        queue.push(urgency(0, None), 0, u64::MAX);
        // One comes and one is taken each 10 ms.
        let taken = (0..1000u64).find(|step| {
            queue.push(urgency(9, Some(50)), step * 10 * MS, *step);
            queue.pop(step * 10 * MS) == Some(u64::MAX)
        });
        assert_eq!(taken, Some(MAX_WAIT_US / (10 * MS)));
    }

    /// A step of a test: an item that comes, or one that is taken, and the time that passes before.
    #[derive(Debug, Clone)]
    enum QueueStep {
        Push { after_us: u64, priority: u8, left_ms: Option<u64> },
        Pop { after_us: u64 },
    }

    fn step() -> impl Strategy<Value = QueueStep> {
        let after = || prop_oneof![Just(0), 0..2_000_000u64];
        let left = prop::option::of(prop_oneof![0..1000u64, 0..100_000u64]);
        prop_oneof![
            (after(), 0..10u8, left).prop_map(|(after_us, priority, left_ms)| QueueStep::Push {
                after_us,
                priority,
                left_ms
            }),
            after().prop_map(|after_us| QueueStep::Pop { after_us }),
        ]
    }

    #[derive(Debug, Clone, Copy)]
    struct ModelItem {
        number: usize,
        priority: u8,
        since_us: u64,
        due_us: Option<u64>,
    }

    impl ModelItem {
        fn at_last_us(&self) -> u64 {
            self.since_us + MAX_WAIT_US
        }

        /// The deadline that orders it at a time.
        fn due_us(&self, now_us: u64) -> u64 {
            let at_last_us = self.at_last_us();
            self.due_us.filter(|due_us| *due_us >= now_us).map_or(at_last_us, |due_us| due_us.min(at_last_us))
        }
    }

    proptest! {
        /// Every item is taken once; none that came more than `MAX_WAIT` after another is taken before it; and else the
        /// first is the one of the highest priority that is due first.
        #[test]
        fn nothing_starves_and_within_a_priority_the_earliest_deadline_goes_first(
            steps in prop::collection::vec(step(), 1..200)
        ) {
            let (mut queue, mut waiting, mut now_us, mut pushed) = (UrgencyQueue::default(), Vec::new(), 0u64, 0);
            let mut steps = steps;
            // Whatever is left is taken, over a time in which all become old.
            steps.extend((0..200).map(|_| QueueStep::Pop { after_us: 100 * MS }));
            for step in steps {
                match step {
                    QueueStep::Push { after_us, priority, left_ms } => {
                        now_us += after_us;
                        let due_us = left_ms.filter(|ms| *ms > 0).map(|ms| now_us + ms * MS);
                        queue.push(urgency(priority, left_ms), now_us, pushed);
                        waiting.push(ModelItem { number: pushed, priority, since_us: now_us, due_us });
                        pushed += 1;
                    }
                    QueueStep::Pop { after_us } => {
                        now_us += after_us;
                        let Some(taken) = queue.pop(now_us) else {
                            prop_assert!(waiting.is_empty());
                            continue;
                        };
                        let at = waiting.iter().position(|item| item.number == taken);
                        prop_assert!(at.is_some(), "{taken} was taken twice");
                        let taken = waiting.remove(at.unwrap());
                        for item in &waiting {
                            prop_assert!(
                                taken.since_us <= item.at_last_us(),
                                "{taken:?} came long after {item:?} and went first"
                            );
                        }
                        let is_old = |item: &ModelItem| now_us >= item.at_last_us();
                        match is_old(&taken) {
                            true => prop_assert!(waiting.iter().all(|item| item.number > taken.number)),
                            false => {
                                prop_assert!(!waiting.iter().any(is_old));
                                let key = |item: &ModelItem| (Reverse(item.priority), item.due_us(now_us), item.number);
                                prop_assert!(waiting.iter().all(|item| key(item) > key(&taken)), "{taken:?} of {waiting:?}");
                            }
                        }
                    }
                }
                prop_assert_eq!(queue.len(), waiting.len());
            }
            prop_assert!(queue.is_empty());
        }

        /// Equal work on one replica: if any order meets all deadlines, this one does.
        #[test]
        fn deadlines_that_any_order_can_meet_are_met(
            comes in prop::collection::vec((0..40u64, 1..60u64), 1..40)
        ) {
            let mut jobs: Vec<(u64, u64)> = Vec::new();
            let mut at = 0;
            for (gap, left) in comes {
                at += gap / 20;
                jobs.push((at, at + left));
            }
            // Each takes 1 ms. By the theorem of Hall it is possible if no interval holds more than its length.
            let fits = jobs.iter().all(|(from, _)| jobs.iter().all(|(_, until)| {
                let inside = jobs.iter().filter(|(came, due)| came >= from && due <= until).count() as u64;
                from >= until || inside <= until - from
            }));
            prop_assume!(fits);
            let (mut queue, mut next) = (UrgencyQueue::default(), 0);
            for now in 0.. {
                while let Some((came, due)) = jobs.get(next).filter(|(came, _)| *came <= now) {
                    queue.push(urgency(5, Some(due - came)), now * MS, *due);
                    next += 1;
                }
                match queue.pop(now * MS) {
                    Some(due) => prop_assert!(now < due, "taken at {now}, due at {due}: {jobs:?}"),
                    None if next == jobs.len() => break,
                    None => {}
                }
            }
        }
    }
}

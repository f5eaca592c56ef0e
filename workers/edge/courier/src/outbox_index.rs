//! Chooses which message of the outbox goes next. Pure: an index of the stream OUTBOX without its
//! payloads.
//!
//! Requests that wait for a verdict go before bulk. Among equals the priority counts, then age: messages that came
//! while the link was up are fresh, those from before are backlog. The two take turns, so that neither an outage nor a
//! flood starves the other.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// One in this many turns goes to the backlog while there are fresh messages; a guess.
const BACKLOG_TURN: u64 = 4;

/// Order in which a backlog is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BacklogOrder {
    /// The oldest message first.
    #[default]
    OldestFirst,
    /// The newest message first, because news is worth more.
    NewestFirst,
}

/// Urgency of a kind of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum UrgencyClass {
    /// A task waits for the verdict.
    Verdict,
    /// Nobody waits for it.
    Bulk,
}

/// A message in the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutboxEntry {
    /// Urgency of its kind.
    pub class: UrgencyClass,
    /// Priority, 0 (bulk) to 9 (first).
    pub priority: u8,
    /// Size of the message with its blob, bytes.
    pub bytes: u64,
    /// When it stops being of use, milliseconds since the epoch; absent if never.
    pub deadline_at_ms: Option<u64>,
}

/// Sort key: class, then highest priority, then sequence.
type SendRank = (UrgencyClass, u8, u64);

/// An index of the outbox. Limited by what the stream holds.
#[derive(Debug, Default)]
pub(crate) struct OutboxIndex {
    entries: BTreeMap<u64, OutboxEntry>,
    fresh: BTreeSet<SendRank>,
    backlog: BTreeSet<SendRank>,
    sending: BTreeSet<u64>,
    deadlines: BTreeSet<(u64, u64)>,
    waiting_bytes: u64,
    turns: u64,
    /// The message that failed last goes after all others, so that one that always fails does not use up every attempt.
    failed: Option<u64>,
}

fn rank(sequence: u64, entry: &OutboxEntry) -> SendRank {
    (entry.class, 9 - entry.priority.min(9), sequence)
}

impl OutboxIndex {
    /// Adds a message found in the stream, unless it is known. `fresh`: whether the link is up.
    pub(crate) fn add(&mut self, sequence: u64, entry: OutboxEntry, fresh: bool) {
        if self.entries.contains_key(&sequence) {
            return;
        }
        let lane = if fresh { &mut self.fresh } else { &mut self.backlog };
        lane.insert(rank(sequence, &entry));
        self.deadlines.extend(entry.deadline_at_ms.map(|at_ms| (at_ms, sequence)));
        self.waiting_bytes = self.waiting_bytes.saturating_add(entry.bytes);
        self.entries.insert(sequence, entry);
    }

    /// Records that the link went down: everything that waits becomes backlog.
    pub(crate) fn link_lost(&mut self) {
        self.backlog.append(&mut self.fresh);
    }

    /// The next message to send, if `may` allows it. It counts as being sent until
    /// [`OutboxIndex::remove_message`] or [`OutboxIndex::requeue_message`]. Never skips a message that is too large for
    /// now: it would starve.
    pub(crate) fn next(
        &mut self,
        order: BacklogOrder,
        mut may: impl FnMut(&OutboxEntry) -> bool,
    ) -> Option<(u64, OutboxEntry)> {
        let fresh = self.fresh.iter().find(|rank| Some(rank.2) != self.failed).copied();
        let backlog = head(&self.backlog, order, self.failed);
        let (fresh, backlog) = match (fresh, backlog) {
            (None, None) => (None, head(&self.backlog, order, None)),
            some => some,
        };
        let turn_of_backlog = self.turns % BACKLOG_TURN == BACKLOG_TURN - 1;
        let (rank, from_backlog) = match (fresh, backlog) {
            // Only messages of equal class and priority take turns.
            (Some(fresh), Some(backlog)) => match (fresh.0, fresh.1).cmp(&(backlog.0, backlog.1)) {
                std::cmp::Ordering::Less => (fresh, false),
                std::cmp::Ordering::Greater => (backlog, true),
                std::cmp::Ordering::Equal if turn_of_backlog => (backlog, true),
                std::cmp::Ordering::Equal => (fresh, false),
            },
            (Some(fresh), None) => (fresh, false),
            (None, Some(backlog)) => (backlog, true),
            (None, None) => return None,
        };
        let entry = *self.entries.get(&rank.2)?;
        if !may(&entry) {
            return None;
        }
        self.turns += 1;
        let lane = if from_backlog { &mut self.backlog } else { &mut self.fresh };
        lane.remove(&rank);
        self.sending.insert(rank.2);
        Some((rank.2, entry))
    }

    /// Messages past their deadline that are not being sent; each is returned once.
    pub(crate) fn expired(&mut self, now_ms: u64) -> Vec<u64> {
        let mut expired = Vec::new();
        while let Some(&(at_ms, sequence)) = self.deadlines.first().filter(|(at_ms, _)| *at_ms <= now_ms) {
            self.deadlines.remove(&(at_ms, sequence));
            if self.sending.contains(&sequence) {
                continue;
            }
            if let Some(entry) = self.entries.get(&sequence) {
                let rank = rank(sequence, entry);
                self.fresh.remove(&rank);
                self.backlog.remove(&rank);
                self.sending.insert(sequence);
                expired.push(sequence);
            }
        }
        expired
    }

    /// Removes a message that left the stream.
    pub(crate) fn remove_message(&mut self, sequence: u64) {
        self.sending.remove(&sequence);
        if let Some(entry) = self.entries.remove(&sequence) {
            self.waiting_bytes = self.waiting_bytes.saturating_sub(entry.bytes);
            let rank = rank(sequence, &entry);
            self.fresh.remove(&rank);
            self.backlog.remove(&rank);
            if let Some(at_ms) = entry.deadline_at_ms {
                self.deadlines.remove(&(at_ms, sequence));
            }
        }
    }

    /// Puts a message that could not be sent into the backlog.
    pub(crate) fn requeue_message(&mut self, sequence: u64) {
        if self.sending.remove(&sequence)
            && let Some(entry) = self.entries.get(&sequence)
        {
            self.backlog.insert(rank(sequence, entry));
            self.deadlines.extend(entry.deadline_at_ms.map(|at_ms| (at_ms, sequence)));
        }
    }

    /// Puts a message back whose sending failed for a reason other than the link: it goes after the others.
    pub(crate) fn retry_message(&mut self, sequence: u64) {
        self.requeue_message(sequence);
        self.failed = Some(sequence);
    }

    /// The earliest deadline, milliseconds since the epoch.
    pub(crate) fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines.first().map(|(at_ms, _)| *at_ms)
    }

    /// Whether a message waits or is being sent.
    pub(crate) fn contains(&self, sequence: u64) -> bool {
        self.entries.contains_key(&sequence)
    }

    /// Number of messages that wait or are being sent, and their bytes.
    pub(crate) fn backlog(&self) -> (u64, u64) {
        (self.entries.len() as u64, self.waiting_bytes)
    }
}

/// The first of a lane in this order, except one message: best class and priority, then the oldest or newest.
fn head(lane: &BTreeSet<SendRank>, order: BacklogOrder, except: Option<u64>) -> Option<SendRank> {
    let mut others = lane.iter().filter(|rank| Some(rank.2) != except);
    let &(class, priority, oldest) = others.next()?;
    let sequence = match order {
        BacklogOrder::OldestFirst => oldest,
        BacklogOrder::NewestFirst => {
            let newest = lane.range(..=(class, priority, u64::MAX)).rev();
            newest.filter(|rank| Some(rank.2) != except).map(|rank| rank.2).next()?
        }
    };
    Some((class, priority, sequence))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(class: UrgencyClass, priority: u8) -> OutboxEntry {
        OutboxEntry { class, priority, bytes: 100, deadline_at_ms: None }
    }

    fn drain(outbox: &mut OutboxIndex, order: BacklogOrder) -> Vec<u64> {
        std::iter::from_fn(|| outbox.next(order, |_| true).map(|(sequence, _)| sequence)).collect()
    }

    #[test]
    fn verdicts_go_before_bulk_and_urgent_ones_first() {
        let mut outbox = OutboxIndex::default();
        outbox.add(1, entry(UrgencyClass::Bulk, 9), true);
        outbox.add(2, entry(UrgencyClass::Verdict, 5), true);
        outbox.add(3, entry(UrgencyClass::Verdict, 7), true);
        outbox.add(4, entry(UrgencyClass::Verdict, 5), true);
        assert_eq!(drain(&mut outbox, BacklogOrder::OldestFirst), [3, 2, 4, 1]);
    }

    #[test]
    fn a_backlog_is_sent_in_the_configured_order() {
        for (order, expected) in [(BacklogOrder::OldestFirst, [1, 2, 3]), (BacklogOrder::NewestFirst, [3, 2, 1])] {
            let mut outbox = OutboxIndex::default();
            (1..=3).for_each(|sequence| outbox.add(sequence, entry(UrgencyClass::Verdict, 5), true));
            outbox.link_lost();
            assert_eq!(drain(&mut outbox, order), expected);
        }
    }

    #[test]
    fn neither_backlog_nor_fresh_work_starves() {
        let mut outbox = OutboxIndex::default();
        (1..=40).for_each(|sequence| outbox.add(sequence, entry(UrgencyClass::Verdict, 5), false));
        (41..=80).for_each(|sequence| outbox.add(sequence, entry(UrgencyClass::Verdict, 5), true));
        let first: Vec<u64> = drain(&mut outbox, BacklogOrder::OldestFirst).into_iter().take(40).collect();
        assert_eq!(first.iter().filter(|sequence| **sequence <= 40).count(), 10, "{first:?}");
    }

    #[test]
    fn the_last_failure_is_not_retried_first_while_others_wait() {
        for order in [BacklogOrder::OldestFirst, BacklogOrder::NewestFirst] {
            let mut outbox = OutboxIndex::default();
            outbox.add(1, entry(UrgencyClass::Verdict, 9), true);
            outbox.add(2, entry(UrgencyClass::Verdict, 5), true);
            assert_eq!(outbox.next(order, |_| true).unwrap().0, 1);
            outbox.retry_message(1);
            assert_eq!(outbox.next(order, |_| true).unwrap().0, 2, "{order:?}");
            assert_eq!(outbox.next(order, |_| true).unwrap().0, 1, "alone it is retried");
        }
    }

    #[test]
    fn an_expired_message_is_reported_once_and_not_sent() {
        let mut outbox = OutboxIndex::default();
        let short = OutboxEntry { deadline_at_ms: Some(50), ..entry(UrgencyClass::Verdict, 5) };
        outbox.add(1, short, true);
        outbox.add(2, entry(UrgencyClass::Verdict, 5), true);
        assert_eq!(outbox.next_deadline_ms(), Some(50));
        assert!(outbox.expired(49).is_empty());
        assert_eq!(outbox.expired(50), [1]);
        assert!(outbox.expired(51).is_empty());
        assert_eq!(drain(&mut outbox, BacklogOrder::OldestFirst), [2]);
        outbox.remove_message(1);
        outbox.remove_message(2);
        assert_eq!(outbox.backlog(), (0, 0));
    }

    #[test]
    fn a_message_that_expires_while_being_sent_is_reported_when_it_returns() {
        let mut outbox = OutboxIndex::default();
        outbox.add(1, OutboxEntry { deadline_at_ms: Some(50), ..entry(UrgencyClass::Verdict, 5) }, true);
        assert!(outbox.next(BacklogOrder::OldestFirst, |_| true).is_some());
        assert!(outbox.expired(60).is_empty());
        outbox.requeue_message(1);
        assert_eq!(outbox.expired(60), [1]);
    }

    proptest! {
        #[test]
        fn every_message_is_sent_once_whatever_returns(
            entries in prop::collection::vec((0_u8..10, prop::bool::ANY, prop::bool::ANY, prop::bool::ANY), 0..60),
            newest in prop::bool::ANY,
        ) {
            let order = if newest { BacklogOrder::NewestFirst } else { BacklogOrder::OldestFirst };
            let mut outbox = OutboxIndex::default();
            for (number, (priority, bulk, fresh, _)) in entries.iter().enumerate() {
                let class = if *bulk { UrgencyClass::Bulk } else { UrgencyClass::Verdict };
                outbox.add(number as u64, entry(class, *priority), *fresh);
            }
            for sequence in drain(&mut outbox, order) {
                if entries[sequence as usize].3 { outbox.requeue_message(sequence) } else { outbox.remove_message(sequence) }
            }
            let again = drain(&mut outbox, order);
            let expected = entries.iter().filter(|entry| entry.3).count();
            prop_assert_eq!(again.len(), expected);
            again.iter().for_each(|sequence| outbox.remove_message(*sequence));
            prop_assert_eq!(outbox.backlog(), (0, 0));
            prop_assert_eq!(outbox.next_deadline_ms(), None);
        }
    }
}

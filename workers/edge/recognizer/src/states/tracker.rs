//! Which of its states a camera shows, with hysteresis. Pure.
//!
//! The state changes when so many sure answers in a row say the same other state. Answers that are not sure, and labels
//! that are no states, say nothing: they neither change the state nor end a row. Images count in the order of the stream,
//! so one that is answered after a later one changes nothing.

use schemas::RegionState;

/// A state that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownState {
    /// The label that names it.
    pub state: String,
    /// Capture time of the first picture of the row that brought it, milliseconds since the epoch.
    pub since_ms: u64,
    /// Sequence of that picture in the stream IMAGES.
    pub image_sequence: u64,
}

impl From<RegionState> for KnownState {
    fn from(stored: RegionState) -> Self {
        Self { state: stored.state, since_ms: stored.since_ms, image_sequence: stored.image_sequence }
    }
}

/// A sure answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SeenLabel<'a> {
    /// Its label.
    pub label: &'a str,
    /// Sequence of its image in the stream IMAGES.
    pub image_sequence: u64,
    /// When the picture was taken, milliseconds since the epoch.
    pub taken_at_ms: u64,
}

/// What is known of a camera.
#[derive(Debug, Clone, Default)]
pub(crate) struct StateTracker {
    current: Option<KnownState>,
    /// Answers in a row that say another state: its first picture, and how many.
    row: Option<(KnownState, u32)>,
    /// The newest image that counted.
    newest_sequence: u64,
}

impl StateTracker {
    /// A tracker that goes on from a stored state.
    pub(crate) fn from_stored(stored: Option<KnownState>) -> Self {
        let newest_sequence = stored.as_ref().map_or(0, |stored| stored.image_sequence);
        Self { current: stored, row: None, newest_sequence }
    }

    /// The state, if it is known and one of these.
    pub(crate) fn current(&self, states: &[String]) -> Option<&KnownState> {
        self.current.as_ref().filter(|current| states.contains(&current.state))
    }

    /// Counts a sure answer; true if the state is another one now. `changes_after`: so many in a row change it.
    pub(crate) fn observe(&mut self, seen: SeenLabel<'_>, states: &[String], changes_after: u32) -> bool {
        if seen.image_sequence <= self.newest_sequence || !states.iter().any(|state| state == seen.label) {
            return false;
        }
        self.newest_sequence = seen.image_sequence;
        if self.current(states).is_some_and(|current| current.state == seen.label) {
            self.row = None;
            return false;
        }
        let (first, count) = match self.row.take().filter(|(first, _)| first.state == seen.label) {
            Some((first, count)) => (first, count + 1),
            None => {
                let SeenLabel { label, image_sequence, taken_at_ms } = seen;
                (KnownState { state: label.to_owned(), since_ms: taken_at_ms, image_sequence }, 1)
            }
        };
        if count < changes_after {
            self.row = Some((first, count));
            return false;
        }
        self.current = Some(first);
        true
    }

    /// Takes over what another recognizer of the site found, if it is newer.
    pub(crate) fn adopt(&mut self, other: KnownState) {
        if self.current.as_ref().is_some_and(|current| current.image_sequence >= other.image_sequence) {
            return;
        }
        self.row =
            self.row.take().filter(|(row, _)| row.image_sequence > other.image_sequence && row.state != other.state);
        self.newest_sequence = self.newest_sequence.max(other.image_sequence);
        self.current = Some(other);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn states() -> Vec<String> {
        ["open", "closed"].map(str::to_owned).to_vec()
    }

    fn see(tracker: &mut StateTracker, image_sequence: u64, label: &str) -> bool {
        tracker.observe(SeenLabel { label, image_sequence, taken_at_ms: 1000 * image_sequence }, &states(), 2)
    }

    fn current(tracker: &StateTracker) -> Option<(&str, u64)> {
        tracker.current(&states()).map(|known| (known.state.as_str(), known.since_ms))
    }

    fn known(state: &str, image_sequence: u64) -> KnownState {
        KnownState { state: state.into(), since_ms: 1000 * image_sequence, image_sequence }
    }

    #[test]
    fn two_answers_in_a_row_change_the_state_since_the_first_of_them() {
        let mut tracker = StateTracker::default();
        assert!(!see(&mut tracker, 1, "open") && current(&tracker).is_none(), "one says nothing");
        assert!(see(&mut tracker, 2, "open"));
        assert_eq!(current(&tracker), Some(("open", 1000)));
        assert!(!see(&mut tracker, 3, "closed") && !see(&mut tracker, 4, "open"), "it flickers");
        assert!(!see(&mut tracker, 5, "closed") && !see(&mut tracker, 6, "a cat"), "no state ends no row");
        assert_eq!(current(&tracker), Some(("open", 1000)));
        assert!(see(&mut tracker, 7, "closed"));
        assert_eq!(current(&tracker), Some(("closed", 5000)));
    }

    #[test]
    fn an_older_image_that_is_answered_late_changes_nothing() {
        let mut tracker = StateTracker::from_stored(Some(known("open", 5)));
        assert!(!see(&mut tracker, 3, "closed") && !see(&mut tracker, 4, "closed"), "from before the stored state");
        assert!(!see(&mut tracker, 10, "closed"));
        assert!(!see(&mut tracker, 9, "closed") && !see(&mut tracker, 10, "closed"), "not in a row");
        assert!(!see(&mut tracker, 8, "open"), "does not end the row");
        assert!(see(&mut tracker, 11, "closed"));
        assert_eq!(current(&tracker), Some(("closed", 10_000)));
    }

    #[test]
    fn a_newer_state_of_another_recognizer_is_taken_over_and_an_older_one_is_not() {
        let mut tracker = StateTracker::from_stored(Some(known("open", 5)));
        tracker.adopt(known("closed", 4));
        assert_eq!(current(&tracker), Some(("open", 5000)));
        see(&mut tracker, 6, "closed");
        tracker.adopt(known("closed", 7));
        assert_eq!(current(&tracker), Some(("closed", 7000)));
        assert!(!see(&mut tracker, 8, "open") && see(&mut tracker, 9, "open"));
        tracker.adopt(known("closed", 7));
        assert_eq!(current(&tracker), Some(("open", 8000)), "its own message once more");
    }

    #[test]
    fn with_other_states_the_old_one_is_unknown() {
        let mut tracker = StateTracker::from_stored(Some(known("open", 5)));
        let others = ["auf", "zu"].map(str::to_owned).to_vec();
        assert_eq!(tracker.current(&others), None);
        let seen = |image_sequence| SeenLabel { label: "zu", image_sequence, taken_at_ms: image_sequence };
        assert!(!tracker.observe(seen(6), &others, 2) && tracker.observe(seen(7), &others, 2));
        assert_eq!(tracker.current(&others).map(|known| known.since_ms), Some(6));
    }

    proptest! {
        #[test]
        fn a_state_changes_only_after_so_many_in_a_row_however_answers_arrive(
            labels in prop::collection::vec(0usize..3, 1..60), moves in prop::collection::vec(0usize..4, 60),
            changes_after in 1u32..5,
        ) {
            // Answers arrive a little out of order.
            let mut order: Vec<usize> = (0..labels.len()).collect();
            for (at, by) in moves.iter().enumerate().take(order.len()) {
                let to = (at + by).min(order.len() - 1);
                order.swap(at, to);
            }
            let (mut tracker, mut newest, mut row) = (StateTracker::default(), None, Vec::new());
            let words = ["open", "closed", "a cat"];
            for at in order {
                let before = tracker.current(&states()).cloned();
                let seen = SeenLabel { label: words[labels[at]], image_sequence: 1 + at as u64, taken_at_ms: at as u64 };
                let changed = tracker.observe(seen, &states(), changes_after);
                let after = tracker.current(&states()).cloned();
                prop_assert_eq!(changed, before != after);
                if labels[at] == 2 || newest.is_some_and(|newest| at <= newest) {
                    prop_assert!(!changed, "no state, or late");
                    continue;
                }
                newest = Some(at);
                if row.last().is_some_and(|last| labels[*last] != labels[at]) {
                    row.clear();
                }
                row.push(at);
                if changed {
                    let first = row[row.len() - changes_after as usize];
                    prop_assert_eq!(after.unwrap().since_ms, first as u64);
                }
            }
        }
    }
}

//! Counts what became of the releases a worker ran, in time slots; reports repeat a slot until it is over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use schemas::{Agreement, AgreementCount, ReleaseCounts, ReleaseId, SiteName};

/// Most slots kept while they cannot be reported: two days of ten-minute slots.
const MOST_SLOTS: usize = 288;

/// Counts of one worker; clones share them.
#[derive(Debug, Clone)]
pub struct ReleaseCounter {
    slots: Arc<Mutex<BTreeMap<u64, CounterSlot>>>,
    slot_length_ms: u64,
}

#[derive(Debug, Clone, Default)]
struct CounterSlot {
    counts: BTreeMap<ReleaseId, ReleaseCounts>,
    agreements: BTreeMap<(SiteName, ReleaseId), Agreement>,
    /// Whether something was counted since it was last reported.
    fresh: bool,
}

/// Counts of one time slot so far.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotCounts {
    /// Start of the slot, milliseconds since the epoch.
    pub slot_ms: u64,
    /// Counts of each release.
    pub counts: Vec<ReleaseCounts>,
    /// Agreement with verdicts, for each site and release.
    pub agreements: Vec<Agreement>,
}

impl ReleaseCounter {
    /// A counter with slots of this many seconds, at least 1.
    pub fn new(slot_s: u32) -> Self {
        Self { slots: Arc::default(), slot_length_ms: u64::from(slot_s.max(1)) * 1000 }
    }

    /// Length of a slot in milliseconds.
    pub fn slot_length_ms(&self) -> u64 {
        self.slot_length_ms
    }

    fn slot_of(&self, at_ms: u64) -> u64 {
        at_ms / self.slot_length_ms * self.slot_length_ms
    }

    /// Counts a recognized image: whether the gate found it doubtful, the confidence (0 to 1), and its cost in
    /// milliseconds.
    pub fn count_image(&self, release: &ReleaseId, doubtful: bool, confidence: f32, cost_ms: f64, now_ms: u64) {
        self.count(release, now_ms, |counts| {
            counts.images += 1;
            counts.doubtful += u64::from(doubtful);
            counts.confidence.add_value(f64::from(confidence));
            // A microsecond clock may measure zero.
            counts.ln_cost_ms.add_value(cost_ms.max(1e-3).ln());
        });
    }

    /// Counts a valid image that could not be recognized.
    pub fn count_failure(&self, release: &ReleaseId, now_ms: u64) {
        self.count(release, now_ms, |counts| counts.faults += 1);
    }

    /// Counts a verdict on a release's answer at a site. `sure`: the site did not find it doubtful.
    pub fn count_verdict(&self, site: &SiteName, release: &ReleaseId, sure: bool, agreed: bool, now_ms: u64) {
        self.change(now_ms, |slot| {
            let agreement = slot.agreements.entry((site.clone(), release.clone())).or_insert_with(|| Agreement {
                site: site.clone(),
                release: release.clone(),
                doubtful: AgreementCount::default(),
                sampled: AgreementCount::default(),
            });
            let of = if sure { &mut agreement.sampled } else { &mut agreement.doubtful };
            of.asked += 1;
            of.agreed += u64::from(agreed);
        });
    }

    fn count(&self, release: &ReleaseId, now_ms: u64, act: impl FnOnce(&mut ReleaseCounts)) {
        self.change(now_ms, |slot| {
            if let Some(counts) = slot.counts.get_mut(release) {
                return act(counts);
            }
            act(slot.counts.entry(release.clone()).or_insert_with(|| ReleaseCounts::for_release(release.clone())));
        });
    }

    fn change(&self, now_ms: u64, act: impl FnOnce(&mut CounterSlot)) {
        let mut slots = self.slots();
        let slot = slots.entry(self.slot_of(now_ms)).or_default();
        act(slot);
        slot.fresh = true;
        if slots.len() > MOST_SLOTS {
            slots.pop_first();
        }
    }

    /// Takes the slots with new counts, oldest first. One that could not be reported is to be put back with
    /// [`ReleaseCounter::restore_counts`].
    pub fn take_counts(&self) -> Vec<SlotCounts> {
        let mut slots = self.slots();
        let counts = slots.iter_mut().filter_map(|(at_ms, slot)| {
            std::mem::take(&mut slot.fresh).then(|| SlotCounts {
                slot_ms: *at_ms,
                counts: slot.counts.values().cloned().collect(),
                agreements: slot.agreements.values().cloned().collect(),
            })
        });
        let counts: Vec<SlotCounts> = counts.collect();
        // Finished slots that were reported are dropped.
        let current = slots.keys().next_back().copied().unwrap_or(0);
        slots.retain(|at_ms, _| *at_ms == current || counts.iter().any(|counts| counts.slot_ms == *at_ms));
        counts
    }

    /// Counts of the current slot, which may be empty.
    pub fn current_counts(&self, now_ms: u64) -> SlotCounts {
        let slot_ms = self.slot_of(now_ms);
        let slot = self.slots().get(&slot_ms).cloned().unwrap_or_default();
        SlotCounts {
            slot_ms,
            counts: slot.counts.into_values().collect(),
            agreements: slot.agreements.into_values().collect(),
        }
    }

    /// Marks a slot as not reported.
    pub fn restore_counts(&self, counts: &SlotCounts) {
        if let Some(slot) = self.slots().get_mut(&counts.slot_ms) {
            slot.fresh = true;
        }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, CounterSlot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> ReleaseId {
        ReleaseId::from_sha256([number; 32])
    }

    #[test]
    fn a_slot_is_reported_completely_whenever_it_changed() {
        let counter = ReleaseCounter::new(600);
        counter.count_image(&id(1), true, 0.5, 2.0, 10);
        counter.count_failure(&id(2), 10);
        let counts = counter.take_counts();
        assert_eq!((counts.len(), counts[0].slot_ms, counts[0].counts.len()), (1, 0, 2));
        assert_eq!(counter.take_counts(), []);
        counter.count_image(&id(1), false, 0.9, 2.0, 20);
        let counts = counter.take_counts();
        assert_eq!((counts[0].counts[0].images, counts[0].counts[0].doubtful), (2, 1));
        assert!((counts[0].counts[0].confidence.sum - 1.4).abs() < 1e-6);
        counter.restore_counts(&counts[0]);
        assert_eq!(counter.take_counts(), counts);
    }

    #[test]
    fn a_finished_slot_is_kept_until_it_is_reported() {
        let counter = ReleaseCounter::new(600);
        let site: SiteName = "reef".parse().unwrap();
        counter.count_verdict(&site, &id(1), false, true, 10);
        counter.count_verdict(&site, &id(1), true, false, 600_000 + 1);
        let counts = counter.take_counts();
        assert_eq!(counts.iter().map(|counts| counts.slot_ms).collect::<Vec<_>>(), [0, 600_000]);
        assert_eq!(counts[0].agreements[0].doubtful, AgreementCount { asked: 1, agreed: 1 });
        counter.restore_counts(&counts[0]);
        assert_eq!(counter.take_counts().len(), 1);
        assert_eq!(counter.take_counts().len(), 0);
        assert_eq!(counter.slots().len(), 1, "the current slot is kept");
    }
}

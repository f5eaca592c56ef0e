//! Which images have an outcome, as far as the stream of answers says. Pure.
//!
//! Every final answer names the sequence of its image, so the answers alone tell which images are without one: those
//! that nobody named. Kept as one number, below which all have an outcome, and the few above it.

use std::collections::{BTreeMap, BTreeSet};

/// Which images have an outcome.
#[derive(Debug, Default)]
pub struct OutcomeIndex {
    /// Every image up to this sequence has an outcome, is promised one, or is gone.
    floor: u64,
    /// Those above it that have one, or are promised one.
    named: BTreeSet<u64>,
    /// Images with a provisional answer and no final one, with its sequence in ANSWERS.
    promised: BTreeMap<u64, u64>,
}

impl OutcomeIndex {
    /// Knows nothing of images after `floor`; those before are beyond judging.
    pub fn after(floor: u64) -> Self {
        Self { floor, ..Self::default() }
    }

    /// A final answer.
    pub fn finish(&mut self, image: u64) {
        self.promised.remove(&image);
        self.name(image);
    }

    /// A provisional answer, under a sequence of its own.
    pub fn promise(&mut self, image: u64, answer: u64) {
        // A late one, of an image that has its outcome already, promises nothing.
        if image > self.floor && !self.named.contains(&image) {
            self.promised.insert(image, answer);
            self.name(image);
        }
    }

    /// The image is gone: nothing is owed any more.
    pub fn forget(&mut self, image: u64) {
        self.finish(image);
    }

    /// Images before this sequence are gone.
    pub fn forget_before(&mut self, first: u64) {
        self.floor = self.floor.max(first.saturating_sub(1));
        self.promised = self.promised.split_off(&first);
        self.named = self.named.split_off(&first);
        self.settle();
    }

    fn name(&mut self, image: u64) {
        if image > self.floor {
            self.named.insert(image);
            self.settle();
        }
    }

    fn settle(&mut self) {
        while self.named.remove(&(self.floor + 1)) {
            self.floor += 1;
        }
    }

    /// Images up to `last` that nobody named, oldest first.
    pub fn unnamed(&self, last: u64) -> impl Iterator<Item = u64> + '_ {
        let mut named = self.named.iter().copied().peekable();
        (self.floor + 1..=last).filter(move |image| {
            let is_named = named.peek() == Some(image);
            if is_named {
                named.next();
            }
            !is_named
        })
    }

    /// Images whose provisional answer lies at or before a sequence of ANSWERS, and that have no final one.
    pub fn promised_until(&self, answer: u64) -> impl Iterator<Item = u64> + '_ {
        self.promised.iter().filter(move |(_, promise)| **promise <= answer).map(|(image, _)| *image)
    }

    /// Images up to `last` without a final answer.
    pub fn open(&self, last: u64) -> u64 {
        let named = self.named.range(..=last).count() as u64;
        last.saturating_sub(self.floor).saturating_sub(named) + self.provisional()
    }

    /// Images with a provisional answer alone.
    pub fn provisional(&self) -> u64 {
        self.promised.len() as u64
    }

    /// The oldest image up to `last` without a final answer.
    pub fn oldest(&self, last: u64) -> Option<u64> {
        let promised = self.promised.keys().next().copied();
        self.unnamed(last).next().into_iter().chain(promised).min()
    }
}

/// Images that were acknowledged although they have no outcome. `unnamed`: delivered images that nobody named, oldest
/// first; `floor`: all up to it are acknowledged; `unacked`: how many delivered ones are not. Where more are without
/// an outcome than are still in somebody's hands, some above the floor were acknowledged, too, and nobody
/// can tell which: all of them are named.
pub fn outrun(unnamed: &[u64], floor: u64, unacked: u64) -> Vec<u64> {
    let below = unnamed.partition_point(|image| *image <= floor);
    let above = unnamed.len() - below;
    let named = if above as u64 > unacked { unnamed.len() } else { below };
    unnamed.iter().take(named).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_image_that_nobody_named_is_found_and_one_that_is_promised_is_owed() {
        let mut index = OutcomeIndex::after(0);
        for image in [1, 2, 4, 6] {
            index.finish(image);
        }
        index.promise(5, 17);
        assert_eq!(index.unnamed(6).collect::<Vec<_>>(), [3]);
        assert_eq!((index.open(6), index.oldest(6), index.provisional()), (2, Some(3), 1));
        index.finish(3);
        assert_eq!((index.open(6), index.oldest(6)), (1, Some(5)));
        assert_eq!(index.promised_until(16).count(), 0);
        assert_eq!(index.promised_until(17).collect::<Vec<_>>(), [5]);
        index.finish(5);
        assert_eq!((index.open(6), index.oldest(6), index.floor), (0, None, 6));
        index.promise(5, 18);
        assert_eq!(index.open(6), 0, "a promise that comes late is none");
    }

    #[test]
    fn what_was_acknowledged_at_another_site_is_found_above_the_floor_too() {
        // Three are without an outcome, and only two are in hand.
        assert_eq!(outrun(&[3, 8, 9], 2, 2), [3, 8, 9]);
        assert_eq!(outrun(&[3, 8, 9], 3, 2), [3]);
        assert_eq!(outrun(&[8, 9], 3, 2), [0; 0]);
    }

    proptest! {
        #[test]
        fn the_index_says_what_a_plain_list_says(
            done in proptest::collection::vec(1u64..60, 0..80),
            promised in proptest::collection::vec(1u64..60, 0..20),
            first in 1u64..40,
        ) {
            let mut index = OutcomeIndex::after(0);
            for (number, image) in promised.iter().enumerate() {
                index.promise(*image, number as u64);
            }
            done.iter().for_each(|image| index.finish(*image));
            index.forget_before(first);
            let open: Vec<u64> = (first..60).filter(|image| !done.contains(image)).collect();
            prop_assert_eq!(index.open(59), open.len() as u64);
            prop_assert_eq!(index.oldest(59), open.first().copied());
            let unnamed: Vec<u64> = open.into_iter().filter(|image| !promised.contains(image)).collect();
            prop_assert_eq!(index.unnamed(59).collect::<Vec<_>>(), unnamed);
        }
    }
}

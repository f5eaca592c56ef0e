//! Which images have an outcome, according to the stream of answers. Pure.
//!
//! Every final answer names the sequence of its image, so the images without an outcome are those that no answer
//! names. Kept as one number, up to which all images are settled, and the few settled ones above it.

use std::collections::{BTreeMap, BTreeSet};

/// Which images have an outcome.
#[derive(Debug, Default)]
pub struct OutcomeIndex {
    /// Every image up to this sequence has an answer, final or provisional, or is gone.
    floor: u64,
    /// Images above it that have an answer.
    named: BTreeSet<u64>,
    /// Images with a provisional answer but no final one, with its sequence in ANSWERS.
    provisional: BTreeMap<u64, u64>,
}

impl OutcomeIndex {
    /// An index for images after `floor`; those before are not judged.
    pub fn after(floor: u64) -> Self {
        Self { floor, ..Self::default() }
    }

    /// Adds a final answer to an image.
    pub fn finish(&mut self, image: u64) {
        self.provisional.remove(&image);
        self.name(image);
    }

    /// Adds a provisional answer to an image; `answer` is its sequence.
    pub fn add_provisional(&mut self, image: u64, answer: u64) {
        // A late one, after the outcome, changes nothing.
        if image > self.floor && !self.named.contains(&image) {
            self.provisional.insert(image, answer);
            self.name(image);
        }
    }

    /// Removes an image that is gone and needs no outcome.
    pub fn forget(&mut self, image: u64) {
        self.finish(image);
    }

    /// Removes all images before this sequence.
    pub fn forget_before(&mut self, first: u64) {
        self.floor = self.floor.max(first.saturating_sub(1));
        self.provisional = self.provisional.split_off(&first);
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

    /// Images up to `last` without any answer, oldest first.
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

    /// Images without a final answer whose provisional one is at or before a sequence of ANSWERS.
    pub fn provisional_until(&self, answer: u64) -> impl Iterator<Item = u64> + '_ {
        self.provisional.iter().filter(move |(_, sequence)| **sequence <= answer).map(|(image, _)| *image)
    }

    /// Number of images up to `last` without a final answer.
    pub fn open(&self, last: u64) -> u64 {
        let named = self.named.range(..=last).count() as u64;
        last.saturating_sub(self.floor).saturating_sub(named) + self.provisional()
    }

    /// Number of images with only a provisional answer.
    pub fn provisional(&self) -> u64 {
        self.provisional.len() as u64
    }

    /// The oldest image up to `last` without a final answer.
    pub fn oldest(&self, last: u64) -> Option<u64> {
        let provisional = self.provisional.keys().next().copied();
        self.unnamed(last).next().into_iter().chain(provisional).min()
    }
}

/// Images that were acknowledged although they have no answer. `unnamed`: delivered images without an answer, oldest
/// first; `floor`: all up to it are acknowledged; `unacked`: how many delivered ones are not. If more images lack an
/// answer than are still in flight, some above the floor were acknowledged too, and since
/// nobody can tell which, all of them are returned.
pub(crate) fn acknowledged_without_answer(unnamed: &[u64], floor: u64, unacked: u64) -> Vec<u64> {
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
    fn an_image_without_answer_is_found_and_a_provisional_one_counts_as_open() {
        let mut index = OutcomeIndex::after(0);
        for image in [1, 2, 4, 6] {
            index.finish(image);
        }
        index.add_provisional(5, 17);
        assert_eq!(index.unnamed(6).collect::<Vec<_>>(), [3]);
        assert_eq!((index.open(6), index.oldest(6), index.provisional()), (2, Some(3), 1));
        index.finish(3);
        assert_eq!((index.open(6), index.oldest(6)), (1, Some(5)));
        assert_eq!(index.provisional_until(16).count(), 0);
        assert_eq!(index.provisional_until(17).collect::<Vec<_>>(), [5]);
        index.finish(5);
        assert_eq!((index.open(6), index.oldest(6), index.floor), (0, None, 6));
        index.add_provisional(5, 18);
        assert_eq!(index.open(6), 0, "a late provisional answer changes nothing");
    }

    #[test]
    fn wrongly_acknowledged_images_are_found_above_the_floor_too() {
        // Three have no answer, but only two are in flight.
        assert_eq!(acknowledged_without_answer(&[3, 8, 9], 2, 2), [3, 8, 9]);
        assert_eq!(acknowledged_without_answer(&[3, 8, 9], 3, 2), [3]);
        assert_eq!(acknowledged_without_answer(&[8, 9], 3, 2), [0; 0]);
    }

    proptest! {
        #[test]
        fn the_index_agrees_with_a_plain_list(
            done in proptest::collection::vec(1u64..60, 0..80),
            provisional in proptest::collection::vec(1u64..60, 0..20),
            first in 1u64..40,
        ) {
            let mut index = OutcomeIndex::after(0);
            for (number, image) in provisional.iter().enumerate() {
                index.add_provisional(*image, number as u64);
            }
            done.iter().for_each(|image| index.finish(*image));
            index.forget_before(first);
            let open: Vec<u64> = (first..60).filter(|image| !done.contains(image)).collect();
            prop_assert_eq!(index.open(59), open.len() as u64);
            prop_assert_eq!(index.oldest(59), open.first().copied());
            let unnamed: Vec<u64> = open.into_iter().filter(|image| !provisional.contains(image)).collect();
            prop_assert_eq!(index.unnamed(59).collect::<Vec<_>>(), unnamed);
        }
    }
}

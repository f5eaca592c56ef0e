//! Pictures in the order they are learned from, decoded, changed at random and put together into batches, one
//! ahead of the step that takes them. Memory: two batches.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use schemas::model::InputDescription;
use vision::augment::{Change, changed};
use vision::{DecodeLimits, Pixels, decode, tensor};

use crate::examples::Example;
use crate::settings::AugmentSettings;

/// A batch of pictures.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The model's input, images times its length; zeros where there is no image.
    pub images: Vec<f32>,
    /// What each shows; `None` where there is no image.
    pub classes: Vec<Option<usize>>,
    /// Pictures that could not be used, each with the reason.
    pub unreadable: Vec<String>,
}

/// In which order examples are seen in an epoch: all of them once, shuffled; or, balanced, as many again, every class
/// equally often and every picture of a class before one of them comes again. Pure.
pub fn order(classes: &[usize], balanced: bool, random: &mut StdRng) -> Vec<usize> {
    let mut all: Vec<usize> = (0..classes.len()).collect();
    all.shuffle(random);
    if !balanced {
        return all;
    }
    let most = classes.iter().max().map_or(0, |most| most + 1);
    let mut of_class: Vec<Vec<usize>> = vec![Vec::new(); most];
    all.iter().for_each(|place| of_class[classes[*place]].push(*place));
    of_class.retain(|places| !places.is_empty());
    let rounds = classes.len().div_ceil(of_class.len().max(1));
    let mut ordered = Vec::with_capacity(rounds * of_class.len());
    for round in 0..rounds {
        let mut one_each: Vec<usize> = of_class.iter().map(|places| places[round % places.len()]).collect();
        one_each.shuffle(random);
        ordered.extend(one_each);
    }
    ordered.truncate(classes.len());
    ordered
}

/// What a picture is changed by. Pure.
fn change(augment: &AugmentSettings, random: &mut StdRng) -> Change {
    let mut within = |most: f32| if most > 0.0 { random.random_range(-most..=most) } else { 0.0 };
    let (right, down) = (within(augment.shift_ratio), within(augment.shift_ratio));
    let turn_degrees = within(augment.turn_degrees);
    let brightness_ratio = within(augment.brightness_ratio);
    let zoom_ratio = within(augment.zoom_ratio).abs();
    let mirror = augment.mirror && random.random_range(0..2) == 1;
    Change { mirror, right_ratio: right, down_ratio: down, zoom_ratio, turn_degrees, brightness_ratio }
}

/// What batches are made by.
pub struct Making<'a> {
    /// How pictures become the model's input.
    pub input: &'a InputDescription,
    /// Images in a batch.
    pub size: usize,
    /// How pictures are changed; absent: not.
    pub augment: Option<AugmentSettings>,
    /// Of all chance in it.
    pub seed: u64,
}

impl Making<'_> {
    /// Makes batches of examples while `take` takes them; it ends early when `take` fails.
    pub fn run<E: Send>(&self, examples: &[&Example], mut take: impl FnMut(Batch) -> Result<(), E>) -> Result<(), E> {
        let (give, given): (SyncSender<Batch>, Receiver<Batch>) = sync_channel(1);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| self.make(examples, &give_all(give), &stop));
            for batch in given {
                if let Err(error) = take(batch) {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
            Ok(())
        })
    }

    fn make(&self, examples: &[&Example], give: &dyn Fn(Batch) -> bool, stop: &AtomicBool) {
        let length = tensor::len(self.input);
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut scratch = tensor::Scratch::default();
        for part in examples.chunks(self.size) {
            let mut batch =
                Batch { images: vec![0.0; length * self.size], classes: vec![None; self.size], unreadable: Vec::new() };
            for (place, example) in part.iter().enumerate() {
                let change = self.augment.map(|augment| change(&augment, &mut random));
                let out = &mut batch.images[place * length..(place + 1) * length];
                match self.picture(example, change, &mut scratch, out) {
                    Ok(()) => batch.classes[place] = Some(example.class),
                    Err(why) => {
                        out.fill(0.0);
                        batch.unreadable.push(format!("{}: {why}", example.path.display()));
                    }
                }
            }
            if stop.load(Ordering::Relaxed) || !give(batch) {
                return;
            }
        }
    }

    fn picture(
        &self,
        example: &Example,
        change: Option<Change>,
        scratch: &mut tensor::Scratch,
        out: &mut [f32],
    ) -> Result<(), String> {
        let bytes = std::fs::read(&example.path).map_err(|error| error.to_string())?;
        let pixels = decode(&bytes, &DecodeLimits::default()).map_err(|error| error.to_string())?;
        let pixels: Pixels = match change {
            Some(change) if change != Change::default() => changed(&pixels, &change),
            _ => pixels,
        };
        tensor::write(&pixels, self.input, scratch, out).map_err(|error| error.to_string())
    }
}

/// Gives a batch away; false when nobody takes any more.
fn give_all(give: SyncSender<Batch>) -> impl Fn(Batch) -> bool {
    move |batch| give.send(batch).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_example_is_seen_once(classes in prop::collection::vec(0_usize..5, 1..80), seed in any::<u64>()) {
            let mut seen = order(&classes, false, &mut StdRng::seed_from_u64(seed));
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..classes.len()).collect::<Vec<_>>());
        }

        #[test]
        fn balanced_every_class_is_seen_as_often(classes in prop::collection::vec(0_usize..5, 1..80), seed in any::<u64>()) {
            let seen = order(&classes, true, &mut StdRng::seed_from_u64(seed));
            prop_assert_eq!(seen.len(), classes.len());
            let counts = |class: usize| seen.iter().filter(|place| classes[**place] == class).count();
            let counts: Vec<usize> = (0..5).filter(|class| classes.contains(class)).map(counts).collect();
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
        }
    }
}

//! Decodes pictures in training order, augments them and groups them into batches, one batch ahead of the step that
//! uses them. Memory: two batches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use schemas::model::InputDescription;
use tokio_util::sync::CancellationToken;
use vision::augment::{PictureAugmentation, augment_picture};
use vision::{DecodeSettings, Pixels, decode, tensor};

use crate::examples::Example;
use crate::pace::{TrainingPace, thread_time};
use crate::settings::AugmentSettings;

/// A batch of pictures.
#[derive(Debug, Clone, Default)]
pub struct PictureBatch {
    /// Input of the model, all images in a row; zeros where there is no image.
    pub images: Vec<f32>,
    /// Class of each image; `None` where there is no image.
    pub classes: Vec<Option<usize>>,
    /// Pictures that could not be used, each with the reason.
    pub unreadable: Vec<String>,
    /// CPU time spent on making it.
    pub made_in: Duration,
}

/// The order of examples in an epoch: all of them once, shuffled; or, if balanced, equally many in total with every
/// class equally often, and every picture of a class before any repeats. Pure.
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

/// A random augmentation. Pure.
fn change(augment: &AugmentSettings, random: &mut StdRng) -> PictureAugmentation {
    let mut within = |most: f32| if most > 0.0 { random.random_range(-most..=most) } else { 0.0 };
    let (right, down) = (within(augment.shift_ratio), within(augment.shift_ratio));
    let turn_degrees = within(augment.turn_degrees);
    let brightness_ratio = within(augment.brightness_ratio);
    let zoom_ratio = within(augment.zoom_ratio).abs();
    let mirror = augment.mirror && random.random_range(0..2) == 1;
    PictureAugmentation { mirror, right_ratio: right, down_ratio: down, zoom_ratio, turn_degrees, brightness_ratio }
}

/// Source of the images of a batch.
#[derive(Debug, Clone, Copy)]
pub enum BatchSource<'a> {
    /// Decoded each time, with random augmentation if set.
    Pictures(Option<AugmentSettings>),
    /// Features computed once, one row for each of all examples.
    Features(&'a FrozenFeatures),
}

/// Features of every example from the frozen part of a model.
#[derive(Debug, Clone, Default)]
pub struct FrozenFeatures {
    /// Numbers per row.
    pub length: usize,
    /// One row for each example.
    pub values: Vec<f32>,
    /// Whether each picture could be used.
    pub usable: Vec<bool>,
}

/// How batches are made.
pub struct BatchConfig<'a> {
    /// How pictures become the model's input.
    pub input: &'a InputDescription,
    /// Images per batch.
    pub size: usize,
    /// All examples.
    pub examples: &'a [Example],
    /// Where their images come from.
    pub from: BatchSource<'a>,
    /// Seed of the augmentation.
    pub seed: u64,
    /// Rests between pieces of the work; absent: only whoever takes the batches rests.
    pub pacing: Option<BatchPacing<'a>>,
}

/// Rests after every few pictures, for a training that takes its share of a busy site in short pieces.
#[derive(Clone)]
pub struct BatchPacing<'a> {
    /// How long it rests.
    pub pace: Arc<TrainingPace>,
    /// Pictures of a piece.
    pub images: usize,
    /// Ends a rest.
    pub stop: &'a CancellationToken,
}

impl BatchConfig<'_> {
    /// Makes batches of the examples at these places, skipping the first `done`, while `take` accepts them; stops early
    /// when `take` fails. Randomness depends only on an example's place in the order, so a resumed training sees the
    /// same pictures.
    pub fn run<E: Send>(
        &self,
        places: &[usize],
        done: usize,
        mut take: impl FnMut(PictureBatch) -> Result<(), E>,
    ) -> Result<(), E> {
        let (give, given): (SyncSender<PictureBatch>, Receiver<PictureBatch>) = sync_channel(1);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| self.make(places, done, &give_all(give), &stop));
            for batch in given {
                if let Err(error) = take(batch) {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
            Ok(())
        })
    }

    fn make(&self, places: &[usize], done: usize, give: &dyn Fn(PictureBatch) -> bool, stop: &AtomicBool) {
        let length = match self.from {
            BatchSource::Pictures(_) => tensor::len(self.input),
            BatchSource::Features(features) => features.length,
        };
        let mut scratch = tensor::Scratch::default();
        let mut begun = thread_time();
        let mut meter = self.pacing.as_ref().map(|pacing| pacing.pace.meter());
        for (number, part) in places.chunks(self.size).enumerate().skip(done.div_ceil(self.size)) {
            let mut batch = PictureBatch {
                images: vec![0.0; length * self.size],
                classes: vec![None; self.size],
                ..PictureBatch::default()
            };
            for (at, place) in part.iter().enumerate() {
                if let Some((pacing, meter)) = self.pacing.as_ref().zip(meter.as_mut())
                    && at % pacing.images.max(1) == 0
                {
                    pacing.pace.yield_piece(meter, pacing.stop);
                }
                let out = &mut batch.images[at * length..(at + 1) * length];
                let filled = match self.from {
                    BatchSource::Pictures(augment) => {
                        let seed = self.seed.wrapping_add((number * self.size + at) as u64);
                        let change = augment.map(|augment| change(&augment, &mut StdRng::seed_from_u64(seed)));
                        self.picture(&self.examples[*place], change, &mut scratch, out)
                    }
                    BatchSource::Features(features) if features.usable[*place] => {
                        out.copy_from_slice(&features.values[place * length..(place + 1) * length]);
                        Ok(())
                    }
                    // Reported when the features were computed.
                    BatchSource::Features(_) => continue,
                };
                match filled {
                    Ok(()) => batch.classes[at] = Some(self.examples[*place].class),
                    Err(why) => {
                        out.fill(0.0);
                        batch.unreadable.push(format!("{}: {why}", self.examples[*place].path.display()));
                    }
                }
            }
            let now = thread_time();
            batch.made_in = now.saturating_sub(begun);
            begun = now;
            if stop.load(Ordering::Relaxed) || !give(batch) {
                return;
            }
        }
    }

    fn picture(
        &self,
        example: &Example,
        change: Option<PictureAugmentation>,
        scratch: &mut tensor::Scratch,
        out: &mut [f32],
    ) -> Result<(), String> {
        let bytes = std::fs::read(&example.path).map_err(|error| error.to_string())?;
        let pixels = decode(&bytes, &DecodeSettings::default()).map_err(|error| error.to_string())?;
        let pixels: Pixels = match change {
            Some(change) if change != PictureAugmentation::default() => augment_picture(&pixels, &change),
            _ => pixels,
        };
        tensor::write(&pixels, self.input, scratch, out).map_err(|error| error.to_string())
    }
}

/// Hands over a batch; false when the receiver is gone.
fn give_all(give: SyncSender<PictureBatch>) -> impl Fn(PictureBatch) -> bool {
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
        fn balanced_every_class_is_seen_equally_often(classes in prop::collection::vec(0_usize..5, 1..80), seed in any::<u64>()) {
            let seen = order(&classes, true, &mut StdRng::seed_from_u64(seed));
            prop_assert_eq!(seen.len(), classes.len());
            let counts = |class: usize| seen.iter().filter(|place| classes[**place] == class).count();
            let counts: Vec<usize> = (0..5).filter(|class| classes.contains(class)).map(counts).collect();
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
        }
    }
}

//! Measures what batches cost one replica and which size is worth it.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::inference::InferenceError;
use crate::replica::Replica;
use crate::sample;

/// A larger batch must cost less than this share of the single image's cost to be worth its latency.
const WORTH_RATIO: f64 = 0.95;

/// Longest time to measure one batch size.
const MEASURE_FOR: Duration = Duration::from_millis(150);

/// Cost of batches on one replica: `a * n + b` milliseconds for `n` images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BatchCost {
    /// Cost of a single image, milliseconds.
    pub single_ms: f64,
    /// The largest batch size tried.
    pub largest_batch: usize,
    /// Cost of that batch, milliseconds.
    pub largest_ms: f64,
    /// Batch size with the lowest cost per image.
    pub best_batch: usize,
}

impl BatchCost {
    fn of(single_ms: f64, largest_batch: usize, largest_ms: f64) -> Self {
        let worth = largest_ms / largest_batch as f64 <= single_ms * WORTH_RATIO;
        let best_batch = if worth { largest_batch } else { 1 };
        Self { single_ms, largest_batch, largest_ms, best_batch }
    }

    /// Cost per image in the best batch, milliseconds.
    pub fn best_ms(&self) -> f64 {
        if self.best_batch == 1 { self.single_ms } else { self.largest_ms / self.best_batch as f64 }
    }

    /// `a`: cost of each further image, milliseconds.
    pub fn each_ms(&self) -> f64 {
        match self.largest_batch {
            1 => self.single_ms,
            n => (self.largest_ms - self.single_ms) / (n - 1) as f64,
        }
    }

    /// `b`: fixed cost of a run, milliseconds.
    pub fn fixed_ms(&self) -> f64 {
        self.single_ms - self.each_ms()
    }
}

/// The largest batch, up to `best_batch`, for which a picture that just misses one is done within the objective: it waits
/// for a batch and is in the next. `cost_ms`: of an image, as measured lately.
pub fn batch_within(objective_ms: u32, best_batch: usize, cost_ms: f64) -> usize {
    let images = f64::from(objective_ms) / (2.0 * cost_ms.max(1e-3));
    // A float above the range becomes the largest number.
    (images as usize).clamp(1, best_batch.max(1))
}

/// Runs a generated picture alone, then two at once; the largest batch is only tried if these two suggest that it is
/// worth it, because the runtime keeps the memory of the largest batch it has run.
pub fn measure_batches(replica: &mut Replica) -> Result<BatchCost, InferenceError> {
    let sample = sample::jpeg();
    let largest = replica.max_batch();
    let single_ms = fastest_ms(replica, &sample, 1)?;
    if largest == 1 {
        return Ok(BatchCost::of(single_ms, 1, single_ms));
    }
    let pair = BatchCost::of(single_ms, 2, fastest_ms(replica, &sample, 2)?);
    let promised_ms = pair.fixed_ms() + pair.each_ms() * largest as f64;
    if largest == 2 || promised_ms / largest as f64 > single_ms * WORTH_RATIO {
        return Ok(pair);
    }
    Ok(BatchCost::of(single_ms, largest, fastest_ms(replica, &sample, largest)?))
}

/// The fastest run after one uncounted run: other load on the machine only makes runs slower, and one slow measurement
/// of a single image would make every batch look cheap.
fn fastest_ms(replica: &mut Replica, sample: &[u8], images: usize) -> Result<f64, InferenceError> {
    replica.time_ms(sample, images)?;
    let started = Instant::now();
    let (mut fastest, mut runs) = (f64::INFINITY, 0);
    while runs < 3 || (runs < 15 && started.elapsed() < MEASURE_FOR) {
        fastest = fastest.min(replica.time_ms(sample, images)?);
        runs += 1;
    }
    Ok(fastest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_batches_fit_into_the_objective_or_images_go_alone() {
        assert_eq!(batch_within(100, 8, 1.0), 8);
        assert_eq!(batch_within(100, 8, 10.0), 5);
        assert_eq!(batch_within(100, 8, 60.0), 1);
        assert_eq!(batch_within(1, 8, 500.0), 1);
        assert_eq!(batch_within(60_000, 8, 0.0), 8);
    }

    #[test]
    fn a_larger_batch_is_taken_only_if_it_pays() {
        assert_eq!(BatchCost::of(1.0, 8, 7.9).best_batch, 1);
        let worth = BatchCost::of(1.0, 8, 4.5);
        assert_eq!(worth.best_batch, 8);
        assert_eq!((worth.each_ms(), worth.fixed_ms()), (0.5, 0.5));
    }
}

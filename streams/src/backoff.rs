//! Pauses between retries: exponential backoff up to a limit, with jitter, so that clients that fail together do not
//! retry together.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Exponential backoff of one operation.
///
/// The upper bound of the pause doubles with every consecutive failure; each pause is drawn between half of it and all
/// of it.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
    /// State of the random generator; 0 before the first pause.
    random: u64,
}

impl Backoff {
    /// Pauses that start at `first` and grow to `max`.
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, failures: 0, random: 0 }
    }

    /// Pauses that do not grow: each between half of `pause` and all of it.
    pub const fn steady(pause: Duration) -> Self {
        Self::new(pause, pause)
    }

    /// Pauses that depend only on the seed, for tests.
    pub const fn seeded(first: Duration, max: Duration, seed: u64) -> Self {
        Self { first, max, failures: 0, random: if seed == 0 { 1 } else { seed } }
    }

    /// Counts a failure and returns how long to wait before the next try.
    pub fn next_pause(&mut self) -> Duration {
        // 31 doublings exceed any limit in use.
        let longest = self.first.saturating_mul(1 << self.failures.min(31)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        longest.mul_f64(0.5 + self.draw_fraction() / 2.0)
    }

    /// Counts a failure and waits before the next try.
    pub async fn pause(&mut self) {
        tokio::time::sleep(self.next_pause()).await;
    }

    /// Starts again at the first pause, after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Consecutive failures so far.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Draws a number from 0 up to 1 with SplitMix64.
    fn draw_fraction(&mut self) -> f64 {
        if self.random == 0 {
            self.random = jitter_seed();
        }
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        // The 53 bits that a float holds.
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Waits between half of `pause` and all of it, for a retry whose pause does not grow.
pub async fn wait_about(pause: Duration) {
    Backoff::steady(pause).pause().await;
}

/// First state of a generator: random in a process, derived from the seed in a simulation.
fn jitter_seed() -> u64 {
    #[cfg(feature = "memory")]
    if let Some(seed) = crate::memory::next_jitter_seed() {
        return seed.max(1);
    }
    RandomState::new().build_hasher().finish().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(50);
    const MAX: Duration = Duration::from_secs(2);

    #[test]
    fn pauses_grow_up_to_the_limit_and_start_over_after_a_success() {
        let mut backoff = Backoff::new(FIRST, MAX);
        for failures in 0..40u32 {
            let whole = FIRST.saturating_mul(1 << failures.min(31)).min(MAX);
            let pause = backoff.next_pause();
            assert!(pause >= whole / 2 && pause <= whole, "{pause:?} after {failures} failures, {whole:?} at most");
        }
        assert_eq!(backoff.failures(), 40);
        backoff.reset();
        assert!(backoff.next_pause() <= FIRST);
    }

    #[test]
    fn clients_that_fail_together_retry_at_different_times() {
        let pauses = (1..=1000).map(|seed| Backoff::seeded(MAX, MAX, seed).next_pause());
        let mut pauses: Vec<Duration> = pauses.collect();
        pauses.sort();
        let (first, last) = (pauses[0], pauses[999]);
        assert!(last - first > MAX * 4 / 10, "{first:?} to {last:?}");
        let in_one_tenth = pauses.iter().filter(|pause| **pause < MAX * 55 / 100).count();
        assert!((50..=150).contains(&in_one_tenth), "{in_one_tenth} of 1000 in the first tenth");
    }

    #[test]
    fn equal_seeds_give_equal_pauses() {
        let pauses = |seed| {
            let mut backoff = Backoff::seeded(FIRST, MAX, seed);
            (0..20).map(|_| backoff.next_pause()).collect::<Vec<_>>()
        };
        assert_eq!(pauses(7), pauses(7));
        assert_ne!(pauses(7), pauses(8));
        let [one, other] = [(); 2].map(|()| Backoff::new(MAX, MAX).next_pause());
        assert_ne!(one, other, "two unseeded backoffs must differ");
    }
}

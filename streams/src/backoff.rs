//! Pauses between tries: ever longer up to a limit, and of random length, so that many who failed at once do not come back at
//! once.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// The pauses of one thing that is tried again and again.
///
/// Each is between half and the whole of what it may be; that doubles with every failure in a row.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
    /// State of the generator; 0 before the first pause.
    random: u64,
}

impl Backoff {
    /// Pauses that begin with `first` and grow to `most`.
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, failures: 0, random: 0 }
    }

    /// Pauses of about one length.
    pub const fn steady(pause: Duration) -> Self {
        Self::new(pause, pause)
    }

    /// The same pauses for each seed.
    pub const fn seeded(first: Duration, most: Duration, seed: u64) -> Self {
        Self { first, most, failures: 0, random: if seed == 0 { 1 } else { seed } }
    }

    /// It failed once more: how long to wait now.
    pub fn next_pause(&mut self) -> Duration {
        // More than 31 doublings are beyond any limit.
        let longest = self.first.saturating_mul(1 << self.failures.min(31)).min(self.most);
        self.failures = self.failures.saturating_add(1);
        longest.mul_f64(0.5 + self.draw_fraction() / 2.0)
    }

    /// Waits until it is tried again.
    pub async fn pause(&mut self) {
        tokio::time::sleep(self.next_pause()).await;
    }

    /// It went well: the next failure is the first one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row so far.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// From 0 up to 1, by SplitMix64.
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

/// Waits for about so long, at least half of it: for what is tried again after one pause, however often it failed.
pub async fn wait_about(pause: Duration) {
    Backoff::steady(pause).pause().await;
}

/// What pauses begin with: random for each process, in a simulation what its seed says.
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
    const MOST: Duration = Duration::from_secs(2);

    #[test]
    fn pauses_grow_up_to_the_limit_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new(FIRST, MOST);
        for failures in 0..40u32 {
            let whole = FIRST.saturating_mul(1 << failures.min(31)).min(MOST);
            let pause = backoff.next_pause();
            assert!(pause >= whole / 2 && pause <= whole, "{pause:?} after {failures} failures, {whole:?} at the most");
        }
        assert_eq!(backoff.failures(), 40);
        backoff.reset();
        assert!(backoff.next_pause() <= FIRST);
    }

    #[test]
    fn many_that_fail_at_once_come_back_one_after_another() {
        let pauses = (1..=1000).map(|seed| Backoff::seeded(MOST, MOST, seed).next_pause());
        let mut pauses: Vec<Duration> = pauses.collect();
        pauses.sort();
        let (first, last) = (pauses[0], pauses[999]);
        assert!(last - first > MOST * 4 / 10, "{first:?} to {last:?}");
        let in_one_tenth = pauses.iter().filter(|pause| **pause < MOST * 55 / 100).count();
        assert!((50..=150).contains(&in_one_tenth), "{in_one_tenth} of 1000 in the first tenth");
    }

    #[test]
    fn a_seed_gives_the_same_pauses_and_another_gives_others() {
        let pauses = |seed| {
            let mut backoff = Backoff::seeded(FIRST, MOST, seed);
            (0..20).map(|_| backoff.next_pause()).collect::<Vec<_>>()
        };
        assert_eq!(pauses(7), pauses(7));
        assert_ne!(pauses(7), pauses(8));
        let [one, other] = [(); 2].map(|()| Backoff::new(MOST, MOST).next_pause());
        assert_ne!(one, other, "each begins with a number of its own");
    }
}

//! Images per second with their error, and whether one number of replicas does enough more than another. Pure.

/// Looks after which an old one counts only a third: what a number of replicas can do changes with the machine.
const MEMORY_S: f64 = 30.0;
/// Looks on each side without which nothing is compared.
const LEAST_LOOKS: f64 = 3.0;
/// Looks without which replicas do not count as useless: a hiccup is two or three.
const LEAST_LOOKS_USELESS: f64 = 5.0;
/// How surely a difference must be more than chance, in standard errors: wrong about once in forty.
const SURE: f64 = 2.0;
/// Before anything is measured, seconds are assumed to differ by so much, relative to their mean: two or three that
/// happen to agree prove nothing. A guess.
const ASSUMED_SPREAD: f64 = 0.15;
/// Looks that this assumption counts for.
const ASSUMED_LOOKS: f64 = 2.0;

/// Images per second of one number of replicas that were busy, and how much they differ from look to look.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateEstimate {
    /// Time of the last look, seconds.
    pub at_s: f64,
    /// Images per second.
    pub mean: f64,
    /// Looks, the older ones in part.
    looks: f64,
    squares: f64,
}

/// Whether more replicas are worth having.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GainVerdict {
    /// They do more, by more than chance.
    Worth,
    /// They do not, by more than chance.
    NotWorth,
    /// Either is possible.
    Undecided,
}

impl RateEstimate {
    /// Of one look.
    pub fn new(at_s: f64, rate: f64) -> Self {
        Self { at_s, mean: rate, looks: 1.0, squares: 0.0 }
    }

    /// Of no look, but known from elsewhere: as uncertain as a few looks.
    pub fn assumed(at_s: f64, rate: f64) -> Self {
        Self { at_s, mean: rate, looks: LEAST_LOOKS, squares: 0.0 }
    }

    /// With one more look.
    pub fn with_look(self, at_s: f64, rate: f64) -> Self {
        let kept = (-(at_s - self.at_s).max(0.0) / MEMORY_S).exp();
        let looks = self.looks * kept + 1.0;
        let off = rate - self.mean;
        let mean = self.mean + off / looks;
        Self { at_s, mean, looks, squares: self.squares * kept + off * (rate - mean) }
    }

    /// Whether there are enough looks to compare it.
    pub fn is_known(&self) -> bool {
        // What was forgotten in between does not count as missing.
        self.looks >= LEAST_LOOKS - 0.5
    }

    /// Standard error of the mean.
    pub fn error(&self) -> f64 {
        let assumed = ASSUMED_LOOKS * (ASSUMED_SPREAD * self.mean).powi(2);
        let variance = (assumed + self.squares) / (ASSUMED_LOOKS + self.looks - 1.0);
        (variance / self.looks).sqrt()
    }

    /// Largest rate that these looks leave likely.
    pub fn upper(&self) -> f64 {
        self.mean + SURE * self.error()
    }
}

/// Compares two numbers of replicas, the smaller one first: each additional one must bring at least `min_gain_ratio` of
/// what one of the fewer does on average.
pub fn compare_gain(fewer: (usize, &RateEstimate), more: (usize, &RateEstimate), min_gain_ratio: f64) -> GainVerdict {
    let ((few, low), (many, high)) = (fewer, more);
    if !low.is_known() || !high.is_known() || many <= few {
        return GainVerdict::Undecided;
    }
    let needed = 1.0 + min_gain_ratio * (many - few) as f64 / few.max(1) as f64;
    let beyond = high.mean - low.mean * needed;
    let error = (high.error().powi(2) + (low.error() * needed).powi(2)).sqrt();
    match beyond {
        _ if beyond > SURE * error => GainVerdict::Worth,
        _ if beyond < -SURE * error && high.looks >= LEAST_LOOKS_USELESS - 0.5 => GainVerdict::NotWorth,
        _ => GainVerdict::Undecided,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn estimate(rates: &[f64]) -> RateEstimate {
        let first = RateEstimate::new(0.0, rates[0]);
        (1..rates.len()).fold(first, |known, at| known.with_look(at as f64, rates[at]))
    }

    #[test]
    fn a_gain_is_decided_only_beyond_its_error() {
        let one = estimate(&[100.0; 10]);
        let verdict = |rates: &[f64]| compare_gain((1, &one), (2, &estimate(rates)), 0.1);
        assert_eq!(verdict(&[190.0; 10]), GainVerdict::Worth);
        assert_eq!(verdict(&[95.0; 10]), GainVerdict::NotWorth);
        assert_eq!(verdict(&[110.0; 10]), GainVerdict::Undecided);
        assert_eq!(verdict(&[60.0, 60.0]), GainVerdict::Undecided, "two looks prove nothing");
        let noisy = [200.0, 190.0, 0.0, 20.0, 210.0, 0.0, 10.0];
        assert_eq!(verdict(&noisy), GainVerdict::Undecided, "a hiccup is no proof");
    }

    #[test]
    fn a_rate_forgets_what_was_long_ago() {
        let mut known = estimate(&[100.0; 100]);
        for at in 100..220 {
            known = known.with_look(f64::from(at), 50.0);
        }
        assert!((known.mean - 50.0).abs() < 2.0, "{known:?}");
        assert!(known.error() < 5.0, "{known:?}");
    }

    proptest! {
        #[test]
        fn chance_alone_is_seldom_taken_for_a_difference(seed in any::<u64>()) {
            // A linear congruential generator: seconds that differ by up to 30 % around the same mean.
            let mut state = seed;
            let mut rates = |count: usize| -> Vec<f64> {
                (0..count).map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    100.0 * (0.7 + 0.6 * (state >> 40) as f64 / (1u64 << 24) as f64)
                }).collect()
            };
            let wrong = (0..1000).filter(|_| {
                let (one, two) = (estimate(&rates(6)), estimate(&rates(6)));
                compare_gain((1, &one), (2, &two), 0.0) != GainVerdict::Undecided
            }).count();
            prop_assert!(wrong <= 100, "{wrong} of 1000");
        }

        #[test]
        fn errors_are_finite_whatever_was_seen(rates in prop::collection::vec(0f64..1e9, 1..50)) {
            let known = estimate(&rates);
            prop_assert!(known.error().is_finite() && known.error() >= 0.0 && known.mean >= 0.0);
        }
    }
}

//! Percentiles of durations. Pure.

use std::time::Duration;

/// The value that a share of all values does not exceed: the nearest rank, `share` 0 to 1.
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let rank = (share.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Percentiles of durations, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct Latency {
    /// Median.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Maximum.
    pub max_ms: f64,
}

impl Latency {
    /// The percentiles of `times`, in any order.
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let ms = |share| percentile(&times, share).as_secs_f64() * 1e3;
        Self { p50_ms: ms(0.5), p99_ms: ms(0.99), max_ms: ms(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        for (share, ms) in [(0.0, 1), (0.5, 50), (0.99, 99), (0.995, 100), (1.0, 100)] {
            assert_eq!(percentile(&times, share), Duration::from_millis(ms), "share {share}");
        }
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }

    #[test]
    fn latency_does_not_mind_the_order() {
        let latency = Latency::of((1..=200).rev().map(Duration::from_millis).collect());
        assert_eq!(latency, Latency { p50_ms: 100.0, p99_ms: 198.0, max_ms: 200.0 });
    }
}

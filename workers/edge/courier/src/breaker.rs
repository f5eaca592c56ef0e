//! A circuit breaker: after failures that are not the link's, uploads pause, longer each time, and a single one
//! is tried before all resume. Pure.

/// Consecutive failures that open it.
const THRESHOLD: u32 = 3;
const FIRST_PAUSE_S: f64 = 1.0;
const MAX_PAUSE_S: f64 = 60.0;

/// Whether uploads may start, given recent failures.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Breaker {
    failures: u32,
    open_until_s: f64,
    trying: bool,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: 0, open_until_s: f64::NEG_INFINITY, trying: false }
    }
}

impl Breaker {
    /// Whether an upload may start; after a pause only one at a time, until one succeeds.
    pub(crate) fn allows(&self, now_s: f64) -> bool {
        match self.failures {
            0..THRESHOLD => true,
            _ => now_s >= self.open_until_s && !self.trying,
        }
    }

    /// Records that an upload started.
    pub(crate) fn begin(&mut self) {
        self.trying = true;
    }

    /// Records a successful upload.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Records an upload that the cloud refused or failed; true if the breaker is now open.
    pub(crate) fn failed(&mut self, now_s: f64) -> bool {
        self.trying = false;
        if self.failures >= THRESHOLD && now_s < self.open_until_s {
            // It was in flight when the breaker opened, so it counts no more.
            return true;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures < THRESHOLD {
            return false;
        }
        let doublings = i32::try_from(self.failures - THRESHOLD).unwrap_or(i32::MAX).min(16);
        self.open_until_s = now_s + (FIRST_PAUSE_S * 2f64.powi(doublings)).min(MAX_PAUSE_S);
        true
    }

    /// Records an upload that ended without evidence about the cloud, because the link went down.
    pub(crate) fn unknown(&mut self) {
        self.trying = false;
    }

    /// Seconds until an upload may be tried; 0 if it may now.
    pub(crate) fn wait_s(&self, now_s: f64) -> f64 {
        if self.failures < THRESHOLD { 0.0 } else { (self.open_until_s - now_s).max(0.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_failures_are_tolerated_and_more_open_it_for_longer_each_time() {
        let mut breaker = Breaker::default();
        assert!(!breaker.failed(0.0) && !breaker.failed(0.0));
        assert!(breaker.allows(0.0));
        assert!(breaker.failed(0.0));
        assert!(!breaker.allows(0.9) && breaker.allows(1.0));
        breaker.begin();
        assert!(!breaker.allows(1.0), "one at a time");
        assert!(breaker.failed(1.0));
        assert!(!breaker.allows(2.9) && breaker.allows(3.0));
        (0..100).for_each(|_| assert!(breaker.failed(10.0)));
        assert_eq!(breaker.wait_s(10.0), 4.0, "those in flight do not count again");
        breaker.succeeded();
        assert!(breaker.allows(10.0));
    }
}

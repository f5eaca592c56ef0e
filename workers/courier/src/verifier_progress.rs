//! Whether the cloud stands still: requests wait there, and none is finished. Pure.

/// So long without anything finished is no pause between two batches any more; a guess.
const STILL_S: f64 = 1.0;

/// What was heard of the verifiers' progress.
#[derive(Debug, Default)]
pub struct VerifierProgress {
    finished: u64,
    moved_at_s: Option<f64>,
    still_s: f64,
}

impl VerifierProgress {
    /// For how long nothing was finished, seconds. `finished`: a count that grows with every finished request, so
    /// that one which fails again and again does not make the others look unfinished; `waiting`: requests that wait
    /// or are worked on.
    pub fn record_progress(&mut self, finished: u64, waiting: u64, now_s: f64) -> f64 {
        let moved_at_s = self.moved_at_s.filter(|_| finished == self.finished && waiting > 0).unwrap_or(now_s);
        (self.finished, self.moved_at_s, self.still_s) = (finished, Some(moved_at_s), now_s - moved_at_s);
        self.still_s
    }

    /// Whether something is finished now and then, or nothing waits.
    pub fn is_progressing(&self) -> bool {
        self.still_s < STILL_S
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cloud_stands_still_while_something_waits_and_nothing_is_finished() {
        let mut stillness = VerifierProgress::default();
        assert_eq!(stillness.record_progress(0, 0, 5.0), 0.0);
        assert_eq!(stillness.record_progress(0, 0, 9.0), 0.0, "nothing waits");
        assert_eq!(stillness.record_progress(0, 3, 10.0), 1.0, "nobody knows when it came within that second");
        assert!(!stillness.is_progressing());
        assert_eq!(stillness.record_progress(1, 2, 11.0), 0.0, "one is finished");
        assert!(stillness.is_progressing());
        assert_eq!(stillness.record_progress(1, 2, 14.5), 3.5);
        assert_eq!(stillness.record_progress(1, 0, 15.0), 0.0, "the stream was emptied");
    }
}

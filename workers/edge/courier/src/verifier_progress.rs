//! Detects a stalled cloud: requests wait there, and none is finished. Pure.

/// Time without a finished request after which the verifiers count as stalled, not merely between two batches; a guess.
const STALL_S: f64 = 1.0;

/// Progress of the verifiers as seen by the courier.
#[derive(Debug, Default)]
pub(crate) struct VerifierProgress {
    finished: u64,
    moved_at_s: Option<f64>,
    still_s: f64,
}

impl VerifierProgress {
    /// Records progress, and returns the seconds since a request was last finished. `finished`: a count that grows with
    /// every finished request, so that one that fails repeatedly does not hide the progress of others; `waiting`:
    /// requests that wait or are worked on.
    pub(crate) fn record_progress(&mut self, finished: u64, waiting: u64, now_s: f64) -> f64 {
        let moved_at_s = self.moved_at_s.filter(|_| finished == self.finished && waiting > 0).unwrap_or(now_s);
        (self.finished, self.moved_at_s, self.still_s) = (finished, Some(moved_at_s), now_s - moved_at_s);
        self.still_s
    }

    /// Whether requests are being finished, or none waits.
    pub(crate) fn is_progressing(&self) -> bool {
        self.still_s < STALL_S
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cloud_is_stalled_while_requests_wait_and_none_is_finished() {
        let mut stillness = VerifierProgress::default();
        assert_eq!(stillness.record_progress(0, 0, 5.0), 0.0);
        assert_eq!(stillness.record_progress(0, 0, 9.0), 0.0, "no request waits");
        assert_eq!(stillness.record_progress(0, 3, 10.0), 1.0, "it may have arrived at any time in that second");
        assert!(!stillness.is_progressing());
        assert_eq!(stillness.record_progress(1, 2, 11.0), 0.0, "a request was finished");
        assert!(stillness.is_progressing());
        assert_eq!(stillness.record_progress(1, 2, 14.5), 3.5);
        assert_eq!(stillness.record_progress(1, 0, 15.0), 0.0, "the stream is empty");
    }
}

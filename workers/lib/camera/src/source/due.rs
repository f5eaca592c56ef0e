//! Which of a camera's pictures are wanted, and how fast it sends them. Pure: whoever calls brings the time.

use std::time::Duration;

use tokio::time::Instant;

/// Chooses pictures at a steady distance.
#[derive(Debug)]
pub(super) struct DueClock {
    interval: Duration,
    due: Option<Instant>,
}

impl DueClock {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, due: None }
    }

    /// Whether a picture that arrives now is wanted: whether it is nearer to when one is due than the next one will be,
    /// which comes `distance` later. Otherwise a camera of the very rate that is wanted would lose every other picture
    /// to its jitter.
    pub(super) fn is_due(&self, now: Instant, distance: Option<Duration>) -> bool {
        let early = distance.unwrap_or_default().min(self.interval) / 2;
        self.due.is_none_or(|due| now + early >= due)
    }

    /// Notes that a picture was taken. What was missed is not made up for.
    pub(super) fn note_taken(&mut self, now: Instant) {
        let next = self.due.unwrap_or(now) + self.interval;
        self.due = Some(if next < now { now + self.interval } else { next });
    }
}

/// Measures the distance between pictures: the mean of the latest dozen or so.
#[derive(Debug, Default)]
pub(super) struct PaceMeter {
    last: Option<Instant>,
    mean_s: f32,
    distances: u16,
}

impl PaceMeter {
    /// Notes a picture; returns the distance to the one before.
    pub(super) fn note(&mut self, now: Instant) -> Option<Duration> {
        let distance = now.saturating_duration_since(self.last.replace(now)?);
        self.distances = (self.distances + 1).min(12);
        self.mean_s += (distance.as_secs_f32() - self.mean_s) / f32::from(self.distances);
        Some(distance)
    }

    /// Time since the latest picture.
    pub(super) fn elapsed(&self, now: Instant) -> Option<Duration> {
        self.last.map(|last| now.saturating_duration_since(last))
    }

    /// Absent until two pictures came.
    pub(super) fn distance(&self) -> Option<Duration> {
        (self.distances > 0).then(|| Duration::from_secs_f32(self.mean_s.max(0.0)))
    }

    /// Pictures per second; absent until it is known from three.
    pub(super) fn per_s(&self) -> Option<f32> {
        (self.distances > 1 && self.mean_s > 0.0).then(|| 1.0 / self.mean_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `count` pictures are taken that arrive `distance_ms` apart, each off by up to `jitter_ms`.
    fn taken(count: u64, distance_ms: u64, jitter_ms: u64, interval_ms: u64) -> u64 {
        let (start, mut clock) = (Instant::now(), DueClock::new(Duration::from_millis(interval_ms)));
        let mut pace = PaceMeter::default();
        let mut taken = 0;
        for number in 0..count {
            // Early, late, early, …
            let off = if number % 2 == 0 { 0 } else { jitter_ms };
            let now = start + Duration::from_millis(number * distance_ms + off);
            pace.note(now);
            if clock.is_due(now, pace.distance()) {
                clock.note_taken(now);
                taken += 1;
            }
        }
        taken
    }

    #[test]
    fn a_camera_of_the_wanted_rate_loses_nothing_to_its_jitter() {
        assert_eq!(taken(100, 1000, 300, 1000), 100);
        assert_eq!(taken(100, 1010, 0, 1000), 100);
    }

    #[test]
    fn the_rate_is_the_wanted_one_on_average() {
        for (distance_ms, jitter_ms) in [(16, 8), (100, 40), (330, 0), (400, 100), (990, 0)] {
            let count = 100_000 / distance_ms;
            let taken = taken(count, distance_ms, jitter_ms, 1000);
            assert!((99..=101).contains(&taken), "{taken} of 100 at a distance of {distance_ms} ms");
        }
    }

    #[test]
    fn a_slow_camera_gives_all_and_a_pause_is_not_made_up_for() {
        assert_eq!(taken(20, 300_000, 0, 1000), 20);
        let (start, mut clock) = (Instant::now(), DueClock::new(Duration::from_secs(1)));
        clock.note_taken(start);
        let after = start + Duration::from_secs(60);
        assert!(clock.is_due(after, None));
        clock.note_taken(after);
        assert!(!clock.is_due(after + Duration::from_millis(900), None));
    }
}

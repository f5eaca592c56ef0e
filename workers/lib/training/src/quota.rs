//! Keeps account of the processor time of training, and says when its next piece may start so that both lower bounds
//! hold: training gets its share of every hour however busy the site is, and inference keeps its reserve. Pure.
//!
//! An hour begins with a training. On an idle machine training is limited by its own upper bound alone. On a busy one it
//! is held to the even course of its share, one short piece at a time. While the site is overloaded it waits, until the
//! rest of the hour only just suffices.

use std::collections::VecDeque;
use std::time::Duration;

/// Longest time between two pieces on a busy machine: each shows whether it is still busy.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How much earlier than necessary an overloaded site begins to catch up, as a factor of the time it needs: among many
/// threads a piece may get half of the processor that it may take.
const CATCH_UP_MARGIN: f64 = 2.0;
/// Parts that the sliding hour is counted in.
const PARTS: u32 = 120;

/// What the site leaves for training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadLevel {
    /// A processor is free.
    Idle,
    /// Whatever training takes, it takes from others.
    Busy,
    /// More work is queued for the recognizers than training should wait for.
    Overloaded,
}

/// Bounds of the processor time of training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpuBounds {
    /// Most of one processor, above 0 to 1.
    pub most_ratio: f64,
    /// Least of one processor over an hour, 0 to below 1; 0: what nobody else wants.
    pub least_ratio: f64,
    /// Share of one processor that a busy site keeps at any moment, 0 to below 1.
    pub reserve_ratio: f64,
}

/// The account. Times are since any fixed moment.
#[derive(Debug, Clone)]
pub struct TrainingQuota {
    bounds: CpuBounds,
    hour: Duration,
    hour_began: Option<Duration>,
    used_in_hour: Duration,
    /// Use of the last hour, by parts: number of the part, and the time used in it.
    parts: VecDeque<(u64, Duration)>,
    /// Before this, a piece would exceed the upper bound.
    most_until: Duration,
    /// Before this, a piece on a busy site would violate the reserve, or the upper bound.
    reserved_until: Duration,
    last_piece: Duration,
    longest_busy_piece: Duration,
}

impl TrainingQuota {
    /// An account by the hour; tests take a shorter one.
    pub fn new(bounds: CpuBounds, hour: Duration) -> Self {
        Self {
            bounds,
            hour,
            hour_began: None,
            used_in_hour: Duration::ZERO,
            parts: VecDeque::new(),
            most_until: Duration::ZERO,
            reserved_until: Duration::ZERO,
            last_piece: Duration::ZERO,
            longest_busy_piece: Duration::ZERO,
        }
    }

    /// The bounds.
    pub fn bounds(&self) -> CpuBounds {
        self.bounds
    }

    /// A training begins, and with it an hour: nothing is owed for the time without one.
    pub fn begin(&mut self, now: Duration) {
        (self.hour_began, self.used_in_hour) = (Some(now), Duration::ZERO);
        (self.most_until, self.reserved_until, self.last_piece) = (now, now, now);
    }

    /// Counts a piece of work that started at `start` and took `cpu` of processor time. Pieces of several threads follow
    /// each other in the account, so that the bounds hold for all of them together.
    pub fn record(&mut self, start: Duration, now: Duration, cpu: Duration, load: LoadLevel) {
        self.roll(now);
        self.used_in_hour += cpu;
        self.most_until = self.most_until.max(start) + cpu.div_f64(self.bounds.most_ratio.max(0.001));
        self.reserved_until = self.reserved_until.max(start) + cpu.div_f64(self.busy_ratio());
        self.last_piece = now;
        if load != LoadLevel::Idle {
            self.longest_busy_piece = self.longest_busy_piece.max(cpu);
        }
        let part = self.part_of(now);
        match self.parts.back_mut() {
            Some((last, used)) if *last == part => *used += cpu,
            _ => self.parts.push_back((part, cpu)),
        }
        while self.parts.front().is_some_and(|(first, _)| first + u64::from(PARTS) <= part) {
            self.parts.pop_front();
        }
    }

    /// How long until the next piece may start, if the load stays the same; zero: now.
    pub fn wait(&mut self, now: Duration, load: LoadLevel) -> Duration {
        self.roll(now);
        let began = self.hour_began.unwrap_or(now);
        let hour_end = began + self.hour;
        let owed = self.hour.mul_f64(self.bounds.least_ratio);
        let missing = owed.saturating_sub(self.used_in_hour);
        let at = match load {
            LoadLevel::Idle => self.most_until,
            // At its turn in an even course, or to see whether the machine is still busy.
            LoadLevel::Busy => {
                let even = began + self.used_in_hour.div_f64(self.bounds.least_ratio.max(1e-6));
                even.min(self.last_piece + PROBE_INTERVAL).min(hour_end).max(self.reserved_until)
            }
            LoadLevel::Overloaded if missing.is_zero() => hour_end,
            LoadLevel::Overloaded => {
                let needed = missing.div_f64(self.busy_ratio()).mul_f64(CATCH_UP_MARGIN);
                hour_end.saturating_sub(needed).max(self.reserved_until)
            }
        };
        at.saturating_sub(now)
    }

    /// Processor time used in the last hour.
    pub fn used(&self, now: Duration) -> Duration {
        let part = self.part_of(now);
        self.parts.iter().filter(|(number, _)| number + u64::from(PARTS) > part).map(|(_, used)| *used).sum()
    }

    /// The longest piece that was taken from a busy site.
    pub fn longest_busy_piece(&self) -> Duration {
        self.longest_busy_piece
    }

    /// Most of one processor that a busy site gives up at any moment.
    fn busy_ratio(&self) -> f64 {
        (1.0 - self.bounds.reserve_ratio).min(self.bounds.most_ratio).max(0.001)
    }

    fn part_of(&self, now: Duration) -> u64 {
        let part = (self.hour / PARTS).as_nanos().max(1);
        u64::try_from(now.as_nanos() / part).unwrap_or(u64::MAX)
    }

    fn roll(&mut self, now: Duration) {
        while let Some(began) = self.hour_began.filter(|began| now >= *began + self.hour) {
            (self.hour_began, self.used_in_hour) = (Some(began + self.hour), Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const BOUNDS: CpuBounds = CpuBounds { most_ratio: 0.5, least_ratio: 0.05, reserve_ratio: 0.5 };

    /// Pieces by their start and processor time.
    type Pieces = Vec<(Duration, Duration)>;

    /// Trains for some hours at a site whose load is a function of time. A piece takes `piece` of processor time, and on
    /// a busy machine twice that until it is done.
    fn simulate(
        bounds: CpuBounds,
        hours: u32,
        piece: Duration,
        load: impl Fn(Duration) -> LoadLevel,
    ) -> (TrainingQuota, Pieces) {
        const LOOK: Duration = Duration::from_millis(50);
        let mut quota = TrainingQuota::new(bounds, HOUR);
        let (mut now, mut pieces) = (Duration::ZERO, Vec::new());
        quota.begin(now);
        while now < HOUR * hours {
            let wait = quota.wait(now, load(now));
            if !wait.is_zero() {
                // As the training thread does: the load may change meanwhile.
                now += wait.min(LOOK);
                continue;
            }
            let (start, load) = (now, load(now));
            now += if load == LoadLevel::Idle { piece } else { piece * 2 };
            quota.record(start, now, piece, load);
            pieces.push((start, piece));
        }
        (quota, pieces)
    }

    fn used_s(pieces: &Pieces, from: Duration, to: Duration) -> f64 {
        pieces.iter().filter(|(start, _)| (from..to).contains(start)).map(|(_, cpu)| cpu.as_secs_f64()).sum()
    }

    /// The most of one processor in any second.
    fn densest_second(pieces: &Pieces) -> f64 {
        let (mut first, mut sum, mut densest) = (0, 0.0_f64, 0.0_f64);
        for (start, cpu) in pieces {
            sum += cpu.as_secs_f64();
            while pieces[first].0 + Duration::from_secs(1) <= *start {
                sum -= pieces[first].1.as_secs_f64();
                first += 1;
            }
            densest = densest.max(sum);
        }
        densest
    }

    #[test]
    fn a_site_that_is_always_busy_trains_its_share_of_every_hour_evenly() {
        let piece = Duration::from_millis(20);
        let (quota, pieces) = simulate(BOUNDS, 3, piece, |_| LoadLevel::Busy);
        for hour in 0..3 {
            let used = used_s(&pieces, HOUR * hour, HOUR * (hour + 1));
            assert!((178.0..=185.0).contains(&used), "hour {hour}: {used} s of 180 s");
            let minutes: Vec<f64> = (0..60)
                .map(|minute| HOUR * hour + Duration::from_secs(60) * minute)
                .map(|from| used_s(&pieces, from, from + Duration::from_secs(60)))
                .collect();
            assert!(minutes.iter().all(|used| (2.5..=3.5).contains(used)), "{minutes:?}");
        }
        assert!((170.0..=190.0).contains(&quota.used(HOUR * 3).as_secs_f64()), "{:?}", quota.used(HOUR * 3));
        assert_eq!(quota.longest_busy_piece(), piece);
        assert!(densest_second(&pieces) <= 0.1, "{}", densest_second(&pieces));
    }

    #[test]
    fn an_overloaded_site_waits_and_still_trains_its_share_by_the_end_of_the_hour() {
        let (_, pieces) = simulate(BOUNDS, 2, Duration::from_millis(20), |_| LoadLevel::Overloaded);
        for hour in 0..2 {
            let used = used_s(&pieces, HOUR * hour, HOUR * (hour + 1));
            assert!((179.0..=182.0).contains(&used), "hour {hour}: {used} s of 180 s");
            let early = used_s(&pieces, HOUR * hour, HOUR * hour + HOUR / 2);
            assert!(early < 1e-9, "hour {hour}: {early} s in its first half");
        }
        assert!(densest_second(&pieces) <= 0.53, "inference's reserve: {}", densest_second(&pieces));
    }

    #[test]
    fn an_overload_that_passes_is_made_up_for_without_touching_the_reserve() {
        let until = Duration::from_secs(2400);
        let load = |now: Duration| if now < until { LoadLevel::Overloaded } else { LoadLevel::Busy };
        let (_, pieces) = simulate(BOUNDS, 1, Duration::from_millis(20), load);
        let used = used_s(&pieces, Duration::ZERO, HOUR);
        assert!((179.0..=182.0).contains(&used), "{used} s");
        assert!(densest_second(&pieces) <= 0.53, "{}", densest_second(&pieces));
    }

    #[test]
    fn the_reserve_goes_before_the_share() {
        let bounds = CpuBounds { least_ratio: 0.3, reserve_ratio: 0.8, ..BOUNDS };
        let (_, pieces) = simulate(bounds, 1, Duration::from_millis(20), |_| LoadLevel::Busy);
        let used = used_s(&pieces, Duration::ZERO, HOUR);
        assert!((700.0..=725.0).contains(&used), "a fifth of a processor, not the 1080 s that are owed: {used} s");
        assert!(densest_second(&pieces) <= 0.23, "{}", densest_second(&pieces));
    }

    #[test]
    fn on_an_idle_machine_only_the_upper_bound_counts() {
        for least_ratio in [0.0, 0.05] {
            let (quota, pieces) =
                simulate(CpuBounds { least_ratio, ..BOUNDS }, 1, Duration::from_millis(20), |_| LoadLevel::Idle);
            let used = used_s(&pieces, Duration::ZERO, HOUR);
            assert!((1790.0..=1800.1).contains(&used), "{used} s");
            assert_eq!(quota.longest_busy_piece(), Duration::ZERO);
        }
    }

    #[test]
    fn what_an_idle_hour_gave_is_not_owed_again_and_a_busy_machine_is_looked_at_every_second() {
        let busy_from = Duration::from_secs(1200);
        let load = |now: Duration| if now < busy_from { LoadLevel::Idle } else { LoadLevel::Busy };
        let (_, pieces) = simulate(BOUNDS, 1, Duration::from_millis(20), load);
        let later = used_s(&pieces, busy_from + Duration::from_secs(10), HOUR);
        // 2400 looks of 20 ms.
        assert!((40.0..=48.1).contains(&later), "{later} s");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn whatever_the_load_the_share_is_reached_and_the_reserve_kept(
            loads in prop::collection::vec(0_u8..3, 12), piece_ms in 2_u64..50, least in 0.01_f64..0.2,
        ) {
            let bounds = CpuBounds { most_ratio: 0.5, least_ratio: least, reserve_ratio: 0.5 };
            let load = |now: Duration| match loads[(now.as_secs() / 300) as usize % loads.len()] {
                0 => LoadLevel::Idle,
                1 => LoadLevel::Busy,
                _ => LoadLevel::Overloaded,
            };
            let piece = Duration::from_millis(piece_ms);
            let (_, pieces) = simulate(bounds, 1, piece, load);
            let used = used_s(&pieces, Duration::ZERO, HOUR);
            prop_assert!(used >= least * 3600.0 * 0.98 - 0.1, "{used} s of {}", least * 3600.0);
            prop_assert!(densest_second(&pieces) <= 0.5 + 2.0 * piece.as_secs_f64(), "{}", densest_second(&pieces));
        }
    }
}

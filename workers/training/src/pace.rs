//! How fast training may go, and how much memory it may take.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use runtime::process::resident_bytes;
use tokio_util::sync::CancellationToken;

use crate::error::TrainError;
use crate::settings::LimitSettings;

/// How often it looks whether it may go on.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Longest rest at a time, so that a stop is heard.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// How fast training may go, and how much memory it may take; for the thread it is made in, which is not one of the
/// async ones.
#[derive(Debug)]
pub struct TrainingPace {
    cpu_ratio: f64,
    memory_max_bytes: Option<u64>,
    yields: Option<Arc<AtomicBool>>,
    memory_before_bytes: u64,
    spent: Duration,
}

impl TrainingPace {
    /// As fast as it can.
    pub fn unlimited(limits: &LimitSettings) -> Self {
        let memory_max_bytes = limits.memory_max_mib.map(|mib| u64::from(mib) * 1024 * 1024);
        let memory_before_bytes = resident_bytes().unwrap_or(0);
        Self { cpu_ratio: 1.0, memory_max_bytes, yields: None, memory_before_bytes, spent: thread_time() }
    }

    /// On what nobody else wants, no more than its share of that, and not at all while `yields` says so. The thread
    /// that calls this, and every thread it starts, is scheduled when idle from now on.
    pub fn background(limits: &LimitSettings, yields: Arc<AtomicBool>) -> Self {
        if let Err(error) = streams::scheduling::set_idle_scheduling() {
            tracing::warn!(%error, "the kernel schedules training as anything else");
        }
        Self { cpu_ratio: limits.cpu_ratio, yields: Some(yields), ..Self::unlimited(limits) }
    }

    /// Refuses what is known to take more memory than it may.
    pub fn check_memory(&self, needed_bytes: u64) -> Result<(), TrainError> {
        match self.memory_max_bytes {
            Some(allowed) if needed_bytes > allowed => {
                Err(TrainError::OutOfMemory { needed_mib: needed_bytes >> 20, allowed_mib: allowed >> 20 })
            }
            _ => Ok(()),
        }
    }

    /// After a step on so many threads, of whose batch others took so long to make: looks at the memory, and rests as
    /// long as the share asks for.
    #[allow(clippy::disallowed_methods)]
    pub fn yield_cpu(&mut self, threads: u16, made: Duration, stop: &CancellationToken) -> Result<(), TrainError> {
        let grown = resident_bytes().unwrap_or(0).saturating_sub(self.memory_before_bytes);
        self.check_memory(grown)?;
        let now = thread_time();
        let spent = now.saturating_sub(self.spent) * u32::from(threads) + made;
        let mut rest = spent.mul_f64((1.0 / self.cpu_ratio - 1.0).max(0.0));
        while !stop.is_cancelled() && !rest.is_zero() {
            let part = rest.min(LONGEST_REST);
            std::thread::sleep(part);
            rest -= part;
        }
        while !stop.is_cancelled() && self.yields.as_ref().is_some_and(|yields| yields.load(Ordering::Relaxed)) {
            std::thread::sleep(LOOK_EVERY);
        }
        self.spent = thread_time();
        Ok(())
    }
}

/// Processor time of the calling thread.
pub fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_memory_than_allowed_is_refused_with_what_would_help() {
        let limits = LimitSettings { memory_max_mib: Some(10), ..LimitSettings::default() };
        let pace = TrainingPace::unlimited(&limits);
        assert!(pace.check_memory(10 << 20).is_ok());
        let refused = pace.check_memory(11 << 20).unwrap_err().to_string();
        assert!(refused.contains("takes 11 MiB") && refused.contains("smaller batches"), "{refused}");
    }

    #[test]
    fn a_share_of_a_quarter_rests_three_times_as_long_as_it_works() {
        let limits = LimitSettings { cpu_ratio: 0.25, ..LimitSettings::default() };
        let work = std::thread::spawn(move || {
            let mut pace = TrainingPace { cpu_ratio: limits.cpu_ratio, ..TrainingPace::unlimited(&limits) };
            let begun = std::time::Instant::now();
            pace.yield_cpu(1, Duration::from_millis(100), &CancellationToken::new()).unwrap();
            begun.elapsed()
        });
        assert!(work.join().unwrap() >= Duration::from_millis(300));
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn it_stands_still_while_it_yields_and_hears_a_stop() {
        let yields = Arc::new(AtomicBool::new(true));
        let stop = CancellationToken::new();
        let (later, told) = (yields.clone(), stop.clone());
        let work = std::thread::spawn(move || {
            let mut pace = TrainingPace { yields: Some(yields), ..TrainingPace::unlimited(&LimitSettings::default()) };
            pace.yield_cpu(1, Duration::ZERO, &stop).unwrap();
            pace.yields.is_some_and(|yields| yields.load(Ordering::Relaxed))
        });
        std::thread::sleep(LOOK_EVERY * 2);
        assert!(!work.is_finished());
        later.store(false, Ordering::Relaxed);
        assert!(!work.join().unwrap());
        later.store(true, Ordering::Relaxed);
        told.cancel();
        let mut pace = TrainingPace { yields: Some(later), ..TrainingPace::unlimited(&LimitSettings::default()) };
        pace.yield_cpu(1, Duration::ZERO, &told).unwrap();
    }
}

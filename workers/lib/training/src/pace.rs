//! Limits the CPU time and memory of a training.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use os::process::resident_bytes;
use tokio_util::sync::CancellationToken;

use crate::error::TrainError;

/// Share of a core that a training in the background takes where nothing else is said.
pub const DEFAULT_CPU_RATIO: f64 = 0.5;
/// Interval of checking whether it may continue.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// Longest rest at a time, so that a stop request is noticed.
const MAX_REST: Duration = Duration::from_secs(1);

/// Limits the CPU time and memory of a training; bound to the thread that creates it, which must not be an async worker
/// thread.
#[derive(Debug)]
pub struct TrainingPace {
    cpu_ratio: f64,
    memory_max_bytes: Option<u64>,
    yields: Option<Arc<AtomicBool>>,
    memory_before_bytes: u64,
    spent: Duration,
}

impl TrainingPace {
    /// Without a CPU limit. `memory_max_mib`: absent is unlimited.
    pub fn unlimited(memory_max_mib: Option<u32>) -> Self {
        let memory_max_bytes = memory_max_mib.map(|mib| u64::from(mib) * 1024 * 1024);
        let memory_before_bytes = resident_bytes().unwrap_or(0);
        Self { cpu_ratio: 1.0, memory_max_bytes, yields: None, memory_before_bytes, spent: thread_time() }
    }

    /// Uses idle CPU time only, at most `cpu_ratio` of a core, and none while `yields` is set. The calling thread, and every thread
    /// it starts, is scheduled as idle from now on.
    pub fn background(memory_max_mib: Option<u32>, cpu_ratio: f64, yields: Arc<AtomicBool>) -> Self {
        if let Err(error) = os::scheduling::set_idle_scheduling() {
            tracing::warn!(%error, "could not set SCHED_IDLE; continuing with default scheduling");
        }
        Self { cpu_ratio, yields: Some(yields), ..Self::unlimited(memory_max_mib) }
    }

    /// Refuses a training that is known to need more memory than allowed.
    pub fn check_memory(&self, needed_bytes: u64) -> Result<(), TrainError> {
        match self.memory_max_bytes {
            Some(allowed) if needed_bytes > allowed => {
                Err(TrainError::OutOfMemory { needed_mib: needed_bytes >> 20, allowed_mib: allowed >> 20 })
            }
            _ => Ok(()),
        }
    }

    /// Called after a step on `threads` threads, whose batch took `made` of CPU time elsewhere: checks the memory, and
    /// rests as long as the CPU share requires.
    #[allow(clippy::disallowed_methods)]
    pub fn yield_cpu(&mut self, threads: u16, made: Duration, stop: &CancellationToken) -> Result<(), TrainError> {
        let grown = resident_bytes().unwrap_or(0).saturating_sub(self.memory_before_bytes);
        self.check_memory(grown)?;
        let now = thread_time();
        let spent = now.saturating_sub(self.spent) * u32::from(threads) + made;
        let mut rest = spent.mul_f64((1.0 / self.cpu_ratio - 1.0).max(0.0));
        while !stop.is_cancelled() && !rest.is_zero() {
            let part = rest.min(MAX_REST);
            std::thread::sleep(part);
            rest -= part;
        }
        while !stop.is_cancelled() && self.yields.as_ref().is_some_and(|yields| yields.load(Ordering::Relaxed)) {
            std::thread::sleep(CHECK_INTERVAL);
        }
        self.spent = thread_time();
        Ok(())
    }
}

/// CPU time of the calling thread.
pub fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_memory_is_refused_with_a_remedy() {
        let pace = TrainingPace::unlimited(Some(10));
        assert!(pace.check_memory(10 << 20).is_ok());
        let refused = pace.check_memory(11 << 20).unwrap_err().to_string();
        assert!(refused.contains("needs 11 MiB") && refused.contains("smaller batches"), "{refused}");
    }

    #[test]
    fn a_quarter_share_rests_three_times_as_long_as_it_works() {
        let work = std::thread::spawn(move || {
            let mut pace = TrainingPace { cpu_ratio: 0.25, ..TrainingPace::unlimited(None) };
            let begun = std::time::Instant::now();
            pace.yield_cpu(1, Duration::from_millis(100), &CancellationToken::new()).unwrap();
            begun.elapsed()
        });
        assert!(work.join().unwrap() >= Duration::from_millis(300));
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn training_pauses_while_it_yields_and_notices_a_stop() {
        let yields = Arc::new(AtomicBool::new(true));
        let stop = CancellationToken::new();
        let (later, told) = (yields.clone(), stop.clone());
        let work = std::thread::spawn(move || {
            let mut pace = TrainingPace { yields: Some(yields), ..TrainingPace::unlimited(None) };
            pace.yield_cpu(1, Duration::ZERO, &stop).unwrap();
            pace.yields.is_some_and(|yields| yields.load(Ordering::Relaxed))
        });
        std::thread::sleep(CHECK_INTERVAL * 2);
        assert!(!work.is_finished());
        later.store(false, Ordering::Relaxed);
        assert!(!work.join().unwrap());
        later.store(true, Ordering::Relaxed);
        told.cancel();
        let mut pace = TrainingPace { yields: Some(later), ..TrainingPace::unlimited(None) };
        pace.yield_cpu(1, Duration::ZERO, &told).unwrap();
    }
}

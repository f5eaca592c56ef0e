//! Limits the CPU time and memory of a training, and sees to it that it gets its share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use os::process::resident_bytes;
use os::thread_time::ThreadTimes;
use tokio_util::sync::CancellationToken;

use crate::error::TrainError;
use crate::quota::{CpuBounds, LoadLevel, TrainingQuota};

/// Share of a core that a training in the background takes where nothing else is said.
pub const DEFAULT_CPU_RATIO: f64 = 0.5;
/// Interval of checking whether it may continue.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// Longest rest at a time, so that a stop request is noticed.
const MAX_REST: Duration = Duration::from_secs(1);
/// An hour of the account.
const HOUR: Duration = Duration::from_secs(3600);
/// A thread that waits for a processor this long, as a share of the time it runs, takes from others what it gets.
const CONTENDED_RATIO: f64 = 0.25;
/// Weight of the last piece in the mean of these shares.
const CONTENTION_WEIGHT: f64 = 0.3;

/// The account of a site's trainer, over all of its trainings.
#[derive(Debug)]
pub struct TrainingAccount {
    quota: Mutex<TrainingQuota>,
    since: Instant,
}

/// Processor time of training in the last hour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AccountedHour {
    /// Processor time used.
    pub used: Duration,
    /// The longest piece that was taken from a busy site.
    pub longest_busy_piece: Duration,
}

impl TrainingAccount {
    /// An account with these bounds, by the hour.
    pub fn new(bounds: CpuBounds) -> Self {
        Self::by(bounds, HOUR)
    }

    /// An account by a time other than an hour.
    pub fn by(bounds: CpuBounds, hour: Duration) -> Self {
        Self { quota: Mutex::new(TrainingQuota::new(bounds, hour)), since: Instant::now() }
    }

    /// The bounds.
    pub fn bounds(&self) -> CpuBounds {
        self.with(|quota, _| quota.bounds())
    }

    /// What was used in the last hour.
    pub fn last_hour(&self) -> AccountedHour {
        self.with(|quota, now| AccountedHour { used: quota.used(now), longest_busy_piece: quota.longest_busy_piece() })
    }

    fn with<T>(&self, act: impl FnOnce(&mut TrainingQuota, Duration) -> T) -> T {
        let now = self.since.elapsed();
        act(&mut self.quota.lock().unwrap_or_else(PoisonError::into_inner), now)
    }
}

/// Limits the CPU time and memory of a training. [`TrainingPace::yield_cpu`] is for the thread that creates it, which
/// must not be an async worker thread.
#[derive(Debug)]
pub struct TrainingPace {
    cpu_ratio: f64,
    memory_max_bytes: Option<u64>,
    yields: Option<Arc<AtomicBool>>,
    memory_before_bytes: u64,
    spent: Mutex<Spent>,
    account: Option<Arc<TrainingAccount>>,
    /// Mean share of their time that pieces waited for a processor.
    contention: Mutex<f64>,
    /// Whether what comes before the first piece is done: reading the model, which cannot be cut into pieces.
    is_prepared: AtomicBool,
}

/// Where the last rest ended.
#[derive(Debug, Clone, Copy)]
struct Spent {
    at: Instant,
    times: ThreadTimes,
}

impl Spent {
    fn now() -> Self {
        Self { at: Instant::now(), times: ThreadTimes::of_this_thread() }
    }
}

/// Measures the pieces of a thread other than the one that trains.
#[derive(Debug)]
pub struct PieceMeter(Spent);

impl TrainingPace {
    /// Without a CPU limit. `memory_max_mib`: absent is unlimited.
    pub fn unlimited(memory_max_mib: Option<u32>) -> Self {
        let memory_max_bytes = memory_max_mib.map(|mib| u64::from(mib) * 1024 * 1024);
        let memory_before_bytes = resident_bytes().unwrap_or(0);
        Self {
            cpu_ratio: 1.0,
            memory_max_bytes,
            yields: None,
            memory_before_bytes,
            spent: Mutex::new(Spent::now()),
            account: None,
            contention: Mutex::new(0.0),
            is_prepared: AtomicBool::new(false),
        }
    }

    /// In the background, within the bounds of the account. Without a lower bound it uses idle CPU time only, and none
    /// while `yields` is set: the calling thread, and every thread it starts, is scheduled as idle from now on.
    ///
    /// With a lower bound it is scheduled as everybody else, because idle scheduling gets nothing on a busy machine and
    /// cannot be left without a privilege. Then short pieces and their distance protect the others, and `yields` means
    /// that the site is overloaded.
    pub fn background(memory_max_mib: Option<u32>, account: Arc<TrainingAccount>, yields: Arc<AtomicBool>) -> Self {
        let bounds = account.bounds();
        account.with(TrainingQuota::begin);
        if bounds.least_ratio <= 0.0
            && let Err(error) = os::scheduling::set_idle_scheduling()
        {
            tracing::warn!(%error, "could not set SCHED_IDLE; continuing with default scheduling");
        }
        let (cpu_ratio, yields, account) = (bounds.most_ratio, Some(yields), Some(account));
        Self { cpu_ratio, yields, account, ..Self::unlimited(memory_max_mib) }
    }

    /// Whether training gets a share of a busy machine, in short pieces.
    pub fn has_lower_bound(&self) -> bool {
        self.account.as_ref().is_some_and(|account| account.bounds().least_ratio > 0.0)
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

    /// Called after a step, or a piece of one, on `threads` threads, whose batch took `made` of CPU time elsewhere:
    /// checks the memory, and rests as long as the bounds require.
    #[allow(clippy::disallowed_methods)]
    pub fn yield_cpu(&self, threads: u16, made: Duration, stop: &CancellationToken) -> Result<(), TrainError> {
        let grown = resident_bytes().unwrap_or(0).saturating_sub(self.memory_before_bytes);
        self.check_memory(grown)?;
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if self.has_lower_bound() {
            // What was made elsewhere was counted there.
            self.rest(&spent, threads, stop);
            *spent = Spent::now();
            return Ok(());
        }
        let used = ThreadTimes::of_this_thread().ran.saturating_sub(spent.times.ran) * u32::from(threads) + made;
        if let Some(account) = &self.account {
            account.with(|quota, now| quota.record(now, now, used, LoadLevel::Idle));
        }
        let mut rest = used.mul_f64((1.0 / self.cpu_ratio - 1.0).max(0.0));
        while !stop.is_cancelled() && !rest.is_zero() {
            let part = rest.min(MAX_REST);
            std::thread::sleep(part);
            rest -= part;
        }
        while !stop.is_cancelled() && self.is_told_to_yield() {
            std::thread::sleep(CHECK_INTERVAL);
        }
        *spent = Spent::now();
        Ok(())
    }

    /// Begins to measure the pieces of another thread.
    pub fn meter(&self) -> PieceMeter {
        PieceMeter(Spent::now())
    }

    /// Called after a piece of work on another thread: where training has a lower bound, rests as long as the bounds
    /// require.
    pub fn yield_piece(&self, meter: &mut PieceMeter, stop: &CancellationToken) {
        if self.has_lower_bound() {
            self.rest(&meter.0, 1, stop);
            meter.0 = Spent::now();
        }
    }

    fn is_told_to_yield(&self) -> bool {
        self.yields.as_ref().is_some_and(|yields| yields.load(Ordering::Relaxed))
    }

    /// Counts what was done since, and waits for the next turn.
    #[allow(clippy::disallowed_methods)]
    fn rest(&self, since: &Spent, threads: u16, stop: &CancellationToken) {
        let Some(account) = &self.account else { return };
        let times = ThreadTimes::of_this_thread();
        let ran = times.ran.saturating_sub(since.times.ran);
        self.add_contention(ran, times.waited.saturating_sub(since.times.waited));
        let is_piece = self.is_prepared.swap(true, Ordering::Relaxed);
        let load = if is_piece { self.load() } else { LoadLevel::Idle };
        let start = since.at.saturating_duration_since(account.since);
        account.with(|quota, now| quota.record(start, now, ran * u32::from(threads), load));
        while !stop.is_cancelled() {
            let load = self.load();
            match account.with(|quota, now| quota.wait(now, load)) {
                Duration::ZERO => return,
                wait => std::thread::sleep(wait.min(CHECK_INTERVAL)),
            }
        }
    }

    fn add_contention(&self, ran: Duration, waited: Duration) {
        let mut mean = self.contention.lock().unwrap_or_else(PoisonError::into_inner);
        let ratio = waited.as_secs_f64() / ran.as_secs_f64().max(1e-6);
        *mean += CONTENTION_WEIGHT * (ratio.min(1.0) - *mean);
    }

    fn load(&self) -> LoadLevel {
        if self.is_told_to_yield() {
            return LoadLevel::Overloaded;
        }
        match *self.contention.lock().unwrap_or_else(PoisonError::into_inner) > CONTENDED_RATIO {
            true => LoadLevel::Busy,
            false => LoadLevel::Idle,
        }
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
            let pace = TrainingPace { cpu_ratio: 0.25, ..TrainingPace::unlimited(None) };
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
            let pace = TrainingPace { yields: Some(yields), ..TrainingPace::unlimited(None) };
            pace.yield_cpu(1, Duration::ZERO, &stop).unwrap();
            pace.yields.is_some_and(|yields| yields.load(Ordering::Relaxed))
        });
        std::thread::sleep(CHECK_INTERVAL * 2);
        assert!(!work.is_finished());
        later.store(false, Ordering::Relaxed);
        assert!(!work.join().unwrap());
        later.store(true, Ordering::Relaxed);
        told.cancel();
        let pace = TrainingPace { yields: Some(later), ..TrainingPace::unlimited(None) };
        pace.yield_cpu(1, Duration::ZERO, &told).unwrap();
    }
}

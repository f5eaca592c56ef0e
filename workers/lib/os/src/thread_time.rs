//! How long a thread ran, and how long it waited for a processor although it could run. Only Linux says how long a
//! thread waited.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Times of a thread since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ThreadTimes {
    /// On a processor.
    pub ran: Duration,
    /// Ready to run, while other threads had the processors or the control group's quota was used up; zero where the
    /// kernel does not say.
    pub waited: Duration,
}

impl ThreadTimes {
    /// The times of the calling thread. [`ThreadClock`] reads them more cheaply where that happens often.
    pub fn of_this_thread() -> Self {
        let clock = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
        let ran = clock.map_or(Duration::ZERO, Duration::from);
        let waited = ThreadClock::open().and_then(|clock| clock.read()).map_or(Duration::ZERO, |times| times.waited);
        Self { ran, waited }
    }
}

/// Reads the times of the thread that opened it; a reading takes about a microsecond.
#[derive(Debug)]
pub struct ThreadClock {
    #[cfg(target_os = "linux")]
    file: std::fs::File,
}

impl ThreadClock {
    /// The clock of the calling thread; `None` where the kernel keeps no such times.
    #[cfg(target_os = "linux")]
    pub fn open() -> Option<Self> {
        let clock = Self { file: std::fs::File::open("/proc/thread-self/schedstat").ok()? };
        clock.read().map(|_| clock)
    }

    /// Other systems have no such file.
    #[cfg(not(target_os = "linux"))]
    pub fn open() -> Option<Self> {
        None
    }

    /// The times now.
    #[cfg(target_os = "linux")]
    pub fn read(&self) -> Option<ThreadTimes> {
        use std::os::unix::fs::FileExt;
        let mut text = [0; 80];
        let length = self.file.read_at(&mut text, 0).ok()?;
        thread_times(std::str::from_utf8(text.get(..length)?).ok()?)
    }

    /// Other systems have no such file.
    #[cfg(not(target_os = "linux"))]
    pub fn read(&self) -> Option<ThreadTimes> {
        None
    }
}

/// Parses `schedstat`: nanoseconds on a processor, nanoseconds of waiting for one, and the number of time slices.
#[cfg(target_os = "linux")]
fn thread_times(text: &str) -> Option<ThreadTimes> {
    let mut fields = text.split_whitespace().map(str::parse::<u64>);
    let (ran, waited) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some(ThreadTimes { ran: Duration::from_nanos(ran), waited: Duration::from_nanos(waited) })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use super::*;

    #[test]
    fn kernel_text_is_parsed() {
        let times = thread_times("297858373 59825661 32\n").unwrap();
        assert_eq!((times.ran.as_nanos(), times.waited.as_nanos()), (297_858_373, 59_825_661));
        assert_eq!((thread_times("nonsense"), thread_times("1")), (None, None));
    }

    #[test]
    fn a_thread_that_computes_has_run() {
        let before = ThreadTimes::of_this_thread();
        let mut sum = 0_u64;
        while ThreadTimes::of_this_thread().ran < before.ran + Duration::from_millis(2) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let after = ThreadTimes::of_this_thread();
        assert!(after.ran > before.ran && after.waited >= before.waited);
    }

    #[test]
    fn a_thread_waits_while_others_have_the_processors() {
        let spin = |until: &dyn Fn() -> bool| {
            while !until() {
                std::hint::spin_loop();
            }
        };
        let stop = AtomicBool::new(false);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..3 * cores {
                scope.spawn(|| spin(&|| stop.load(Ordering::Relaxed)));
            }
            let clock = ThreadClock::open().unwrap();
            let (before, began) = (clock.read().unwrap(), Instant::now());
            spin(&|| began.elapsed() > Duration::from_millis(600));
            let (after, wall) = (clock.read().unwrap(), began.elapsed());
            stop.store(true, Ordering::Relaxed);
            let (ran, waited) = (after.ran - before.ran, after.waited - before.waited);
            // With three others on each processor, about a quarter of the time is ours.
            assert!(waited > wall / 3, "{waited:?} of {wall:?}");
            // It never slept.
            let known = (ran + waited).as_secs_f64() / wall.as_secs_f64();
            assert!((0.8..1.2).contains(&known), "{ran:?} and {waited:?} of {wall:?}");
        });
    }
}

//! Runs a scenario for one seed after another, each in its own runtime with paused time.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use streams::memory::MemoryCluster;

/// Environment variable with the only seed to run.
const ONE_SEED: &str = "TRIBUTARY_SEED";
/// Environment variable with the number of seeds to run of each scenario.
const SEED_COUNT: &str = "TRIBUTARY_SEEDS";
/// Simulated time after which a scenario counts as hung.
const TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Real time that one seed may take; most take about 10 ms.
const SPIN_TIMEOUT: Duration = Duration::from_secs(120);

/// Result of a seed: a hash of its history, or the guarantee that it broke.
pub(crate) type SeedResult = Result<u64, String>;

/// A scenario, which plays one history for each seed.
pub(crate) trait Scenario: Fn(u64) -> Self::Run {
    /// One run.
    type Run: Future<Output = SeedResult>;
}

impl<F: Fn(u64) -> R, R: Future<Output = SeedResult>> Scenario for F {
    type Run = R;
}

/// Runs a scenario for many seeds, or for the one that the environment names.
///
/// # Panics
/// If a seed fails, with the command that runs it alone.
#[track_caller]
pub(crate) fn check_seeds(test: &str, count: u64, scenario: impl Scenario) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number(ONE_SEED) {
        Some(seed) => seed..seed + 1,
        None => 0..number(SEED_COUNT).unwrap_or(count),
    };
    let (began, total) = (Instant::now(), seeds.end - seeds.start);
    let (seed_sender, seeds_started) = mpsc::channel();
    let watchdog = std::thread::spawn({
        let test = test.to_owned();
        move || watch_for_spinning(&test, &seeds_started)
    });
    for seed in seeds {
        let _watched = seed_sender.send(seed);
        if let Err(why) = run_seed(seed, &scenario) {
            panic!("{}", failure(test, seed, &why));
        }
    }
    drop(seed_sender);
    let _ended = watchdog.join();
    let took = began.elapsed().as_secs_f64();
    println!("{test}: {total} seeds in {took:.2} s, {:.0} a second", total as f64 / took);
}

/// Aborts the process when a seed spins: simulated time then stands still, so a timeout on it never fires. Prints the
/// seed.
fn watch_for_spinning(test: &str, seeds_started: &mpsc::Receiver<u64>) {
    let Ok(mut seed) = seeds_started.recv() else { return };
    loop {
        match seeds_started.recv_timeout(SPIN_TIMEOUT) {
            Ok(next) => seed = next,
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                eprintln!(
                    "{}",
                    failure(test, seed, &format!("it spins: it has run for {SPIN_TIMEOUT:?} of real time"))
                );
                std::process::abort();
            }
        }
    }
}

/// Finds the first seed for which a scenario fails, and why. For tests that prove that an oracle can fail.
pub(crate) fn find_failure(count: u64, scenario: impl Scenario) -> Option<(u64, String)> {
    (0..count).find_map(|seed| run_seed(seed, &scenario).err().map(|why| (seed, why)))
}

/// Runs each seed twice. Both histories must be equal, or a printed seed would not reproduce its failure.
#[track_caller]
pub(crate) fn check_repeats(test: &str, count: u64, scenario: impl Scenario) {
    for seed in 0..count {
        let [one, other] = [(); 2].map(|()| run_seed(seed, &scenario));
        assert_eq!(one, other, "{test}: seed {seed} has two histories");
    }
}

fn run_seed(seed: u64, scenario: &impl Scenario) -> SeedResult {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let ended = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async { tokio::time::timeout(TIMEOUT, scenario(seed)).await })
    }));
    match ended {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(format!("it has not ended after {TIMEOUT:?} of simulated time")),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned())
        }
    }
}

fn failure(test: &str, seed: u64, why: &str) -> String {
    let mut text = format!("{test}: {why}\n");
    let _never = write!(text, "{ONE_SEED}={seed} cargo test -p sim --test seeds {test} -- --exact --nocapture");
    text
}

/// Hash of a cluster's history.
pub(crate) fn history_of(cluster: &MemoryCluster) -> u64 {
    let mut hasher = DefaultHasher::new();
    cluster.events().hash(&mut hasher);
    cluster.now_ms().hash(&mut hasher);
    hasher.finish()
}

#[test]
fn a_failure_prints_the_command_that_runs_its_seed_alone() {
    let fails = |seed| async move { if seed == 3 { Err("it broke".to_owned()) } else { Ok(seed) } };
    assert_eq!(find_failure(10, fails), Some((3, "it broke".to_owned())));
    assert_eq!(find_failure(3, fails), None);
    let panics = |seed: u64| async move {
        assert!(seed != 2, "it panicked at {seed}");
        Ok(seed)
    };
    assert_eq!(find_failure(10, panics), Some((2, "it panicked at 2".to_owned())));
    let hangs = |_| std::future::pending::<SeedResult>();
    assert!(find_failure(1, hangs).is_some_and(|(_, why)| why.contains("has not ended")));
    let text = failure("consumer::some_test", 7, "it broke");
    assert!(text.contains("TRIBUTARY_SEED=7 cargo test -p sim --test seeds consumer::some_test -- --exact"), "{text}");
}

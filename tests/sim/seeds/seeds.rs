//! Runs a scenario for one seed after another, each in a runtime of its own whose time is paused.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use streams::memory::MemoryCluster;

/// Names the one seed to run.
const ONE_SEED: &str = "TRIBUTARY_SEED";
/// Says how many seeds to run of each scenario.
const SEED_COUNT: &str = "TRIBUTARY_SEEDS";
/// Simulated time after which a scenario hangs.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Time of the machine that one seed may take; most take a hundredth of a second.
const LONGEST_SPIN: Duration = Duration::from_secs(120);

/// What came of a seed: the history by which it is told from others, or why it is wrong.
pub(crate) type SeedResult = Result<u64, String>;

/// A scenario: a whole history of one seed.
pub(crate) trait Scenario: Fn(u64) -> Self::Run {
    /// The history as it goes.
    type Run: Future<Output = SeedResult>;
}

impl<F: Fn(u64) -> R, R: Future<Output = SeedResult>> Scenario for F {
    type Run = R;
}

/// Runs a scenario for many seeds, or for the one that the environment names.
///
/// # Panics
/// With the first seed that fails, and the command that runs it alone.
#[track_caller]
pub(crate) fn check_seeds(test: &str, count: u64, scenario: impl Scenario) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number(ONE_SEED) {
        Some(seed) => seed..seed + 1,
        None => 0..number(SEED_COUNT).unwrap_or(count),
    };
    let (began, total) = (Instant::now(), seeds.end - seeds.start);
    let (tell, heard) = mpsc::channel();
    let watchdog = std::thread::spawn({
        let test = test.to_owned();
        move || watch_for_spinning(&test, &heard)
    });
    for seed in seeds {
        let _watched = tell.send(seed);
        if let Err(why) = run_seed(seed, &scenario) {
            panic!("{}", failure(test, seed, &why));
        }
    }
    drop(tell);
    let _ended = watchdog.join();
    let took = began.elapsed().as_secs_f64();
    println!("{test}: {total} seeds in {took:.2} s, {:.0} a second", total as f64 / took);
}

/// Ends the process with the seed that never ends: where something spins, simulated time stands still and no limit on it helps.
fn watch_for_spinning(test: &str, heard: &mpsc::Receiver<u64>) {
    let Ok(mut seed) = heard.recv() else { return };
    loop {
        match heard.recv_timeout(LONGEST_SPIN) {
            Ok(next) => seed = next,
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                eprintln!(
                    "{}",
                    failure(test, seed, &format!("it spins: {LONGEST_SPIN:?} have passed and no simulated time"))
                );
                std::process::abort();
            }
        }
    }
}

/// The first of these seeds for which a scenario fails, and why: for tests that an oracle can fail.
pub(crate) fn find_failure(count: u64, scenario: impl Scenario) -> Option<(u64, String)> {
    (0..count).find_map(|seed| run_seed(seed, &scenario).err().map(|why| (seed, why)))
}

/// Runs one seed twice: both histories must be the same, or a seed that is printed says nothing.
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
        runtime.block_on(async { tokio::time::timeout(LONGEST, scenario(seed)).await })
    }));
    match ended {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(format!("it has not ended after {LONGEST:?} of simulated time")),
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

/// What tells one history of a cluster from another.
pub(crate) fn history_of(cluster: &MemoryCluster) -> u64 {
    let mut hasher = DefaultHasher::new();
    cluster.events().hash(&mut hasher);
    cluster.now_ms().hash(&mut hasher);
    hasher.finish()
}

#[test]
fn a_seed_that_fails_is_printed_with_the_command_that_runs_it_alone() {
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

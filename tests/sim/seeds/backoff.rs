//! Retry times of many clients: those that lose a server together must not all retry together.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use streams::backoff::Backoff;
use streams::memory::MemoryCluster;

use crate::seeds::{SeedResult, check_seeds, find_failure};

const CLIENTS: usize = 100;
const FIRST: Duration = Duration::from_millis(50);
const MAX: Duration = Duration::from_secs(2);
/// Retries within this time count as simultaneous.
const BUCKET: Duration = Duration::from_millis(100);

/// Lets clients fail together for 30 s and checks that their retries spread out.
async fn spread_retries(seed: u64, has_jitter: bool) -> SeedResult {
    let _simulation = MemoryCluster::new(seed);
    let started = tokio::time::Instant::now();
    let retries = Arc::new(Mutex::new(Vec::new()));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let retries = retries.clone();
        clients.spawn(async move {
            let mut backoff = Backoff::new(FIRST, MAX);
            let mut steady = FIRST;
            while started.elapsed() < Duration::from_secs(30) {
                let pause = backoff.next_pause();
                tokio::time::sleep(if has_jitter { pause } else { steady }).await;
                steady = (steady * 2).min(MAX);
                retries.lock().unwrap().push(started.elapsed());
            }
        });
    }
    while clients.join_next().await.is_some() {}
    let retries = retries.lock().unwrap().clone();
    let late: Vec<Duration> = retries.iter().copied().filter(|at| *at > Duration::from_secs(10)).collect();
    let mut buckets = std::collections::BTreeMap::<u128, usize>::new();
    for at in &late {
        *buckets.entry(at.as_millis() / BUCKET.as_millis()).or_default() += 1;
    }
    let max = buckets.values().copied().max().unwrap_or(0);
    // Spread evenly over pauses of one to two seconds, a bucket holds about seven retries.
    match max <= CLIENTS / 5 {
        true => Ok(late.len() as u64),
        false => Err(format!("{max} of {CLIENTS} retry within {BUCKET:?}")),
    }
}

#[test]
fn clients_that_fail_together_retry_at_different_times() {
    let test = "backoff::clients_that_fail_together_retry_at_different_times";
    check_seeds(test, 30, |seed| spread_retries(seed, true));
}

#[test]
fn clients_without_jitter_are_caught() {
    let (_, why) =
        find_failure(1, |seed| spread_retries(seed, false)).expect("the check missed clients that retry all at once");
    assert!(why.contains("100 of 100"), "{why}");
}

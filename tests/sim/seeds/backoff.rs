//! Pauses between tries as they add up: many who lost a server at once must not find it again at once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use streams::backoff::Backoff;
use streams::memory::MemoryCluster;

use crate::seeds::{SeedResult, check_seeds, find_failure};

const CLIENTS: usize = 100;
const FIRST: Duration = Duration::from_millis(50);
const MOST: Duration = Duration::from_secs(2);
/// Tries within so little time meet each other.
const BUCKET: Duration = Duration::from_millis(100);

/// Clients that fail together for a while, and when each tries.
async fn come_back_one_by_one(seed: u64, has_jitter: bool) -> SeedResult {
    let _simulation = MemoryCluster::new(seed);
    let began = tokio::time::Instant::now();
    let tries = Arc::new(Mutex::new(Vec::new()));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let tries = tries.clone();
        clients.spawn(async move {
            let mut backoff = Backoff::new(FIRST, MOST);
            let mut steady = FIRST;
            while began.elapsed() < Duration::from_secs(30) {
                let pause = backoff.next_pause();
                tokio::time::sleep(if has_jitter { pause } else { steady }).await;
                steady = (steady * 2).min(MOST);
                tries.lock().unwrap().push(began.elapsed());
            }
        });
    }
    while clients.join_next().await.is_some() {}
    let tries = tries.lock().unwrap().clone();
    let late: Vec<Duration> = tries.iter().copied().filter(|at| *at > Duration::from_secs(10)).collect();
    let mut buckets = std::collections::BTreeMap::<u128, usize>::new();
    for at in &late {
        *buckets.entry(at.as_millis() / BUCKET.as_millis()).or_default() += 1;
    }
    let most = buckets.values().copied().max().unwrap_or(0);
    // Spread evenly over pauses of one to two seconds it would be about seven.
    match most <= CLIENTS / 5 {
        true => Ok(late.len() as u64),
        false => Err(format!("{most} of {CLIENTS} try within {BUCKET:?}")),
    }
}

#[test]
fn clients_that_fail_together_come_back_one_by_one() {
    let test = "backoff::clients_that_fail_together_come_back_one_by_one";
    check_seeds(test, 30, |seed| come_back_one_by_one(seed, true));
}

#[test]
fn clients_without_jitter_are_caught() {
    let (_, why) =
        find_failure(1, |seed| come_back_one_by_one(seed, false)).expect("all at once passes for one by one");
    assert!(why.contains("100 of 100"), "{why}");
}

//! The number of requests that workers make: they read what is new, and do not read everything again.

use std::sync::Arc;
use std::time::Duration;

use aggregator::hard_case_count::HardCaseCount;
use runtime::consumer::WorkerStats;
use runtime::heartbeat::{HeartbeatPace, send_heartbeats};
use runtime::{Shutdown, clock};
use schemas::Role;
use streams::fleet::live_workers;
use streams::memory::MemoryCluster;
use streams::{Bus, Publication, Publisher, reader, subject, topology};

use crate::world::{CLOUD, cloud_of};

fn cloud(seed: u64) -> (MemoryCluster, Bus) {
    let cluster = cloud_of(seed, ["reef", "farm"].map(|site| site.parse().unwrap()).into());
    let bus = cluster.connect(CLOUD);
    (cluster, bus)
}

/// Publishes hard cases of two sites alternately.
async fn publish_hard_cases(bus: &Bus, from: u64, count: u64) {
    let publisher = Publisher::new(bus.clone(), Duration::from_secs(5));
    for number in from..from + count {
        let site = if number % 2 == 0 { "reef" } else { "farm" }.parse().unwrap();
        let case = Publication::with_id(subject::hardcase(&site), vec![7; 100], format!("case-{number}"));
        publisher.publish(&case).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn hard_cases_are_read_once_and_counted_since_the_round_opened() {
    let (cluster, bus) = cloud(1);
    publish_hard_cases(&bus, 0, 500).await;
    let mut count = HardCaseCount::default();
    assert_eq!(count.count_new(&bus, 0).await.unwrap(), 500, "the first call counts all");
    assert_eq!((count.sites_with(250), count.sites_with(251)), (2, 0));
    assert_eq!(count.count_new(&bus, 0).await.unwrap(), 0);
    publish_hard_cases(&bus, 500, 3).await;
    assert_eq!(count.count_new(&bus, 0).await.unwrap(), 3);
    assert_eq!((count.sites_with(251), count.sites_with(252)), (2, 1));
    // A round opens: only cases stored since then count, including those that were already read.
    let opened_at_ms = cluster.now_ms();
    tokio::time::sleep(Duration::from_secs(1)).await;
    publish_hard_cases(&bus, 600, 4).await;
    assert_eq!(count.count_new(&bus, 0).await.unwrap(), 4);
    assert_eq!(count.count_new(&bus, opened_at_ms).await.unwrap(), 4);
    assert_eq!((count.sites_with(2), count.sites_with(3)), (2, 0));
    assert_eq!(count.count_new(&bus, opened_at_ms).await.unwrap(), 0);
    // Purged cases no longer count, read or not.
    publish_hard_cases(&bus, 700, 6).await;
    let last = reader::stream_level(&bus, topology::HARDCASES).await.unwrap().last_sequence;
    reader::purge_before(&bus, topology::HARDCASES, last - 1).await.unwrap();
    assert_eq!(count.count_new(&bus, opened_at_ms).await.unwrap(), 2);
    assert_eq!((count.sites_with(3), count.sites_with(4)), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_is_one_request_and_its_bucket_is_reopened_after_a_failure() {
    let (cluster, bus) = cloud(2);
    let shutdown = Shutdown::default();
    let pace = HeartbeatPace { every: Duration::from_millis(500), ..HeartbeatPace::default() };
    let sending = tokio::spawn({
        let (bus, shutdown) = (bus.clone(), shutdown.clone());
        async move {
            send_heartbeats(bus, Role::Verifier, None, Arc::<WorkerStats>::default(), shutdown, pace, |_| {}).await;
        }
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before = cluster.request_count();
    tokio::time::sleep(Duration::from_secs(100)).await;
    let requests = cluster.request_count() - before;
    // 200 heartbeats, and the server's time every five seconds.
    assert!((200..=225).contains(&requests), "{requests} requests in 100 seconds");
    cluster.stop_server(CLOUD, Duration::ZERO);
    tokio::time::sleep(Duration::from_secs(60)).await;
    cluster.start_server(CLOUD);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let since_ms = clock::now_ms();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let live = live_workers(&bus).await.unwrap();
    assert!(live.iter().any(|heartbeat| heartbeat.sent_at_ms >= since_ms), "{live:?} at {since_ms}");
    shutdown.request();
    sending.await.unwrap();
}

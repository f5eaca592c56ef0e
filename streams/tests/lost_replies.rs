//! How clients handle replies that never arrive, on a server in memory that loses them by a seed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use schemas::{CameraName, SiteName, TaskId};
use streams::memory::{ClusterEvent, MemoryCluster, NetworkFaults};
use streams::topology::{self, PlanScope, StreamSettings};
use streams::{Blobs, Bus, CarryError, Publication, PublishOutcome, Publisher, subject};

const SERVER: &str = "one";

fn site() -> SiteName {
    "reef".parse().unwrap()
}

fn cluster(seed: u64) -> (MemoryCluster, Bus) {
    let cluster = MemoryCluster::new(seed);
    cluster.add_server(SERVER, &topology::plan_topology(&PlanScope::Both(site()), &StreamSettings::default()));
    let bus = cluster.connect(SERVER);
    (cluster, bus)
}

fn losing(lost_reply_ratio: f64) -> NetworkFaults {
    NetworkFaults { lost_reply_ratio, ..NetworkFaults::default() }
}

fn outcome(payload: &'static str) -> Publication {
    let camera: CameraName = "cam-1".parse().unwrap();
    Publication::first_on_subject(subject::outcome(&site(), &camera, TaskId::from_name("a")), payload)
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_a_lost_acknowledgement_finds_its_own_message() {
    let mut repeated = 0;
    for seed in 0..200 {
        let (cluster, bus) = cluster(seed);
        cluster.set_faults(losing(0.5));
        let publisher = Publisher::new(bus, Duration::from_secs(600));
        match publisher.publish(&outcome("own")).await.unwrap() {
            PublishOutcome::Stored(1) => {}
            PublishOutcome::Duplicate(1) => repeated += 1,
            other => panic!("seed {seed}: {other:?}"),
        }
        assert_eq!(publisher.publish(&outcome("another's")).await.unwrap(), PublishOutcome::Taken, "seed {seed}");
        let stored = cluster.events().iter().filter(|event| matches!(event, ClusterEvent::Stored { .. })).count();
        assert_eq!(stored, 1, "seed {seed}");
    }
    assert!((60..140).contains(&repeated), "about half of 200 acknowledgements should be lost, not {repeated}");
}

#[tokio::test(start_paused = true)]
async fn publishing_fails_while_no_reply_arrives() {
    let (cluster, bus) = cluster(7);
    let publisher = Publisher::new(bus, Duration::from_secs(20));
    publisher.publish(&outcome("another's")).await.unwrap();
    cluster.set_faults(losing(1.0));
    let unknown = publisher.publish(&outcome("own")).await;
    assert!(matches!(unknown, Err(CarryError::NoAck { .. } | CarryError::Broker { .. })), "{unknown:?}");
}

#[tokio::test(start_paused = true)]
async fn a_transfer_continues_after_a_lost_reply() {
    let bytes: Vec<u8> = (0..60_000_000u32).map(|number| (number % 251) as u8).collect();
    let (cluster, bus) = cluster(3);
    let (site, cloud) = (Blobs::open(&bus).await.unwrap(), Blobs::open_in_cloud(&bus).await.unwrap());
    let blob = cloud.store_blob(&bytes).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("weights");
    let requests = cluster.request_count();
    cloud.fetch_to_file(&blob, 1 << 30, &into).await.unwrap();
    let undisturbed = cluster.request_count() - requests;
    for seed in 0..20 {
        let _ = std::fs::remove_file(&into);
        cluster.set_faults(losing(0.25));
        let requests = cluster.request_count();
        // The lookup of the blob is not retried, so the fetch may fail and must be started again.
        while let Err(error) = cloud.fetch_to_file(&blob, 1 << 30, &into).await {
            assert!(matches!(error, CarryError::Broker { .. }), "try {seed}: {error}");
            assert!(!into.exists());
        }
        assert!(std::fs::read(&into).unwrap() == bytes);
        let requests = cluster.request_count() - requests;
        assert!(requests < 3 * undisturbed, "try {seed}: {requests} requests, {undisturbed} without losses");
    }
    // No reply arrives any more: the fetch fails and leaves nothing behind.
    cluster.set_faults(losing(1.0));
    std::fs::remove_file(&into).unwrap();
    let cut = cloud.fetch_to_file(&blob, 1 << 30, &into).await;
    assert!(matches!(cut, Err(CarryError::Broker { .. })), "{cut:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    assert!(cloud.copy_to(&site, &blob, 1 << 30).await.is_err());
}

//! Large blobs pass through a worker without being held in its memory, on a real server. The only test in this binary,
//! for it measures the memory of the whole process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use schemas::{BlobRef, SiteName};
use streams::server::{ClientListener, Durability, LeafMode, Server, ServerSettings};
use streams::topology::{self, PlanScope, RepairMode, StreamSettings};
use streams::{Blobs, Bus, NatsSettings};

const SIZE_MIB: usize = 200;
/// How much a transfer may add to the process's memory: the chunks in flight.
const MAX_RISE_MIB: u64 = 16;

/// Writes a file of pseudo-random bytes, so that no two chunks are equal.
fn write_file(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    let mut part = vec![0u8; 1 << 20];
    let mut state = 1u64;
    for _ in 0..SIZE_MIB {
        for eight in part.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            eight.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&part).unwrap();
    }
}

/// Runs `work` and returns by how much memory rose meanwhile, MiB.
async fn rise_mib<T>(work: impl Future<Output = T>) -> (T, u64) {
    let process = std::process::id();
    os::process::trim_memory();
    os::process::reset_peak();
    let before = os::process::resident_bytes().unwrap();
    let done = work.await;
    let peak = os::process::peak_bytes(process).unwrap();
    (done, peak.saturating_sub(before) >> 20)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_of_200_mib_takes_little_memory_on_either_side() {
    let reef: SiteName = "reef".parse().unwrap();
    let plan = topology::plan_topology(&PlanScope::Both(reef), &StreamSettings::default());
    let folder = tempfile::tempdir().unwrap();
    let settings = ServerSettings {
        encryption_key: None,
        program: None,
        store: folder.path().join("server"),
        name: "one".into(),
        domain: None,
        port: 0,
        mqtt: None,
        mappings: Vec::new(),
        durability: Durability::Fast,
        max_store_bytes: plan.max_store_bytes(),
        leaf: LeafMode::Alone,
        site: None,
        entry: ClientListener::default(),
    };
    let server = tokio::task::spawn_blocking(move || Server::start(&settings)).await.unwrap().unwrap();
    let bus = Bus::connect(&NatsSettings { url: server.url(), ..NatsSettings::default() }, "large").await.unwrap();
    topology::apply_plan(&bus, &plan, RepairMode::Missing).await.unwrap();
    let (cloud, site) = (Blobs::open_in_cloud(&bus).await.unwrap(), Blobs::open(&bus).await.unwrap());
    let fetched = folder.path().join("fetched");
    std::fs::create_dir(&fetched).unwrap();
    let (file, into) = (folder.path().join("weights"), fetched.join("weights"));
    write_file(&file);

    let (blob, stored_mib) = rise_mib(cloud.store_file(&file)).await;
    let blob: BlobRef = blob.unwrap();
    assert_eq!(blob.size_bytes, (SIZE_MIB << 20) as u64);
    let (done, copied_mib) = rise_mib(cloud.copy_to(&site, &blob, blob.size_bytes)).await;
    done.unwrap();
    let (done, fetched_mib) = rise_mib(site.fetch_to_file(&blob, blob.size_bytes, &into)).await;
    done.unwrap();
    println!("memory rose by {stored_mib} MiB storing, {copied_mib} MiB copying, {fetched_mib} MiB fetching");
    for (what, mib) in [("storing", stored_mib), ("copying", copied_mib), ("fetching", fetched_mib)] {
        assert!(mib <= MAX_RISE_MIB, "{what} {SIZE_MIB} MiB took {mib} MiB of memory");
    }
    // The fetch checked the digest; check that the file on disk has the same one.
    assert_eq!(site.store_file(&into).await.unwrap(), blob);

    // A cancelled fetch leaves nothing behind.
    std::fs::remove_file(&into).unwrap();
    let arrived = || {
        let files = std::fs::read_dir(&fetched)
            .unwrap()
            .map(|entry| entry.unwrap().metadata().map_or(0, |metadata| metadata.len()));
        files.sum::<u64>()
    };
    let half_arrived = async {
        while arrived() < blob.size_bytes / 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        ended = site.fetch_to_file(&blob, blob.size_bytes, &into) => panic!("the fetch ended too early: {ended:?}"),
        () = half_arrived => {}
    }
    let left = || std::fs::read_dir(&fetched).unwrap().count();
    // A write that is in progress on another thread finishes first.
    let removed = async {
        while left() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), removed)
        .await
        .expect("the cancelled fetch left its temporary file behind");

    // An existing file stays as it was when the blob has the wrong digest.
    std::fs::write(&into, "before").unwrap();
    let other = BlobRef { sha256: "07".repeat(32), ..blob };
    assert!(site.fetch_to_file(&other, 1 << 30, &into).await.is_err());
    assert_eq!(std::fs::read(&into).unwrap(), b"before");
    assert_eq!(std::fs::read_dir(&fetched).unwrap().count(), 1);
}

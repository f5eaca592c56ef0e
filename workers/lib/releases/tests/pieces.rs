//! Moves a package from the release store through a blob bucket, on a real nats-server.

#![allow(clippy::indexing_slicing)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::path::Path;

use releases::package::{PackageError, assemble, fetch, keep, offer, piece, split};
use schemas::ModelName;
use schemas::limits::PIECE_BYTES;
use streams::server::{ClientListener, Durability, LeafMode, Server, ServerSettings};
use streams::topology::{self, PlanScope, RepairMode, StreamSettings};
use streams::{Blobs, Bus, NatsSettings, ReleaseStore};

async fn server(store: &Path) -> (Server, Bus) {
    let settings = ServerSettings {
        encryption_key: None,
        program: None,
        store: store.to_owned(),
        name: "test".into(),
        domain: None,
        port: 0,
        mqtt: None,
        mappings: Vec::new(),
        durability: Durability::Fast,
        max_store_bytes: streams::topology::default_store_bytes(),
        leaf: LeafMode::Alone,
        site: None,
        entry: ClientListener::default(),
    };
    let server = tokio::task::spawn_blocking(move || Server::start(&settings)).await.unwrap().unwrap();
    let bus = Bus::connect(&NatsSettings { url: server.url(), ..NatsSettings::default() }, "test").await.unwrap();
    let plan = topology::plan_topology(&PlanScope::Both("reef".parse().unwrap()), &StreamSettings::default());
    topology::apply_plan(&bus, &plan, RepairMode::Everything).await.unwrap();
    (server, bus)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_package_comes_through_the_store_and_a_bucket_piece_by_piece() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (_server, bus) = server(&at("server")).await;
    let (cloud, site) = (Blobs::open_in_cloud(&bus).await.unwrap(), Blobs::open(&bus).await.unwrap());
    let store = ReleaseStore::open(&at("store").display().to_string()).unwrap();
    let model: ModelName = "fashion".parse().unwrap();
    let bytes: Vec<u8> = (0..2 * PIECE_BYTES + 1000).map(|at| (at / 1000 % 251) as u8).collect();
    fs::write(at("package"), &bytes).unwrap();
    let pieces = split(&at("package")).unwrap();

    // Only the first piece is in the bucket, and none in the store.
    cloud.store_blob(&piece(&at("package"), 0).unwrap()).await.unwrap();
    for (error, expected) in [
        (assemble(&cloud, &pieces, &at("made")).await.unwrap_err(), 2),
        (fetch(&store, &model, &pieces, &at("fetched")).await.unwrap_err(), 3),
    ] {
        assert!(error.passes(), "{error}");
        match error {
            PackageError::Missing { missing, pieces, .. } => assert_eq!((missing, pieces), (expected, 3)),
            error => panic!("{error}"),
        }
    }
    assert!(!at("made").exists() && !at("fetched").exists());
    assert!(offer(&store, &model, &cloud, &pieces).await.is_err());

    // The other two are in another bucket; the first is not fetched again.
    for index in [1, 2] {
        site.store_blob(&piece(&at("package"), index).unwrap()).await.unwrap();
    }
    assemble(&site, &pieces, &at("made")).await.unwrap();
    assert!(fs::read(at("made")).unwrap() == bytes && !at(".made.partial").exists());

    for _ in 0..2 {
        keep(&store, &model, &at("package"), &pieces).await.unwrap();
        offer(&store, &model, &cloud, &pieces).await.unwrap();
        assemble(&cloud, &pieces, &at("offered")).await.unwrap();
        fetch(&store, &model, &pieces, &at("fetched")).await.unwrap();
    }
    assert!(fs::read(at("offered")).unwrap() == bytes && fs::read(at("fetched")).unwrap() == bytes);
    assert_eq!(store.list("models/fashion/packages").await.unwrap().len(), 3);

    // Pieces that are already offered are not read from the store.
    fs::remove_dir_all(at("store").join("models")).unwrap();
    offer(&store, &model, &cloud, &pieces).await.unwrap();

    fs::write(at("package"), "something else").unwrap();
    assert!(keep(&store, &model, &at("package"), &pieces).await.is_err());
    assert!(store.list("models").await.unwrap().is_empty());
}

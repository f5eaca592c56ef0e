//! The release store over a real S3 server: the promises of the folder, over HTTP; and a release sealed there.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use harness::seaweed::{SECRET, Seaweed};
use nix::sys::signal::Signal;
use schemas::BlobRef;
use sha2::{Digest, Sha256};
use streams::store::REQUEST_TIMEOUT;
use streams::{CarryError, PutOutcome, ReleaseStore};

fn blob_of(bytes: &[u8]) -> BlobRef {
    BlobRef::new(Sha256::digest(bytes).into(), bytes.len() as u64)
}

/// Puts one path from sixteen sides at once. Who won, and what stays.
async fn race(store: &ReleaseStore, path: &str) -> anyhow::Result<(Vec<String>, Bytes)> {
    let puts = (0..16).map(|writer| {
        let (store, path, bytes) = (store.clone(), path.to_owned(), format!("writer {writer}"));
        tokio::spawn(async move { store.put_new(&path, bytes.clone().into()).await.map(|put| (bytes, put)) })
    });
    let mut won = Vec::new();
    for put in puts.collect::<Vec<_>>() {
        let (bytes, put) = put.await??;
        won.extend((put == PutOutcome::New).then_some(bytes));
    }
    Ok((won, store.get(path, 100).await?.context("nothing stays")?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_s3_server_keeps_the_promises_of_the_folder() -> anyhow::Result<()> {
    let server = Seaweed::start().await?;
    let store = server.store(SECRET, &[])?;

    assert_eq!(store.put_new("releases/1.json", "first".into()).await?, PutOutcome::New, "{}", server.log());
    assert_eq!(store.put_new("releases/1.json", "second".into()).await?, PutOutcome::Already);
    assert_eq!(store.get("releases/1.json", 100).await?, Some("first".into()));
    assert_eq!(store.get("releases/2.json", 100).await?, None);
    let error = store.get("releases/1.json", 4).await.unwrap_err();
    assert!(matches!(&error, CarryError::BadObject { what, .. } if what.contains("at most 4")), "{error}");

    // SeaweedFS looks for its lock on a key once a second: the last of sixteen may wait for as many.
    let patient = server.store(SECRET, &[("AWS_TIMEOUT", "30s")])?;
    for round in 0..5 {
        let (won, kept) = race(&patient, &format!("rounds/{round}")).await?;
        assert!(won.len() == 1 && kept == won[0], "round {round}: {won:?} won, {kept:?} stays");
    }

    let bytes: Vec<u8> = (0..20 * 1024 * 1024_u32).map(|at| (at % 251) as u8).collect();
    let (blob, from, into) = (blob_of(&bytes), server.folder().join("from"), server.folder().join("into"));
    fs::write(&from, &bytes)?;
    assert_eq!(store.put_file("weights/large", &blob, &from).await?, PutOutcome::New);
    assert_eq!(store.put_file("weights/large", &blob, &from).await?, PutOutcome::Already);
    store.fetch("weights/large", &blob, blob.size_bytes, &into).await?;
    assert!(fs::read(&into)? == bytes, "20 MiB came back otherwise");

    let other = vec![0; bytes.len()];
    let error = store.put_file("weights/wrong", &blob_of(&other), &from).await.unwrap_err();
    assert!(matches!(&error, CarryError::BadObject { what, .. } if what.contains("SHA-256")), "{error}");
    let absent = server.folder().join("absent");
    let error = store.fetch("weights/large", &blob_of(&other), blob.size_bytes, &absent).await.unwrap_err();
    assert!(matches!(&error, CarryError::BadObject { what, .. } if what.contains("SHA-256")), "{error}");
    assert!(!absent.exists());

    let rounds: Vec<String> = (0..5).map(|round| format!("rounds/{round}")).collect();
    assert_eq!(store.list("rounds").await?, rounds);
    let all = [&["releases/1.json".to_owned()][..], &rounds, &["weights/large".to_owned()]].concat();
    assert_eq!(store.list("").await?, all);
    assert_eq!(store.list("absent").await?, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn a_server_that_refuses_freezes_or_dies_is_an_error_and_no_hang() -> anyhow::Result<()> {
    let mut server = Seaweed::start().await?;
    let store = server.store(SECRET, &[])?;
    store.put_new("release", "x".into()).await?;

    let stranger = server.store("another-secret", &[])?;
    for error in [
        stranger.put_new("other", "x".into()).await.unwrap_err(),
        stranger.get("release", 1).await.unwrap_err(),
        stranger.list("").await.unwrap_err(),
        stranger.fetch("release", &blob_of(b"x"), 1, &server.folder().join("release")).await.unwrap_err(),
    ] {
        let text = format!("{error} {error:?}");
        assert!(matches!(error, CarryError::StoreDenied { .. }) && !error.is_transient(), "{text}");
        assert!(text.contains("correct the keys in the environment (AWS_ACCESS_KEY_ID"), "{text}");
        assert!(!text.contains("another-secret"), "{text}");
    }

    let misspelled = server.store_without_bucket()?;
    for error in [misspelled.get("release", 1).await.unwrap_err(), misspelled.list("").await.unwrap_err()] {
        assert!(matches!(error, CarryError::StoreUrl { .. }) && !error.is_transient(), "{error:?}");
    }

    server.signal(Signal::SIGSTOP)?;
    let hasty = server.store(SECRET, &[("AWS_TIMEOUT", "500ms")])?;
    for patient in [&hasty, &store] {
        let since = Instant::now();
        let error = patient.get("release", 1).await.unwrap_err();
        let took = since.elapsed();
        println!("a frozen server: {error} after {took:?}");
        assert!(matches!(error, CarryError::Store { .. }) && error.is_transient(), "{error:?}");
        assert!(took < REQUEST_TIMEOUT + Duration::from_secs(5), "a frozen server was waited for {took:?}");
    }
    server.signal(Signal::SIGCONT)?;

    server.kill()?;
    let since = Instant::now();
    let error = store.put_new("another", "x".into()).await.unwrap_err();
    println!("a dead server: {error} after {:?}", since.elapsed());
    assert!(matches!(error, CarryError::Store { .. }) && error.is_transient(), "{error:?}");
    assert!(since.elapsed() < REQUEST_TIMEOUT, "a dead server was waited for {:?}", since.elapsed());
    Ok(())
}

//! `tributary up`: everything in one process, and nothing left behind.

use std::fs;
use std::path::Path;
use std::time::Duration;

use harness::pictures::{HEAVY, LIGHT, first_picture};
use harness::program::fixture;
use harness::{WorkerProcess, run, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use schemas::{Route, SiteName};
use streams::{Bus, NatsSettings};

use crate::common::{PATIENCE, outcome, publish};

/// Starts `up` in a folder and waits until it takes work.
pub(crate) async fn up(folder: &Path, more: &[&str]) -> WorkerProcess {
    let (light, heavy) = (fixture(LIGHT).display().to_string(), fixture(HEAVY).display().to_string());
    let arguments = [&["up", "--model", &light, "--cloud-model", &heavy, "--store", "store"], more].concat();
    let mut worker = WorkerProcess::start("up", folder, &arguments, &[]).unwrap();
    let written = until("up.json", PATIENCE, async || Ok(found(folder).map(|_| ())));
    if let Err(error) = written.await {
        panic!("{error:#}; ended: {:?}\n{}", worker.ended(), worker.log());
    }
    worker
}

/// What a running `up` says about itself.
pub(crate) fn found(folder: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&fs::read(folder.join("store/up.json")).ok()?).ok()
}

async fn bus(folder: &Path) -> (Bus, SiteName) {
    let site = found(folder).unwrap()["sites"][0].clone();
    let url = site["url"].as_str().unwrap().to_owned();
    let bus = Bus::connect(&NatsSettings { url, ..NatsSettings::default() }, "test").await.unwrap();
    (bus, site["site"].as_str().unwrap().parse().unwrap())
}

/// The process of one of its servers.
pub(crate) fn server_process(folder: &Path, server: &str) -> Option<Pid> {
    let text = fs::read_to_string(folder.join("store").join(server).join("nats-server.pid")).ok()?;
    text.trim().parse().ok().map(Pid::from_raw)
}

/// Whether no such process runs; one that is dead and not yet buried does not run.
pub(crate) fn is_gone(process: Pid) -> bool {
    match fs::read_to_string(format!("/proc/{process}/stat")) {
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
        Err(_) => kill(process, None).is_err(),
    }
}

#[tokio::test]
async fn a_second_up_on_the_same_store_refuses_and_the_first_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = up(folder.path(), &[]).await;
    let light = fixture(LIGHT).display().to_string();
    let second = run(folder.path(), &["up", "--model", &light, "--store", "store"]).await.unwrap();
    assert!(!second.success);
    assert!(second.err.contains("in use by another tributary"), "{}", second.err);
    assert_eq!(first.ended().unwrap(), None);
    let (bus, site) = bus(folder.path()).await;
    let task = publish(&bus, &site, &first_picture(true).unwrap().bytes, &[]).await;
    assert_eq!(outcome(&bus, &site, task).await.unwrap().route, Route::Edge);
}

#[tokio::test]
async fn an_up_that_is_killed_leaves_no_server_behind_and_starts_again_on_its_store() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = up(folder.path(), &["--sites", "2"]).await;
    let (before, site) = bus(folder.path()).await;
    let task = publish(&before, &site, &first_picture(false).unwrap().bytes, &[]).await;
    assert_eq!(outcome(&before, &site, task).await.unwrap().route, Route::Verified);
    let servers = ["cloud", "site-1", "site-2"].map(|server| server_process(folder.path(), server).expect(server));
    worker.kill().unwrap();
    for server in servers {
        let what = format!("nats-server {server} ends with the process that started it");
        until(&what, PATIENCE, async || Ok(is_gone(server).then_some(()))).await.unwrap();
    }
    // Stale: its process is gone, so nobody is led astray by it.
    fs::remove_file(folder.path().join("store/up.json")).unwrap();
    let _again = up(folder.path(), &["--sites", "2"]).await;
    let (after, site) = bus(folder.path()).await;
    assert_eq!(outcome(&after, &site, task).await.unwrap().route, Route::Verified, "the answer was kept");
}

#[tokio::test]
async fn a_server_that_dies_is_started_again_by_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = up(folder.path(), &[]).await;
    let first = server_process(folder.path(), "site").unwrap();
    kill(first, Signal::SIGKILL).unwrap();
    let second = until("another server", PATIENCE, async || {
        Ok(server_process(folder.path(), "site").filter(|process| *process != first && !is_gone(*process)))
    });
    second.await.unwrap();
    let (bus, site) = bus(folder.path()).await;
    let task = publish(&bus, &site, &first_picture(false).unwrap().bytes, &[]).await;
    assert_eq!(outcome(&bus, &site, task).await.unwrap().route, Route::Verified);
    assert_eq!(worker.ended().unwrap(), None, "{}", worker.log());
}

#[tokio::test]
async fn an_interrupt_stops_everything_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = up(folder.path(), &["--sites", "1"]).await;
    let servers = ["cloud", "site-1"].map(|server| server_process(folder.path(), server).unwrap());
    worker.signal(Signal::SIGINT).unwrap();
    let status = worker.end(Duration::from_secs(40)).await.unwrap();
    assert!(status.success(), "{status}: {}", worker.log());
    assert!(servers.into_iter().all(is_gone), "a server outlived the process that waited for it");
    assert!(found(folder.path()).is_none(), "up.json was left behind");
}

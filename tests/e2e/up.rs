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

#[tokio::test]
async fn a_release_store_without_keys_ends_up_once_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let light = fixture(LIGHT).display().to_string();
    let store = ["--set", "aggregator.merge.rule=fedavg", "--set", "aggregator.store=s3://models/fish"];
    let arguments = [&["up", "--model", &light, "--merge", "--store", "store"], &store[..]].concat();
    // Nobody listens there, and an empty key is none.
    let environment = [("AWS_ENDPOINT", "http://127.0.0.1:1"), ("AWS_ALLOW_HTTP", "true")].into_iter();
    let none = ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE"].map(|name| (name, ""));
    let environment: Vec<_> =
        environment.chain(none).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mut up = WorkerProcess::start("up", folder.path(), &arguments, &environment).unwrap();
    let status = up.end(Duration::from_secs(60)).await.unwrap();
    let log = up.log();
    assert!(!status.success() && log.contains("the environment holds no keys"), "{log}");
    assert!(log.contains("AWS_ACCESS_KEY_ID") && !log.contains(" WARN "), "{log}");
    assert!(found(folder.path()).is_none(), "it said that it runs");
}

#[tokio::test]
async fn commands_beside_an_up_know_what_it_was_started_with() {
    let folder = tempfile::tempdir().unwrap();
    let merge = ["--merge", "--set", "aggregator.merge.rule=fedavg", "--set", "streams.images_max_mib=200"];
    let mut worker = up(folder.path(), &merge).await;
    let beside = async |words: &[&str]| run(folder.path(), &[words, &["--store", "store"]].concat()).await.unwrap();
    let doctor = beside(&["doctor"]).await;
    assert!(doctor.success && doctor.out.contains("as in the settings"), "{}\n{}", doctor.out, doctor.err);
    assert!(doctor.out.contains("fashion-light") && doctor.out.contains("fashion-heavy"), "{}", doctor.out);
    let (bus, site) = bus(folder.path()).await;
    let task = publish(&bus, &site, &first_picture(true).unwrap().bytes, &[]).await;
    outcome(&bus, &site, task).await.unwrap();
    let start = &task.to_string()[..8];
    let wrong = beside(&["label", start, "submarine"]).await;
    assert!(!wrong.success && wrong.err.contains("no label \"submarine\""), "{}", wrong.err);
    let right = beside(&["label", start, "coat"]).await;
    assert!(right.success && right.out.contains("1 label at"), "{}\n{}", right.out, right.err);
    until("the baseline", PATIENCE, async || {
        let listed = beside(&["release", "list"]).await;
        Ok(listed.out.contains("stable").then_some(()))
    })
    .await
    .unwrap();
    let listed = beside(&["release", "list"]).await;
    let release = listed.out.lines().nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let refused = beside(&["release", "export", &release, "./model"]).await;
    assert!(!refused.success && refused.err.contains("recognizer.model"), "{}", refused.err);
    let exported = beside(&["release", "export", &release, "./exported"]).await;
    assert!(exported.success, "{}", exported.err);
    let pinned = beside(&["release", "pin", "nowhere", &release]).await;
    assert!(pinned.success && pinned.err.contains("no site nowhere has reported"), "{}", pinned.err);
    worker.signal(Signal::SIGINT).unwrap();
    assert!(worker.end(Duration::from_secs(40)).await.unwrap().success());
    assert!(!worker.log().contains(" WARN "), "{}", worker.log());
}

/// Runs a command again and again until its output has a text.
async fn until_said(folder: &Path, words: &[&str], is_said: impl Fn(&str) -> bool) -> String {
    let mut last = String::new();
    let said = until("what is expected", PATIENCE * 3, async || {
        let said = run(folder, &[words, &["--store", "store"]].concat()).await?;
        last = said.out + &said.err;
        Ok(is_said(&last).then_some(()))
    });
    said.await.unwrap_or_else(|error| panic!("{error:#}: {last}"));
    last
}

#[tokio::test]
async fn a_role_that_fails_is_named_and_started_again_while_images_are_recognized() {
    let folder = tempfile::tempdir().unwrap();
    let (light, heavy) = (fixture(LIGHT).display().to_string(), folder.path().join("heavy"));
    fs::create_dir(&heavy).unwrap();
    for file in fs::read_dir(fixture(HEAVY)).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), heavy.join(file.file_name())).unwrap();
    }
    fs::write(heavy.join("graph.onnx"), "half of a copy").unwrap();
    let arguments = ["up", "--model", &light, "--cloud-model", "heavy", "--store", "store"];
    let mut worker = WorkerProcess::start("up", folder.path(), &arguments, &[]).unwrap();
    until("up.json", PATIENCE, async || Ok(found(folder.path()).map(|_| ()))).await.unwrap();

    let status = until_said(folder.path(), &["status"], |status| status.contains("The verifier fails (")).await;
    assert!(status.contains("heavy") && status.contains("next try in"), "{status}");
    assert!(!status.contains("No verifier is running"), "said twice: {status}");
    let doctor = run(folder.path(), &["doctor", "--store", "store"]).await.unwrap();
    assert!(!doctor.success, "{}", doctor.out);
    let row = doctor.out.lines().find(|line| line.starts_with("bad") && line.contains("roles"));
    assert!(row.is_some_and(|row| row.contains("The verifier fails")), "{}", doctor.out);

    let (bus, site) = bus(folder.path()).await;
    let task = publish(&bus, &site, &first_picture(true).unwrap().bytes, &[]).await;
    assert_eq!(outcome(&bus, &site, task).await.unwrap().route, Route::Edge, "recognition goes on");
    let doubtful = publish(&bus, &site, &first_picture(false).unwrap().bytes, &[]).await;

    fs::copy(fixture(HEAVY).join("graph.onnx"), heavy.join("graph.onnx")).unwrap();
    until_said(folder.path(), &["status"], |status| status.contains("No problems.")).await;
    assert_eq!(outcome(&bus, &site, doubtful).await.unwrap().route, Route::Verified, "{}", worker.log());
    let doctor = run(folder.path(), &["doctor", "--store", "store"]).await.unwrap();
    assert!(doctor.success && doctor.out.contains("verifier"), "{}\n{}", doctor.out, doctor.err);
    assert_eq!(worker.ended().unwrap(), None, "{}", worker.log());
    worker.signal(Signal::SIGINT).unwrap();
    assert!(worker.end(Duration::from_secs(40)).await.unwrap().success(), "{}", worker.log());
}

#[tokio::test]
async fn a_mistake_at_the_start_ends_up_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let light = fixture(LIGHT).display().to_string();
    let refused = async |more: &[&str], text: &str| {
        let arguments = [&["up", "--model", &light, "--store", "store"], more].concat();
        let ended = run(folder.path(), &arguments).await.unwrap();
        assert!(!ended.success && ended.err.contains(text), "{text:?} is not in {}", ended.err);
        assert!(found(folder.path()).is_none(), "it said that it runs");
    };
    refused(&["--cloud-model", "no-such-folder"], "verifier.model is no-such-folder").await;
    refused(&["--train", "--set", "trainer.key=no-such-key"], "omit trainer.key").await;
    let pick = ["--merge", "--set", "aggregator.merge.rule=pick"];
    refused(&pick, "rule pick scores models on a public set").await;
    refused(&["--train", "--set", "trainer.limits.least_ratio=0.6"], "trainer.limits.least_ratio is 0.6").await;
}

#[tokio::test]
async fn merging_without_a_public_set_takes_a_rule_that_needs_none_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = up(folder.path(), &["--train", "--merge"]).await;
    let status =
        until_said(folder.path(), &["status"], |status| status.contains("aggregator") && status.contains("rounds"))
            .await;
    assert!(status.contains("trainer") && !status.contains("fails"), "{status}");
    let said =
        worker.log().lines().filter(|line| line.contains("no public set")).map(str::to_owned).collect::<Vec<_>>();
    assert!(said.len() == 1 && said[0].contains("INFO") && said[0].contains("fedavg"), "{said:?}");
    let opened = run(folder.path(), &["round", "open", "--quorum", "1", "--store", "store"]).await.unwrap();
    assert!(opened.success, "{}", opened.err);
    until_said(folder.path(), &["status"], |status| status.contains("round 1 is open")).await;
    worker.signal(Signal::SIGINT).unwrap();
    assert!(worker.end(Duration::from_secs(40)).await.unwrap().success(), "{}", worker.log());
}

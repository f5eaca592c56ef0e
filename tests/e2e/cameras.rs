//! Cameras with an address: from their pictures to answers, and what becomes of a camera that fails, for real servers.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use harness::cameras::WebCamera;
use harness::pictures::{LIGHT, pictures};
use harness::program::fixture;
use harness::{WorkerProcess, run, until};
use schemas::{Answer, CameraHealth, CameraState, SiteName, decode};
use streams::reader::{self, StreamRange};
use streams::topology::{self, StreamSettings};
use streams::{Bus, NatsSettings, subject};

use crate::common::PATIENCE;
use crate::up::found;

/// A camera that shows the project's own pictures in turn, large enough to be one.
pub(crate) async fn web_camera() -> WebCamera {
    let jpegs =
        pictures().unwrap().iter().take(12).map(|picture| Bytes::from(vision::enlarged(&picture.bytes, 320).unwrap()));
    WebCamera::start(jpegs.collect()).await.unwrap()
}

pub(crate) fn write_settings(folder: &Path, cameras: &str) {
    // Replaced whole: the file is being followed.
    std::fs::write(folder.join("new.toml"), cameras).unwrap();
    std::fs::rename(folder.join("new.toml"), folder.join("tributary.toml")).unwrap();
}

/// A camera's entry in the settings.
pub(crate) fn entry(name: &str, url: &str, more: &str) -> String {
    format!("[[camera]]\nname = \"{name}\"\nurl = \"{url}\"\n{more}\n")
}

/// Starts `up` with the cameras of its settings file, and the light model alone.
async fn up(folder: &Path, more: &[&str]) -> WorkerProcess {
    up_with(folder, more, &[]).await
}

/// The same, with an environment.
pub(crate) async fn up_with(folder: &Path, more: &[&str], environment: &[(String, String)]) -> WorkerProcess {
    let light = fixture(LIGHT).display().to_string();
    let arguments = [&["up", "--model", &light, "--store", "store"], more].concat();
    let mut worker = WorkerProcess::start("up", folder, &arguments, environment).unwrap();
    let written = until("up.json", PATIENCE, async || Ok(found(folder).map(|_| ())));
    if let Err(error) = written.await {
        panic!("{error:#}; ended: {:?}\n{}", worker.ended(), worker.log());
    }
    worker
}

pub(crate) async fn bus(folder: &Path) -> (Bus, SiteName) {
    let site = found(folder).unwrap()["sites"][0].clone();
    let url = site["url"].as_str().unwrap().to_owned();
    let bus = Bus::connect(&NatsSettings { url, ..NatsSettings::default() }, "test").await.unwrap();
    (bus, site["site"].as_str().unwrap().parse().unwrap())
}

/// How the cameras are, by the worker that takes their pictures.
async fn healths(bus: &Bus) -> anyhow::Result<Vec<CameraHealth>> {
    let beats = streams::fleet::live_workers(bus).await?;
    Ok(beats.into_iter().flat_map(|beat| beat.cameras).collect())
}

/// Waits until a camera is as wanted.
pub(crate) async fn wait_for(
    bus: &Bus,
    camera: &str,
    what: &str,
    is_so: impl Fn(&CameraHealth) -> bool,
) -> CameraHealth {
    let what = format!("{camera}: {what}");
    let waiting = until(&what, PATIENCE, async || {
        Ok(healths(bus).await?.into_iter().find(|health| health.camera.as_str() == camera && is_so(health)))
    });
    match waiting.await {
        Ok(health) => health,
        Err(error) => panic!("{error:#}: {:#?}", healths(bus).await),
    }
}

/// Final answers of a camera, oldest first.
async fn answers_of(bus: &Bus, site: &SiteName, camera: &str) -> anyhow::Result<Vec<Answer>> {
    let last = reader::stream_level(bus, topology::ANSWERS).await?.last_sequence;
    let mut answers = Vec::new();
    let range = StreamRange { subjects: vec![subject::final_answers(site, None)], ..StreamRange::default() };
    reader::read_range(bus, topology::ANSWERS, range, last, |record| {
        answers.extend(decode::<Answer>(&record.payload));
    })
    .await?;
    answers.retain(|answer| answer.camera.as_str() == camera);
    Ok(answers)
}

async fn wait_for_answers(bus: &Bus, site: &SiteName, camera: &str, least: usize) -> Vec<Answer> {
    until(&format!("{least} answers of {camera}"), PATIENCE, async || {
        Ok(Some(answers_of(bus, site, camera).await?).filter(|answers| answers.len() >= least))
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn cameras_of_the_settings_are_answered_and_the_file_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let camera = web_camera().await;
    let gate = entry("gate", &camera.url("/snapshot/ok"), "rate_per_s = 4.0");
    write_settings(folder.path(), &gate);
    let mut up = up(folder.path(), &[]).await;
    let (bus, site) = bus(folder.path()).await;
    let answers = wait_for_answers(&bus, &site, "gate", 4).await;
    assert!(answers.iter().all(|answer| answer.label.is_some() && answer.captured_at_ms.is_some()));
    wait_for(&bus, "gate", "pictures", |health| health.state == CameraState::Streaming).await;
    let status = run(folder.path(), &["status", "--store", "store"]).await.unwrap();
    assert!(status.out.contains("1 of 1 camera gives pictures") && status.out.contains("320x"), "{}", status.out);

    // One more, which is motion JPEG cut into two regions; the first goes on as it was.
    let regions = "[[camera.region]]\nname = \"left\"\ncrop = [0, 0, 0.5, 1]\n[[camera.region]]\nname = \"right\"\ncrop = [0.5, 0, 0.5, 1]";
    let yard = entry("yard", &camera.url("/mjpeg/plain"), &format!("rate_per_s = 4.0\n{regions}"));
    write_settings(folder.path(), &format!("{gate}{yard}"));
    for region in ["left", "right"] {
        wait_for_answers(&bus, &site, region, 2).await;
    }
    let gate_health = wait_for(&bus, "gate", "it went on", |health| health.counts.taken > 4).await;
    assert_eq!(gate_health.counts.reconnects, 0);
    let width = async |camera: &str| {
        let subject = subject::image(&site, &camera.parse().unwrap());
        let image = reader::last_message(&bus, topology::IMAGES, &subject).await.unwrap().unwrap();
        vision::dimensions(&image.payload).unwrap().1
    };
    assert_eq!(width("left").await * 2, width("gate").await);

    // A mistake in the file changes nothing, and is said, by commands in its folder, too.
    write_settings(folder.path(), &format!("{gate}{yard}[[camera]]\nname = \"broken\"\n"));
    let said = until("the mistake to be said", PATIENCE, async || {
        let status = run(folder.path(), &["status", "--store", "store"]).await?;
        Ok((status.success && status.out.contains("changed and is invalid")).then_some(status))
    });
    let said = said.await.unwrap();
    assert!(said.out.contains("url") && said.out.contains("3 of 3 cameras"), "{}", said.out);
    assert!(said.err.contains("camera 3 (broken)") && said.err.contains("url"), "{}", said.err);
    let listed = run(folder.path(), &["camera", "list", "--store", "store"]).await.unwrap();
    for says in ["gate", "left", "right", "camera 3 (broken)"] {
        assert!(listed.success && listed.out.contains(says), "{says}: {}{}", listed.out, listed.err);
    }
    let removed = run(folder.path(), &["camera", "remove", "nobody", "--store", "store"]).await.unwrap();
    assert!(removed.err.contains("camera nobody has no login"), "{}", removed.err);
    // What takes pictures does not start with it.
    let refused = run(folder.path(), &["grabber", "--store", "store"]).await.unwrap();
    assert!(!refused.success && refused.err.contains("camera 3 (broken)"), "{}", refused.err);

    // Without the first, the other goes on.
    write_settings(folder.path(), &yard);
    until("gate to be gone", PATIENCE, async || {
        Ok((!healths(&bus).await?.iter().any(|health| health.camera.as_str() == "gate")).then_some(()))
    })
    .await
    .unwrap();
    let kept = subject::camera_health(&site, &"gate".parse().unwrap());
    let last = reader::last_message(&bus, topology::CAMERAS, &kept).await.unwrap().unwrap();
    let last: CameraHealth = decode(&last.payload).unwrap();
    assert_eq!(last.state, CameraState::Ended);
    wait_for(&bus, "left", "it gives pictures", |health| health.state == CameraState::Streaming).await;
    assert_eq!(up.ended().unwrap(), None, "{}", up.log());
}

#[tokio::test]
async fn what_is_wrong_with_a_camera_is_named_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let camera = web_camera().await;
    let password = harness::cameras::PASSWORD;
    std::fs::write(folder.path().join("wrong.txt"), "wrong").unwrap();
    std::fs::write(folder.path().join("right.txt"), format!("{password}\n")).unwrap();
    let faults = [
        ("locked", "/snapshot/digest", "user = \"cam\"\npassword_file = \"wrong.txt\"", "camera_login"),
        ("page", "/snapshot/page", "", "camera_no_picture"),
        ("gone", "/snapshot/missing", "", "camera_path_unknown"),
        ("moved", "/snapshot/elsewhere", "", "camera_redirected"),
        ("busy", "/snapshot/busy", "", "camera_status"),
        ("half", "/snapshot/cut", "", "camera_damaged"),
        ("slow", "/mjpeg/stall", "silent_after_s = 2", "camera_silent"),
    ];
    let mut text: String = faults.iter().map(|(name, path, more, _)| entry(name, &camera.url(path), more)).collect();
    text += &entry("dead", "http://127.0.0.1:1/snapshot", "");
    text += &entry("nofile", "no-such-folder/film.mp4", "");
    text += &entry(
        "good",
        &camera.url("/snapshot/digest"),
        "user = \"cam\"\npassword_file = \"right.txt\"\nrate_per_s = 4.0",
    );
    write_settings(folder.path(), &text);
    let up = up(folder.path(), &[]).await;
    let (bus, site) = bus(folder.path()).await;
    let others = [("dead", "camera_unreachable"), ("nofile", "camera_unreadable")];
    for (name, kind) in faults.iter().map(|(name, _, _, kind)| (*name, *kind)).chain(others) {
        let is_named = |health: &CameraHealth| health.fault.as_ref().is_some_and(|fault| fault.kind.as_str() == kind);
        let health = wait_for(&bus, name, kind, is_named).await;
        let fault = health.fault.unwrap();
        assert!(!fault.remedy.is_empty() && !fault.reason.contains("wrong.txt"), "{fault:?}");
    }
    let before = wait_for(&bus, "good", "it gives pictures", |health| health.counts.published >= 4).await;
    wait_for_answers(&bus, &site, "good", 4).await;
    wait_for(&bus, "good", "it goes on", |health| health.counts.taken >= before.counts.taken + 4).await;
    let status = run(folder.path(), &["status", "--store", "store"]).await.unwrap();
    // The slow one gives some after every connection.
    for (name, ..) in faults.iter().filter(|(name, ..)| *name != "slow") {
        assert!(status.out.contains(&format!("Camera {name} has given no pictures for")), "{name}\n{}", status.out);
    }
    let json = run(folder.path(), &["status", "--json", "--store", "store"]).await.unwrap();
    let config = run(folder.path(), &["config", "--show"]).await.unwrap();
    for shown in [&status.out, &json.out, &config.out, &up.log()] {
        assert!(!shown.contains(password), "a password is shown");
    }
    // One that asks for a login is not asked again and again.
    let asked = camera.requests().iter().filter(|request| request.target.starts_with("/snapshot/missing")).count();
    assert!(asked <= 2, "{asked}");
}

#[tokio::test]
async fn a_camera_that_stops_dies_or_freezes_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut camera = web_camera().await;
    let quick = "rate_per_s = 4.0\nsilent_after_s = 2";
    let still = "rate_per_s = 4.0\ngate = { min_difference = 0.0 }\npicture = { frozen_after_s = 2 }";
    let text =
        entry("gate", &camera.url("/mjpeg/plain"), quick) + &entry("still", &camera.url("/snapshot/stale"), still);
    write_settings(folder.path(), &text);
    let _up = up(folder.path(), &[]).await;
    let (bus, site) = bus(folder.path()).await;
    let is_streaming = |health: &CameraHealth| health.state == CameraState::Streaming;
    wait_for(&bus, "gate", "pictures", is_streaming).await;

    // The same picture for long is no error of the connection, and yet nothing is seen.
    let is_frozen = |health: &CameraHealth| {
        health.picture.iter().flat_map(|picture| &picture.faults).any(|fault| fault.as_str() == "frozen")
    };
    wait_for(&bus, "still", "frozen", is_frozen).await;
    let kept = until("the frozen camera's message", PATIENCE, async || {
        let subject = subject::camera_health(&site, &"still".parse().unwrap());
        let message = reader::last_message(&bus, topology::CAMERAS, &subject).await?;
        Ok(message.map(|message| decode::<CameraHealth>(&message.payload)).transpose()?.filter(is_frozen))
    });
    kept.await.unwrap();

    camera.set_frozen(true);
    let silent = wait_for(&bus, "gate", "silence", |health| health.state == CameraState::Silent).await;
    assert!(["camera_silent", "camera_timeout"].contains(&silent.fault.unwrap().kind.as_str()));
    camera.set_frozen(false);
    wait_for(&bus, "gate", "pictures again", is_streaming).await;

    camera.kill().await;
    wait_for(&bus, "gate", "its end", |health| health.state == CameraState::Silent).await;
    camera.restart().await.unwrap();
    let back = wait_for(&bus, "gate", "pictures after the restart", is_streaming).await;
    assert!(back.counts.reconnects >= 2, "{back:?}");
}

#[tokio::test]
async fn fifty_cameras_of_which_ten_are_dead_are_forty_that_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let camera = web_camera().await;
    let alive = |at: usize| entry(&format!("cam-{at}"), &camera.url("/mjpeg/plain?fps=2"), "rate_per_s = 1.0");
    // Half of the dead ones refuse the connection, half take it and say nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("http://{}/x", silent.local_addr().unwrap());
    let dead = |at: usize| match at % 2 {
        0 => entry(&format!("dead-{at}"), "http://127.0.0.1:1/x", ""),
        _ => entry(&format!("dead-{at}"), &silent_url, "silent_after_s = 2"),
    };
    let text: String = (0..40).map(alive).chain((0..10).map(dead)).collect();
    write_settings(folder.path(), &text);
    let _up = up(folder.path(), &[]).await;
    let (bus, _) = bus(folder.path()).await;
    let all = until("forty cameras with pictures, and ten without", 3 * PATIENCE, async || {
        let healths = healths(&bus).await?;
        let alive = healths.iter().filter(|health| health.counts.taken >= 8 && health.counts.published >= 4);
        let dead = healths.iter().filter(|health| health.fault.is_some() && health.counts.taken == 0);
        Ok((alive.count() == 40 && dead.count() == 10).then_some(healths))
    });
    let healths = match all.await {
        Ok(all) => all,
        Err(error) => panic!("{error:#}: {:#?}", healths(&bus).await),
    };
    // At their rate, whatever the dead ones do.
    let late: Vec<_> = healths
        .iter()
        .filter(|health| health.fault.is_none() && health.counts.taken + 4 < health.counts.wanted)
        .map(|health| (health.camera.to_string(), health.counts))
        .collect();
    assert!(late.is_empty(), "{late:?}");
}

#[tokio::test]
async fn a_full_stream_costs_pictures_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let camera = web_camera().await;
    let text = entry("gate", &camera.url("/mjpeg/plain?fps=20"), "rate_per_s = 20.0\ngate = { min_difference = 0.0 }");
    write_settings(folder.path(), &text);
    // A mebibyte, and no recognizer that would make room: it waits for a server that is not there.
    let server = harness::TestWorld::start(harness::WorldPlan {
        streams: StreamSettings { images_max_mib: 1, ..StreamSettings::default() },
        ..harness::WorldPlan::default()
    })
    .await
    .unwrap();
    let site = server.site(0);
    let url = site.server.url();
    let arguments = ["grabber", "--nats", &url, "--site", site.name.as_str()];
    let grabber = WorkerProcess::start("grabber", folder.path(), &arguments, &[]).unwrap();
    let full = wait_for(&site.bus, "gate", "lost pictures", |health| health.counts.dropped >= 10).await;
    let fault = full.fault.expect("a reason");
    assert_eq!(fault.kind.as_str(), "camera_picture_dropped", "{fault:?}");
    assert_eq!(full.state, CameraState::Streaming, "the camera itself is well");
    let before = grabber.peak_memory_mib();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(grabber.peak_memory_mib() <= before + 8, "{before} MiB grew to {}", grabber.peak_memory_mib());
    reader::purge_before(&site.bus, topology::IMAGES, u64::MAX).await.unwrap();
    let room =
        wait_for(&site.bus, "gate", "room again", |health| health.counts.published > full.counts.published).await;
    assert!(room.counts.published > full.counts.published);
}

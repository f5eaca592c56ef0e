//! Cameras over RTSP, by GStreamer's server, and cameras that are oddly fast or slow: what `up` says of them.

use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use harness::bare_server::free_ports;
use harness::cameras::WebCamera;
use harness::pictures::pictures;
use harness::shifted::shifted_clock;
use harness::{WorkerProcess, run};
use nix::sys::signal::Signal;
use schemas::task::HEADER_CAPTURED_AT;
use schemas::{CameraHealth, CameraState};
use streams::{reader, subject, topology};

use crate::cameras::{bus, entry, up_with, wait_for, web_camera, write_settings};
use crate::rtsp_camera::{RtspCamera, Spoiling, SpoilingProxy, has_packages};

fn is_streaming(health: &CameraHealth) -> bool {
    health.state == CameraState::Streaming
}

fn has_fault(kind: &str) -> impl Fn(&CameraHealth) -> bool {
    move |health| health.fault.as_ref().is_some_and(|fault| fault.kind.as_str() == kind)
}

/// A server with a certificate that nobody signed, and its port.
fn untrusted_server(folder: &Path) -> (Untrusted, u16) {
    let [port] = free_ports().unwrap();
    let made = Command::new("openssl")
        .args("req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 2 -subj /CN=127.0.0.1".split(' '))
        .args(["-keyout", "tls.key", "-out", "tls.pem"])
        .current_dir(folder)
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success());
    let server = Command::new("openssl")
        .args(["s_server", "-quiet", "-www", "-key", "tls.key", "-cert", "tls.pem", "-accept"])
        .arg(format!("127.0.0.1:{port}"))
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    (Untrusted(server.unwrap()), port)
}

/// Ends with the test.
struct Untrusted(std::process::Child);

impl Drop for Untrusted {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rtsp_cameras_that_fail_are_named_while_the_others_go_on() {
    if !has_packages() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let main = ["main=h264,main,5,320x240,10"];
    let mut gate = RtspCamera::start(&main);
    let gate_port = gate.port.to_string();
    let mounts = ["size=h264,main,5,320x240,10", "h265=h265,plain,5,320x240,10", "unkeyed=h264,main,10,320x240,10"];
    let others = RtspCamera::start(&[&mounts[..], &["spoiled=h264,main,1,640x480,10"]].concat());
    let locked = RtspCamera::start_with(&main, &["--user", "viewer", "--password", "another"]);
    let unkeyed = SpoilingProxy::start(others.port, Spoiling::KeyFrames).await;
    let spoiled = SpoilingProxy::start(others.port, Spoiling::EveryNth(1)).await;
    let (_server, tls_port) = untrusted_server(folder.path());
    std::fs::write(folder.path().join("wrong.txt"), "wrong\n").unwrap();
    let at = |port: u16, mount: &str| format!("rtsp://127.0.0.1:{port}/{mount}");
    let quick = "rate_per_s = 4.0\nsilent_after_s = 2";
    let login = "user = \"viewer\"\npassword_file = \"wrong.txt\"";
    let text = [
        entry("gate", &gate.url("main"), quick),
        entry("resized", &others.url("size"), quick),
        entry("newer", &others.url("h265"), ""),
        entry("unkeyed", &at(unkeyed.port, "unkeyed"), quick),
        entry("spoiled", &at(spoiled.port, "spoiled"), ""),
        entry("locked", &locked.url("main"), login),
        entry("nowhere", &others.url("no-such-mount"), ""),
        entry("unset", &others.url("size"), "user = \"viewer\"\npassword_file = \"no-such-file\""),
        entry("untrusted", &format!("https://127.0.0.1:{tls_port}/"), ""),
        entry("untrusted-video", &format!("rtsps://127.0.0.1:{tls_port}/"), ""),
    ];
    write_settings(folder.path(), &text.concat());
    // A path in which there is no ffmpeg.
    let path = ("PATH".to_owned(), folder.path().display().to_string());
    let mut up = up_with(folder.path(), &[], &[path]).await;
    let (bus, _) = bus(folder.path()).await;
    wait_for(&bus, "gate", "pictures", is_streaming).await;
    wait_for(&bus, "resized", "its size", |health| health.size_px == Some((320, 240))).await;

    // Another size in the running stream.
    others.control("/size/size/640x360");
    let resized = wait_for(&bus, "resized", "its new size", |health| health.size_px == Some((640, 360))).await;
    assert_eq!((resized.counts.reconnects, &resized.fault), (0, &None));

    for (name, kind) in [
        ("newer", "camera_needs_ffmpeg"),
        ("unkeyed", "camera_no_key_frame"),
        ("spoiled", "camera_damaged"),
        ("locked", "camera_login"),
        ("nowhere", "camera_path_unknown"),
        ("unset", "camera_password"),
        ("untrusted", "camera_certificate"),
        ("untrusted-video", "camera_certificate"),
    ] {
        wait_for(&bus, name, kind, has_fault(kind)).await;
    }

    // Stopped, killed, started again.
    gate.signal(Signal::SIGSTOP);
    let silent = wait_for(&bus, "gate", "silence", |health| health.state == CameraState::Silent).await;
    assert!(["camera_silent", "camera_timeout"].contains(&silent.fault.unwrap().kind.as_str()));
    gate.signal(Signal::SIGCONT);
    wait_for(&bus, "gate", "pictures again", is_streaming).await;
    gate.signal(Signal::SIGKILL);
    wait_for(&bus, "gate", "its end", |health| health.state == CameraState::Silent).await;
    drop(gate);
    gate = RtspCamera::start_with(&main, &["--port", &gate_port]);
    let back = wait_for(&bus, "gate", "pictures after the restart", is_streaming).await;
    assert!(back.counts.reconnects >= 2, "{back:?}");

    let after = wait_for(&bus, "resized", "it went on", |health| health.counts.taken > resized.counts.taken + 4).await;
    assert_eq!(after.counts.reconnects, 0);
    let status = run(folder.path(), &["status", "--store", "store"]).await.unwrap();
    for says in [
        "Camera newer has given no pictures for",
        "h265 needs the program ffmpeg",
        "no key frame from",
        "key frame interval",
        "Camera locked has given",
        "the password cannot be read from file no-such-file",
        "certificate that is not trusted",
        "no such path",
        "640x360",
    ] {
        assert!(status.out.contains(says), "{says}:\n{}", status.out);
    }
    assert_eq!(up.ended().unwrap(), None, "{}", up.log());
    drop(gate);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cameras_that_are_fast_rare_or_half_broken_are_no_faults() {
    let folder = tempfile::tempdir().unwrap();
    let camera = web_camera().await;
    let text = [
        entry("fast", &camera.url("/mjpeg/plain?fps=60"), "rate_per_s = 2.0"),
        // As a picture in five minutes is to the usual patience of a minute.
        entry("rare", &camera.url("/mjpeg/plain?every_ms=5000"), "silent_after_s = 1"),
        entry("corrupt", &camera.url("/mjpeg/corrupt?fps=4"), "rate_per_s = 4.0"),
        entry("truncated", &camera.url("/snapshot/truncated"), ""),
    ];
    write_settings(folder.path(), &text.concat());
    let _up = up_with(folder.path(), &[], &[]).await;
    let (bus, _) = bus(folder.path()).await;
    let fast = wait_for(&bus, "fast", "pictures", |health| health.counts.taken >= 10).await;
    assert!(fast.frames_per_s.is_some_and(|rate| rate > 20.0), "{fast:?}");
    assert!(fast.counts.taken <= fast.counts.wanted + 3 && fast.counts.reconnects == 0, "{fast:?}");
    let corrupt =
        wait_for(&bus, "corrupt", "both kinds", |health| health.counts.damaged >= 3 && health.counts.taken >= 3);
    assert_eq!(corrupt.await.state, CameraState::Streaming);
    wait_for(&bus, "truncated", "camera_damaged", has_fault("camera_damaged")).await;
    // Each connection is given twice the time, until one lasts from a picture to the next.
    let rare = wait_for(&bus, "rare", "a distance", |health| {
        is_streaming(health) && health.counts.reconnects >= 2 && health.frames_per_s.is_some()
    });
    let rare = rare.await;
    let later = wait_for(&bus, "rare", "more", |health| health.counts.taken >= rare.counts.taken + 2).await;
    assert_eq!((later.counts.reconnects, later.state.known()), (rare.counts.reconnects, Some(CameraState::Streaming)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pictures_are_dated_by_the_servers_clock_whatever_day_the_machine_believes_in() {
    let folder = tempfile::tempdir().unwrap();
    let jpegs = pictures().unwrap().iter().take(3);
    let jpegs = jpegs.map(|picture| Bytes::from(vision::enlarged(&picture.bytes, 320).unwrap())).collect();
    let camera = WebCamera::start(jpegs).await.unwrap();
    write_settings(folder.path(), &entry("gate", &camera.url("/snapshot/ok"), "rate_per_s = 4.0"));
    let world = harness::TestWorld::start(harness::WorldPlan::default()).await.unwrap();
    let site = world.site(0);
    let url = site.server.url();
    for shift_s in [86_400, -86_400] {
        let clock = shifted_clock(folder.path(), shift_s).unwrap();
        let arguments = ["grabber", "--nats", &url, "--site", site.name.as_str()];
        let begun = reader::stream_level(&site.bus, topology::IMAGES).await.unwrap().last_sequence;
        let _grabber = WorkerProcess::start(&format!("grabber{shift_s}"), folder.path(), &arguments, &clock).unwrap();
        let image = harness::until("pictures", crate::common::PATIENCE, async || {
            let subject = subject::image(&site.name, &"gate".parse()?);
            let image = reader::last_message(&site.bus, topology::IMAGES, &subject).await?;
            Ok(image.filter(|image| image.sequence >= begun + 6))
        });
        let image = image.await.unwrap();
        let captured_ms: i128 = image.header(HEADER_CAPTURED_AT).unwrap().parse().unwrap();
        let apart_ms = captured_ms - image.stored_at_ns / 1_000_000;
        assert!(apart_ms.abs() < 5000, "shifted by {shift_s} s, a picture is dated {apart_ms} ms off");
    }
}

//! Cameras that describe themselves, on loopback.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "../../../../tests/harness/cameras/mod.rs"]
mod cameras;

use std::time::Duration;

use camera::onvif::{self, OnvifError, OnvifHost};
use camera::{CameraCredentials, CameraError};
use cameras::{HostileAnswer, OnvifCamera, OnvifPlan, XmlStyle};

fn login(password: &str) -> Option<CameraCredentials> {
    Some(CameraCredentials { user: "admin".into(), password: password.into() })
}

async fn ask(camera: &OnvifCamera, password: &str) -> Result<onvif::OnvifCamera, OnvifError> {
    onvif::ask(&camera.service().parse().unwrap(), login(password).as_ref()).await
}

#[tokio::test]
async fn a_camera_tells_its_streams_in_every_style_of_xml() {
    for style in [XmlStyle::Usual, XmlStyle::Numbered, XmlStyle::Bare] {
        let camera = OnvifCamera::start(OnvifPlan { style, ..OnvifPlan::default() }).await.unwrap();
        let told = ask(&camera, "s3cret").await.unwrap();
        assert_eq!(told.fault, None, "{style:?}");
        assert_eq!((told.make.as_deref(), told.model.as_deref()), (Some("Test & Sons"), Some("T-1000")), "{style:?}");
        assert!(told.clock_ahead_ms.unwrap().abs() < 1500, "{style:?}: {:?}", told.clock_ahead_ms);
        let [main, sub] = &told.profiles[..] else { panic!("{style:?}: {:?}", told.profiles) };
        assert_eq!((main.name.as_deref(), main.codec.as_deref()), (Some("mainStream"), Some("h264")), "{style:?}");
        assert_eq!((main.size_px, main.frames_per_s), (Some((1920, 1080)), Some(25.0)), "{style:?}");
        assert_eq!(main.key_frame_distance_s, Some(2.0), "{style:?}");
        let stream = sub.stream.as_ref().unwrap().as_str();
        assert_eq!(stream, "rtsp://127.0.0.1:554/live?profile=sub&x=1", "{style:?}");
        assert_eq!(sub.snapshot.as_ref().unwrap().as_str(), "http://127.0.0.1/snap.jpg", "{style:?}");
        assert_eq!(told.recommended(640, 480).map(|profile| profile.token.as_str()), Some("sub"), "{style:?}");
    }
}

#[tokio::test]
async fn a_camera_two_hours_ahead_is_asked_by_its_own_clock() {
    for clock_ahead_s in [7200, -7200] {
        let camera = OnvifCamera::start(OnvifPlan { clock_ahead_s, ..OnvifPlan::default() }).await.unwrap();
        let told = ask(&camera, "s3cret").await.unwrap();
        assert_eq!((told.fault, told.profiles.len()), (None, 2));
        let apart_ms = told.clock_ahead_ms.unwrap() - clock_ahead_s * 1000;
        assert!(apart_ms.abs() < 1500, "{apart_ms} ms");
        assert!(!camera.calls().iter().any(|call| call.ends_with("-refused")), "{:?}", camera.calls());
    }
}

#[tokio::test]
async fn a_wrong_password_is_tried_once_and_never_shown() {
    for asks_http_digest in [false, true] {
        let camera = OnvifCamera::start(OnvifPlan { asks_http_digest, ..OnvifPlan::default() }).await.unwrap();
        let told = ask(&camera, "wr0ng-pass").await.unwrap();
        let fault = told.fault.clone().unwrap();
        assert!(matches!(fault, OnvifError::Connection(CameraError::Login { .. })), "{fault}");
        assert!(fault.to_string().contains("admin"), "{fault}");
        let shown = format!("{fault} {fault:?} {told:?} {:?} {}", login("wr0ng-pass"), fault.remedy());
        assert!(!shown.contains("wr0ng-pass"), "{shown}");
        // By HTTP digest, the first try is without a login, to learn what is asked for.
        let expected: &[&str] = match asks_http_digest {
            true => &["GetSystemDateAndTime-refused"; 2],
            false => &["GetSystemDateAndTime", "GetDeviceInformation-refused"],
        };
        assert_eq!(camera.calls(), expected);
    }
}

#[tokio::test]
async fn without_a_login_a_camera_tells_its_clock_and_that_it_wants_one() {
    let camera = OnvifCamera::start(OnvifPlan::default()).await.unwrap();
    let told = onvif::ask(&camera.service().parse().unwrap(), None).await.unwrap();
    assert!(told.clock_ahead_ms.is_some());
    let fault = told.fault.unwrap();
    assert!(fault.is_login() && fault.to_string().contains("none was given"), "{fault}");
    let open = OnvifCamera::start(OnvifPlan { login: None, ..OnvifPlan::default() }).await.unwrap();
    let told = onvif::ask(&open.service().parse().unwrap(), None).await.unwrap();
    assert_eq!((told.fault, told.profiles.len()), (None, 2));
}

#[tokio::test]
async fn a_login_by_http_digest_works() {
    let camera = OnvifCamera::start(OnvifPlan { asks_http_digest: true, ..OnvifPlan::default() }).await.unwrap();
    let told = ask(&camera, "s3cret").await.unwrap();
    assert_eq!((told.fault, told.profiles.len()), (None, 2));
    assert!(told.clock_ahead_ms.is_some());
}

#[tokio::test]
async fn the_second_media_service_is_asked_first_and_h265_is_last_choice() {
    let camera = OnvifCamera::start(OnvifPlan { has_media2: true, ..OnvifPlan::default() }).await.unwrap();
    let told = ask(&camera, "s3cret").await.unwrap();
    assert_eq!(told.fault, None);
    let [main, sub] = &told.profiles[..] else { panic!("{:?}", told.profiles) };
    assert_eq!((main.codec.as_deref(), main.size_px), (Some("h265"), Some((3840, 2160))));
    assert_eq!((main.key_frame_distance_s, main.needs_ffmpeg()), (Some(10.0), true));
    assert_eq!(sub.stream.as_ref().unwrap().as_str(), "rtsp://127.0.0.1:554/live?profile=sub&x=1");
    assert!(sub.snapshot.is_some());
    assert_eq!(told.recommended(1280, 720).map(|profile| profile.token.as_str()), Some("main"));
}

#[tokio::test]
async fn a_camera_without_snapshots_has_streams_all_the_same() {
    let camera = OnvifCamera::start(OnvifPlan { snapshot: None, ..OnvifPlan::default() }).await.unwrap();
    let told = ask(&camera, "s3cret").await.unwrap();
    assert_eq!(told.fault, None);
    assert!(told.profiles.iter().all(|profile| profile.stream.is_some() && profile.snapshot.is_none()));
}

#[tokio::test]
async fn a_camera_behind_a_router_is_asked_where_it_was_reached() {
    let plan = OnvifPlan {
        own_host: Some("192.0.2.10:80".into()),
        stream: "rtsp://192.0.2.10:554/live".into(),
        snapshot: Some("http://192.0.2.10/snap.jpg?a=1&b=2".into()),
        ..OnvifPlan::default()
    };
    let camera = OnvifCamera::start(plan).await.unwrap();
    let told = ask(&camera, "s3cret").await.unwrap();
    assert_eq!(told.fault, None);
    assert_eq!(told.profiles[0].stream.as_ref().unwrap().as_str(), "rtsp://127.0.0.1:554/live?profile=main&x=1");
    let snapshot = format!("http://{}/snap.jpg?a=1&b=2", camera.address());
    assert_eq!(told.profiles[0].snapshot.as_ref().unwrap().as_str(), snapshot);
}

#[tokio::test]
async fn the_password_in_an_address_is_replaced() {
    let plan =
        OnvifPlan { stream: "rtsp://admin:s3cret@127.0.0.1/user=admin_password=s3cret".into(), ..OnvifPlan::default() };
    let camera = OnvifCamera::start(plan).await.unwrap();
    let told = ask(&camera, "s3cret").await.unwrap();
    let stream = told.profiles[0].stream.as_ref().unwrap().as_str();
    assert_eq!(stream, "rtsp://127.0.0.1/user=admin_password=PASSWORD?profile=main&x=1");
    assert!(!format!("{told:?}").contains("s3cret"));
}

#[tokio::test]
async fn hostile_answers_are_refused_by_name_and_soon() {
    for (hostile, says) in [
        (HostileAnswer::EntityBomb, "document type"),
        (HostileAnswer::Flood, "larger than"),
        (HostileAnswer::Nesting, "deeper than"),
        (HostileAnswer::Page, "text/html"),
        (HostileAnswer::Silence, "did not answer"),
    ] {
        let camera = OnvifCamera::start(OnvifPlan { hostile: Some(hostile), ..OnvifPlan::default() }).await.unwrap();
        let asked = tokio::time::timeout(Duration::from_secs(30), ask(&camera, "s3cret")).await.unwrap();
        let error = asked.unwrap_err();
        assert!(error.to_string().contains(says), "{hostile:?}: {error}");
        assert!(!error.remedy().is_empty());
    }
}

#[tokio::test]
async fn a_search_finds_a_camera_once_and_at_the_address_that_replied() {
    let plan = OnvifPlan { own_host: Some("192.0.2.10:80".into()), ..OnvifPlan::default() };
    let camera = OnvifCamera::start(plan).await.unwrap();
    let found = onvif::search(camera.probe_address(), Duration::from_millis(700)).await.unwrap();
    let [device] = &found.devices[..] else { panic!("{found:?}") };
    assert_eq!(device.address.as_str(), camera.service());
    assert_eq!((device.name.as_deref(), device.hardware.as_deref()), (Some("Test Camera"), Some("T-1000")));
    assert_eq!(found.searched_from.len(), 1);
}

#[tokio::test]
async fn a_search_that_nobody_answers_ends_in_time_with_nothing() {
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let found = onvif::search(nobody.local_addr().unwrap(), Duration::from_millis(300)).await.unwrap();
    assert_eq!(found.devices, []);
}

/// Linux has all of 127.0.0.0/8; an address of this process's own keeps the port of searches free.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_host_without_a_port_tells_it_itself() {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let ip = std::net::Ipv4Addr::new(127, 77, high, low);
    let camera = OnvifCamera::start(OnvifPlan { ip, probe_port: 3702, ..OnvifPlan::default() }).await.unwrap();
    let host: OnvifHost = ip.to_string().parse().unwrap();
    let told = onvif::locate(&host, login("s3cret").as_ref()).await.unwrap();
    assert_eq!((told.address.as_str(), told.fault, told.profiles.len()), (camera.service().as_str(), None, 2));
}

#[tokio::test]
async fn a_host_is_asked_at_its_port_and_one_that_is_none_says_why() {
    let camera = OnvifCamera::start(OnvifPlan::default()).await.unwrap();
    let host: OnvifHost = camera.address().to_string().parse().unwrap();
    let told = onvif::locate(&host, login("s3cret").as_ref()).await.unwrap();
    assert_eq!((told.fault, told.profiles.len()), (None, 2));
    drop(camera);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = onvif::locate(&closed.to_string().parse().unwrap(), None).await.unwrap_err();
    assert!(matches!(error, OnvifError::Connection(CameraError::Unreachable { .. })), "{error:?}");
}

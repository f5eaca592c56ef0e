//! `tributary camera find` and `camera check`, against cameras on loopback.

use std::fs;
use std::path::Path;

use harness::cameras::{HostileAnswer, OnvifCamera, OnvifPlan, PASSWORD, USER, WebCamera};
use harness::pictures::jpegs;
use harness::program::{CommandOutput, run};
use serde_json::Value;

/// A password that is nowhere else in any output.
const SECRET: &str = "Zq7-hidden-4x";

async fn tributary(folder: &Path, arguments: &[&str]) -> CommandOutput {
    let output = run(folder, &[&["camera"], arguments].concat()).await.unwrap();
    for text in [&output.out, &output.err] {
        assert!(!text.contains(SECRET) && !text.contains(PASSWORD), "{arguments:?} shows a password:\n{text}");
    }
    output
}

/// A folder with the file `password`.
fn folder_with_password(password: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("password"), format!("{password}\n")).unwrap();
    folder
}

fn onvif_plan() -> OnvifPlan {
    OnvifPlan { login: Some(("admin".into(), SECRET.into())), clock_ahead_s: 7200, ..OnvifPlan::default() }
}

#[tokio::test]
async fn find_lists_a_cameras_streams_and_says_what_to_do_next() {
    let camera = OnvifCamera::start(onvif_plan()).await.unwrap();
    let (folder, probe) = (folder_with_password(SECRET), camera.probe_address().to_string());
    let login = ["--user", "admin", "--password-file", "password"];
    let found = tributary(folder.path(), &[&["find", "--probe", &probe, "--timeout", "1"], &login[..]].concat()).await;
    assert!(found.success, "{}", found.err);
    for says in [
        "Test & Sons T-1000 (clock 2.0 h ahead)",
        "*  subStream   h264   640x480",
        "rtsp://127.0.0.1:554/live?profile=main&x=1",
        "single pictures: http://127.0.0.1/snap.jpg",
        "tributary camera check 'rtsp://127.0.0.1:554/live?profile=sub&x=1' --user admin --password-file password",
    ] {
        assert!(found.out.contains(says), "{says}:\n{}", found.out);
    }
    let json = ["find", "--json", "--probe", &probe, "--timeout", "1", "--min-size", "1280x720"];
    let found = tributary(folder.path(), &[&json, &login[..]].concat()).await;
    let found: Value = serde_json::from_str(&found.out).unwrap();
    let camera = &found["cameras"][0];
    assert!((camera["clock_ahead_ms"].as_i64().unwrap() - 7_200_000).abs() < 2000, "{camera}");
    assert_eq!((&camera["model"], &camera["fault"]), (&"T-1000".into(), &Value::Null), "{camera}");
    assert_eq!(
        (&camera["profiles"][0]["recommended"], &camera["profiles"][1]["recommended"]),
        (&true.into(), &false.into())
    );
}

#[tokio::test]
async fn find_says_which_camera_wants_a_login_and_that_a_wrong_one_is_wrong() {
    let camera = OnvifCamera::start(onvif_plan()).await.unwrap();
    let host = camera.address().to_string();
    let folder = folder_with_password("not-it");
    let without = tributary(folder.path(), &["find", "--host", &host]).await;
    assert!(
        !without.success && without.err.contains("none was given") && without.err.contains("--user"),
        "{}",
        without.err
    );
    let wrong = ["find", "--host", &host, "--user", "admin", "--password-file", "password"];
    let wrong = tributary(folder.path(), &wrong).await;
    assert!(!wrong.success && wrong.err.contains("refused the login"), "{}", wrong.err);
    assert!(!wrong.err.contains("not-it") && !wrong.out.contains("not-it"), "{}{}", wrong.out, wrong.err);
}

#[tokio::test]
async fn find_says_what_to_do_where_it_finds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let nothing = tributary(folder.path(), &["find", "--probe", &silent, "--timeout", "1"]).await;
    assert!(!nothing.success);
    for says in ["no camera answered", "same network", "--host HOST", "ONVIF", "camera check URL"] {
        assert!(nothing.err.contains(says), "{says}:\n{}", nothing.err);
    }
    let closed = closed_port();
    let refused = tributary(folder.path(), &["find", "--host", &closed]).await;
    assert!(!refused.success && refused.err.contains("could not connect"), "{}", refused.err);
    let page = OnvifPlan { hostile: Some(HostileAnswer::Page), ..OnvifPlan::default() };
    let page = OnvifCamera::start(page).await.unwrap();
    let page = tributary(folder.path(), &["find", "--json", "--host", &page.address().to_string()]).await;
    assert!(
        !page.success && page.err.contains("does not speak ONVIF") && page.err.contains("turn ONVIF on"),
        "{}",
        page.err
    );
    let fault: Value = serde_json::from_str(&page.out).unwrap();
    assert_eq!(fault["fault"]["name"], "onvif_absent", "{fault}");
    for (host, says) in
        [("rtsp://c/live", "scheme"), (&format!("http://admin:{SECRET}@c/"), "login"), ("a b", "no host")]
    {
        let wrong = tributary(folder.path(), &["find", "--host", host]).await;
        assert!(!wrong.success && wrong.err.contains(says), "{host}: {}", wrong.err);
    }
}

fn closed_port() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[tokio::test]
async fn check_shows_what_a_snapshot_camera_sends_and_keeps_a_picture() {
    let pictures = jpegs().unwrap();
    let camera = WebCamera::start(pictures.clone()).await.unwrap();
    let folder = folder_with_password(PASSWORD);
    let (url, seconds) = (camera.url("/snapshot/digest"), ["--seconds", "4"]);
    let login = ["--user", USER, "--password-file", "password"];
    let checked = tributary(folder.path(), &[&["check", &url], &login[..], &seconds].concat()).await;
    assert!(checked.success, "{}", checked.err);
    for says in [&url, "login     cam", "64x48", "saved as  camera-127.0.0.1.jpg", "64x48 is small"] {
        assert!(checked.out.contains(says), "{says}:\n{}", checked.out);
    }
    assert!(checked.err.contains("is open") && checked.err.contains("first picture"), "{}", checked.err);
    let saved = fs::read(folder.path().join("camera-127.0.0.1.jpg")).unwrap();
    assert!(pictures.iter().any(|picture| **picture == saved), "the picture is not the camera's own");

    let named = [&["check", &url, "--picture", "camera-127.0.0.1.jpg"], &login[..], &seconds].concat();
    let named = tributary(folder.path(), &named).await;
    assert!(!named.success && named.err.contains("is not overwritten"), "{}", named.err);
    assert_eq!(fs::read(folder.path().join("camera-127.0.0.1.jpg")).unwrap(), saved);

    let json = tributary(folder.path(), &[&["check", &url, "--json"], &login[..], &seconds].concat()).await;
    let found: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((&found["user"], &found["saved"]), (&USER.into(), &Value::Null), "{found}");
    assert_eq!(found["size_px"], serde_json::json!([64, 48]), "{found}");
    assert!(found["taken"].as_u64().unwrap() >= 3, "{found}");
    assert!(found["interval_ms"].as_f64().unwrap() > 500.0, "one a second: {found}");
    let again = tributary(folder.path(), &[&["check", &url], &login[..], &["--seconds", "1"]].concat()).await;
    assert!(again.out.contains("camera-127.0.0.1-2.jpg"), "{}", again.out);
}

#[tokio::test]
async fn check_accepts_a_login_in_the_address_with_a_warning_and_never_shows_it() {
    let camera = WebCamera::start(jpegs().unwrap()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = camera.url_with_login("/snapshot/basic");
    let checked = tributary(folder.path(), &["check", &url, "--seconds", "1", "--no-picture"]).await;
    assert!(checked.success, "{}", checked.err);
    assert!(checked.err.contains("others on this machine can see the password"), "{}", checked.err);
    for text in [&checked.out, &checked.err] {
        assert!(!text.contains("s3cret%2F7"), "{text}");
    }
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "no picture was wanted");
}

#[tokio::test]
async fn check_names_what_is_wrong_and_what_to_do() {
    let camera = WebCamera::start(jpegs().unwrap()).await.unwrap();
    let folder = folder_with_password(SECRET);
    let at = |path: &str| camera.url(path);
    let login: &[&str] = &["--user", USER, "--password-file", "password"];
    let closed = format!("http://{}/snapshot/ok", closed_port());
    let secret_in_it = format!("rtsp://admin:{SECRET}@[::1/");
    let cases: [(String, &[&str], &str); 8] = [
        ("ftp://camera/x".into(), &[], "ftp:// is not supported"),
        (secret_in_it, &[], "no valid address"),
        (closed, &[], "could not connect"),
        (at("/snapshot/digest"), login, "refused the login"),
        (at("/snapshot/digest"), &[], "refused the login"),
        (at("/snapshot/page"), &[], "text/html"),
        (at("/snapshot/missing"), &[], "no such path"),
        ("nowhere/film.mp4".into(), &[], "cannot be read"),
    ];
    for (address, options, says) in cases {
        let checked = tributary(folder.path(), &[&["check", &address, "--seconds", "1"], options].concat()).await;
        assert!(!checked.success, "{address} {options:?}:\n{}", checked.out);
        assert!(checked.err.contains(says), "{address} {options:?}: {says}:\n{}", checked.err);
        let json = tributary(folder.path(), &[&["check", &address, "--json"], options].concat()).await;
        if let Ok(found) = serde_json::from_str::<Value>(&json.out) {
            assert!(found["fault"]["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{address}: {found}");
        }
        assert!(!json.success, "{address}");
    }
    let unset = ["check", "http://127.0.0.1/", "--user", "admin", "--password-env", "TRIBUTARY_UNSET_PASSWORD"];
    let unset = tributary(folder.path(), &unset).await;
    assert!(!unset.success && unset.err.contains("TRIBUTARY_UNSET_PASSWORD: it is not set"), "{}", unset.err);
}

#[tokio::test]
async fn check_gives_up_on_a_camera_that_is_connected_and_silent() {
    let camera = WebCamera::start(jpegs().unwrap()).await.unwrap();
    camera.set_frozen(true);
    let folder = tempfile::tempdir().unwrap();
    let checked = tributary(folder.path(), &["check", &camera.url("/snapshot/ok"), "--seconds", "1"]).await;
    assert!(!checked.success, "{}", checked.out);
    assert!(checked.err.contains("did not answer") || checked.err.contains("no picture"), "{}", checked.err);
}

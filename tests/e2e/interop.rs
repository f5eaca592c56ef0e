//! Clients that are not ours: a few lines of Python with the public NATS and MQTT libraries; and OpenSSF's tool for signed
//! models.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use futures::StreamExt;
use harness::pictures::{LIGHT, TestPicture, first_picture};
use harness::program::{fixture, root};
use harness::until::until;
use harness::{TestWorld, WorldPlan};
use nix::sys::signal::Signal;
use schemas::limits::MAX_INLINE_BYTES;
use serde_json::Value;
use vision::Model;

use crate::common::PATIENCE;
use crate::up::{found, up};

/// What the clients and the tool need, with versions.
const REQUIREMENTS: &str = "tests/e2e/interop/requirements.txt";

/// A Python with the clients' libraries and the tool; made once for all tests and later runs.
fn python() -> PathBuf {
    static MADE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = MADE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let tests = std::env::current_exe().unwrap();
    let target = tests.ancestors().nth(3).expect("target/<profile>/deps/<tests>");
    let (folder, complete) = (target.join("interop-venv"), target.join("interop-venv/complete"));
    let python = folder.join("bin/python");
    let wanted = fs::read_to_string(root().join(REQUIREMENTS)).unwrap();
    if fs::read_to_string(&complete).is_ok_and(|made| made == wanted) {
        return python;
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    succeed("making a virtual environment (python3-venv)", Command::new("python3").args(["-m", "venv"]).arg(&folder));
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
    let mut pip = Command::new(&python);
    succeed(
        "fetching nats-py, paho-mqtt, msgpack and model-signing with pip",
        pip.args(install).arg(root().join(REQUIREMENTS)),
    );
    fs::write(&complete, wanted).unwrap();
    python
}

fn succeed(what: &str, command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{what}: {command:?}: {error}"));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what} failed; it needs Python 3 and the package index:\n{words}");
    output
}

/// What a client of this kind is answered about a picture.
async fn ask(kind: &'static str, address: String, site: String, picture: &TestPicture, more: &[String]) -> Value {
    let file = fixture("images/fashion").join(&picture.file);
    let (client, more) = (root().join("tests/e2e/interop/client.py"), more.to_vec());
    let asking = move || {
        let mut command = Command::new(python());
        succeed(kind, command.arg(client).args([kind, &address, &site]).arg(file).args(more)).stdout
    };
    serde_json::from_slice(&tokio::task::spawn_blocking(asking).await.unwrap()).unwrap()
}

fn expect(answer: &Value, route: &str, label: &str, confidence: f32) {
    let known = (&answer["kind"], &answer["version"], &answer["stage"], &answer["route"], &answer["label"]);
    assert_eq!(known, (&"answer".into(), &1.into(), &"final".into(), &route.into(), &label.into()), "{answer}");
    assert!((answer["confidence"].as_f64().unwrap() - f64::from(confidence)).abs() < 1e-3, "{answer}");
    assert_eq!(answer["camera"], "python");
}

async fn site(folder: &Path) -> Value {
    found(folder).expect("up.json")["sites"][0].clone()
}

#[tokio::test]
async fn a_python_client_is_answered_over_nats_and_over_mqtt() {
    let folder = tempfile::tempdir().unwrap();
    let _up = up(folder.path(), &["--set", "up.mqtt_port=0"]).await;
    let site = site(folder.path()).await;
    let name = site["site"].as_str().unwrap().to_owned();
    let (sure, doubtful) = (first_picture(true).unwrap(), first_picture(false).unwrap());

    let answer = ask("nats", site["url"].as_str().unwrap().into(), name.clone(), sure, &[]).await;
    expect(&answer, "edge", &sure.light.label, sure.light.confidence);
    let task = answer["task"].as_str().unwrap();
    assert_eq!(answer["subject"], format!("answer.final.{name}.python.{task}"));

    let mqtt = format!("127.0.0.1:{}", site["mqtt_port"].as_u64().unwrap());
    // Above 1 MiB the stream's own limit once dropped what the server had acknowledged.
    for (qos, size) in [(1, 0), (1, 1_100_000), (2, 0), (2, 1_900_000), (1, MAX_INLINE_BYTES), (2, MAX_INLINE_BYTES)] {
        let more = [qos.to_string(), size.to_string()];
        let answer = ask("mqtt", mqtt.clone(), name.clone(), doubtful, &more).await;
        expect(&answer, "verified", &doubtful.heavy.label, doubtful.heavy.confidence);
        let task = answer["task"].as_str().unwrap();
        assert_eq!(answer["subject"], format!("answer/final/{name}/python/{task}"), "QoS {qos}, {size} bytes");
    }
}

#[tokio::test]
async fn another_programs_snapshot_is_answered_in_json_which_stays_for_who_comes_later() {
    let folder = tempfile::tempdir().unwrap();
    let topics = r#"up.camera_topics={"frigate/+/+/snapshot": "$1"}"#;
    let set = ["--set", "up.mqtt_port=0", "--set", "up.answers_json=true", "--set", topics];
    // What was told before a restart is not told again.
    for (round, picture) in [first_picture(true).unwrap(), first_picture(false).unwrap()].into_iter().enumerate() {
        let mut running = up(folder.path(), &set).await;
        let site = site(folder.path()).await;
        let name = site["site"].as_str().unwrap().to_owned();
        let mqtt = format!("127.0.0.1:{}", site["mqtt_port"].as_u64().unwrap());
        let answer = ask("frigate", mqtt, name.clone(), picture, &[]).await;
        match round {
            0 => expect(&answer, "edge", &picture.light.label, picture.light.confidence),
            _ => expect(&answer, "verified", &picture.heavy.label, picture.heavy.confidence),
        }
        assert_eq!(answer["subject"], format!("answer-json/{name}/python"));
        assert_eq!(answer["kept"], true, "{answer}");
        running.signal(Signal::SIGINT).unwrap();
        running.end(PATIENCE).await.unwrap();
    }
}

#[tokio::test]
async fn how_a_camera_is_stays_in_json_for_who_comes_later() {
    let folder = tempfile::tempdir().unwrap();
    let mut camera = crate::cameras::web_camera().await;
    let gate = crate::cameras::entry("gate", &camera.url("/snapshot/ok"), "");
    crate::cameras::write_settings(folder.path(), &gate);
    let _up = up(folder.path(), &["--set", "up.mqtt_port=0", "--set", "up.answers_json=true"]).await;
    let site = site(folder.path()).await;
    let name = site["site"].as_str().unwrap();
    let mqtt = format!("127.0.0.1:{}", site["mqtt_port"].as_u64().unwrap());
    let topic = format!("camera-json/{name}/gate/health");
    let kept = async |state: &str| {
        let kept = until(state, PATIENCE, async || {
            let client = root().join("tests/e2e/interop/client.py");
            let arguments = ["kept", &mqtt, name, &topic].map(str::to_owned);
            let asking = move || succeed("kept", Command::new(python()).arg(client).args(arguments)).stdout;
            let kept: Value = serde_json::from_slice(&tokio::task::spawn_blocking(asking).await?)?;
            Ok((kept["state"] == state && kept["retained"] == true).then_some(kept))
        });
        kept.await.unwrap()
    };
    let well = kept("streaming").await;
    let told = (&well["subject"], &well["camera"], &well["retained"], &well["codec"]);
    assert_eq!(told, (&topic.clone().into(), &"gate".into(), &true.into(), &"jpeg".into()), "{well}");
    camera.kill().await;
    let silent = kept("silent").await;
    assert_eq!(
        (&silent["retained"], &silent["fault"]["name"]),
        (&true.into(), &"camera_unreachable".into()),
        "{silent}"
    );
}

#[tokio::test]
async fn answers_in_json_need_no_mqtt() {
    let folder = tempfile::tempdir().unwrap();
    let _up = up(folder.path(), &["--set", "up.answers_json=true"]).await;
    let site = site(folder.path()).await;
    let (name, picture) = (site["site"].as_str().unwrap(), first_picture(true).unwrap());
    let client = async_nats::connect(site["url"].as_str().unwrap()).await.unwrap();
    let mut told = client.subscribe("answer-json.>").await.unwrap();
    client.flush().await.unwrap();
    let bytes = fs::read(fixture("images/fashion").join(&picture.file)).unwrap();
    // What was answered before the notifier began is not told, so it is published until one is.
    let message = until("an answer in JSON", PATIENCE, async || {
        client.publish(format!("image.{name}.python"), bytes.clone().into()).await?;
        Ok(tokio::time::timeout(Duration::from_secs(2), told.next()).await.ok().flatten())
    });
    let message = message.await.unwrap();
    assert_eq!(message.subject.as_str(), format!("answer-json.{name}.python"));
    expect(&serde_json::from_slice(&message.payload).unwrap(), "edge", &picture.light.label, picture.light.confidence);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_is_exported_signed_is_verified_by_the_tool_that_others_use() {
    let world = TestWorld::start(WorldPlan::default()).await.unwrap();
    let keys = fixture("model_signature/keys");
    let public = keys.join("public.pem").display().to_string();
    let ended = world.release(&["import", &fixture(LIGHT).display().to_string()]).await.unwrap();
    assert!(ended.success, "{}\n{}", ended.out, ended.err);
    let release = Model::load(&fixture(LIGHT)).unwrap().release;
    for form in ["pkcs8.pem", "sec1.pem"] {
        let key = world.folder().join(form);
        fs::copy(keys.join(form), &key).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let folder = world.folder().join(format!("signed with {form}"));
        let (key, at) = (key.display().to_string(), folder.display().to_string());
        let ended = world.release(&["export", release.as_str(), &at, "--sign", &key]).await.unwrap();
        assert!(ended.success, "{}\n{}", ended.out, ended.err);
        assert!(verifies(&folder, &public).await);
        assert!(!verifies(&folder, &keys.join("other-public.pem").display().to_string()).await);
        let labels = fs::read(folder.join("labels.txt")).unwrap();
        fs::write(folder.join("labels.txt"), labels.to_ascii_uppercase()).unwrap();
        assert!(!verifies(&folder, &public).await, "a file was changed");
        let ended = world.release(&["import", &at, "--signed-by", &public]).await.unwrap();
        assert!(!ended.success && ended.err.contains("\"labels.txt\" was changed"), "{}\n{}", ended.out, ended.err);
        fs::write(folder.join("labels.txt"), labels).unwrap();
        assert!(verifies(&folder, &public).await);
        // It is the release that is there already: its signature was read, and held.
        let ended = world.release(&["import", &at, "--signed-by", &public]).await.unwrap();
        assert!(!ended.success && ended.err.contains("already"), "{}\n{}", ended.out, ended.err);
    }
}

/// Whether OpenSSF's tool says that a folder is as its model.sig says.
async fn verifies(folder: &Path, public_key: &str) -> bool {
    let (folder, public_key) = (folder.to_owned(), public_key.to_owned());
    let verify = move || {
        let mut command = Command::new(python());
        command.args(["-m", "model_signing", "verify", "key", "--public_key", &public_key, "--signature"]);
        let output = command.arg(folder.join("model.sig")).arg(&folder).output().unwrap();
        let words = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let is_said =
            words.contains(if output.status.success() { "Verification succeeded" } else { "Verification failed" });
        assert!(is_said, "{words}");
        output.status.success()
    };
    tokio::task::spawn_blocking(verify).await.unwrap()
}

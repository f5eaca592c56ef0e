//! Tests of the pinned nats-server version: the error codes that we act on, and the log and error texts where it has no
//! code.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream::Config;
use tempfile::TempDir;

use crate::blobs::Blobs;
use crate::connect::{Bus, NatsSettings};
use crate::error::{CarryError, is_full, is_message_gone, is_missing};
use crate::monitor::{self, Health};
use crate::{admin, fleet, reader, server};

/// A nats-server for one test; killed when dropped.
struct PinnedServer {
    folder: TempDir,
    child: Child,
}

impl PinnedServer {
    /// Starts a server. `limits` is added to its JetStream block, `more` to the end of its configuration.
    fn start(limits: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, file) = (folder.path().display(), folder.path().join("server.conf"));
        let configuration = format!(
            "listen: \"127.0.0.1:-1\"\nhttp: \"127.0.0.1:-1\"\nports_file_dir: \"{store}\"\nlogtime_utc: true\n\
             log_file: \"{store}/nats-server.log\"\njetstream {{ store_dir: \"{store}\", max_file_store: 1GB{limits} }}\n{more}\n"
        );
        fs::write(&file, configuration).unwrap();
        let mut command = Command::new(server::find_program(None).unwrap());
        command.arg("-c").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        Self { folder, child }
    }

    /// Waits until it listens; returns its client URL and its monitoring URL.
    async fn urls(&self) -> (String, String) {
        let file = self.folder.path().join(format!("nats-server_{}.ports", self.child.id()));
        let read = || serde_json::from_str::<serde_json::Value>(&fs::read_to_string(&file).ok()?).ok();
        let ports = wait_for("the server listens", read).await;
        let first = |of: &str| ports[of][0].as_str().unwrap().to_owned();
        (first("nats"), first("monitoring"))
    }

    async fn connect(&self) -> Bus {
        let url = self.urls().await.0;
        Bus::connect(&NatsSettings { url, ..NatsSettings::default() }, "test").await.unwrap()
    }

    /// Folder in which the server stores a stream.
    fn stream_folder(&self, stream: &str) -> PathBuf {
        self.folder.path().join("jetstream/$G/streams").join(stream)
    }
}

impl Drop for PinnedServer {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

async fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    for _ in 0..200 {
        if let Some(value) = check() {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: not within 10 s");
}

async fn make_stream(bus: &Bus, name: &str) {
    let config =
        Config { name: name.into(), subjects: vec![format!("{}.>", name.to_lowercase())], ..Config::default() };
    bus.nats().unwrap().js.create_stream(config).await.unwrap();
}

/// Makes every write to this file fail as on a full disk.
fn fill(file: &Path) {
    symlink("/dev/full", file).unwrap();
}

#[tokio::test]
async fn missing_streams_consumers_and_buckets_are_recognized_by_code() {
    let server = PinnedServer::start("", "");
    let bus = server.connect().await;
    let is_absent = |error: &CarryError| matches!(error, CarryError::Missing { .. });
    assert!(is_absent(&reader::stream_level(&bus, "A").await.unwrap_err()));
    assert!(is_absent(&reader::stream_restriction(&bus, "A").await.unwrap_err()));
    assert!(is_absent(&fleet::Ledger::open(&bus).await.err().unwrap()));
    assert!(is_absent(&Blobs::open(&bus).await.err().unwrap()));
    for _without_and_with_its_stream in 0..2 {
        let consumer = bus.nats().unwrap().js.get_consumer_from_stream::<pull::Config, _, _>("nobody", "A").await;
        assert!(is_missing(&consumer.err().unwrap()));
        let stream = bus.nats().unwrap().js.get_stream_no_info("A").await.unwrap();
        assert!(is_missing(&stream.consumer_info("nobody").await.unwrap_err()));
        let deleted = bus.nats().unwrap().js.delete_consumer_from_stream("nobody", "A").await;
        assert!(is_missing(&deleted.err().unwrap()));
        make_stream(&bus, "A").await;
    }
    // Forgetting a site that the server does not know succeeds.
    admin::forget_site(&bus, &"reef".parse().unwrap()).await.unwrap();
    // An invalid stream name is a different error.
    let error = bus.nats().unwrap().js.get_stream("a.b").await.unwrap_err();
    assert!(!is_missing(&error), "{error}");
}

#[tokio::test]
async fn deleting_a_deleted_message_succeeds() {
    let server = PinnedServer::start("", "");
    let bus = server.connect().await;
    make_stream(&bus, "A").await;
    assert!(reader::last_message(&bus, "A", "a.*").await.unwrap().is_none());
    for _ in 0..3 {
        bus.nats().unwrap().js.publish("a.x", "hi".into()).await.unwrap().await.unwrap();
    }
    // First in the middle of the stream, then before its first message: the server has a code for one and only a text
    // for the other.
    for sequence in [2, 2, 1, 1] {
        reader::delete_message(&bus, "A", sequence).await.unwrap();
    }
    let error = reader::delete_message(&bus, "A", 99).await.unwrap_err();
    assert!(matches!(error, CarryError::Broker { .. }), "a message that was never stored must be an error: {error}");
    let level = reader::stream_level(&bus, "A").await.unwrap();
    assert_eq!((level.messages, level.first_sequence), (1, 3));
}

#[tokio::test]
async fn a_full_disk_is_recognized_by_the_operating_systems_error_text() {
    use async_nats::jetstream::response::Response;
    let server = PinnedServer::start("", "");
    let bus = server.connect().await;
    make_stream(&bus, "A").await;
    fill(&server.stream_folder("A").join("meta.inf.tmp"));
    let changed = serde_json::json!({
        "name": "A", "subjects": ["a.>"], "storage": "file", "retention": "limits", "num_replicas": 1, "max_bytes": 9000,
    });
    let answer: Response<serde_json::Value> =
        bus.nats().unwrap().js.request("STREAM.UPDATE.A", &changed).await.unwrap();
    let Response::Err { error } = answer else { panic!("the update succeeded on a full disk: {answer:?}") };
    assert!(is_full(&error), "{error}");
    assert!(!is_message_gone(&error), "{error}");
}

#[tokio::test]
async fn a_stream_that_cannot_write_is_reported_as_such() {
    let server = PinnedServer::start("", "");
    let bus = server.connect().await;
    make_stream(&bus, "A").await;
    let monitor = server.urls().await.1;
    assert_eq!(monitor::health_at(&monitor).await, Some(Health::Well));
    // The stream's first block file is already open; the server starts a second one after 8 MiB.
    fill(&server.stream_folder("A").join("msgs/2.blk"));
    for _ in 0..200 {
        bus.nats().unwrap().client.publish("a.x", vec![7; 64 << 10].into()).await.unwrap();
    }
    bus.nats().unwrap().client.flush().await.unwrap();
    for _ in 0..100 {
        match monitor::health_at(&monitor).await {
            Some(Health::CannotWrite(_)) => return,
            Some(Health::Unwell(words)) => panic!("unwell for another reason: {words}"),
            Some(Health::Well) | None => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    panic!("the server accepts messages that it cannot write");
}

#[tokio::test]
async fn the_log_names_a_refused_publication() {
    let server = PinnedServer::start(
        "",
        "authorization { users: [ { user: a, password: b, permissions: { publish: \"a.>\" } } ] }",
    );
    let url = server.urls().await.0;
    let options = async_nats::ConnectOptions::with_user_and_password("a".into(), "b".into());
    let client = options.connect(url).await.unwrap();
    client.publish("image.reef.gate", "hi".into()).await.unwrap();
    client.flush().await.unwrap();
    let found = || server::refused_within(server.folder.path(), Duration::from_secs(60));
    assert_eq!(wait_for("the log names the subject", found).await, "image.reef.gate");
}

#[tokio::test]
async fn the_log_names_the_stream_of_dropped_messages() {
    let server = PinnedServer::start(", max_buffered_msgs: 2", "");
    let bus = server.connect().await;
    make_stream(&bus, "A").await;
    let found = || server::dropped_within(server.folder.path(), Duration::from_secs(60));
    for _ in 0..100 {
        for _ in 0..1000 {
            bus.nats().unwrap().client.publish("a.x", "hi".into()).await.unwrap();
        }
        bus.nats().unwrap().client.flush().await.unwrap();
        if let Some(stream) = found() {
            assert_eq!(stream, "A");
            return;
        }
    }
    panic!("the server dropped no message");
}

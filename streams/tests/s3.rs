//! The release store over a real S3 server: the promises of the folder, over HTTP.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use schemas::BlobRef;
use sha2::{Digest, Sha256};
use streams::store::PATIENCE;
use streams::{CarryError, Put, Store};

const VERSION: &str = "4.48";
const KEY: &str = "releases";
const SECRET: &str = "a-secret-of-the-test";
const URL: &str = "s3://models/tributary";
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Ports are asked of the system and can be taken by somebody else before the server binds them.
const START_TRIES: usize = 3;

/// A SeaweedFS of our own; killed when dropped, and by the kernel when the test is.
struct Seaweed {
    child: Child,
    port: u16,
    sockets: Vec<PathBuf>,
    folder: tempfile::TempDir,
}

impl Seaweed {
    async fn start() -> anyhow::Result<Self> {
        let program = program()?;
        let mut last = None;
        for _ in 0..START_TRIES {
            match Self::once(&program).await {
                Ok(server) => return Ok(server),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no tries")?)
    }

    async fn once(program: &PathBuf) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tributary-s3-").tempdir()?;
        // All are held until all are chosen, so that no two are the same.
        let held: Vec<TcpListener> =
            (0..8).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<_, _>>()?;
        let ports: Vec<u16> = held.iter().map(|port| Ok(port.local_addr()?.port())).collect::<anyhow::Result<_>>()?;
        drop(held);
        let mut command = Command::new(program);
        command.args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-master.telemetry=false"]);
        command.args(["-master.volumeSizeLimitMB=64", "-volume.max=20", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
        let mut sockets = Vec::new();
        for (role, port) in ["master", "volume", "filer", "s3"].iter().zip(ports.chunks(2)) {
            sockets.push(format!("/tmp/seaweedfs-{role}-grpc-{}.sock", port[1]).into());
            command.arg(format!("-{role}.port={}", port[0])).arg(format!("-{role}.port.grpc={}", port[1]));
        }
        for role in ["filer", "s3"] {
            command.arg(format!("-{role}.localSocket={}/{role}.sock", folder.path().display()));
        }
        command.arg(format!("-dir={}", folder.path().display()));
        let log = File::create(folder.path().join("weed.log"))?;
        command.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET).current_dir(folder.path());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        die_with_us(&mut command);
        let mut server = Self { child: command.spawn()?, port: ports[6], sockets, folder };
        let give_up_at = Instant::now() + START_PATIENCE;
        while !healthy(server.port) {
            let ended = server.child.try_wait()?;
            if ended.is_some() || Instant::now() > give_up_at {
                bail!("SeaweedFS did not start ({ended:?}); its log:\n{}", server.log());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(server)
    }

    fn store(&self, secret: &str, more: &[(&str, &str)]) -> Result<Store, CarryError> {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        let options = [
            ("AWS_ENDPOINT", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", secret),
        ];
        let all = options.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Store::open_with(URL, all.collect::<Vec<_>>())
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().cast_signed()), signal)?)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("weed.log")).unwrap_or_default()
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        let _already_gone = self.child.kill().and_then(|()| self.child.wait().map(|_| ()));
        // It makes these here wherever it is told to keep the rest.
        for socket in &self.sockets {
            let _already_gone = fs::remove_file(socket);
        }
    }
}

fn program() -> anyhow::Result<PathBuf> {
    let path = streams::server::cache().join(format!("seaweedfs-{VERSION}/weed"));
    ensure!(path.is_file(), "{} is missing: run `deploy/fetch-runtime.sh --tests`", path.display());
    Ok(path)
}

/// The kernel kills it when the thread that started it ends: a test that is killed leaves none behind.
#[allow(unsafe_code)]
fn die_with_us(command: &mut Command) {
    #[cfg(target_os = "linux")]
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; prctl is one.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
}

fn healthy(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return false };
    let mut answer = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(2))).is_ok()
        && stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.contains(" 200 ")
}

fn blob_of(bytes: &[u8]) -> BlobRef {
    BlobRef::new(Sha256::digest(bytes).into(), bytes.len() as u64)
}

/// Puts one path from sixteen sides at once. Who won, and what stays.
async fn race(store: &Store, path: &str) -> anyhow::Result<(Vec<String>, Bytes)> {
    let puts = (0..16).map(|writer| {
        let (store, path, bytes) = (store.clone(), path.to_owned(), format!("writer {writer}"));
        tokio::spawn(async move { store.put_new(&path, bytes.clone().into()).await.map(|put| (bytes, put)) })
    });
    let mut won = Vec::new();
    for put in puts.collect::<Vec<_>>() {
        let (bytes, put) = put.await??;
        won.extend((put == Put::New).then_some(bytes));
    }
    Ok((won, store.get(path, 100).await?.context("nothing stays")?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_s3_server_keeps_the_promises_of_the_folder() -> anyhow::Result<()> {
    let server = Seaweed::start().await?;
    let store = server.store(SECRET, &[])?;

    assert_eq!(store.put_new("releases/1.json", "first".into()).await?, Put::New, "{}", server.log());
    assert_eq!(store.put_new("releases/1.json", "second".into()).await?, Put::Already);
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
    let (blob, from, into) = (blob_of(&bytes), server.folder.path().join("from"), server.folder.path().join("into"));
    fs::write(&from, &bytes)?;
    assert_eq!(store.put_file("weights/large", &blob, &from).await?, Put::New);
    assert_eq!(store.put_file("weights/large", &blob, &from).await?, Put::Already);
    store.fetch("weights/large", &blob, blob.size_bytes, &into).await?;
    assert!(fs::read(&into)? == bytes, "20 MiB came back otherwise");

    let other = vec![0; bytes.len()];
    let error = store.put_file("weights/wrong", &blob_of(&other), &from).await.unwrap_err();
    assert!(matches!(&error, CarryError::BadObject { what, .. } if what.contains("SHA-256")), "{error}");
    let absent = server.folder.path().join("absent");
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
        stranger.fetch("release", &blob_of(b"x"), 1, &server.folder.path().join("release")).await.unwrap_err(),
    ] {
        let text = format!("{error} {error:?}");
        assert!(matches!(error, CarryError::StoreDenied { .. }) && !error.passes(), "{text}");
        assert!(text.contains("check the keys in the environment (AWS_*"), "{text}");
        assert!(!text.contains("another-secret"), "{text}");
    }

    server.signal(Signal::SIGSTOP)?;
    let hasty = server.store(SECRET, &[("AWS_TIMEOUT", "500ms")])?;
    for patient in [&hasty, &store] {
        let since = Instant::now();
        let error = patient.get("release", 1).await.unwrap_err();
        let took = since.elapsed();
        println!("a frozen server: {error} after {took:?}");
        assert!(matches!(error, CarryError::Store { .. }) && error.passes(), "{error:?}");
        assert!(took < PATIENCE + Duration::from_secs(5), "a frozen server was waited for {took:?}");
    }
    server.signal(Signal::SIGCONT)?;

    server.child.kill()?;
    server.child.wait()?;
    let since = Instant::now();
    let error = store.put_new("another", "x".into()).await.unwrap_err();
    println!("a dead server: {error} after {:?}", since.elapsed());
    assert!(matches!(error, CarryError::Store { .. }) && error.passes(), "{error:?}");
    assert!(since.elapsed() < PATIENCE, "a dead server was waited for {:?}", since.elapsed());
    Ok(())
}

//! A real S3 server: SeaweedFS, which `deploy/fetch-runtime.sh --tests` fetches.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use streams::{CarryError, ReleaseStore};

use crate::program::die_with_us;

const VERSION: &str = "4.48";
const KEY: &str = "releases";
/// Secret access key of the server.
pub const SECRET: &str = "a-secret-of-the-test";
/// URL of a release store on the server.
pub const URL: &str = "s3://models/tributary";
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Another process can take a free port before the server binds it, so starting is retried.
const START_TRIES: usize = 3;

/// A SeaweedFS process. Killed when dropped, and by the kernel when the test process dies.
pub struct Seaweed {
    child: Child,
    port: u16,
    sockets: Vec<PathBuf>,
    folder: tempfile::TempDir,
}

impl Seaweed {
    /// Starts the server and waits until it answers.
    pub async fn start() -> anyhow::Result<Self> {
        let program = program()?;
        let mut last = None;
        for _ in 0..START_TRIES {
            match Self::start_once(&program).await {
                Ok(server) => return Ok(server),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no tries")?)
    }

    async fn start_once(program: &PathBuf) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tributary-s3-").tempdir()?;
        // Bind all ports before releasing any, so that they are distinct.
        let listeners: Vec<TcpListener> =
            (0..8).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<_, _>>()?;
        let ports: Vec<u16> =
            listeners.iter().map(|port| Ok(port.local_addr()?.port())).collect::<anyhow::Result<_>>()?;
        drop(listeners);
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
        let give_up_at = Instant::now() + START_TIMEOUT;
        while !is_healthy(server.port) {
            let ended = server.child.try_wait()?;
            if ended.is_some() || Instant::now() > give_up_at {
                bail!("SeaweedFS did not start ({ended:?}); its log:\n{}", server.log());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(server)
    }

    /// Opens a release store in the server's bucket, with this secret and more options.
    pub fn store(&self, secret: &str, more: &[(&str, &str)]) -> Result<ReleaseStore, CarryError> {
        let mut all = self.environment(secret);
        all.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        ReleaseStore::open_with(URL, all)
    }

    /// Opens a release store in a bucket that does not exist.
    pub fn store_without_bucket(&self) -> Result<ReleaseStore, CarryError> {
        ReleaseStore::open_with("s3://nobody-made-this", self.environment(SECRET))
    }

    /// Environment variables with which a process reaches the server.
    pub fn environment(&self, secret: &str) -> Vec<(String, String)> {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        let options = [
            ("AWS_ENDPOINT", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", secret),
        ];
        options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Folder of the server's data, in which tests may put their own files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().cast_signed()), signal)?)
    }

    /// The server's output.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("weed.log")).unwrap_or_default()
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        let _already_gone = self.child.kill().and_then(|()| self.child.wait().map(|_| ()));
        // SeaweedFS creates these sockets in /tmp whatever its data folder.
        for socket in &self.sockets {
            let _already_gone = fs::remove_file(socket);
        }
    }
}

fn program() -> anyhow::Result<PathBuf> {
    let path = streams::server::program_cache().join(format!("seaweedfs-{VERSION}/weed"));
    ensure!(path.is_file(), "{} is missing: run `deploy/fetch-runtime.sh --tests`", path.display());
    Ok(path)
}

fn is_healthy(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return false };
    let mut answer = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(2))).is_ok()
        && stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.contains(" 200 ")
}

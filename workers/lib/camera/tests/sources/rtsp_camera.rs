//! GStreamer's RTSP server as a process (tests/cameras/rtsp_server.py), and what stands between it and the source.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream as StdTcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The server's program.
const SERVER: &str = include_str!("../../../../../tests/cameras/rtsp_server.py");

/// Whether the packages that these tests need are there. If not, says so where it is seen, whatever the test harness
/// hides; with TRIBUTARY_CAMERA_TESTS=required it fails instead.
pub(crate) fn has_packages() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    let found = *FOUND.get_or_init(|| {
        let check = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer";
        let python = Command::new("/usr/bin/python3").args(["-c", check]).stderr(Stdio::null()).status();
        let ffmpeg = Command::new("ffmpeg").arg("-version").stdout(Stdio::null()).status();
        python.is_ok_and(|status| status.success()) && ffmpeg.is_ok_and(|status| status.success())
    });
    if !found {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        let note =
            format!("SKIPPED {name}: GStreamer's RTSP server or ffmpeg is missing; see deploy/fetch-cameras.sh\n");
        assert_ne!(std::env::var("TRIBUTARY_CAMERA_TESTS").as_deref(), Ok("required"), "{note}");
        std::io::stderr().write_all(note.as_bytes()).unwrap();
    }
    found
}

/// A running server, killed when it is dropped.
pub(crate) struct RtspCamera {
    child: Child,
    pub port: u16,
    control_port: u16,
}

impl RtspCamera {
    /// Starts a server with these mounts, such as `main=h264,main,10,640x480,10`.
    pub(crate) fn start(mounts: &[&str]) -> Self {
        Self::start_with(mounts, &[])
    }

    /// The same, with more arguments.
    pub(crate) fn start_with(mounts: &[&str], arguments: &[&str]) -> Self {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", SERVER]).args(arguments);
        command.args(mounts.iter().flat_map(|mount| ["--mount", mount]));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let ports: Vec<u16> = ready.split(' ').skip(1).map(|port| port.trim().parse().unwrap()).collect();
        assert!(ready.starts_with("READY ") && ports.len() == 2, "the RTSP server said {ready:?}");
        Self { child, port: ports[0], control_port: ports[1] }
    }

    pub(crate) fn url(&self, mount: &str) -> String {
        format!("rtsp://127.0.0.1:{}/{mount}", self.port)
    }

    /// Asks for a fault.
    pub(crate) fn control(&self, path: &str) {
        let mut stream = StdTcpStream::connect(("127.0.0.1", self.control_port)).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{path}: {answer}");
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }
}

impl Drop for RtspCamera {
    fn drop(&mut self) {
        // SIGKILL ends it even while it is stopped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    pub id: i32,
    pub arguments: String,
}

/// Children of this process that run a program.
pub(crate) fn children(program: &str) -> Vec<Process> {
    let ids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let read = |id: i32| {
        let parent = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let (name, parent) = parent.split_once('(')?.1.rsplit_once(')')?;
        let mut fields = parent.split_whitespace();
        let (state, parent) = (fields.next()?, fields.next()?.parse::<u32>().ok()?);
        let is_ours = name == program && parent == std::process::id() && state != "Z";
        let arguments = std::fs::read(format!("/proc/{id}/cmdline")).ok()?;
        is_ours.then(|| Process { id, arguments: String::from_utf8_lossy(&arguments).replace('\0', " ") })
    };
    ids.filter_map(read).collect()
}

/// What a [`SpoilingProxy`] does to the packets of a video.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Spoiling {
    /// Changes the middle of every so-and-so-many-th large one.
    EveryNth(usize),
    /// Leaves out those of H.264's key frames, so that the stream has none.
    KeyFrames,
}

/// Passes connections on to a server, and spoils packets on the way.
pub(crate) struct SpoilingProxy {
    pub port: u16,
    task: JoinHandle<()>,
}

impl SpoilingProxy {
    pub(crate) async fn start(server_port: u16, spoiling: Spoiling) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", server_port)).await.unwrap();
                let ((mut from_client, to_client), (from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(async move { copy(&mut from_client, &mut to_server).await });
                tokio::spawn(spoil(from_server, to_client, spoiling));
            }
        });
        Self { port, task }
    }
}

impl Drop for SpoilingProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn spoil(
    from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    spoiling: Spoiling,
) -> std::io::Result<()> {
    let (mut from, mut large) = (tokio::io::BufReader::new(from), 0);
    loop {
        let first = from.read_u8().await?;
        let mut message = vec![first];
        if first == b'$' {
            let (channel, length) = (from.read_u8().await?, from.read_u16().await?);
            let mut packet = vec![0; usize::from(length)];
            from.read_exact(&mut packet).await?;
            large += usize::from(channel == 0 && packet.len() > 400);
            match spoiling {
                Spoiling::EveryNth(nth) if channel == 0 && packet.len() > 400 && large % nth == 0 => {
                    packet[200..300].iter_mut().for_each(|byte| *byte ^= 0x5a);
                }
                Spoiling::KeyFrames if channel == 0 && is_of_key_frame(&packet) => continue,
                _ => {}
            }
            message.push(channel);
            message.extend(length.to_be_bytes());
            message.extend(packet);
        } else {
            while !message.ends_with(b"\r\n\r\n") {
                message.push(from.read_u8().await?);
            }
            let head = String::from_utf8_lossy(&message).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            let mut body = vec![0; length.unwrap_or(0)];
            from.read_exact(&mut body).await?;
            message.extend(body);
        }
        to.write_all(&message).await?;
    }
}

/// Whether a packet of RTP carries H.264's unit 5, or a fragment of one (RFC 6184). GStreamer's have headers of 12 bytes.
fn is_of_key_frame(packet: &[u8]) -> bool {
    let unit = |at: usize| packet.get(at).map(|byte| byte & 0x1f);
    unit(12) == Some(5) || unit(12) == Some(28) && unit(13) == Some(5)
}

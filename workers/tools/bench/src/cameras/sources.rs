//! Cameras to measure with: they send what was coded before, again and again, so that they cost little beside what is
//! measured. RTSP is GStreamer's server (tests/cameras/rtsp_server.py); motion JPEG is sent by this process.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use camera::YuvPicture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

use crate::error::BenchError;

/// The RTSP server, in a checkout.
const SERVER: &str = "tests/cameras/rtsp_server.py";
/// Debian's own Python: others do not see GStreamer's bindings.
const PYTHON: &str = "/usr/bin/python3";
/// What ffmpeg is called.
pub(super) const FFMPEG: &str = "ffmpeg";
/// Pictures per second that every camera sends.
pub(super) const CAMERA_RATE: usize = 10;
/// Fraction of the golden section: multiples of it are spread evenly.
const SPREAD: f64 = 0.618;

/// A fault of the cameras to measure with.
pub(super) fn fault(why: impl Into<String>) -> BenchError {
    BenchError::Cameras { why: why.into() }
}

/// Checks that this machine has what the cameras are made of.
pub(super) fn check_programs() -> Result<(), BenchError> {
    if !Path::new(SERVER).is_file() {
        return Err(fault(format!("{SERVER} was not found: run this in a checkout of the project")));
    }
    let runs = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let import = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer";
    let missing = match (runs(FFMPEG, &["-version"]), runs(PYTHON, &["-c", import])) {
        (true, true) => return Ok(()),
        (false, true) => "ffmpeg was not found in the path",
        (true, false) => "GStreamer's RTSP server for Python was not found",
        (false, false) => "neither ffmpeg nor GStreamer's RTSP server for Python was found",
    };
    Err(fault(format!("{missing}: run deploy/fetch-cameras.sh as root (Debian, Ubuntu), or install what it names")))
}

/// Codes a film as H.264, main profile, with a key frame every `group` pictures and none elsewhere. Blocks. Returns the
/// mean size of a key frame, bytes.
pub(super) fn encode_h264(film: &[YuvPicture], group: usize, to: &Path) -> Result<usize, BenchError> {
    let Some(first) = film.first() else { return Err(fault("a film has no pictures")) };
    let size = format!("{}x{}", first.width_px, first.height_px);
    let (rate, group) = (CAMERA_RATE.to_string(), group.to_string());
    let mut command = Command::new(FFMPEG);
    command.args(["-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "yuv420p"]);
    command.args(["-s", &size, "-r", &rate, "-i", "pipe:0", "-c:v", "libx264", "-preset", "veryfast"]);
    command.args(["-profile:v", "main", "-crf", "24", "-bf", "0", "-g", &group, "-keyint_min", &group]);
    command.args(["-sc_threshold", "0", "-f", "h264"]).arg(to);
    let failed = |why: String| fault(format!("ffmpeg could not code a film: {why}"));
    let mut child = command.stdin(Stdio::piped()).spawn().map_err(|error| failed(error.to_string()))?;
    let written = child.stdin.take().map_or(Ok(()), |mut input| {
        film.iter()
            .flat_map(|picture| [&picture.y, &picture.u, &picture.v])
            .try_for_each(|plane| input.write_all(plane))
    });
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    if !status.success() {
        return Err(failed(format!("{status}, see its message above")));
    }
    written.map_err(|error| failed(error.to_string()))?;
    let coded = std::fs::read(to).map_err(BenchError::file(to))?;
    Ok(key_frame_bytes(&coded))
}

/// Mean size of the key frames of a stream of H.264, bytes.
fn key_frame_bytes(coded: &[u8]) -> usize {
    const START: [u8; 3] = [0, 0, 1];
    let starts: Vec<usize> =
        coded.windows(3).enumerate().filter(|(_, bytes)| *bytes == START).map(|(at, _)| at + START.len()).collect();
    let ends = starts.iter().skip(1).map(|next| next - START.len()).chain([coded.len()]);
    // The first byte of a unit: its kind in five bits, of which 5 is a slice of a key frame; and the first bit of the
    // next tells that it is the picture's first slice.
    let keys = starts.iter().zip(ends).filter(|(start, _)| coded.get(**start).is_some_and(|byte| byte & 31 == 5));
    let (mut bytes, mut pictures) = (0, 0);
    for (start, end) in keys {
        bytes += end - start;
        pictures += usize::from(coded.get(start + 1).is_some_and(|byte| byte & 128 != 0));
    }
    bytes / pictures.max(1)
}

/// GStreamer's RTSP server, which ends with this.
pub(super) struct RtspLoops {
    child: Child,
    port: u16,
    control_port: u16,
}

impl RtspLoops {
    /// Starts it with these files of H.264, each with the name of its stream. Blocks.
    pub(super) fn start(files: &[(String, PathBuf)]) -> Result<Self, BenchError> {
        let mut command = Command::new(PYTHON);
        command.arg(SERVER);
        for (name, file) in files {
            command.args(["--mount", &format!("{name}=loop,{},{CAMERA_RATE}", file.display())]);
        }
        let failed = |why: String| fault(format!("the RTSP server did not start: {why}"));
        // It ends when its input is closed.
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        let mut said = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut said).map_err(|error| failed(error.to_string()))?;
        }
        let ports: Vec<u16> = said.split_whitespace().skip(1).filter_map(|port| port.parse().ok()).collect();
        let mut loops = Self { child, port: 0, control_port: 0 };
        match ports.as_slice() {
            [port, control_port] => (loops.port, loops.control_port) = (*port, *control_port),
            _ => return Err(failed("see its message above".into())),
        }
        Ok(loops)
    }

    /// Address of a stream.
    pub(super) fn url(&self, name: &str) -> String {
        format!("rtsp://127.0.0.1:{}/{name}", self.port)
    }

    /// Ends the sessions of all clients.
    pub(super) async fn drop_clients(&self) -> Result<(), BenchError> {
        let asked = async {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.control_port)).await?;
            stream.write_all(b"GET /drop HTTP/1.0\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        match asked.await {
            Ok(answer) if answer.contains(" 200 ") => Ok(()),
            Ok(answer) => Err(fault(format!("the RTSP server answered {answer:?}"))),
            Err(error) => Err(fault(format!("the RTSP server could not be asked: {error}"))),
        }
    }
}

impl Drop for RtspLoops {
    fn drop(&mut self) {
        let (killed, waited) = (self.child.kill(), self.child.wait());
        tracing::debug!(?killed, ?waited, "RTSP server ended");
    }
}

/// A camera that sends motion JPEG over HTTP.
pub(super) struct MotionJpegLoop {
    port: u16,
    _task: AbortOnDropHandle<()>,
}

impl MotionJpegLoop {
    /// Sends these pictures to whoever asks, again and again; each client comes in at another place.
    pub(super) async fn start(pictures: Vec<Bytes>) -> Result<Self, BenchError> {
        let failed = |error: std::io::Error| fault(format!("no port could be opened: {error}"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let (pictures, clients): (Arc<[Bytes]>, _) = (pictures.into(), AtomicUsize::new(0));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let place = clients.fetch_add(1, Ordering::Relaxed) as f64 * SPREAD;
                // Ends with an error when the client goes.
                tokio::spawn(send_pictures(client, pictures.clone(), place));
            }
        });
        Ok(Self { port, _task: AbortOnDropHandle::new(task) })
    }

    /// Its address.
    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/video", self.port)
    }
}

async fn send_pictures(mut client: TcpStream, pictures: Arc<[Bytes]>, place: f64) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(client.read_u8().await?);
    }
    let head = "HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n";
    client.write_all(head.as_bytes()).await?;
    let interval = Duration::from_secs(1) / CAMERA_RATE as u32;
    tokio::time::sleep(interval.mul_f64(place.fract())).await;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let first = (place.fract() * pictures.len() as f64) as usize;
    for picture in pictures.iter().cycle().skip(first) {
        ticks.tick().await;
        let length = picture.len();
        let head = format!("--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n");
        client.write_all(&[head.as_bytes(), picture, b"\r\n"].concat()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_frames_are_told_from_others_and_their_slices_counted_together() {
        let mut coded = Vec::new();
        let mut unit = |kind: u8, is_first: bool, bytes: usize| {
            coded.extend([0, 0, 1, 0x60 | kind, if is_first { 0x80 } else { 0x20 }]);
            coded.extend(vec![7; bytes - 2]);
        };
        unit(7, true, 20);
        unit(5, true, 100);
        unit(5, false, 50);
        unit(1, true, 30);
        unit(5, true, 150);
        assert_eq!(key_frame_bytes(&coded), 150);
        assert_eq!(key_frame_bytes(&[]), 0);
    }
}

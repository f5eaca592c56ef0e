//! The program ffmpeg as a child process: it decodes what is not decoded in this process (H.265, video files) and reads
//! video devices, and writes JPEGs.
//!
//! It is never given the address of a camera, which would show a login to everybody who lists processes: a stream is read
//! here, and its coded pictures are written to ffmpeg's standard input. It is ended by SIGKILL, as it ignores SIGTERM while
//! it waits for a picture, and its exit status is not believed, as it is 0 after most failures.
//!
//! Untested, for want of a device: reading `/dev/video0` and the like.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio_util::task::AbortOnDropHandle;

use super::SourceOptions;
use super::due::{DueClock, PaceMeter};
use super::jpeg_walker::{JpegWalker, WalkedPictures, jpeg_size_px};
use super::latest::{DamageCount, LatestFrame, LiveSource};
use crate::error::CameraError;
use crate::frame::{Frame, FramePicture};

/// Largest picture that it may write, bytes.
const MAX_PICTURE_BYTES: usize = 64 << 20;
/// How much is read of it at once, bytes.
const PIECE_BYTES: usize = 64 << 10;
/// How much of its latest message is kept, characters.
const MAX_WORDS: usize = 300;
/// How long its messages are waited for after its output ended.
const ENDING: Duration = Duration::from_secs(1);
/// Most damaged pictures in a row.
const MAX_DAMAGED: u32 = 30;

/// A running ffmpeg, killed when this is dropped.
// Only streams over RTSP are fed to it.
#[cfg_attr(not(feature = "rtsp"), allow(dead_code))]
pub(super) struct FfmpegChild {
    stdin: Option<ChildStdin>,
    output: FfmpegOutput,
    /// Killed with this.
    child: Child,
}

/// What a running ffmpeg writes.
pub(super) struct FfmpegOutput {
    stdout: ChildStdout,
    walker: JpegWalker,
    piece: Vec<u8>,
    last_words: Arc<Mutex<String>>,
    drain: AbortOnDropHandle<()>,
}

/// What ffmpeg reads, and how.
pub(super) struct FfmpegInput<'a> {
    /// Arguments before and with `-i`.
    pub arguments: Vec<OsString>,
    /// Arguments that choose and code the pictures.
    pub output: Vec<OsString>,
    /// What it is needed for, such as `h265`.
    pub codec: &'a str,
    /// Whether pictures are written to its standard input.
    pub is_fed: bool,
}

impl FfmpegChild {
    /// Starts the program.
    ///
    /// # Errors
    /// It is not installed, or cannot be started.
    pub(super) fn spawn(program: Option<&Path>, address: &str, input: FfmpegInput<'_>) -> Result<Self, CameraError> {
        let mut command = Command::new(program.unwrap_or(Path::new("ffmpeg")));
        command
            .args(["-nostdin", "-hide_banner", "-loglevel", "warning", "-threads", "1"])
            .args(input.arguments)
            .args(["-map", "0:v:0"])
            .args(input.output)
            .args(["-flush_packets", "1", "pipe:1"])
            .stdin(if input.is_fed { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => CameraError::NeedsFfmpeg { address: address.into(), codec: input.codec.into() },
            _ => CameraError::Unreadable { address: address.into(), why: format!("ffmpeg cannot be started: {error}") },
        })?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdout), Some(stderr)) = (stdout, stderr) else {
            let why = "ffmpeg was started without its output".into();
            return Err(CameraError::Unreadable { address: address.into(), why });
        };
        let last_words = Arc::default();
        let drain = AbortOnDropHandle::new(tokio::spawn(drain_messages(stderr, Arc::clone(&last_words))));
        let (walker, piece) = (JpegWalker::new(MAX_PICTURE_BYTES), vec![0; PIECE_BYTES]);
        Ok(Self { stdin, output: FfmpegOutput { stdout, walker, piece, last_words, drain }, child })
    }
}

impl FfmpegChild {
    /// Its input, if it is fed, its output, and the process, which is killed when it is dropped.
    #[cfg(feature = "rtsp")]
    pub(super) fn into_parts(self) -> (Option<ChildStdin>, FfmpegOutput, Child) {
        (self.stdin, self.output, self.child)
    }
}

impl FfmpegOutput {
    /// Pictures, as soon as there are some; `None` after the last. What does not end in a picture is counted as cut.
    pub(super) async fn next_pictures(&mut self) -> Result<Option<WalkedPictures>, String> {
        loop {
            let length = self.stdout.read(&mut self.piece).await.map_err(|error| error.to_string())?;
            if length == 0 {
                return Ok(None);
            }
            let piece = self.piece.get(..length).unwrap_or_default();
            let walked = self.walker.push(piece).map_err(|large| large.why())?;
            if walked.whole > 0 || walked.cut > 0 {
                return Ok(Some(walked));
            }
        }
    }

    /// Its latest message. After its end: what it says may come a moment later.
    pub(super) async fn last_words(&mut self) -> String {
        let _ended = tokio::time::timeout(ENDING, &mut self.drain).await;
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if words.is_empty() { "it said nothing".into() } else { words }
    }
}

/// Keeps the latest message that is not mere chatter. A child whose messages nobody reads stops.
async fn drain_messages(stderr: ChildStderr, last_words: Arc<Mutex<String>>) {
    let mut lines = BufReader::new(stderr).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line);
        let line = line.trim();
        if !line.is_empty() && !line.starts_with("Last message repeated") && !line.contains("deprecated pixel format") {
            *last_words.lock().unwrap_or_else(PoisonError::into_inner) = line.chars().take(MAX_WORDS).collect();
        }
    }
}

/// JPEG of good quality, each picture once.
pub(super) fn jpeg_output() -> Vec<OsString> {
    let arguments = "-fps_mode passthrough -c:v mjpeg -q:v 3 -threads 1 -f image2pipe";
    arguments.split(' ').map(OsString::from).collect()
}

/// Plays a video file at its own speed.
///
/// # Errors
/// ffmpeg is not installed.
pub(super) fn open_file(address: &str, path: &Path, options: &SourceOptions) -> Result<LiveSource, CameraError> {
    // A name may look like an option or like an address; with this it is a name.
    let mut name = OsString::from("file:");
    name.push(path);
    let mut arguments: Vec<OsString> = ["-protocol_whitelist", "file", "-re", "-i"].map(OsString::from).into();
    arguments.push(name);
    // Chosen by the times in the file, before they are coded: another picture counts as due once the interval has passed.
    let interval_s = options.interval.as_secs_f64();
    let mut output: Vec<OsString> = vec!["-vf".into()];
    output.push(format!("select='isnan(prev_selected_t)+gte(t-prev_selected_t,{interval_s:.3}-0.001)'").into());
    output.extend(jpeg_output());
    let input = FfmpegInput { arguments, output, codec: "a video file", is_fed: false };
    let reader = ChildReader::new(options.ffmpeg.as_deref(), address, "video", input, Duration::ZERO)?;
    Ok(LiveSource::spawn(reader.latest.clone(), reader.read_file()))
}

/// Reads a video device that gives JPEGs.
///
/// # Errors
/// There is no such device, or ffmpeg is not installed.
pub(super) async fn open_device(
    address: &str,
    path: &Path,
    options: &SourceOptions,
) -> Result<LiveSource, CameraError> {
    let unreadable = |error: io::Error| CameraError::Unreadable { address: address.into(), why: error.to_string() };
    tokio::fs::metadata(path).await.map_err(unreadable)?;
    let mut arguments: Vec<OsString> = ["-f", "v4l2", "-input_format", "mjpeg", "-i"].map(OsString::from).into();
    arguments.push(PathBuf::from(path).into_os_string());
    let output = ["-c:v", "copy", "-f", "mjpeg"].map(OsString::from).into();
    let input = FfmpegInput { arguments, output, codec: "a video device", is_fed: false };
    let reader = ChildReader::new(options.ffmpeg.as_deref(), address, "mjpeg", input, options.interval)?;
    Ok(LiveSource::spawn(reader.latest.clone(), reader.read_device()))
}

/// Hands over what a child writes.
struct ChildReader {
    address: String,
    running: FfmpegChild,
    latest: Arc<LatestFrame>,
    damage: DamageCount,
    due: DueClock,
    pace: PaceMeter,
    given: u64,
}

impl ChildReader {
    fn new(
        program: Option<&Path>,
        address: &str,
        codec: &str,
        input: FfmpegInput<'_>,
        interval: Duration,
    ) -> Result<Self, CameraError> {
        Ok(Self {
            running: FfmpegChild::spawn(program, address, input)?,
            address: address.into(),
            latest: LatestFrame::new(address, codec),
            damage: DamageCount::new(address, MAX_DAMAGED),
            due: DueClock::new(interval),
            pace: PaceMeter::default(),
            given: 0,
        })
    }

    async fn read_file(mut self) -> Result<(), CameraError> {
        let failure = self.read().await?;
        match self.given {
            0 => Err(CameraError::Unreadable { address: self.address, why: failure }),
            _ => Ok(()),
        }
    }

    async fn read_device(mut self) -> Result<(), CameraError> {
        let why = self.read().await?;
        match self.given {
            0 => Err(CameraError::Unreadable { address: self.address, why }),
            _ => Err(CameraError::Closed { address: self.address, why: Some(why) }),
        }
    }

    /// Reads to the end; returns the child's last words.
    async fn read(&mut self) -> Result<String, CameraError> {
        loop {
            let pictures = self.running.output.next_pictures().await;
            let damaged = |why| CameraError::Damaged { address: self.address.clone(), why };
            match pictures.map_err(damaged)? {
                Some(walked) => self.take(walked)?,
                None => return Ok(self.running.output.last_words().await),
            }
        }
    }

    fn take(&mut self, walked: WalkedPictures) -> Result<(), CameraError> {
        for _ in 0..walked.cut {
            self.damage.note_damaged(&self.latest, "a picture ends before its end")?;
        }
        let (now, whole) = (tokio::time::Instant::now(), walked.whole);
        for _ in 0..whole {
            self.pace.note(now);
        }
        let Some(picture) = walked.newest() else { return Ok(()) };
        self.damage.note_good();
        self.given += whole;
        self.latest.update_facts(|facts| {
            facts.received += whole;
            facts.size_px = jpeg_size_px(&picture).or(facts.size_px);
            facts.frames_per_s = self.pace.per_s();
        });
        if self.due.is_due(now, self.pace.distance()) {
            self.due.note_taken(now);
            self.latest.put(Frame::arriving(FramePicture::Jpeg(picture), None));
        }
        Ok(())
    }
}

//! The usual way to take pictures from a camera, against which the grabber is measured: an ffmpeg child whose pictures are
//! read from a pipe.

use std::io::Read;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::cameras::cost::{CameraKind, VideoCodec};
use crate::cameras::sources::{CAMERA_RATE, FFMPEG, fault};
use crate::error::BenchError;

/// An ffmpeg that gives one JPEG a second; ends with this.
pub(super) struct FfmpegReader {
    child: Child,
    pictures: Arc<AtomicU64>,
    reading: Option<JoinHandle<()>>,
}

impl FfmpegReader {
    /// Starts it on a camera. From H.264 it decodes key frames alone and codes each as JPEG; of motion JPEG it copies every
    /// tenth picture. Once each, whatever their distance: the filter `fps` would invent pictures between them.
    pub(super) fn start(kind: CameraKind, url: &str) -> Result<Self, BenchError> {
        let mut command = Command::new(FFMPEG);
        command.args(["-nostdin", "-hide_banner", "-loglevel", "error", "-threads", "1", "-fflags", "nobuffer"]);
        command.args(["-probesize", "500000", "-analyzeduration", "1000000"]);
        match kind.codec {
            VideoCodec::H264 => {
                command.args(["-rtsp_transport", "tcp", "-skip_frame", "nokey", "-i", url, "-map", "0:v:0"]);
                command.args(["-fps_mode", "passthrough", "-c:v", "mjpeg", "-q:v", "3", "-threads", "1"]);
            }
            VideoCodec::MotionJpeg => {
                let others = format!("noise=drop=mod(n\\,{CAMERA_RATE})");
                command.args(["-i", url, "-map", "0:v:0", "-c:v", "copy", "-bsf:v", &others]);
            }
        }
        command.args(["-f", "image2pipe", "pipe:1"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| fault(format!("ffmpeg could not be started: {error}")))?;
        let pictures = Arc::new(AtomicU64::new(0));
        let (output, count) = (child.stdout.take(), pictures.clone());
        let reading = output.map(|output| std::thread::spawn(move || count_pictures(output, &count)));
        Ok(Self { child, pictures, reading })
    }

    /// Its process id.
    pub(super) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Pictures that it gave so far.
    pub(super) fn pictures(&self) -> u64 {
        self.pictures.load(Ordering::Relaxed)
    }
}

impl Drop for FfmpegReader {
    fn drop(&mut self) {
        let (killed, waited) = (self.child.kill(), self.child.wait());
        tracing::debug!(?killed, ?waited, "ffmpeg ended");
        if let Some(reading) = self.reading.take() {
            // Ends with the pipe; a crash of it has been printed.
            let _ended = reading.join();
        }
    }
}

/// Reads to the end, and counts where a JPEG begins.
fn count_pictures(mut output: ChildStdout, count: &AtomicU64) {
    let (mut piece, mut beginning) = (vec![0; 64 << 10], PictureBeginning::default());
    while let Ok(length @ 1..) = output.read(&mut piece) {
        count.fetch_add(beginning.count(&piece[..length]), Ordering::Relaxed);
    }
}

/// Finds the beginnings of JPEGs in a stream that comes in pieces: FF D8 FF, which are nowhere else in what ffmpeg writes.
#[derive(Debug, Default)]
struct PictureBeginning([u8; 2]);

impl PictureBeginning {
    fn count(&mut self, piece: &[u8]) -> u64 {
        let mut found = 0;
        for byte in piece {
            found += u64::from([self.0[0], self.0[1], *byte] == [0xff, 0xd8, 0xff]);
            self.0 = [self.0[1], *byte];
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_counted_across_pieces() {
        let stream = [0xff, 0xd8, 0xff, 0xe0, 1, 2, 0xff, 0xd9, 0xff, 0xd8, 0xff, 0xdb, 0xff, 0xd9];
        for length in 1..=stream.len() {
            let mut beginning = PictureBeginning::default();
            assert_eq!(
                stream.chunks(length).map(|piece| beginning.count(piece)).sum::<u64>(),
                2,
                "in pieces of {length}"
            );
        }
    }
}

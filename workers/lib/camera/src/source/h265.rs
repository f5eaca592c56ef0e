//! H.265, decoded by ffmpeg: which coded pictures to give it, and getting them back as JPEG.
//!
//! One ffmpeg runs for as long as the connection and is fed with the pictures that can be decoded alone. Where the stream is
//! coded with pictures out of order, ffmpeg holds each back until the next ones come, which would be seconds later: then one
//! ffmpeg is run for each picture instead, which takes ten times the processor time.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdin;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::due::{DueClock, PaceMeter};
use super::ffmpeg::{FfmpegChild, FfmpegInput, FfmpegOutput, jpeg_output};
use super::jpeg_walker::{WalkedPictures, jpeg_size_px};
use super::latest::LatestFrame;
use crate::error::CameraError;
use crate::frame::{Frame, FramePicture};

/// How long ffmpeg may take for a picture.
const DECODE_TIMEOUT: Duration = Duration::from_secs(10);
/// A picture that has not come back by then is being held back.
const HELD_BACK: Duration = Duration::from_millis(900);
/// How long ffmpeg may take for its first picture.
const START: Duration = Duration::from_secs(3);
/// An access unit delimiter: ends the picture before it, which ffmpeg would otherwise wait for the next one to do.
const DELIMITER: [u8; 7] = [0, 0, 0, 1, 0x46, 0x01, 0x50];

/// Whether a coded picture in Annex B form can be decoded alone: IDR, but also the clean random access pictures that most
/// encoders write after the first.
pub(super) fn is_random_access(coded: &[u8]) -> bool {
    let starts = memchr::memmem::find_iter(coded, &[0, 0, 1]);
    let kinds = starts.filter_map(|start| coded.get(start + 3)).map(|header| (header >> 1) & 0x3f);
    // Below 32 is what is coded of the picture itself.
    kinds.take(64).find(|kind| *kind < 32).is_some_and(|kind| (16..24).contains(&kind))
}

/// Decodes with ffmpeg.
pub(super) struct H265Decoder {
    address: String,
    program: Option<PathBuf>,
    interval: Duration,
    latest: Arc<LatestFrame>,
    kept: Option<KeptChild>,
    /// Whether one ffmpeg is run for each picture.
    is_one_each: bool,
}

/// An ffmpeg that stays.
struct KeptChild {
    stdin: ChildStdin,
    progress: Arc<ChildProgress>,
    fed: u64,
    fed_at: Instant,
    started_at: Instant,
    _child: FfmpegGuard,
}

/// Ends with what it holds.
struct FfmpegGuard {
    _reader: AbortOnDropHandle<()>,
    _process: tokio::process::Child,
}

#[derive(Default)]
struct ChildProgress {
    given: AtomicU64,
    /// Whether all pictures are fed, so that those that are due must be chosen from what comes back.
    is_fed_all: AtomicBool,
    camera_at_ms: AtomicU64,
}

impl H265Decoder {
    /// # Errors
    /// ffmpeg is not installed.
    pub(super) fn new(
        address: &str,
        program: Option<PathBuf>,
        interval: Duration,
        latest: Arc<LatestFrame>,
    ) -> Result<Self, CameraError> {
        let mut decoder = Self { address: address.into(), program, interval, latest, kept: None, is_one_each: false };
        // Started before the first picture comes, so that it is known at once whether there is one.
        decoder.kept = Some(decoder.start()?);
        Ok(decoder)
    }

    /// Starts anew: the size of the pictures changed, and a running ffmpeg would scale the new ones to the old size.
    pub(super) fn restart(&mut self) {
        self.kept.take_if(|kept| kept.fed > 0);
    }

    /// Feeds pictures, of which the last is wanted. What is decoded goes to where frames are taken from.
    ///
    /// # Errors
    /// ffmpeg is gone or hangs; or why the picture could not be decoded, as the inner error.
    pub(super) async fn decode(
        &mut self,
        pictures: Vec<Vec<u8>>,
        feeds_all: bool,
        camera_at_ms: Option<u64>,
    ) -> Result<Result<(), String>, CameraError> {
        if feeds_all {
            // Those out of order are delayed by a few pictures only.
            self.is_one_each = false;
        } else if self.is_held_back() {
            (self.is_one_each, self.kept) = (true, None);
        }
        if self.is_one_each {
            return self.decode_apart(pictures, camera_at_ms).await;
        }
        let mut kept = match self.kept.take() {
            Some(kept) => kept,
            None => self.start()?,
        };
        if kept.fed == 0 {
            kept.started_at = Instant::now();
        }
        kept.progress.is_fed_all.store(feeds_all, Ordering::Relaxed);
        kept.progress.camera_at_ms.store(camera_at_ms.unwrap_or_default(), Ordering::Relaxed);
        for picture in pictures {
            match timeout(DECODE_TIMEOUT, feed(&mut kept.stdin, &picture)).await {
                Ok(Ok(())) => kept.fed += 1,
                // The next picture starts another one.
                Ok(Err(error)) => return Ok(Err(format!("ffmpeg ended: {error}"))),
                Err(_) => return Ok(Err(format!("ffmpeg took no picture for {} s", DECODE_TIMEOUT.as_secs()))),
            }
        }
        kept.fed_at = Instant::now();
        self.kept = Some(kept);
        Ok(Ok(()))
    }

    /// Whether the latest picture should have come back by now.
    fn is_held_back(&self) -> bool {
        let Some(kept) = &self.kept else { return false };
        let given = kept.progress.given.load(Ordering::Relaxed);
        let missing = kept.fed.saturating_sub(given);
        let is_late = missing > 1 || missing > 0 && kept.fed_at.elapsed() > HELD_BACK;
        is_late && (given > 0 || kept.started_at.elapsed() > START) && !kept.progress.is_fed_all.load(Ordering::Relaxed)
    }

    fn spawn(&self) -> Result<FfmpegChild, CameraError> {
        // As little as possible is read before the first picture is decoded.
        let arguments = "-f hevc -probesize 32 -analyzeduration 0 -i pipe:0";
        let arguments = arguments.split(' ').map(OsString::from).collect();
        let input = FfmpegInput { arguments, output: jpeg_output(), codec: "h265", is_fed: true };
        FfmpegChild::spawn(self.program.as_deref(), &self.address, input)
    }

    fn start(&self) -> Result<KeptChild, CameraError> {
        let (stdin, output, process) = self.spawn()?.into_parts();
        let stdin = stdin.ok_or_else(|| self.no_input())?;
        let progress = Arc::<ChildProgress>::default();
        let reading = read_pictures(output, self.latest.clone(), progress.clone(), DueClock::new(self.interval));
        let reader = AbortOnDropHandle::new(tokio::spawn(reading));
        let guard = FfmpegGuard { _reader: reader, _process: process };
        let now = Instant::now();
        Ok(KeptChild { stdin, progress, fed: 0, fed_at: now, started_at: now, _child: guard })
    }

    fn no_input(&self) -> CameraError {
        CameraError::Unreadable { address: self.address.clone(), why: "ffmpeg was started without its input".into() }
    }

    /// Decodes the last picture with an ffmpeg of its own, which gives it as soon as its input ends.
    async fn decode_apart(
        &self,
        mut pictures: Vec<Vec<u8>>,
        camera_at_ms: Option<u64>,
    ) -> Result<Result<(), String>, CameraError> {
        let Some(picture) = pictures.pop() else { return Ok(Ok(())) };
        let (stdin, mut output, _process) = self.spawn()?.into_parts();
        let mut stdin = stdin.ok_or_else(|| self.no_input())?;
        let exchange = async {
            stdin.write_all(&picture).await.map_err(|error| error.to_string())?;
            drop(stdin);
            output.next_pictures().await
        };
        let decoded = match timeout(DECODE_TIMEOUT, exchange).await {
            Ok(Ok(walked)) => walked.and_then(WalkedPictures::newest),
            Ok(Err(why)) => return Ok(Err(why)),
            Err(_) => return Ok(Err(format!("ffmpeg gave no picture within {} s", DECODE_TIMEOUT.as_secs()))),
        };
        match decoded {
            Some(jpeg) => {
                give(&self.latest, jpeg, camera_at_ms);
                Ok(Ok(()))
            }
            None => Ok(Err(output.last_words().await)),
        }
    }
}

async fn feed(stdin: &mut ChildStdin, picture: &[u8]) -> std::io::Result<()> {
    stdin.write_all(picture).await?;
    stdin.write_all(&DELIMITER).await?;
    stdin.flush().await
}

/// Hands over what a kept ffmpeg gives.
async fn read_pictures(
    mut output: FfmpegOutput,
    latest: Arc<LatestFrame>,
    progress: Arc<ChildProgress>,
    mut due: DueClock,
) {
    let mut pace = PaceMeter::default();
    while let Ok(Some(walked)) = output.next_pictures().await {
        progress.given.fetch_add(walked.whole, Ordering::Relaxed);
        let now = Instant::now();
        pace.note(now);
        let Some(jpeg) = walked.newest() else { continue };
        if !progress.is_fed_all.load(Ordering::Relaxed) || due.is_due(now, pace.distance()) {
            due.note_taken(now);
            let camera_at_ms = progress.camera_at_ms.load(Ordering::Relaxed);
            give(&latest, jpeg, (camera_at_ms > 0).then_some(camera_at_ms));
        }
    }
}

fn give(latest: &LatestFrame, jpeg: Bytes, camera_at_ms: Option<u64>) {
    latest.update_facts(|facts| facts.size_px = jpeg_size_px(&jpeg).or(facts.size_px));
    latest.put(Frame::arriving(FramePicture::Jpeg(jpeg), camera_at_ms));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_that_can_be_decoded_alone_are_told_by_their_first_slice() {
        let unit = |kinds: &[u8]| -> Vec<u8> { kinds.iter().flat_map(|kind| [0, 0, 0, 1, kind << 1, 1, 9]).collect() };
        for (kinds, is_alone) in [
            (&[32, 33, 34, 19][..], true),
            (&[35, 39, 20], true),
            (&[21], true),
            (&[1, 21], false),
            (&[35, 0], false),
            (&[32, 33, 34], false),
            (&[], false),
        ] {
            assert_eq!(is_random_access(&unit(kinds)), is_alone, "{kinds:?}");
        }
    }
}

//! Connects to a camera and watches its pictures, as a worker does.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use camera::motion_gate::{GateDecision, MotionGate, MotionGateSettings, PublishCause};
use camera::picture_health::{PictureHealth, PictureMeasures, PictureSettings};
use camera::region::{GrayView, RegionShape};
use camera::source::{FrameSource, SourceOptions, StreamFacts};
use camera::{CameraAddress, CameraError, CameraPlace, Frame, FramePicture};
use schemas::PictureReport;
use serde::Serialize;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::Instant;
use url::Url;
use vision::{DecodeSettings, GrayPixels, decode_gray_into};

use crate::{format, stdout};

/// How long names and connections may take, each.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a source may take to open, beyond the time-outs of its own steps.
const OPEN_TIMEOUT: Duration = Duration::from_secs(45);
/// How long the next picture may take.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(15);
/// Damaged pictures in a row, before the first whole one, after which there will be none.
const MAX_DAMAGED: u32 = 5;
/// Most pictures that are counted.
const MAX_PICTURES: usize = 100_000;

/// A step on the way to pictures.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CheckStep {
    /// What was done: `resolve`, `connect`, `open` or `first_picture`.
    step: &'static str,
    /// What came of it.
    result: String,
    /// How long it took, milliseconds.
    took_ms: u64,
}

/// Why there are no pictures, and how far it went.
pub(super) struct CheckFailure {
    pub(super) steps: Vec<CheckStep>,
    pub(super) error: CameraError,
}

/// A camera that was watched.
pub(super) struct WatchedCamera {
    pub(super) steps: Vec<CheckStep>,
    pub(super) facts: StreamFacts,
    /// How long it was watched after the first picture.
    pub(super) watched_for: Duration,
    /// When each picture that was taken had arrived.
    pub(super) arrivals: Vec<Instant>,
    /// Pictures that were taken and could not be read.
    pub(super) damaged: u64,
    /// How far the camera's clock was ahead at the latest picture that told, milliseconds.
    pub(super) clock_ahead_ms: Option<i64>,
    /// Pictures that the motion gate would publish after the first.
    pub(super) published: u32,
    /// Whether all pictures were the very same, although there were several.
    pub(super) is_one_picture: bool,
    pub(super) measures: PictureMeasures,
    pub(super) report: PictureReport,
    /// Why watching ended early, if it did.
    pub(super) interruption: Option<CameraError>,
    latest: Frame,
}

impl WatchedCamera {
    /// The latest picture as JPEG.
    pub(super) fn jpeg(&self) -> anyhow::Result<Bytes> {
        RegionShape::default().cut(&self.latest.picture).context("the latest picture cannot be encoded")
    }
}

/// Connects and watches for a while from the first picture on.
pub(super) async fn watch(
    address: &CameraAddress,
    options: &SourceOptions,
    duration: Duration,
) -> Result<WatchedCamera, CheckFailure> {
    let mut steps = StepLog::default();
    match watch_steps(address, options, duration, &mut steps).await {
        Ok(watched) => Ok(watched),
        Err(error) => Err(CheckFailure { steps: steps.done, error }),
    }
}

async fn watch_steps(
    address: &CameraAddress,
    options: &SourceOptions,
    duration: Duration,
    steps: &mut StepLog,
) -> Result<WatchedCamera, CameraError> {
    if let CameraPlace::Http(url) | CameraPlace::Rtsp(url) = &address.place {
        reach(address, url, steps).await?;
    }
    let shown = || address.to_string();
    let started = Instant::now();
    let opened = tokio::time::timeout(OPEN_TIMEOUT, FrameSource::open(address, options)).await;
    let late = |step, timeout: Duration| CameraError::Timeout { address: shown(), step, seconds: timeout.as_secs() };
    let mut source = opened.map_err(|_| late("the connection", OPEN_TIMEOUT))??;
    steps.finish("open", started, format!("connected: {}", or_unknown(&source.facts().codec)));
    let started = Instant::now();
    let mut seen = SeenPictures::default();
    let first = first_picture(&mut source, address, &mut seen).await?;
    let size = source.facts().size_px.map(|(width, height)| format!(", {width}x{height}")).unwrap_or_default();
    steps.finish("first_picture", started, format!("first picture{size}"));
    stdout::print_note(format_args!("watching for {}", format::format_span(duration.as_millis() as f64)));
    let (mut latest, mut interruption) = (first, None);
    let began = Instant::now();
    let deadline = tokio::time::sleep(duration);
    tokio::pin!(deadline);
    while seen.arrivals.len() < MAX_PICTURES {
        let taken = tokio::select! {
            taken = next(&mut source, address) => taken,
            () = &mut deadline => break,
        };
        match taken {
            Ok(Some(frame)) => match seen.add(&frame) {
                Ok(()) => latest = frame,
                Err(why) => {
                    tracing::debug!(why, "picture cannot be read");
                    seen.damaged += 1;
                }
            },
            Ok(None) => break,
            Err(error) => {
                interruption = Some(error);
                break;
            }
        }
    }
    seen.finish(source.facts(), began.elapsed(), std::mem::take(&mut steps.done), latest, interruption)
        .ok_or_else(|| CameraError::Damaged { address: shown(), why: "no picture could be measured".into() })
}

/// Whether the camera's port can be reached at all: an error of this is worth more than one of what is built upon it.
async fn reach(address: &CameraAddress, url: &Url, steps: &mut StepLog) -> Result<(), CameraError> {
    let unreachable = |why: String| CameraError::Unreachable { address: address.to_string(), why };
    let late = |step| CameraError::Timeout { address: address.to_string(), step, seconds: CONNECT_TIMEOUT.as_secs() };
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or(match url.scheme() {
        "rtsps" => 322,
        _ => 554,
    });
    let started = Instant::now();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let found = tokio::time::timeout(CONNECT_TIMEOUT, lookup_host((bare, port))).await;
    let found = found.map_err(|_| late("the name server"))?.map_err(|error| unreachable(error.to_string()))?;
    let found: Vec<_> = found.collect();
    let first = found.first().ok_or_else(|| unreachable("the name has no address".into()))?;
    if first.ip().to_string() != bare {
        steps.finish("resolve", started, format!("{host} is {}", first.ip()));
    }
    let started = Instant::now();
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(found.as_slice())).await;
    connected.map_err(|_| late("the connection"))?.map_err(|error| unreachable(error.to_string()))?;
    steps.finish("connect", started, format!("port {port} is open"));
    Ok(())
}

/// The first picture that can be read; a connection may begin in the middle of one.
async fn first_picture(
    source: &mut FrameSource,
    address: &CameraAddress,
    seen: &mut SeenPictures,
) -> Result<Frame, CameraError> {
    let mut error = None;
    for _ in 0..MAX_DAMAGED {
        let Some(frame) = next(source, address).await? else { break };
        match seen.add(&frame) {
            Ok(()) => return Ok(frame),
            Err(why) => {
                seen.damaged += 1;
                error = Some(CameraError::Damaged { address: address.to_string(), why });
            }
        }
    }
    let why = "there is no picture in it".into();
    Err(error.unwrap_or_else(|| CameraError::Unreadable { address: address.to_string(), why }))
}

/// The next picture; silence is an error.
async fn next(source: &mut FrameSource, address: &CameraAddress) -> Result<Option<Frame>, CameraError> {
    let next = tokio::time::timeout(SILENCE_TIMEOUT, source.next_frame()).await;
    next.unwrap_or_else(|_| Err(source.silence(address, SILENCE_TIMEOUT)))
}

fn or_unknown(codec: &str) -> &str {
    if codec.is_empty() { "unknown coding" } else { codec }
}

/// Steps so far, told as they end.
#[derive(Default)]
struct StepLog {
    done: Vec<CheckStep>,
}

impl StepLog {
    fn finish(&mut self, step: &'static str, started: Instant, result: String) {
        let took = started.elapsed();
        let result = format::plain_text(&result);
        stdout::print_note(format_args!("{result} ({})", format::format_span(took.as_secs_f64() * 1000.0)));
        self.done.push(CheckStep { step, result, took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX) });
    }
}

/// What is known of the pictures so far.
struct SeenPictures {
    arrivals: Vec<Instant>,
    damaged: u64,
    clock_ahead_ms: Option<i64>,
    gate: MotionGate,
    published: u32,
    health: PictureHealth,
    latest: Option<(PictureMeasures, PictureReport)>,
    is_one_picture: bool,
    gray: GrayPixels,
}

impl Default for SeenPictures {
    fn default() -> Self {
        Self {
            arrivals: Vec::new(),
            damaged: 0,
            clock_ahead_ms: None,
            gate: MotionGate::new(MotionGateSettings::default()),
            published: 0,
            health: PictureHealth::new(PictureSettings::default()),
            latest: None,
            is_one_picture: true,
            gray: GrayPixels::default(),
        }
    }
}

impl SeenPictures {
    /// Adds a picture. Fails with the decoder's reason.
    fn add(&mut self, frame: &Frame) -> Result<(), String> {
        let measures = self.measure(&frame.picture)?;
        let mut report = self.health.observe(&measures, frame.arrived);
        match self.gate.judge(&measures.thumbnail, frame.arrived) {
            GateDecision::Publish(cause) => {
                self.published += u32::from(cause != PublishCause::First);
                report.is_scene_changed = cause == PublishCause::SceneChange;
                self.gate.record_published(measures.thumbnail.clone(), frame.arrived);
            }
            GateDecision::Skip => {}
        }
        let ahead = |at_ms: u64| i64::try_from(i128::from(at_ms) - i128::from(frame.arrived_at_ms)).ok();
        self.clock_ahead_ms = frame.camera_at_ms.and_then(ahead).or(self.clock_ahead_ms);
        self.is_one_picture &= self.latest.as_ref().is_none_or(|(before, _)| before.digest == measures.digest);
        self.arrivals.push(frame.arrived);
        self.latest = Some((measures, report));
        Ok(())
    }

    fn measure(&mut self, picture: &FramePicture) -> Result<PictureMeasures, String> {
        let view = match picture {
            FramePicture::Yuv(picture) => GrayView::of_yuv(picture),
            FramePicture::Jpeg(bytes) => {
                decode_gray_into(bytes, &DecodeSettings::default(), &mut self.gray)
                    .map_err(|error| error.to_string())?;
                GrayView::of_gray(&self.gray)
            }
        };
        PictureMeasures::of_gray(view.plane, view.stride, view.width_px, view.height_px)
            .ok_or_else(|| "it is narrower than three pixels".into())
    }

    fn finish(
        self,
        facts: StreamFacts,
        watched_for: Duration,
        steps: Vec<CheckStep>,
        latest: Frame,
        interruption: Option<CameraError>,
    ) -> Option<WatchedCamera> {
        let (measures, report) = self.latest?;
        Some(WatchedCamera {
            steps,
            facts,
            watched_for,
            is_one_picture: self.is_one_picture && self.arrivals.len() > 2,
            arrivals: self.arrivals,
            damaged: self.damaged,
            clock_ahead_ms: self.clock_ahead_ms,
            published: self.published,
            measures,
            report,
            interruption,
            latest,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use camera::YuvPicture;

    use super::*;

    fn frame(gray: u8, at: Instant, camera_at_ms: Option<u64>) -> Frame {
        let (width_px, height_px) = (64, 48);
        let quarter = vec![128; width_px * height_px / 4];
        let y = vec![gray; width_px * height_px];
        let picture = YuvPicture { width_px, height_px, y, u: quarter.clone(), v: quarter };
        Frame { picture: FramePicture::Yuv(Arc::new(picture)), arrived: at, arrived_at_ms: 1_000_000, camera_at_ms }
    }

    fn watched(frames: &[Frame]) -> WatchedCamera {
        let mut seen = SeenPictures::default();
        frames.iter().for_each(|frame| seen.add(frame).unwrap());
        seen.finish(StreamFacts::default(), Duration::ZERO, Vec::new(), frames.last().unwrap().clone(), None).unwrap()
    }

    #[test]
    fn pictures_that_change_are_published_and_the_first_does_not_count() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let still = watched(&[frame(100, at(0), None), frame(100, at(1), None), frame(100, at(2), None)]);
        assert_eq!((still.published, still.is_one_picture, still.arrivals.len()), (0, true, 3));
        let changing = watched(&[frame(100, at(0), None), frame(200, at(1), None), frame(200, at(2), None)]);
        assert_eq!((changing.published, changing.is_one_picture), (1, false));
        assert!((changing.report.brightness_ratio - 200.0 / 255.0).abs() < 0.01, "the latest picture's");
        assert!(vision::is_complete(&changing.jpeg().unwrap()), "a whole JPEG");
    }

    #[test]
    fn the_latest_difference_of_the_clocks_counts() {
        let start = Instant::now();
        let ahead = frame(100, start, Some(8_200_000));
        assert_eq!(watched(&[ahead.clone(), frame(100, start, None)]).clock_ahead_ms, Some(7_200_000));
        assert_eq!(watched(&[ahead, frame(100, start, Some(0))]).clock_ahead_ms, Some(-1_000_000));
    }

    #[test]
    fn a_picture_that_cannot_be_read_says_why() {
        let broken = Frame {
            picture: FramePicture::Jpeg(Bytes::from_static(b"\xff\xd8\xff")),
            ..frame(1, Instant::now(), None)
        };
        assert!(!SeenPictures::default().add(&broken).unwrap_err().is_empty());
    }
}

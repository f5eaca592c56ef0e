//! The life of one camera: connect, follow, and connect again. The path of a picture: source → gray → judge → cut →
//! send.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use camera::motion_gate::GateDecision;
use camera::region::GrayView;
use camera::source::{FrameSource, SourceOptions, StreamFacts};
use camera::{CameraError, Frame, FramePicture};
use runtime::consumer::WorkerStats;
use runtime::{Shutdown, clock};
use schemas::SiteName;
use streams::backoff::Backoff;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout};
use vision::{DecodeSettings, GrayPixels};

use crate::image_sender::{CameraImage, CameraImageSender, loss};
use crate::published_camera::{CameraLog, PictureJudge};
use crate::settings::CameraSettings;

/// Pauses before a connection is made again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// A connection that lasted this long was a good one: the next pause is short again.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);
/// A camera counts as silent after this many of its usual distances between pictures.
const DISTANCES: f64 = 3.0;
/// Longest wait for a picture of a camera that never gave one: each silent connection is given twice the time.
const MAX_SILENCE: Duration = Duration::from_secs(900);
/// Damaged pictures in a row after which the connection is made again.
const MAX_DAMAGED: u32 = 30;

/// What the cameras of a grabber share.
pub(crate) struct CameraShared {
    pub site: SiteName,
    pub sender: CameraImageSender,
    pub stats: Arc<WorkerStats>,
    /// Pictures decoded at the same time, so that many cameras leave processors to others.
    pub decoding: Semaphore,
}

/// One camera.
pub(crate) struct CameraTask {
    settings: CameraSettings,
    shared: Arc<CameraShared>,
    views: Vec<CameraView>,
    /// How long a picture is waited for.
    silence: Duration,
    /// Usual distance between pictures.
    distance: Option<Duration>,
}

/// One published camera of it.
struct CameraView {
    log: CameraLog,
    /// Absent while a picture is being judged.
    judge: Option<PictureJudge>,
    states: String,
    name: schemas::CameraName,
    sending: Option<JoinHandle<bool>>,
}

impl CameraTask {
    pub(crate) fn new(settings: CameraSettings, shared: Arc<CameraShared>) -> Self {
        let view = |published: &crate::settings::PublishedCameraSettings| CameraView {
            log: CameraLog::new(&shared.site, &published.name, published.interval),
            judge: Some(PictureJudge::new(published)),
            states: published.states.join(","),
            name: published.name.clone(),
            sending: None,
        };
        let views = settings.published().iter().map(view).collect();
        let silence = Duration::from_secs(settings.silent_after_s.into());
        Self { settings, shared, views, silence, distance: None }
    }

    /// What is known about each published camera of it.
    pub(crate) fn logs(&self) -> Vec<CameraLog> {
        self.views.iter().map(|view| view.log.clone()).collect()
    }

    /// Takes pictures until told to stop.
    pub(crate) async fn run(mut self, stop: Shutdown) {
        tokio::select! {
            () = self.follow() => {}
            () = stop.wait_for_request() => {}
        }
        for view in &mut self.views {
            if let Some(sending) = view.sending.take() {
                let _was_sent = timeout(FIRST_PAUSE, sending).await;
            }
            view.log.record_end();
        }
    }

    /// Connects again and again; ends when a file has ended.
    async fn follow(&mut self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, MAX_PAUSE);
        let mut connections = 0u64;
        loop {
            let began = Instant::now();
            let ended = self.connect_and_take().await;
            let Err(error) = ended else {
                for view in &self.views {
                    view.log.record_end();
                }
                return std::future::pending().await;
            };
            if began.elapsed() >= GOOD_CONNECTION && self.distance.is_some() {
                backoff.reset();
            }
            let pause = match error.needs_a_person() {
                // A camera that refuses a login locks the account when it is asked often.
                true => MAX_PAUSE,
                false => backoff.next_pause(),
            };
            tracing::info!(camera = %self.settings.name, %error, pause_s = pause.as_secs_f64(), "camera gives no pictures");
            for view in &self.views {
                view.log.record_failure(&error);
            }
            let was_silent = matches!(error, CameraError::Silent { .. } | CameraError::NoKeyFrame { .. });
            if was_silent && self.distance.is_none() {
                self.silence = (self.silence * 2).min(MAX_SILENCE);
            }
            tokio::time::sleep(pause).await;
            connections += 1;
            for view in &self.views {
                view.log.count(|counts| counts.reconnects = connections);
            }
        }
    }

    /// Ends with the end of a file, or with what went wrong.
    async fn connect_and_take(&mut self) -> Result<(), CameraError> {
        let options = SourceOptions {
            login: self.settings.login()?,
            interval: self.settings.interval(),
            authority: self.settings.authority.clone(),
            ffmpeg: None,
        };
        let mut source = FrameSource::open(&self.settings.url, &options).await?;
        tracing::debug!(camera = %self.settings.name, "camera connected");
        let (mut damaged, mut counted, mut before) = (0, 0, None::<Instant>);
        loop {
            let limit = self.distance.map_or(self.silence, |distance| self.silence.max(distance.mul_f64(DISTANCES)));
            let next = timeout(limit, source.next_frame()).await;
            let facts = source.facts();
            self.count_damaged(facts.damaged.saturating_sub(counted));
            counted = facts.damaged;
            let frame = next.unwrap_or_else(|_| Err(source.silence(&self.settings.url, limit)))?;
            let Some(frame) = frame else { return Ok(()) };
            if let Some(before) = before.replace(frame.arrived) {
                let distance = frame.arrived.saturating_duration_since(before);
                // The longest of late, so that a camera with uneven distances is not silent in between.
                self.distance = Some(self.distance.map_or(distance, |known| distance.max(known.mul_f64(0.9))));
            }
            match self.take(frame, &facts).await {
                Ok(()) => damaged = 0,
                Err(why) => {
                    damaged += 1;
                    self.count_damaged(1);
                    if damaged >= MAX_DAMAGED {
                        return Err(CameraError::Damaged { address: self.settings.url.to_string(), why });
                    }
                }
            }
        }
    }

    fn count_damaged(&self, pictures: u64) {
        for view in &self.views {
            view.log.count(|counts| counts.damaged += pictures);
        }
    }

    /// Judges a picture for each published camera, and sends it where it is wanted. An error: it cannot be decoded.
    async fn take(&mut self, frame: Frame, facts: &StreamFacts) -> Result<(), String> {
        let mut due = Vec::new();
        for (at, view) in self.views.iter_mut().enumerate() {
            view.settle_sending().await;
            if let Some(mut judge) = view.judge.take() {
                match judge.takes(frame.arrived) {
                    true => due.push((at, judge)),
                    false => view.judge = Some(judge),
                }
            }
        }
        if due.is_empty() {
            return Ok(());
        }
        let shared = self.shared.clone();
        // The semaphore is never closed.
        let permit = shared.decoding.acquire().await.ok();
        let (judged, frame) = match spawn_blocking(move || judge_all(due, &frame).map(|judged| (judged, frame))).await {
            Ok(Ok(judged)) => judged,
            Ok(Err((judges, why))) => {
                self.take_back(judges);
                return Err(why);
            }
            Err(error) => return Err(error.to_string()),
        };
        drop(permit);
        let captured_at_ms = clock::now_ms().saturating_sub(clock::micros(frame.arrived.elapsed()) / 1000);
        for JudgedPicture { at, mut judge, seen } in judged {
            let Some(view) = self.views.get_mut(at) else { continue };
            if let Some(GrabbedPicture { wanted, report, thumbnail }) = seen {
                view.log.record_picture(&frame, captured_at_ms, &report, facts);
                match wanted {
                    None => view.log.count(|counts| counts.unchanged += 1),
                    Some(Ok(jpeg)) => {
                        let image = CameraImage {
                            camera: view.name.clone(),
                            jpeg,
                            captured_at_ms,
                            report,
                            thumbnail: thumbnail.clone(),
                            states: view.states.clone(),
                        };
                        if view.send(&self.shared, image) {
                            judge.record_published(thumbnail, frame.arrived);
                        }
                    }
                    Some(Err(why)) => {
                        tracing::debug!(camera = %view.name, why, "picture could not be cut out");
                        view.log.count(|counts| counts.damaged += 1);
                    }
                }
            }
            view.judge = Some(judge);
        }
        Ok(())
    }

    fn take_back(&mut self, judges: Vec<(usize, PictureJudge)>) {
        for (at, judge) in judges {
            if let Some(view) = self.views.get_mut(at) {
                view.judge = Some(judge);
            }
        }
    }
}

impl CameraView {
    /// Notices that the picture before was sent, or lost.
    async fn settle_sending(&mut self) {
        let Some(sending) = self.sending.take_if(|sending| sending.is_finished()) else { return };
        if !sending.await.unwrap_or(false)
            && let Some(judge) = &mut self.judge
        {
            judge.forget_published();
        }
    }

    /// Sends a picture unless the one before is still on its way; then it is dropped, and this is false.
    fn send(&mut self, shared: &Arc<CameraShared>, image: CameraImage) -> bool {
        if self.sending.is_some() {
            let reason = "the site's server has not stored the picture before yet";
            let remedy = "check the site's disk and server, or lower rate_per_s";
            self.log.record_loss(schemas::FaultNote::new("camera_picture_dropped", reason, remedy));
            return false;
        }
        let (shared, log) = (shared.clone(), self.log.clone());
        self.sending = Some(tokio::spawn(async move {
            match shared.sender.send(image).await {
                Ok(()) => {
                    log.count(|counts| counts.published += 1);
                    shared.stats.finished.fetch_add(1, Ordering::Relaxed);
                    true
                }
                Err(error) => {
                    tracing::debug!(%error, "picture dropped");
                    log.record_loss(loss(&error));
                    false
                }
            }
        }));
        true
    }
}

/// A picture as it was judged for one published camera.
struct JudgedPicture {
    at: usize,
    judge: PictureJudge,
    /// Absent if its part is too small to be a picture.
    seen: Option<GrabbedPicture>,
}

struct GrabbedPicture {
    /// The part to publish, if it is worth it, or why it could not be cut out.
    wanted: Option<Result<bytes::Bytes, String>>,
    report: schemas::PictureReport,
    thumbnail: vision::thumbnail::Thumbnail,
}

type FailedPicture = (Vec<(usize, PictureJudge)>, String);

/// Decodes a picture and judges it for each published camera. An error returns the judges.
fn judge_all(due: Vec<(usize, PictureJudge)>, frame: &Frame) -> Result<Vec<JudgedPicture>, FailedPicture> {
    let mut gray = GrayPixels::default();
    let whole = match &frame.picture {
        FramePicture::Yuv(picture) => GrayView::of_yuv(picture),
        FramePicture::Jpeg(bytes) => match vision::decode_gray_into(bytes, &DecodeSettings::default(), &mut gray) {
            Ok(()) => GrayView::of_gray(&gray),
            Err(error) => return Err((due, error.to_string())),
        },
    };
    let judge = |(at, mut judge): (usize, PictureJudge)| {
        let seen = judge.judge(frame, whole).map(|(decision, report, thumbnail)| {
            let wanted = match decision {
                GateDecision::Skip => None,
                GateDecision::Publish(_) => Some(judge.cut(frame).map_err(|error| error.to_string())),
            };
            GrabbedPicture { wanted, report, thumbnail }
        });
        JudgedPicture { at, judge, seen }
    };
    Ok(due.into_iter().map(judge).collect())
}

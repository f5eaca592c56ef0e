//! One camera as it is published: the gate, the health and the counts of a camera without regions, or of one region.

use std::sync::{Arc, Mutex, PoisonError};

use camera::motion_gate::{GateDecision, MotionGate, PublishCause};
use camera::picture_health::{PictureHealth, PictureMeasures};
use camera::region::{CutError, GrayView, RegionShape};
use camera::source::StreamFacts;
use camera::{CameraError, Frame};
use runtime::clock;
use schemas::{CameraHealth, CameraName, CameraState, FaultNote, FrameCounts, PictureReport, SiteName};
use tokio::time::{Duration, Instant};
use vision::thumbnail::Thumbnail;

use crate::settings::PublishedCameraSettings;

/// A picture may come this share of the interval early.
const EARLY_RATIO: f64 = 0.1;
/// Differences between the two clocks that are remembered.
const CLOCKS: usize = 9;

/// Judges the pictures of one published camera.
#[derive(Debug)]
pub(crate) struct PictureJudge {
    shape: RegionShape,
    gate: MotionGate,
    health: PictureHealth,
    interval: Duration,
    due: Option<Instant>,
}

impl PictureJudge {
    pub(crate) fn new(settings: &PublishedCameraSettings) -> Self {
        Self {
            shape: settings.shape.clone(),
            gate: MotionGate::new(settings.gate),
            health: PictureHealth::new(settings.picture),
            interval: settings.interval,
            due: None,
        }
    }

    /// Whether a picture that arrived now is one of those that are to be taken.
    pub(crate) fn takes(&mut self, arrived: Instant) -> bool {
        let early = self.interval.mul_f64(EARLY_RATIO);
        if self.due.is_some_and(|due| arrived + early < due) {
            return false;
        }
        // A camera that was silent is not made to catch up; one that jitters keeps its rate.
        let on_time = self.due.filter(|due| arrived <= *due + early);
        self.due = Some(on_time.unwrap_or(arrived) + self.interval);
        true
    }

    /// Judges a picture by its brightness. `None` for a picture too small to be one.
    pub(crate) fn judge(
        &mut self,
        frame: &Frame,
        whole: GrayView<'_>,
    ) -> Option<(GateDecision, PictureReport, Thumbnail)> {
        let view = self.shape.view(whole);
        let measures = PictureMeasures::of_gray(view.plane, view.stride, view.width_px, view.height_px)?;
        let mut report = self.health.observe(&measures, frame.arrived);
        let thumbnail = self.shape.mask(measures.thumbnail);
        let decision = self.gate.judge(&thumbnail, frame.arrived);
        report.is_scene_changed = decision == GateDecision::Publish(PublishCause::SceneChange);
        Some((decision, report, thumbnail))
    }

    /// The wanted part as JPEG.
    pub(crate) fn cut(&self, frame: &Frame) -> Result<bytes::Bytes, CutError> {
        self.shape.cut(&frame.picture)
    }

    /// Remembers that a picture is on its way, with which later ones are compared.
    pub(crate) fn record_published(&mut self, thumbnail: Thumbnail, at: Instant) {
        self.gate.record_published(thumbnail, at);
    }

    /// Forgets what was published: it was lost after all, so the next picture counts as the first.
    pub(crate) fn forget_published(&mut self) {
        self.gate.forget_published();
    }
}

/// What is known about one published camera; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct CameraLog {
    log: Arc<Mutex<LoggedCamera>>,
}

#[derive(Debug)]
struct LoggedCamera {
    health: CameraHealth,
    interval: Duration,
    started: Instant,
    clocks: Vec<i64>,
}

impl CameraLog {
    pub(crate) fn new(site: &SiteName, name: &CameraName, interval: Duration) -> Self {
        let health = CameraHealth {
            site: site.clone(),
            camera: name.clone(),
            state: CameraState::Starting.into(),
            since_ms: clock::now_ms(),
            at_ms: clock::now_ms(),
            fault: None,
            picture_at_ms: None,
            picture: None,
            codec: None,
            size_px: None,
            frames_per_s: None,
            clock_ahead_ms: None,
            counts: FrameCounts::default(),
        };
        Self {
            log: Arc::new(Mutex::new(LoggedCamera { health, interval, started: Instant::now(), clocks: Vec::new() })),
        }
    }

    fn with<R>(&self, work: impl FnOnce(&mut LoggedCamera) -> R) -> R {
        work(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The current health.
    pub(crate) fn health(&self) -> CameraHealth {
        self.with(|log| {
            log.health.at_ms = clock::now_ms();
            if log.health.state.known() != Some(CameraState::Ended) {
                let intervals = log.started.elapsed().as_secs_f64() / log.interval.as_secs_f64();
                log.health.counts.wanted = intervals as u64;
            }
            log.health.clone()
        })
    }

    /// Changes a count.
    pub(crate) fn count(&self, change: impl FnOnce(&mut FrameCounts)) {
        self.with(|log| change(&mut log.health.counts));
    }

    /// Records a picture that arrived.
    pub(crate) fn record_picture(
        &self,
        frame: &Frame,
        captured_at_ms: u64,
        report: &PictureReport,
        facts: &StreamFacts,
    ) {
        self.with(|log| {
            log.enter(CameraState::Streaming);
            log.health.fault = None;
            log.health.counts.taken += 1;
            log.health.picture_at_ms = Some(captured_at_ms);
            log.health.picture = Some(report.clone());
            log.health.codec = Some(facts.codec.clone());
            log.health.size_px = facts.size_px;
            log.health.frames_per_s = facts.frames_per_s;
            if let Some(camera_at_ms) = frame.camera_at_ms {
                let ahead_ms =
                    i64::try_from(camera_at_ms).unwrap_or(i64::MAX).saturating_sub_unsigned(frame.arrived_at_ms);
                log.clocks.push(ahead_ms);
                if log.clocks.len() > CLOCKS {
                    log.clocks.remove(0);
                }
                // The median: what was delayed on the way says nothing.
                let mut sorted = log.clocks.clone();
                sorted.sort_unstable();
                log.health.clock_ahead_ms = sorted.get(sorted.len() / 2).copied();
            }
        });
    }

    /// Records why no pictures arrive.
    pub(crate) fn record_failure(&self, error: &CameraError) {
        self.with(|log| {
            log.enter(CameraState::Silent);
            log.health.fault = Some(error.note());
            // The clocks of the next connection may differ.
            log.clocks.clear();
        });
    }

    /// Records why pictures are lost although they arrive.
    pub(crate) fn record_loss(&self, fault: FaultNote) {
        self.with(|log| {
            log.health.counts.dropped += 1;
            log.health.fault = Some(fault);
        });
    }

    /// Records that a file has ended, or that the camera is no longer configured.
    pub(crate) fn record_end(&self) {
        self.with(|log| {
            log.enter(CameraState::Ended);
            log.health.fault = None;
        });
    }
}

impl LoggedCamera {
    fn enter(&mut self, state: CameraState) {
        if self.health.state.known() != Some(state) {
            self.health.state = state.into();
            self.health.since_ms = clock::now_ms();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::CameraSettings;

    fn judge(rate_per_s: f64) -> PictureJudge {
        let camera =
            CameraSettings { rate_per_s, ..CameraSettings::new("a".parse().unwrap(), "/tmp".parse().unwrap()) };
        PictureJudge::new(&camera.published()[0])
    }

    #[test]
    fn pictures_are_taken_at_the_rate_however_fast_they_come() {
        let start = Instant::now();
        for per_s in [60, 10, 1] {
            let mut judge = judge(1.0);
            let taken = (0..100 * per_s)
                .filter(|at| judge.takes(start + Duration::from_secs_f64(f64::from(*at) / f64::from(per_s))))
                .count();
            // The last may come early.
            assert!((100..=101).contains(&taken), "{taken} at {per_s} per second");
        }
    }

    #[test]
    fn a_jittery_camera_at_the_rate_itself_loses_nothing_and_a_silent_one_is_not_made_up_for() {
        let (mut judge, start) = (judge(1.0), Instant::now());
        let jitter = [0, 40, -60, 30, -20, 80, -80, 0];
        let taken = jitter.iter().enumerate().filter(|(at, ms)| {
            let ms = 10_000 + 1000 * *at as i64 + **ms;
            judge.takes(start + Duration::from_millis(ms as u64))
        });
        assert!(taken.count() >= 7);
        let after = start + Duration::from_secs(100);
        let burst = (0..9).filter(|at| judge.takes(after + Duration::from_millis(100 * at))).count();
        assert_eq!(burst, 1);
    }
}

//! What a check found, for people and for programs. Pure.

use std::path::PathBuf;

use camera::{CameraAddress, CameraPlace};
use schemas::{FaultNote, PictureReport};
use serde::Serialize;
use tokio::time::Instant;

use super::advice::advice;
use super::watch::{CheckStep, WatchedCamera};
use crate::camera_cmd::clock_text;
use crate::format;

/// What a check found.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CheckFindings {
    /// The address without its login.
    pub(super) address: String,
    /// The user of the login; absent if none was given.
    pub(super) user: Option<String>,
    /// Whether the address leads over a network.
    #[serde(skip)]
    pub(super) is_remote: bool,
    pub(super) steps: Vec<CheckStep>,
    /// How long it was watched after the first picture, seconds.
    pub(super) watched_s: f64,
    pub(super) codec: String,
    pub(super) size_px: Option<(u32, u32)>,
    /// Pictures that the camera sends, per second.
    pub(super) frames_per_s: Option<f32>,
    pub(super) key_frame_distance_s: Option<f32>,
    /// Pictures that were taken, arrived and could not be decoded.
    pub(super) taken: u64,
    pub(super) received: u64,
    pub(super) damaged: u64,
    /// Mean time between the pictures that were taken, milliseconds, and its standard deviation.
    pub(super) interval_ms: Option<f64>,
    pub(super) jitter_ms: Option<f64>,
    pub(super) clock_ahead_ms: Option<i64>,
    /// Pictures that the motion gate would publish in a minute, the keep-alive picture included.
    pub(super) published_per_minute: Option<f64>,
    /// Whether all pictures were the very same.
    pub(super) is_one_picture: bool,
    pub(super) report: PictureReport,
    /// Where the picture was written.
    pub(super) saved: Option<PathBuf>,
    /// Why watching ended early, if it did.
    pub(super) interruption: Option<FaultNote>,
    pub(super) advice: Vec<String>,
}

impl CheckFindings {
    /// From what was watched.
    pub(super) fn new(address: &CameraAddress, user: Option<String>, watched: &WatchedCamera) -> Self {
        let facts = &watched.facts;
        let (interval_ms, jitter_ms) = intervals(&watched.arrivals).unzip();
        let mut findings = Self {
            address: address.to_string(),
            user,
            is_remote: matches!(address.place, CameraPlace::Http(_) | CameraPlace::Rtsp(_)),
            steps: watched.steps.clone(),
            watched_s: watched.watched_for.as_secs_f64(),
            codec: facts.codec.clone(),
            size_px: facts.size_px,
            frames_per_s: facts.frames_per_s,
            key_frame_distance_s: facts.key_frame_distance_s,
            taken: watched.arrivals.len() as u64,
            received: facts.received,
            damaged: facts.damaged + watched.damaged,
            interval_ms,
            jitter_ms,
            clock_ahead_ms: watched.clock_ahead_ms,
            published_per_minute: published_per_minute(&watched.arrivals, watched.published),
            is_one_picture: watched.is_one_picture,
            report: watched.report.clone(),
            saved: None,
            interruption: watched.interruption.as_ref().map(camera::CameraError::note),
            advice: Vec::new(),
        };
        findings.advice = advice(&findings);
        findings
    }

    /// All but the advice, for people.
    pub(super) fn text(&self) -> String {
        let report = &self.report;
        let faults: Vec<&str> = report.faults.iter().map(|fault| fault.as_str()).collect();
        let health = if faults.is_empty() { "healthy".to_owned() } else { faults.join(", ") };
        let rate = self.frames_per_s.map(|rate| format!("{rate:.1} a second"));
        let keys = self.key_frame_distance_s.map(|distance_s| format!("key frames every {distance_s:.1} s"));
        let damaged = (self.damaged > 0).then(|| format!("{} damaged", self.damaged));
        let sent: Vec<String> = [rate, keys, damaged].into_iter().flatten().collect();
        let arrivals = self.interval_ms.zip(self.jitter_ms).map(|(interval_ms, jitter_ms)| {
            let (interval, jitter) = (format::format_span(interval_ms), format::format_span(jitter_ms));
            format!("{}, {interval} apart, jitter {jitter}", format::count(self.taken, "picture"))
        });
        let published = self.published_per_minute.map(|published| {
            let taken =
                self.interval_ms.map(|interval_ms| format!(" of {:.0}", 60_000.0 / interval_ms)).unwrap_or_default();
            format!("about {published:.0}{taken} pictures a minute would be published")
        });
        let lines = [
            ("address", Some(self.address.clone())),
            ("login", self.is_remote.then(|| self.user.clone().unwrap_or_else(|| "none was needed".into()))),
            ("codec", Some(self.codec.clone())),
            ("size", self.size_px.map(|(width, height)| format!("{width}x{height}"))),
            ("sends", (!sent.is_empty()).then(|| sent.join(", "))),
            ("taken", Some(arrivals.unwrap_or_else(|| format::count(self.taken, "picture")))),
            ("clock", self.clock_ahead_ms.map(clock_text)),
            ("gate", published),
            (
                "picture",
                Some(format!(
                    "{health}; brightness {}, contrast {}, white {}",
                    format::percent(report.brightness_ratio),
                    format::percent(report.contrast_ratio),
                    format::percent(report.white_ratio)
                )),
            ),
            ("saved as", self.saved.as_ref().map(|file| file.display().to_string())),
            ("stopped", self.interruption.as_ref().map(|fault| format!("{}; {}", fault.reason, fault.remedy))),
        ];
        let shown =
            lines.into_iter().filter_map(|(name, value)| Some(format!("{name:9} {}", format::plain_text(&value?))));
        shown.collect::<Vec<_>>().join("\n")
    }

    /// The advice, for people.
    pub(super) fn advice_text(&self) -> String {
        match self.advice.is_empty() {
            true => "Nothing to improve.".into(),
            false => self.advice.iter().map(|advice| format!("- {advice}")).collect::<Vec<_>>().join("\n"),
        }
    }
}

/// Mean and standard deviation of the times between arrivals, milliseconds; `None` with fewer than two of them.
fn intervals(arrivals: &[Instant]) -> Option<(f64, f64)> {
    let gaps: Vec<f64> = arrivals
        .iter()
        .zip(arrivals.iter().skip(1))
        .map(|(before, after)| after.saturating_duration_since(*before).as_secs_f64() * 1000.0)
        .collect();
    if gaps.len() < 2 {
        return None;
    }
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
    Some((mean, variance.sqrt()))
}

/// Pictures that the gate lets through in a minute, and at least the keep-alive picture.
fn published_per_minute(arrivals: &[Instant], published: u32) -> Option<f64> {
    let (first, last) = (arrivals.first()?, arrivals.last()?);
    let watched_s = last.saturating_duration_since(*first).as_secs_f64();
    (watched_s >= 1.0).then(|| (f64::from(published) * 60.0 / watched_s).max(1.0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn arrivals(at_ms: &[u64]) -> Vec<Instant> {
        let start = Instant::now();
        at_ms.iter().map(|at_ms| start + Duration::from_millis(*at_ms)).collect()
    }

    #[test]
    fn jitter_is_the_deviation_of_the_times_between_pictures() {
        assert_eq!(intervals(&arrivals(&[0, 1000, 2000, 3000])), Some((1000.0, 0.0)));
        assert_eq!(intervals(&arrivals(&[0, 900, 2000, 2900, 4000])), Some((1000.0, 100.0)));
        assert_eq!(intervals(&arrivals(&[0, 1000])), None);
        assert_eq!(intervals(&[]), None);
    }

    #[test]
    fn what_is_published_is_told_for_a_minute() {
        assert_eq!(published_per_minute(&arrivals(&[0, 10_000]), 5), Some(30.0));
        assert_eq!(published_per_minute(&arrivals(&[0, 10_000]), 0), Some(1.0), "the keep-alive picture");
        assert_eq!(published_per_minute(&arrivals(&[0, 100]), 1), None, "too short to tell");
    }
}

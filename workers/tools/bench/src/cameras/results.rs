//! Results of the camera bench: rows, table, headline and notes.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::cost::{CameraKind, PictureCost, PictureTaker, VideoCodec};
use super::{CameraBenchEffort, CameraMeasurements, MANY_CAMERAS, SMALL_PX};
use crate::report::{BenchMachine, BenchReport, FigureGoal, HeadlineFigure, ReportTable, amount};
use crate::stats::median;

impl CameraMeasurements {
    fn runs(&self, kind: CameraKind, taker: PictureTaker) -> &[PictureCost] {
        self.costs.get(&(kind, taker)).map_or(&[], Vec::as_slice)
    }

    /// Processor time a picture, milliseconds: the median over the rounds.
    fn cpu_ms(&self, kind: CameraKind, taker: PictureTaker) -> f64 {
        median(&self.runs(kind, taker).iter().map(|cost| cost.cpu_ms).collect::<Vec<_>>())
    }

    /// The grabber's processor time for a published picture over ffmpeg's: the median over the rounds. `None` where ffmpeg
    /// took less than the kernel counts.
    fn over_ffmpeg(&self, kind: CameraKind) -> Option<f64> {
        let pairs = self.runs(kind, PictureTaker::Publishing).iter().zip(self.runs(kind, PictureTaker::Ffmpeg));
        let ratio = median(&pairs.map(|(own, ffmpeg)| own.cpu_ms / ffmpeg.cpu_ms).collect::<Vec<_>>());
        ratio.is_finite().then_some(ratio)
    }

    /// Memory a camera, megabytes: for the grabber, beyond one without cameras.
    fn memory_mb(&self, kind: CameraKind, taker: PictureTaker, cameras: usize) -> f64 {
        let idle = if taker == PictureTaker::Ffmpeg { 0 } else { self.idle_bytes };
        let each = |cost: &PictureCost| cost.resident_bytes.saturating_sub(idle) as f64 / cameras as f64 / 1e6;
        median(&self.runs(kind, taker).iter().map(each).collect::<Vec<_>>())
    }

    fn kinds(&self) -> BTreeSet<CameraKind> {
        self.costs.keys().map(|(kind, _)| *kind).collect()
    }
}

/// The report.
pub(super) fn report(
    machine: BenchMachine,
    effort: &CameraBenchEffort,
    quick: bool,
    measured: &CameraMeasurements,
) -> BenchReport {
    BenchReport {
        bench: "cameras",
        settings: json!({
            "quick": quick, "cameras": effort.cameras, "rounds": effort.rounds,
            "window_s": effort.window.as_secs(), "still_life_pictures": effort.still_life_pictures,
        }),
        machine,
        rows: rows(measured),
        table: table(measured, effort.cameras),
        headline: headline(measured),
        notes: notes(measured, effort),
        charts: Vec::new(),
    }
}

fn rows(measured: &CameraMeasurements) -> Vec<Value> {
    let costs = measured.costs.iter().map(|((kind, taker), rounds)| {
        let picture_bytes = measured.picture_bytes.get(kind);
        json!({ "camera": kind, "taken_by": taker, "picture_bytes": picture_bytes, "rounds": rounds })
    });
    let many = measured.many;
    let others = [
        json!({ "cameras": MANY_CAMERAS, "seconds": many.seconds, "wanted": many.wanted, "got": many.got }),
        json!({
            "first_answer_s": measured.first_answers.start_s,
            "answer_after_reconnect_s": measured.first_answers.reconnect_s,
        }),
        json!({ "still_life": measured.still_life }),
        json!({ "grabber_without_cameras_bytes": measured.idle_bytes }),
    ];
    costs.chain(others).collect()
}

fn table(measured: &CameraMeasurements, cameras: usize) -> ReportTable {
    let line = |kind: CameraKind| {
        let shown = |value: f64| amount(value, "");
        let memory = |taker| shown(measured.memory_mb(kind, taker, cameras));
        vec![
            kind.to_string(),
            shown(measured.cpu_ms(kind, PictureTaker::Publishing)),
            shown(measured.cpu_ms(kind, PictureTaker::Skipping)),
            shown(measured.cpu_ms(kind, PictureTaker::Ffmpeg)),
            measured.over_ffmpeg(kind).map_or_else(String::new, shown),
            memory(PictureTaker::Publishing),
            memory(PictureTaker::Ffmpeg),
        ]
    };
    ReportTable {
        columns: vec![
            "CPU ms a picture",
            "published",
            "skipped",
            "ffmpeg",
            "over ffmpeg",
            "MB a camera",
            "MB an ffmpeg",
        ],
        lines: measured.kinds().into_iter().map(line).collect(),
    }
}

fn longest(times: &[f64]) -> Option<f64> {
    times.iter().copied().reduce(f64::max)
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn headline(measured: &CameraMeasurements) -> Vec<HeadlineFigure> {
    let figure = |name, title, value, unit, goal| HeadlineFigure { name, title, value, unit, goal };
    let kinds = measured.kinds();
    let h264 = kinds.iter().filter(|kind| kind.codec == VideoCodec::H264);
    let worst = h264.filter_map(|kind| measured.over_ffmpeg(*kind)).reduce(f64::max);
    let small = CameraKind { codec: VideoCodec::H264, size_px: SMALL_PX };
    let still = measured.still_life;
    vec![
        figure(
            "cpu_over_ffmpeg",
            "H.264, a key frame a second: CPU of a published picture over ffmpeg's, the worst size",
            worst,
            "",
            Some(FigureGoal::AtMost(0.7)),
        ),
        figure(
            "published_cpu_ms_640",
            "H.264, 640x480: CPU of a published picture",
            Some(measured.cpu_ms(small, PictureTaker::Publishing)),
            "ms",
            None,
        ),
        figure(
            "skipped_cpu_ms_640",
            "the same, skipped by the gate",
            Some(measured.cpu_ms(small, PictureTaker::Skipping)),
            "ms",
            None,
        ),
        figure(
            "first_answer_s",
            "from the start to the first answer, key frames 2 s apart, the longest",
            longest(&measured.first_answers.start_s),
            "s",
            Some(FigureGoal::AtMost(3.0)),
        ),
        figure(
            "reconnect_answer_s",
            "from the end of all sessions to the next answer, the longest",
            longest(&measured.first_answers.reconnect_s),
            "s",
            None,
        ),
        figure(
            "frames_got_ratio_32",
            "32 cameras: pictures that the site got over those wanted",
            Some(measured.many.got as f64 / measured.many.wanted),
            "",
            None,
        ),
        figure("gate_skipped_ratio", "motion gate: skipped", ratio(still.gate_skipped, still.pictures), "", None),
        figure(
            "reuse_skipped_ratio",
            "reuse: answered without the model, where that is stable",
            ratio(still.reused_stable, still.stable),
            "",
            Some(FigureGoal::AtLeast(0.7)),
        ),
        figure(
            "reuse_wrong_ratio",
            "wrong among those",
            ratio(still.wrong_stable, still.reused_stable),
            "",
            Some(FigureGoal::AtMost(0.01)),
        ),
    ]
}

fn notes(measured: &CameraMeasurements, effort: &CameraBenchEffort) -> Vec<String> {
    let sizes = measured.kinds().into_iter().map(|kind| {
        let bytes = measured.picture_bytes.get(&kind).copied().unwrap_or_default();
        format!("{kind}: {} kB", bytes / 1000)
    });
    let servers = measured.costs.iter().filter(|((_, taker), _)| *taker == PictureTaker::Publishing);
    let servers = servers.map(|((kind, _), rounds)| {
        let server_ms = median(&rounds.iter().map(|cost| cost.server_cpu_ms).collect::<Vec<_>>());
        format!("{kind}: {} ms", amount(server_ms, ""))
    });
    let (many, first, still) = (measured.many, &measured.first_answers, measured.still_life);
    vec![
        format!(
            "{} cameras of a kind at a time, which send {} pictures a second, of which one a second is taken; {} rounds. \
             CPU is that of the grabber's process, or of all ffmpeg children.",
            effort.cameras,
            super::CAMERA_RATE,
            effort.rounds
        ),
        format!("Mean size of a key frame or JPEG: {}.", sizes.collect::<Vec<_>>().join("; ")),
        format!("CPU of the nats-server for a published picture: {}.", servers.collect::<Vec<_>>().join("; ")),
        format!(
            "{MANY_CAMERAS} cameras of 640x480, half of them H.264: {:.0} pictures wanted in {:.1} s, {} got.",
            many.wanted, many.seconds, many.got
        ),
        format!(
            "First answer after {:.2} s, after a reconnect {:.2} s (medians of {}).",
            median(&first.start_s),
            median(&first.reconnect_s),
            first.start_s.len()
        ),
        format!(
            "Motion gate and reuse: {} pictures, one a second, {} of stable views: there the model gives one label and is \
             sure of it, whatever the noise. The gate skipped {}; of {} of stable views {} showed something else than was \
             published. Reused: {}; of {} of stable views {} were wrong, of all {}.",
            still.pictures,
            still.stable,
            still.gate_skipped,
            still.gate_skipped_stable,
            still.gate_wrong,
            still.reused,
            still.reused_stable,
            still.wrong_stable,
            still.wrong
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{FirstAnswerTimes, LARGE_PX, ManyCameras, StillLifeCounts};
    use super::*;

    fn cost(cpu_ms: f64, resident_mb: u64) -> PictureCost {
        PictureCost { pictures: 10, seconds: 10.0, cpu_ms, resident_bytes: resident_mb * 1_000_000, server_cpu_ms: 0.5 }
    }

    fn measurements() -> CameraMeasurements {
        let mut costs = std::collections::BTreeMap::new();
        for (size_px, own) in [(SMALL_PX, [6.0, 5.0]), (LARGE_PX, [40.0, 36.0])] {
            for codec in [VideoCodec::H264, VideoCodec::MotionJpeg] {
                let kind = CameraKind { codec, size_px };
                costs.insert((kind, PictureTaker::Publishing), own.map(|ms| cost(ms, 60)).to_vec());
                costs.insert((kind, PictureTaker::Skipping), own.map(|ms| cost(ms / 2.0, 50)).to_vec());
                costs.insert((kind, PictureTaker::Ffmpeg), own.map(|_| cost(20.0, 400)).to_vec());
            }
        }
        CameraMeasurements {
            costs,
            idle_bytes: 20_000_000,
            picture_bytes: std::collections::BTreeMap::new(),
            many: ManyCameras { seconds: 10.0, wanted: 320.0, got: 304 },
            first_answers: FirstAnswerTimes { start_s: vec![1.0, 2.5], reconnect_s: vec![2.0, 3.5] },
            still_life: StillLifeCounts {
                pictures: 1000,
                stable: 625,
                reused: 510,
                reused_stable: 500,
                wrong_stable: 5,
                ..StillLifeCounts::default()
            },
        }
    }

    #[test]
    fn the_headline_is_the_worst_size_the_longest_time_and_what_is_wrong_where_the_model_is_stable() {
        let figures = headline(&measurements());
        let value = |name: &str| figures.iter().find(|figure| figure.name == name).unwrap().value.unwrap();
        assert_eq!(value("cpu_over_ffmpeg"), 1.9);
        assert_eq!((value("published_cpu_ms_640"), value("skipped_cpu_ms_640")), (5.5, 2.75));
        assert_eq!((value("first_answer_s"), value("reconnect_answer_s")), (2.5, 3.5));
        assert_eq!((value("frames_got_ratio_32"), value("reuse_skipped_ratio")), (0.95, 0.8));
        assert_eq!(value("reuse_wrong_ratio"), 0.01);
    }

    #[test]
    fn memory_a_camera_is_what_the_grabber_has_beyond_one_without_cameras() {
        let measured = measurements();
        let kind = CameraKind { codec: VideoCodec::H264, size_px: SMALL_PX };
        assert_eq!(measured.memory_mb(kind, PictureTaker::Publishing, 8), 5.0);
        assert_eq!(measured.memory_mb(kind, PictureTaker::Ffmpeg, 8), 50.0);
        let effort = CameraBenchEffort { window: Duration::from_secs(1), ..CameraBenchEffort::new(false) };
        let report = report(BenchMachine::default(), &effort, false, &measured);
        assert_eq!((report.table.lines.len(), report.rows.len()), (4, 16));
        assert_eq!(report.table.lines[0][0], "RTSP, H.264, 640x480");
    }
}

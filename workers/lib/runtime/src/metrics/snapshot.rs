//! The values of heartbeats and queues as metrics. Pure.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use os::process;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use schemas::{
    AnswerTotals, CameraHealth, CameraState, CanaryReport, DecisionReport, DriftReport, Heartbeat, LinkReport,
    OutcomeReport,
};

use super::queues::QueueReadings;
use crate::clock;

type MetricLabels = Vec<(&'static str, String)>;

type MetricGauges = Family<MetricLabels, Gauge<f64, AtomicU64>>;
type MetricCounters = Family<MetricLabels, Counter<f64, AtomicU64>>;

/// Metrics that are made anew for each request: name, help, values.
#[derive(Default)]
struct MetricSheet {
    gauges: Vec<(&'static str, &'static str, MetricGauges)>,
    counters: Vec<(&'static str, &'static str, MetricCounters)>,
}

impl MetricSheet {
    fn gauge(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: f64) {
        let index = self.gauges.iter().position(|(known, ..)| *known == name).unwrap_or_else(|| {
            self.gauges.push((name, help, Family::default()));
            self.gauges.len() - 1
        });
        if let Some((.., family)) = self.gauges.get(index) {
            family.get_or_create(&owned(labels)).set(value);
        }
    }

    fn counter(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: f64) {
        let index = self.counters.iter().position(|(known, ..)| *known == name).unwrap_or_else(|| {
            self.counters.push((name, help, Family::default()));
            self.counters.len() - 1
        });
        if let Some((.., family)) = self.counters.get(index) {
            family.get_or_create(&owned(labels)).inc_by(value);
        }
    }

    fn registry(self) -> Registry {
        let mut registry = Registry::default();
        self.gauges.into_iter().for_each(|(name, help, family)| registry.register(name, help, family));
        self.counters.into_iter().for_each(|(name, help, family)| registry.register(name, help, family));
        registry
    }
}

fn owned(labels: &[(&'static str, &str)]) -> MetricLabels {
    labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

/// All metrics that are looked up at a request.
pub(super) fn of(beats: &[Heartbeat], queues: &QueueReadings, expiries: &BTreeMap<String, u64>) -> Registry {
    let mut sheet = MetricSheet::default();
    for (name, ends_at_ms) in expiries {
        let help = "When a certificate or the fleet's root expires, seconds since the epoch";
        sheet.gauge("tributary_expiry_timestamp_seconds", help, &[("name", name)], *ends_at_ms as f64 / 1000.0);
    }
    for beat in beats {
        worker(&mut sheet, beat);
        let site = beat.site.as_ref().map_or("", |site| site.as_str());
        if let Some(link) = &beat.link {
            self::link(&mut sheet, site, link);
        }
    }
    self::queues(&mut sheet, beats, queues);
    this_process(&mut sheet);
    sheet.registry()
}

/// The program's version, and the standard metrics of a process by the names that Prometheus clients share.
fn this_process(sheet: &mut MetricSheet) {
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    sheet.gauge("tributary_build_info", "Version of the program", &version, 1.0);
    if let Some(cpu) = process::cpu_time(std::process::id()) {
        let help = "Total user and system CPU time in seconds";
        sheet.counter("process_cpu_seconds", help, &[], cpu.as_secs_f64());
    }
    let gauges = [
        (
            "process_resident_memory_bytes",
            "Resident memory size in bytes",
            process::resident_bytes().map(|bytes| bytes as f64),
        ),
        ("process_start_time_seconds", "Start time of the process since the epoch in seconds", process::start_time_s()),
        ("process_open_fds", "Number of open file descriptors", process::open_files().map(|count| count as f64)),
        (
            "process_max_fds",
            "Maximum number of open file descriptors",
            process::max_open_files().map(|count| count as f64),
        ),
    ];
    for (name, help, value) in gauges {
        value.into_iter().for_each(|value| sheet.gauge(name, help, &[], value));
    }
}

fn outcomes(sheet: &mut MetricSheet, site: &str, outcomes: &OutcomeReport) {
    let here = [("site", site)];
    let oldest_s = outcomes.oldest_at_ms.map_or(0.0, |at_ms| clock::now_ms().saturating_sub(at_ms) as f64 / 1000.0);
    let gauges = [
        ("tributary_images_open", "Stored images without a final answer", outcomes.open as f64),
        ("tributary_image_oldest_open_seconds", "Age of the oldest image without a final answer", oldest_s),
        ("tributary_image_gaps", "Images missing from the archive that Tributary did not purge", outcomes.gaps as f64),
        (
            "tributary_images_refused",
            "1 while new images are refused",
            f64::from(u8::from(outcomes.refusing.is_some())),
        ),
    ];
    gauges.into_iter().for_each(|(name, help, value)| sheet.gauge(name, help, &here, value));
    if let Some(free) = outcomes.disk_free_bytes {
        sheet.gauge("tributary_disk_free_bytes", "Free bytes on the server's disk", &here, free as f64);
    }
    if let Some(too_large) = outcomes.too_large {
        let help = "Connections recently closed by the server for a message above its size limit";
        sheet.gauge("tributary_oversized_message_disconnects", help, &here, too_large as f64);
    }
    let help = "Acknowledged images without an outcome that were recognized again";
    sheet.counter("tributary_images_reprocessed", help, &here, outcomes.redone as f64);
    let help = "Images refused near the stream's limit without notice to their publishers";
    sheet.counter("tributary_images_refused_unnotified", help, &here, outcomes.refused as f64);
    sheet.counter(
        "tributary_images_repeated",
        "Images published again under the same id",
        &here,
        outcomes.duplicates as f64,
    );
    if let Some(totals) = &outcomes.totals {
        self::totals(sheet, site, totals);
    }
}

/// Counts that go on where they were after a restart of the workers.
fn totals(sheet: &mut MetricSheet, site: &str, totals: &AnswerTotals) {
    for (route, reasons) in &totals.answers {
        for (reason, count) in reasons {
            let labels = [("site", site), ("route", route.as_str()), ("reason", reason.as_str())];
            let help = "Final answers of the site, over restarts of its workers";
            sheet.counter("tributary_site_answers", help, &labels, *count as f64);
        }
    }
    for (agrees, count) in [("true", totals.agreed), ("false", totals.verdicts - totals.agreed.min(totals.verdicts))] {
        let labels = [("site", site), ("agrees", agrees)];
        let help = "Verdicts on images with a prediction of the site, over restarts";
        sheet.counter("tributary_site_verdicts", help, &labels, count as f64);
    }
    let help = "Final answers after the publisher's deadline, over restarts";
    sheet.counter("tributary_site_late_answers", help, &[("site", site)], totals.late as f64);
    let help = "Energy of the site's answers, over restarts; an estimate unless the machine has a counter";
    sheet.counter("tributary_site_energy_joules", help, &[("site", site)], totals.energy_uj as f64 / 1e6);
}

fn canary(sheet: &mut MetricSheet, report: &CanaryReport) {
    let labels = [("model", report.model.as_str()), ("release", report.release.short())];
    let since_s = report.since_ms as f64 / 1000.0;
    sheet.gauge("tributary_canary_start_timestamp_seconds", "When the canary's ring began", &labels, since_s);
    for finding in &report.findings {
        let labels = [labels[0], labels[1], ("measure", finding.measure.as_str())];
        let mut gauge = |name, help, value: f64| sheet.gauge(name, help, &labels, value);
        gauge(
            "tributary_canary_better",
            "Change in the ring minus change at the others, below 0 if worse",
            finding.better,
        );
        gauge("tributary_canary_error", "Standard error of tributary_canary_better", finding.error);
        gauge("tributary_canary_margin", "By how much a canary may be worse", finding.margin);
        gauge("tributary_canary_images", "Images or verdicts that the measure rests on", finding.count as f64);
    }
}

fn camera(sheet: &mut MetricSheet, health: &CameraHealth) {
    let labels = [("site", health.site.as_str()), ("camera", health.camera.as_str())];
    let is_up = matches!(health.state.known(), Some(CameraState::Streaming | CameraState::Ended));
    sheet.gauge("tributary_camera_up", "1 while a camera gives pictures", &labels, f64::from(u8::from(is_up)));
    let counts = &health.counts;
    for (outcome, count) in [
        ("published", counts.published),
        ("unchanged", counts.unchanged),
        ("dropped", counts.dropped),
        ("damaged", counts.damaged),
    ] {
        let labels = [labels[0], labels[1], ("outcome", outcome)];
        sheet.counter("tributary_camera_pictures", "Pictures taken from a camera, by outcome", &labels, count as f64);
    }
    let help = "Pictures that should have been taken from a camera at its rate";
    sheet.counter("tributary_camera_pictures_wanted", help, &labels, counts.wanted as f64);
    let help = "Connections to a camera after the first";
    sheet.counter("tributary_camera_reconnects", help, &labels, counts.reconnects as f64);
    if let Some(at_ms) = health.picture_at_ms {
        let help = "When the latest picture of a camera arrived, seconds since the epoch";
        sheet.gauge("tributary_camera_picture_timestamp_seconds", help, &labels, at_ms as f64 / 1000.0);
    }
    if let Some(ahead_ms) = health.clock_ahead_ms {
        let help = "Clock of a camera minus that of its worker";
        sheet.gauge("tributary_camera_clock_offset_seconds", help, &labels, ahead_ms as f64 / 1000.0);
    }
    let Some(picture) = &health.picture else { return };
    for fault in &picture.faults {
        let labels = [labels[0], labels[1], ("fault", fault.as_str())];
        sheet.gauge("tributary_camera_picture_fault", "1 while pictures of a camera have the fault", &labels, 1.0);
    }
    let mut gauge = |name, help, value: f32| sheet.gauge(name, help, &labels, value.into());
    gauge("tributary_camera_brightness_ratio", "Brightness of the latest picture, 0 to 1", picture.brightness_ratio);
    if let Some(sharpness) = picture.sharpness_ratio {
        gauge("tributary_camera_sharpness_ratio", "Sharpness of the latest picture over the usual one", sharpness);
    }
}

fn worker(sheet: &mut MetricSheet, beat: &Heartbeat) {
    let site = beat.site.as_ref().map_or("", |site| site.as_str());
    let who = [("role", beat.role.as_str()), ("site", site)];
    if beat.replicas > 0 {
        sheet.gauge(
            "tributary_replicas",
            "Copies of the model, each with a thread of its own",
            &who,
            beat.replicas.into(),
        );
    }
    if let Some(cost_ms) = beat.cost_ms {
        sheet.gauge(
            "tributary_image_cost_seconds",
            "Time of one replica per image, as measured",
            &who,
            cost_ms / 1000.0,
        );
    }
    if let (Some(model), Some(release)) = (&beat.model, &beat.release) {
        let labels = [who[0], who[1], ("model", model), ("release", release.short())];
        sheet.gauge("tributary_release_info", "Release that the worker runs", &labels, 1.0);
    }
    if let Some(since_ms) = beat.release_since_ms {
        let age_s = clock::now_ms().saturating_sub(since_ms) as f64 / 1000.0;
        sheet.gauge("tributary_release_age_seconds", "Seconds since the worker took its release", &who, age_s);
    }
    if let Some(ahead_ms) = beat.clock_ahead_ms {
        let help = "Clock of the worker minus that of its server";
        sheet.gauge("tributary_clock_offset_seconds", help, &who, ahead_ms as f64 / 1000.0);
    }
    for fault in &beat.faults {
        let labels = [who[0], who[1], ("fault", fault.kind.as_str())];
        sheet.gauge("tributary_fault", "1 while a worker reports the fault", &labels, 1.0);
    }
    if let Some(outcomes) = &beat.outcomes {
        self::outcomes(sheet, site, outcomes);
    }
    if let Some(decision) = &beat.decision {
        let decisions = [
            ("local", decision.local),
            ("offloaded", decision.redirected),
            ("reclaimed", decision.taken_back),
            ("held", decision.held),
        ];
        for (name, count) in decisions {
            let labels = [("site", site), ("decision", name)];
            sheet.counter("tributary_admissions", "Decisions where a task is recognized", &labels, count as f64);
        }
        for (outcome, count) in [("verified", decision.verified), ("kept", decision.kept)] {
            let labels = [("site", site), ("outcome", outcome)];
            sheet.counter("tributary_escalations", "Outcomes of doubtful answers", &labels, count as f64);
        }
        signals(sheet, site, decision);
    }
    beat.canaries.iter().for_each(|report| canary(sheet, report));
    beat.cameras.iter().for_each(|health| camera(sheet, health));
    if let Some(drift) = &beat.drift {
        self::drift(sheet, &who, drift);
    }
    if let Some(training) = &beat.training {
        let labels = [("site", site)];
        let mut gauge = |name, help, value: f64| sheet.gauge(name, help, &labels, value);
        gauge("tributary_training_labelled_images", "Labelled images known to the trainer", training.labelled as f64);
        gauge("tributary_training_new_images", "Images labelled since the last training", training.fresh as f64);
        gauge("tributary_training_epoch", "Epochs completed in the current training", training.epoch.into());
        gauge("tributary_training_updates_sent", "Updates sent since the trainer started", training.sent as f64);
    }
    if let (Some(rounds), Some(model)) = (&beat.rounds, &beat.model) {
        let labels = [("model", model.as_str())];
        let mut gauge = |name, help, value: f64| sheet.gauge(name, help, &labels, value);
        gauge("tributary_round_number", "Number of the latest round", rounds.round as f64);
        gauge("tributary_round_updates", "Accepted updates in the latest round", rounds.updates.into());
        gauge("tributary_round_quorum", "Updates needed to close the latest round", rounds.quorum.into());
        gauge("tributary_round_refused", "Updates refused since the aggregator started", rounds.refused as f64);
    }
}

/// What a recognizer decides by, and the energy that came of it.
fn signals(sheet: &mut MetricSheet, site: &str, decision: &DecisionReport) {
    let labels = [("site", site)];
    let gauges = [
        ("tributary_load_cpu_ratio", "Usage of the site's processors, 0 to 1", decision.cpu_ratio),
        ("tributary_load_memory_ratio", "Usage of the site's memory, 0 to 1", decision.memory_ratio),
        (
            "tributary_load_memory_stall_ratio",
            "Fraction of time in which some task stalled on memory, 0 to 1",
            decision.stall_ratio,
        ),
        (
            "tributary_load_contention_ratio",
            "Time of recent images over their time on a free processor",
            decision.contention_ratio,
        ),
        ("tributary_load_queue_seconds", "Time until the queued images are recognized", Some(decision.queue_s)),
    ];
    for (name, help, value) in gauges {
        value.into_iter().for_each(|value| sheet.gauge(name, help, &labels, value));
    }
    let gain = decision.gain.unwrap_or_default();
    for (kind, points) in [("doubtful", gain.doubtful_points), ("confident", gain.confident_points)] {
        let labels = [("site", site), ("answers", kind)];
        let help = "Share of recent verdicts that changed the site's answer, 0 to 1";
        points.into_iter().for_each(|points| sheet.gauge("tributary_cloud_gain_ratio", help, &labels, points / 100.0));
    }
    for (name, joules) in [("inference", decision.inference_j), ("uplink", decision.uplink_j)] {
        let labels = [("site", site), ("use", name)];
        let help = "Energy spent on recognizing at the site and on sending up, joules";
        joules.into_iter().for_each(|joules| sheet.counter("tributary_energy_joules", help, &labels, joules));
    }
}

fn drift(sheet: &mut MetricSheet, who: &[(&'static str, &str)], report: &DriftReport) {
    let help = "Drift of answers from their reference: 0 steady or unknown, 1 watch, 2 alarm";
    sheet.gauge("tributary_drift_level", help, who, f64::from(report.level() as u8));
    for (name, measure) in report.measures() {
        let labels: Vec<_> = who.iter().copied().chain([("measure", name)]).collect();
        let help = "Distance of recent answers from the reference, 0 to 1";
        sheet.gauge("tributary_drift_distance_ratio", help, &labels, measure.distance_ratio);
        sheet.gauge("tributary_drift_recent_ratio", "Mean over recent answers, 0 to 1", &labels, measure.recent_ratio);
    }
}

fn link(sheet: &mut MetricSheet, site: &str, link: &LinkReport) {
    let labels = [("site", site)];
    let mut gauge = |name, help, value: f64| sheet.gauge(name, help, &labels, value);
    gauge("tributary_link_up", "Whether the cloud responds", f64::from(u8::from(link.up)));
    gauge(
        "tributary_link_available",
        "Whether the link is good enough for offloading",
        f64::from(u8::from(link.available)),
    );
    gauge("tributary_link_round_trip_seconds", "Shortest recent round trip", link.rtt_min_ms / 1000.0);
    gauge("tributary_link_slowdown_ratio", "Transmission time over the best possible one", link.slowdown_ratio);
    if let Some(delay_ms) = link.probe_delay_ms {
        let help = "Time that the site's own machine adds to a probe, not counted as slowdown";
        gauge("tributary_link_probe_delay_seconds", help, delay_ms / 1000.0);
    }
    gauge("tributary_link_waiting_messages", "Messages waiting for the link", link.waiting as f64);
    gauge("tributary_link_waiting_bytes", "Bytes waiting for the link", link.waiting_bytes as f64);
    if let Some(rate) = link.rate_max_bytes_per_s {
        gauge("tributary_link_rate_bytes_per_second", "Highest recent transmission rate", rate);
    }
    if let Some(left) = link.budget_left_bytes {
        gauge("tributary_link_budget_left_bytes", "Bytes of today's budget left", left as f64);
    }
}

fn queues(sheet: &mut MetricSheet, beats: &[Heartbeat], queues: &QueueReadings) {
    for queue in &queues.found {
        let name = [("stream", queue.stream), ("consumer", queue.durable.as_str())];
        for (state, count) in [("pending", queue.progress.pending), ("unacked", queue.progress.unacked)] {
            let labels = [name[0], name[1], ("state", state)];
            sheet.gauge(
                "tributary_queue_messages",
                "Unfinished messages: pending, or unacknowledged by a worker",
                &labels,
                count as f64,
            );
        }
        let cost_ms = beats.iter().find(|beat| beat.role == queue.role).and_then(|beat| beat.cost_ms);
        if let Some(cost_ms) = cost_ms {
            let work_s = (queue.progress.pending + queue.progress.unacked) as f64 * cost_ms / 1000.0;
            sheet.gauge("tributary_queue_work_seconds", "Seconds of work waiting, for one replica", &name, work_s);
        }
    }
    for (stream, level) in &queues.levels {
        let labels = [("stream", *stream)];
        sheet.gauge("tributary_stream_messages", "Messages in a stream", &labels, level.messages as f64);
        sheet.gauge("tributary_stream_bytes", "Bytes in a stream", &labels, level.bytes as f64);
        sheet.gauge("tributary_stream_max_bytes", "Size limit of a stream", &labels, level.max_bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use schemas::decision_trace::CloudGain;
    use schemas::{DriftLevel, DriftMeasure, ReleaseId, Role};
    use streams::reader::{ConsumerProgress, StreamLevel};

    use super::*;
    use crate::metrics::queues::QueueReading;

    fn drifted() -> DriftReport {
        let level = DriftLevel::Alarm;
        let novelty = DriftMeasure { reference_ratio: 0.5, recent_ratio: 0.75, distance_ratio: 0.5, level };
        DriftReport {
            release: ReleaseId::from_sha256([1; 32]),
            reference_answers: 2000,
            reference_full: 2000,
            recent_answers: 500,
            recent_full: 500,
            confidence: None,
            novelty: Some(novelty),
            agreement: None,
        }
    }

    #[test]
    fn queued_work_is_the_queue_times_the_cost_of_an_image() {
        let decision = DecisionReport {
            verified: 7,
            cpu_ratio: Some(0.75),
            contention_ratio: Some(1.5),
            stall_ratio: Some(0.25),
            gain: Some(CloudGain { doubtful_points: Some(20.0), confident_points: None }),
            inference_j: Some(12.5),
            uplink_j: Some(2.5),
            ..serde_json::from_value(serde_json::json!({
                "policy": "paper", "state": "local", "why": "", "queue_s": 0.0, "local": 5, "redirected": 0,
                "taken_back": 0, "held": 0, "verified": 0, "kept": 0,
            }))
            .unwrap()
        };
        let link = LinkReport {
            up: true,
            available: true,
            rtt_min_ms: 20.0,
            rate_max_bytes_per_s: None,
            slowdown_ratio: 1.0,
            waiting: 0,
            waiting_bytes: 0,
            budget_left_bytes: None,
            cloud: None,
            probe_delay_ms: Some(40.0),
            verdicts: None,
        };
        let beat = Heartbeat {
            link: Some(link),
            cost_ms: Some(20.0),
            replicas: 2,
            decision: Some(decision),
            drift: Some(drifted()),
            ..Heartbeat::for_worker(Role::Recognizer, "host-1".into(), Some("reef".parse().unwrap()), 0)
        };
        let progress = ConsumerProgress { pending: 90, unacked: 10, floor: 0, delivered: 10, active_at_ms: None };
        let found = QueueReading { role: Role::Recognizer, stream: "IMAGES", durable: "recognizer".into(), progress };
        let level =
            StreamLevel { messages: 100, bytes: 5, max_bytes: 9, first_sequence: 1, last_sequence: 100, gaps: 0 };
        let queues = QueueReadings { found: vec![found], levels: [("IMAGES", level)].into() };
        let mut text = String::new();
        prometheus_client::encoding::text::encode(
            &mut text,
            &of(&[beat], &queues, &BTreeMap::from([("root".to_owned(), 5_000)])),
        )
        .unwrap();
        for line in [
            "tributary_queue_work_seconds{stream=\"IMAGES\",consumer=\"recognizer\"} 2.0",
            "tributary_queue_messages{stream=\"IMAGES\",consumer=\"recognizer\",state=\"pending\"} 90.0",
            "tributary_replicas{role=\"recognizer\",site=\"reef\"} 2.0",
            "tributary_escalations_total{site=\"reef\",outcome=\"verified\"} 7.0",
            "tributary_load_cpu_ratio{site=\"reef\"} 0.75",
            "tributary_load_contention_ratio{site=\"reef\"} 1.5",
            "tributary_load_memory_stall_ratio{site=\"reef\"} 0.25",
            "tributary_cloud_gain_ratio{site=\"reef\",answers=\"doubtful\"} 0.2",
            "tributary_energy_joules_total{site=\"reef\",use=\"inference\"} 12.5",
            "tributary_energy_joules_total{site=\"reef\",use=\"uplink\"} 2.5",
            "tributary_link_probe_delay_seconds{site=\"reef\"} 0.04",
            "tributary_drift_level{role=\"recognizer\",site=\"reef\"} 2.0",
            "tributary_drift_distance_ratio{role=\"recognizer\",site=\"reef\",measure=\"novelty\"} 0.5",
            "tributary_stream_max_bytes{stream=\"IMAGES\"} 9.0",
            "# TYPE tributary_admissions counter",
            "# TYPE process_cpu_seconds counter",
            "# TYPE process_resident_memory_bytes gauge",
            "tributary_expiry_timestamp_seconds{name=\"root\"} 5.0",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}

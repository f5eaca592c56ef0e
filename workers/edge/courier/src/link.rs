//! The network signal: the recent best of the link, and its present state. Pure: time is passed in as a
//! number of seconds on any steady clock.
//!
//! `t_min(b) = rtt_min + b / rate_max`, with a windowed minimum and a windowed maximum as congestion
//! control estimates them (BBR: Cardwell et al., ACM Queue 14(5), 2016). `slowdown` is the smoothed ratio of the time
//! of a transmission to the shortest possible one. Our own bytes that were already in flight count as part of the
//! transmission: our own queue is not the link's fault. Nor is our own processor: what two questions to the site's
//! own server took longer than at their best, asked at the same time, is taken out.

use std::collections::VecDeque;

use schemas::LinkReport;
use serde::{Deserialize, Serialize};

/// Length of the window for the link's best values, seconds.
const WINDOW_S: f64 = 60.0;
/// Smaller differences say nothing about the link, seconds: timers and schedulers cause them too.
const NOISE_S: f64 = 0.010;
/// Weight of the newest transmission in the smoothed slowdown; as TCP smooths its round trip (RFC 6298).
const SMOOTHING: f64 = 1.0 / 8.0;
/// Weight of the newest question to the site's own server in its smoothed delay: of about the last second.
const DELAY_SMOOTHING: f64 = 1.0 / 4.0;
/// Shortest time over which a rate is sampled, seconds, because acknowledgements arrive in clumps.
const SAMPLE_S: f64 = 0.1;
/// Fewest bytes over which a rate is sampled at the end of a transmission.
const SAMPLE_BYTES: u64 = 16 * 1024;
/// The link is available again once its slowdown falls to this fraction of the limit.
const RELEASE_RATIO: f64 = 0.7;
/// Longest extension of the timeout, seconds, however much is in flight.
const MAX_TIMEOUT_S: f64 = 5.0;

/// When a link counts as slow, and as down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkSettings {
    /// Slowdown from which the link counts as not available: the time of a transmission divided by the shortest
    /// possible one, more than 1.
    pub max_slowdown_ratio: f64,
    /// Shortest time between changes of the availability, milliseconds.
    pub dwell_ms: u64,
    /// Interval of probes of the cloud, milliseconds, 50 to 1000.
    pub probe_every_ms: u64,
    /// Silence after which the link counts as down, milliseconds, 50 to 10000; longer while bytes in flight
    /// must take longer.
    pub probe_timeout_ms: u64,
}

impl Default for LinkSettings {
    fn default() -> Self {
        Self { max_slowdown_ratio: 3.0, dwell_ms: 1000, probe_every_ms: 250, probe_timeout_ms: 600 }
    }
}

impl LinkSettings {
    /// Checks the settings.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self { max_slowdown_ratio, .. } if !(max_slowdown_ratio.is_finite() && *max_slowdown_ratio > 1.0) => {
                Err(format!("max_slowdown_ratio is {max_slowdown_ratio}; it must be more than 1"))
            }
            Self { probe_every_ms: value @ (..50 | 1001..), .. } => {
                Err(format!("probe_every_ms is {value}; it must be between 50 and 1000"))
            }
            Self { probe_timeout_ms: value @ (..50 | 10_001..), .. } => {
                Err(format!("probe_timeout_ms is {value}; it must be between 50 and 10000"))
            }
            _ => Ok(()),
        }
    }
}

/// An upload in flight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ActiveUpload {
    bytes: u64,
    sent_at_s: f64,
    /// Bytes that were in flight before it.
    ahead_bytes: u64,
}

/// Measures the link.
#[derive(Debug, Clone)]
pub(crate) struct LinkMeter {
    settings: LinkSettings,
    round_trips: WindowExtremes,
    /// Times of two questions to the site's own server.
    own_round_trips: WindowExtremes,
    /// How much longer than at their best they took recently, seconds; absent before the first.
    own_delay_s: Option<f64>,
    rates: WindowExtremes,
    slowdown_ratio: f64,
    up: bool,
    available: bool,
    changed_at_s: f64,
    heard_at_s: f64,
    in_flight_bytes: u64,
    span: ThroughputSpan,
}

/// Bytes that arrived since an instant, while something was always in flight.
#[derive(Debug, Clone, Copy)]
struct ThroughputSpan {
    begun_at_s: f64,
    bytes: u64,
}

impl LinkMeter {
    /// A meter for a link without any measurement yet.
    pub(crate) fn new(settings: LinkSettings) -> Self {
        Self {
            settings,
            round_trips: WindowExtremes::new(|new, old| new <= old),
            own_round_trips: WindowExtremes::new(|new, old| new <= old),
            own_delay_s: None,
            rates: WindowExtremes::new(|new, old| new >= old),
            slowdown_ratio: 1.0,
            up: false,
            available: false,
            changed_at_s: f64::NEG_INFINITY,
            heard_at_s: f64::NEG_INFINITY,
            in_flight_bytes: 0,
            span: ThroughputSpan { begun_at_s: 0.0, bytes: 0 },
        }
    }

    /// Records that the site's own server responded to both questions after `waited_s`, or has not by then; returns by how
    /// much that exceeds its best.
    pub(crate) fn record_own_answer(&mut self, waited_s: f64, responded: bool, now_s: f64) -> f64 {
        if responded {
            self.own_round_trips.add(waited_s.max(0.0), now_s);
        }
        let delay_s = self.own_delay_after(waited_s);
        let before_s = self.own_delay_s.unwrap_or(delay_s);
        self.own_delay_s = Some(before_s + (delay_s - before_s) * DELAY_SMOOTHING);
        delay_s
    }

    /// How much longer than its best the site's own server has taken after `waited_s`; 0 before it ever responded.
    pub(crate) fn own_delay_after(&self, waited_s: f64) -> f64 {
        (waited_s - self.own_round_trips.best().unwrap_or(waited_s)).max(0.0)
    }

    /// Records that the cloud responded to a probe after `round_trip_s`, of which the site's own machine and server
    /// took `own_delay_s`.
    pub(crate) fn record_answer(&mut self, round_trip_s: f64, own_delay_s: f64, now_s: f64) {
        // The delay was measured beside the probe, so it may exceed the probe's own share of it.
        let least_s = self.round_trips.best().unwrap_or(round_trip_s).min(round_trip_s);
        let round_trip_s = (round_trip_s - own_delay_s).max(least_s);
        let shortest_s = self.minimum_transfer_s(self.in_flight_bytes).unwrap_or(round_trip_s);
        self.round_trips.add(round_trip_s.max(0.0), now_s);
        self.smooth(round_trip_s, shortest_s);
        self.record_contact(now_s);
    }

    /// Records that a probe got no response. The link is then down, unless the cloud was heard otherwise meanwhile.
    pub(crate) fn record_silence(&mut self, now_s: f64) {
        if self.up && now_s - self.heard_at_s >= self.timeout_s() {
            self.up = false;
            self.available = false;
            self.changed_at_s = now_s;
        }
    }

    /// Records that an upload started.
    pub(crate) fn record_upload(&mut self, bytes: u64, now_s: f64) -> ActiveUpload {
        if self.in_flight_bytes == 0 {
            let rtt_min_s = self.round_trips.best().unwrap_or(0.0);
            self.span = ThroughputSpan { begun_at_s: now_s + rtt_min_s, bytes: 0 };
        }
        let upload = ActiveUpload { bytes, sent_at_s: now_s, ahead_bytes: self.in_flight_bytes };
        self.in_flight_bytes += bytes;
        upload
    }

    /// Records that the cloud acknowledged an upload.
    pub(crate) fn record_arrival(&mut self, upload: ActiveUpload, now_s: f64) {
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(upload.bytes);
        self.span.bytes += upload.bytes;
        let length_s = now_s - self.span.begun_at_s;
        let ends = self.in_flight_bytes == 0 && self.span.bytes >= SAMPLE_BYTES && length_s > NOISE_S / 10.0;
        if ends || length_s >= SAMPLE_S {
            self.rates.add(self.span.bytes as f64 / length_s, now_s);
            self.span = ThroughputSpan { begun_at_s: now_s, bytes: 0 };
        }
        if let Some(shortest_s) = self.minimum_transfer_s(upload.ahead_bytes + upload.bytes) {
            let took_s = now_s - upload.sent_at_s - self.own_delay_s.unwrap_or(0.0);
            self.smooth(took_s.max(shortest_s), shortest_s);
        }
        self.record_contact(now_s);
    }

    /// Records that an upload was abandoned.
    pub(crate) fn record_loss(&mut self, upload: ActiveUpload) {
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(upload.bytes);
    }

    /// Bytes in flight.
    pub(crate) fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// Timeout of a probe, seconds, when the site's own server has taken `own_delay_s` too long: a machine too busy to
    /// ask does not know that the link is down. At most twice as long, for that server may be gone as well.
    pub(crate) fn probe_timeout_s(&self, own_delay_s: f64) -> f64 {
        self.timeout_s() + own_delay_s.min(self.settings.probe_timeout_ms as f64 / 1000.0)
    }

    /// Timeout of a probe, seconds: longer while bytes in flight must take longer.
    pub(crate) fn timeout_s(&self) -> f64 {
        let base_s = self.settings.probe_timeout_ms as f64 / 1000.0;
        let transfer_s = match (self.in_flight_bytes, self.rates.best()) {
            (0, _) | (_, None) => 0.0,
            (bytes, Some(rate)) => bytes as f64 / rate * self.settings.max_slowdown_ratio,
        };
        (base_s + transfer_s).min(MAX_TIMEOUT_S.max(base_s))
    }

    /// The shortest time in which this many bytes could arrive and be acknowledged, seconds; `None` before
    /// a round trip was measured. Without a measured rate, only the round trip counts.
    pub(crate) fn minimum_transfer_s(&self, bytes: u64) -> Option<f64> {
        let transfer_s = self.rates.best().map_or(0.0, |rate| bytes as f64 / rate);
        Some(self.round_trips.best()? + transfer_s)
    }

    /// Whether the cloud responds.
    pub(crate) fn is_up(&self) -> bool {
        self.up
    }

    /// The state of the link, without the messages that wait and without the cloud.
    pub(crate) fn report(&self) -> LinkReport {
        LinkReport {
            up: self.up,
            available: self.available,
            rtt_min_ms: self.round_trips.best().unwrap_or(0.0) * 1000.0,
            rate_max_bytes_per_s: self.rates.best(),
            slowdown_ratio: self.slowdown_ratio,
            waiting: 0,
            waiting_bytes: 0,
            budget_left_bytes: None,
            cloud: None,
            probe_delay_ms: self.own_delay_s.map(|delay_s| delay_s * 1000.0),
            verdicts: None,
        }
    }

    fn smooth(&mut self, actual_s: f64, shortest_s: f64) {
        let ratio = ((actual_s + NOISE_S) / (shortest_s + NOISE_S)).max(1.0);
        self.slowdown_ratio += (ratio - self.slowdown_ratio) * SMOOTHING;
    }

    fn record_contact(&mut self, now_s: f64) {
        self.heard_at_s = now_s;
        if !self.up {
            // The old slowdown belongs to the link before it went down.
            self.slowdown_ratio = 1.0;
            (self.up, self.available, self.changed_at_s) = (true, true, now_s);
            return;
        }
        let limit = self.settings.max_slowdown_ratio;
        let available = match self.available {
            true => self.slowdown_ratio <= limit,
            false => self.slowdown_ratio <= 1.0 + (limit - 1.0) * RELEASE_RATIO,
        };
        let dwelt = now_s - self.changed_at_s >= self.settings.dwell_ms as f64 / 1000.0;
        if available != self.available && dwelt {
            (self.available, self.changed_at_s) = (available, now_s);
        }
    }
}

/// The best value of a window. Values beaten by a newer one are dropped at once, so that few are kept.
#[derive(Debug, Clone)]
struct WindowExtremes {
    beats: fn(f64, f64) -> bool,
    kept: VecDeque<(f64, f64)>,
}

/// Most values kept; only samples that steadily get worse would need more.
const MAX_KEPT: usize = 256;

impl WindowExtremes {
    fn new(beats: fn(f64, f64) -> bool) -> Self {
        Self { beats, kept: VecDeque::new() }
    }

    fn add(&mut self, value: f64, now_s: f64) {
        while self.kept.back().is_some_and(|(_, old)| (self.beats)(value, *old)) {
            self.kept.pop_back();
        }
        self.kept.push_back((now_s, value));
        // The newest stays, however old: it is the best that is known.
        while self.kept.len() > MAX_KEPT
            || self.kept.len() > 1 && self.kept.front().is_some_and(|(at_s, _)| now_s - at_s > WINDOW_S)
        {
            self.kept.pop_front();
        }
    }

    fn best(&self) -> Option<f64> {
        self.kept.front().map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meter() -> LinkMeter {
        LinkMeter::new(LinkSettings::default())
    }

    /// Uploads one after another over an ideal link, starting at `from_s`; returns when the last arrived.
    fn upload(meter: &mut LinkMeter, count: usize, bytes: u64, rate: f64, rtt_s: f64, from_s: f64) -> f64 {
        let mut now_s = from_s;
        for _ in 0..count {
            let upload = meter.record_upload(bytes, now_s);
            now_s += rtt_s + bytes as f64 / rate;
            meter.record_arrival(upload, now_s);
        }
        now_s
    }

    #[test]
    fn an_ideal_link_is_measured_exactly() {
        let mut meter = meter();
        meter.record_answer(0.02, 0.0, 0.0);
        upload(&mut meter, 20, 100_000, 1e6, 0.02, 0.1);
        let report = meter.report();
        assert!((report.rtt_min_ms - 20.0).abs() < 1e-6, "{report:?}");
        let rate = report.rate_max_bytes_per_s.unwrap();
        assert!((rate / 1e6 - 1.0).abs() < 0.01, "{report:?}");
        assert!(report.up && report.available && report.slowdown_ratio < 1.05, "{report:?}");
    }

    #[test]
    fn our_own_queue_is_not_a_slowdown() {
        let mut meter = meter();
        meter.record_answer(0.02, 0.0, 0.0);
        let end_s = upload(&mut meter, 5, 100_000, 1e6, 0.02, 0.1);
        // Sixteen simultaneous uploads share the link: the last takes sixteen times as long as one.
        let upload: Vec<ActiveUpload> = (0..16).map(|_| meter.record_upload(100_000, end_s)).collect();
        for (number, upload) in upload.into_iter().enumerate() {
            meter.record_arrival(upload, end_s + 0.02 + 0.1 * (number + 1) as f64);
        }
        assert!(meter.report().available && meter.report().slowdown_ratio < 1.1, "{:?}", meter.report());
        assert_eq!(meter.in_flight_bytes(), 0);
    }

    #[test]
    fn a_busy_machine_is_not_a_slow_link_and_a_slow_link_is_one_even_then() {
        // A round trip of 5 ms; the machine adds up to 80 ms to whatever is asked.
        let delays = [0.0, 0.08, 0.02, 0.06, 0.04, 0.07];
        let probe = |meter: &mut LinkMeter, link_s: f64, known: bool, from_s: f64| {
            for number in 0..60 {
                let now_s = from_s + 0.25 * f64::from(number);
                let delay_s = delays[number as usize % delays.len()];
                let own_delay_s = if known { meter.record_own_answer(0.001 + delay_s, true, now_s) } else { 0.0 };
                meter.record_answer(link_s + delay_s, own_delay_s, now_s);
            }
        };
        let mut blind = meter();
        probe(&mut blind, 0.005, false, 0.0);
        assert!(!blind.report().available, "{:?}", blind.report());
        let mut meter = meter();
        probe(&mut meter, 0.005, true, 0.0);
        let busy = meter.report();
        assert!(busy.available && busy.slowdown_ratio < 1.1, "{busy:?}");
        assert!((busy.rtt_min_ms - 5.0).abs() < 1e-6 && busy.probe_delay_ms.is_some_and(|ms| ms > 20.0), "{busy:?}");
        let upload = meter.record_upload(1000, 15.0);
        meter.record_arrival(upload, 15.05);
        assert!(meter.report().available, "{:?}", meter.report());
        probe(&mut meter, 0.105, true, 15.0);
        assert!(!meter.report().available, "the link itself became slow: {:?}", meter.report());
    }

    #[test]
    fn a_probe_is_never_corrected_below_the_best_one_and_waits_longer_while_the_own_server_is_silent() {
        let mut meter = meter();
        meter.record_own_answer(0.001, true, 0.0);
        meter.record_answer(0.02, 0.0, 0.0);
        // The delay was the own server's alone.
        let delay_s = meter.record_own_answer(0.5, true, 0.25);
        meter.record_answer(0.021, delay_s, 0.25);
        assert!((meter.report().rtt_min_ms - 20.0).abs() < 1e-6, "{:?}", meter.report());
        assert!((meter.probe_timeout_s(0.0) - 0.6).abs() < 1e-9);
        assert!((meter.probe_timeout_s(meter.own_delay_after(0.401)) - 1.0).abs() < 1e-9);
        assert!((meter.probe_timeout_s(30.0) - 1.2).abs() < 1e-9, "at most twice");
    }

    #[test]
    fn a_slow_link_becomes_unavailable_and_recovers() {
        let mut meter = meter();
        meter.record_answer(0.02, 0.0, 0.0);
        let mut now_s = upload(&mut meter, 10, 100_000, 1e6, 0.02, 0.1);
        now_s = upload(&mut meter, 12, 100_000, 1e5, 0.02, now_s);
        assert!(meter.report().up && !meter.report().available, "{:?}", meter.report());
        upload(&mut meter, 30, 100_000, 1e6, 0.02, now_s);
        assert!(meter.report().available, "{:?}", meter.report());
    }

    #[test]
    fn silence_marks_the_link_down_within_a_second() {
        let mut meter = meter();
        meter.record_answer(0.02, 0.0, 10.0);
        meter.record_silence(10.3);
        assert!(meter.is_up());
        meter.record_silence(10.7);
        assert!(!meter.is_up() && !meter.report().available);
    }

    #[test]
    fn silence_is_tolerated_while_a_large_upload_must_take_longer() {
        let mut meter = meter();
        meter.record_answer(0.02, 0.0, 0.0);
        let now_s = upload(&mut meter, 5, 100_000, 1e6, 0.02, 0.1);
        let _under_way = meter.record_upload(1_000_000, now_s);
        meter.record_silence(now_s + 1.0);
        assert!(meter.is_up(), "a megabyte takes a second");
        meter.record_silence(now_s + 5.1);
        assert!(!meter.is_up(), "but not for ever");
    }

    #[test]
    fn the_best_values_are_forgotten_in_time() {
        let mut meter = meter();
        meter.record_answer(0.02, 0.0, 0.0);
        let now_s = upload(&mut meter, 5, 100_000, 1e6, 0.02, 0.1);
        upload(&mut meter, 40, 100_000, 1e5, 0.02, now_s + WINDOW_S);
        let report = meter.report();
        assert!(report.rate_max_bytes_per_s.unwrap() < 1.1e5 && report.available, "{report:?}");
    }

    proptest! {
        #[test]
        fn availability_never_changes_faster_than_allowed(
            steps in prop::collection::vec((0.001_f64..0.5, 1_u64..2_000_000, 0.0_f64..3.0, prop::bool::ANY), 1..200)
        ) {
            let mut meter = meter();
            let (mut now_s, mut changed_at_s, mut before) = (0.0, f64::NEG_INFINITY, (false, false));
            for (gap_s, bytes, took_s, probe) in steps {
                now_s += gap_s;
                if probe {
                    meter.record_answer(took_s, 0.0, now_s);
                } else {
                    let upload = meter.record_upload(bytes, now_s);
                    now_s += took_s;
                    meter.record_arrival(upload, now_s);
                }
                let report = meter.report();
                prop_assert!(report.slowdown_ratio >= 1.0 && report.slowdown_ratio.is_finite());
                prop_assert!(report.up || !report.available);
                if (report.up, report.available) != before {
                    prop_assert!(now_s - changed_at_s >= 1.0, "changed after {} s", now_s - changed_at_s);
                    (before, changed_at_s) = ((report.up, report.available), now_s);
                }
            }
        }

        #[test]
        fn uploads_that_arrive_or_are_lost_leave_nothing_in_flight(
            uploads in prop::collection::vec((1_u64..5_000_000, prop::bool::ANY), 0..50)
        ) {
            let mut meter = meter();
            let upload: Vec<_> = uploads.iter().map(|(bytes, kept)| (meter.record_upload(*bytes, 1.0), *kept)).collect();
            for (upload, kept) in upload {
                if kept { meter.record_arrival(upload, 2.0) } else { meter.record_loss(upload) }
            }
            prop_assert_eq!(meter.in_flight_bytes(), 0);
        }
    }
}

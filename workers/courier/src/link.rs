//! The network signal: what the link could do lately, and what it does now. Pure: time comes in as a
//! number of seconds on any clock that does not jump.
//!
//! `t_min(b) = rtt_min + b / rate_max`, with a windowed minimum and a windowed maximum as congestion
//! control estimates them (BBR: Cardwell et al., ACM Queue 14(5), 2016). `slowdown` is the smoothed time
//! of a transmission over the shortest possible one, in which bytes of ours that were under way already
//! count as part of the transmission: our own queue is no fault of the link.

use std::collections::VecDeque;

use schemas::LinkReport;
use serde::{Deserialize, Serialize};

/// How long the best of the link is remembered, seconds.
const WINDOW_S: f64 = 60.0;
/// Differences below this say nothing about the link, seconds: timers and schedulers make them too.
const NOISE_S: f64 = 0.010;
/// Share of the newest transmission in the smoothed slowdown; as TCP smooths its round trip (RFC 6298).
const SHARE: f64 = 1.0 / 8.0;
/// A rate is sampled over at least so long, seconds, because acknowledgements come in clumps.
const SAMPLE_S: f64 = 0.1;
/// Nor is one sampled over fewer bytes at the end of a transmission.
const SAMPLE_BYTES: u64 = 16 * 1024;
/// The slowdown must fall to this share of the mark before the link counts as available again.
const RELEASE_RATIO: f64 = 0.7;
/// Silence is forgiven at most for so long, seconds, however much is under way.
const LONGEST_PATIENCE_S: f64 = 5.0;

/// When a link counts as slow, and as gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkSettings {
    /// A transmission may take so many times its shortest possible time before the link counts as not
    /// available, more than 1.
    pub max_slowdown_ratio: f64,
    /// It changes between available and not available at most this often, milliseconds.
    pub dwell_ms: u64,
    /// How often the cloud is asked for a sign of life, milliseconds, 50 to 1000.
    pub probe_every_ms: u64,
    /// Silence for this long means that the link is down, milliseconds, 50 to 10000; more while bytes of
    /// ours are under way that must take longer.
    pub probe_timeout_ms: u64,
}

impl Default for LinkSettings {
    fn default() -> Self {
        Self { max_slowdown_ratio: 3.0, dwell_ms: 1000, probe_every_ms: 250, probe_timeout_ms: 600 }
    }
}

impl LinkSettings {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self { max_slowdown_ratio, .. } if !(max_slowdown_ratio.is_finite() && *max_slowdown_ratio > 1.0) => {
                Err("courier.link.max_slowdown_ratio must be more than 1".into())
            }
            Self { probe_every_ms: ..50 | 1001.., .. } => Err("courier.link.probe_every_ms must be 50 to 1000".into()),
            Self { probe_timeout_ms: ..50 | 10_001.., .. } => {
                Err("courier.link.probe_timeout_ms must be 50 to 10000".into())
            }
            _ => Ok(()),
        }
    }
}

/// An upload that is under way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActiveUpload {
    bytes: u64,
    sent_at_s: f64,
    /// Bytes of ours that were under way before it.
    ahead_bytes: u64,
}

/// What is known of the link.
#[derive(Debug, Clone)]
pub struct LinkMeter {
    settings: LinkSettings,
    round_trips: WindowExtremes,
    rates: WindowExtremes,
    slowdown_ratio: f64,
    up: bool,
    available: bool,
    changed_at_s: f64,
    heard_at_s: f64,
    in_flight_bytes: u64,
    stretch: ThroughputSpan,
}

/// Bytes that arrived since a moment, while something was always under way.
#[derive(Debug, Clone, Copy)]
struct ThroughputSpan {
    begun_at_s: f64,
    bytes: u64,
}

impl LinkMeter {
    /// Of a link that was not heard of yet.
    pub fn new(settings: LinkSettings) -> Self {
        Self {
            settings,
            round_trips: WindowExtremes::new(|new, old| new <= old),
            rates: WindowExtremes::new(|new, old| new >= old),
            slowdown_ratio: 1.0,
            up: false,
            available: false,
            changed_at_s: f64::NEG_INFINITY,
            heard_at_s: f64::NEG_INFINITY,
            in_flight_bytes: 0,
            stretch: ThroughputSpan { begun_at_s: 0.0, bytes: 0 },
        }
    }

    /// The cloud answered a question after so long.
    pub fn record_answer(&mut self, round_trip_s: f64, now_s: f64) {
        let shortest_s = self.minimum_transfer_s(self.in_flight_bytes).unwrap_or(round_trip_s);
        self.round_trips.note(round_trip_s.max(0.0), now_s);
        self.smooth(round_trip_s, shortest_s);
        self.record_contact(now_s);
    }

    /// A question was not answered. The link is down unless something else was heard meanwhile.
    pub fn record_silence(&mut self, now_s: f64) {
        if self.up && now_s - self.heard_at_s >= self.timeout_s() {
            self.up = false;
            self.available = false;
            self.changed_at_s = now_s;
        }
    }

    /// An upload begins.
    pub fn record_upload(&mut self, bytes: u64, now_s: f64) -> ActiveUpload {
        if self.in_flight_bytes == 0 {
            let rtt_min_s = self.round_trips.best().unwrap_or(0.0);
            self.stretch = ThroughputSpan { begun_at_s: now_s + rtt_min_s, bytes: 0 };
        }
        let sending = ActiveUpload { bytes, sent_at_s: now_s, ahead_bytes: self.in_flight_bytes };
        self.in_flight_bytes += bytes;
        sending
    }

    /// An upload was acknowledged by the cloud.
    pub fn record_arrival(&mut self, sending: ActiveUpload, now_s: f64) {
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(sending.bytes);
        self.stretch.bytes += sending.bytes;
        let length_s = now_s - self.stretch.begun_at_s;
        let ends = self.in_flight_bytes == 0 && self.stretch.bytes >= SAMPLE_BYTES && length_s > NOISE_S / 10.0;
        if ends || length_s >= SAMPLE_S {
            self.rates.note(self.stretch.bytes as f64 / length_s, now_s);
            self.stretch = ThroughputSpan { begun_at_s: now_s, bytes: 0 };
        }
        if let Some(shortest_s) = self.minimum_transfer_s(sending.ahead_bytes + sending.bytes) {
            self.smooth(now_s - sending.sent_at_s, shortest_s);
        }
        self.record_contact(now_s);
    }

    /// An upload was given up.
    pub fn record_loss(&mut self, sending: ActiveUpload) {
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(sending.bytes);
    }

    /// Bytes under way.
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// How long silence may last, seconds: longer while bytes are under way that must take longer.
    pub fn timeout_s(&self) -> f64 {
        let base_s = self.settings.probe_timeout_ms as f64 / 1000.0;
        let sending_s = match (self.in_flight_bytes, self.rates.best()) {
            (0, _) | (_, None) => 0.0,
            (bytes, Some(rate)) => bytes as f64 / rate * self.settings.max_slowdown_ratio,
        };
        (base_s + sending_s).min(LONGEST_PATIENCE_S.max(base_s))
    }

    /// The shortest time in which so many bytes could arrive and be acknowledged, seconds; `None` before
    /// a round trip was measured. Without a rate, as if the link had no end of it.
    pub fn minimum_transfer_s(&self, bytes: u64) -> Option<f64> {
        let sending_s = self.rates.best().map_or(0.0, |rate| bytes as f64 / rate);
        Some(self.round_trips.best()? + sending_s)
    }

    /// Whether the cloud answers.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// What is known, without what waits and without the cloud.
    pub fn report(&self) -> LinkReport {
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
        }
    }

    fn smooth(&mut self, actual_s: f64, shortest_s: f64) {
        let ratio = ((actual_s + NOISE_S) / (shortest_s + NOISE_S)).max(1.0);
        self.slowdown_ratio += (ratio - self.slowdown_ratio) * SHARE;
    }

    fn record_contact(&mut self, now_s: f64) {
        self.heard_at_s = now_s;
        if !self.up {
            // What was known belongs to the link as it was before it went away.
            self.slowdown_ratio = 1.0;
            (self.up, self.available, self.changed_at_s) = (true, true, now_s);
            return;
        }
        let mark = self.settings.max_slowdown_ratio;
        let available = match self.available {
            true => self.slowdown_ratio <= mark,
            false => self.slowdown_ratio <= 1.0 + (mark - 1.0) * RELEASE_RATIO,
        };
        let dwelt = now_s - self.changed_at_s >= self.settings.dwell_ms as f64 / 1000.0;
        if available != self.available && dwelt {
            (self.available, self.changed_at_s) = (available, now_s);
        }
    }
}

/// The best value of a window: those that a newer one beats are forgotten at once, so that few are kept.
#[derive(Debug, Clone)]
struct WindowExtremes {
    beats: fn(f64, f64) -> bool,
    kept: VecDeque<(f64, f64)>,
}

/// Most values kept; the window would hold more only for a value that gets worse with every sample.
const MOST_KEPT: usize = 256;

impl WindowExtremes {
    fn new(beats: fn(f64, f64) -> bool) -> Self {
        Self { beats, kept: VecDeque::new() }
    }

    fn note(&mut self, value: f64, now_s: f64) {
        while self.kept.back().is_some_and(|(_, old)| (self.beats)(value, *old)) {
            self.kept.pop_back();
        }
        self.kept.push_back((now_s, value));
        // The newest stays, however old: the best that is known.
        while self.kept.len() > MOST_KEPT
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

    /// Uploads one after another over an ideal link, from `from_s` on; returns when the last arrived.
    fn upload(meter: &mut LinkMeter, count: usize, bytes: u64, rate: f64, rtt_s: f64, from_s: f64) -> f64 {
        let mut now_s = from_s;
        for _ in 0..count {
            let sending = meter.record_upload(bytes, now_s);
            now_s += rtt_s + bytes as f64 / rate;
            meter.record_arrival(sending, now_s);
        }
        now_s
    }

    #[test]
    fn an_ideal_link_is_measured_as_it_is() {
        let mut meter = meter();
        meter.record_answer(0.02, 0.0);
        upload(&mut meter, 20, 100_000, 1e6, 0.02, 0.1);
        let report = meter.report();
        assert!((report.rtt_min_ms - 20.0).abs() < 1e-6, "{report:?}");
        let rate = report.rate_max_bytes_per_s.unwrap();
        assert!((rate / 1e6 - 1.0).abs() < 0.01, "{report:?}");
        assert!(report.up && report.available && report.slowdown_ratio < 1.05, "{report:?}");
    }

    #[test]
    fn our_own_queue_is_no_slowdown() {
        let mut meter = meter();
        meter.record_answer(0.02, 0.0);
        let end_s = upload(&mut meter, 5, 100_000, 1e6, 0.02, 0.1);
        // Sixteen at once share the link: the last takes sixteen times as long as one.
        let sending: Vec<ActiveUpload> = (0..16).map(|_| meter.record_upload(100_000, end_s)).collect();
        for (number, sending) in sending.into_iter().enumerate() {
            meter.record_arrival(sending, end_s + 0.02 + 0.1 * (number + 1) as f64);
        }
        assert!(meter.report().available && meter.report().slowdown_ratio < 1.1, "{:?}", meter.report());
        assert_eq!(meter.in_flight_bytes(), 0);
    }

    #[test]
    fn a_link_that_slows_down_stops_being_available_and_comes_back() {
        let mut meter = meter();
        meter.record_answer(0.02, 0.0);
        let mut now_s = upload(&mut meter, 10, 100_000, 1e6, 0.02, 0.1);
        now_s = upload(&mut meter, 12, 100_000, 1e5, 0.02, now_s);
        assert!(meter.report().up && !meter.report().available, "{:?}", meter.report());
        upload(&mut meter, 30, 100_000, 1e6, 0.02, now_s);
        assert!(meter.report().available, "{:?}", meter.report());
    }

    #[test]
    fn silence_takes_the_link_down_within_a_second() {
        let mut meter = meter();
        meter.record_answer(0.02, 10.0);
        meter.record_silence(10.3);
        assert!(meter.is_up());
        meter.record_silence(10.7);
        assert!(!meter.is_up() && !meter.report().available);
    }

    #[test]
    fn silence_is_forgiven_while_a_large_upload_must_take_longer() {
        let mut meter = meter();
        meter.record_answer(0.02, 0.0);
        let now_s = upload(&mut meter, 5, 100_000, 1e6, 0.02, 0.1);
        let _under_way = meter.record_upload(1_000_000, now_s);
        meter.record_silence(now_s + 1.0);
        assert!(meter.is_up(), "a second of silence is what a megabyte takes");
        meter.record_silence(now_s + 5.1);
        assert!(!meter.is_up(), "but not without end");
    }

    #[test]
    fn the_best_of_the_link_is_forgotten_in_time() {
        let mut meter = meter();
        meter.record_answer(0.02, 0.0);
        let now_s = upload(&mut meter, 5, 100_000, 1e6, 0.02, 0.1);
        upload(&mut meter, 40, 100_000, 1e5, 0.02, now_s + WINDOW_S);
        let report = meter.report();
        assert!(report.rate_max_bytes_per_s.unwrap() < 1.1e5 && report.available, "{report:?}");
    }

    proptest! {
        #[test]
        fn availability_never_changes_faster_than_it_may(
            steps in prop::collection::vec((0.001_f64..0.5, 1_u64..2_000_000, 0.0_f64..3.0, prop::bool::ANY), 1..200)
        ) {
            let mut meter = meter();
            let (mut now_s, mut changed_at_s, mut before) = (0.0, f64::NEG_INFINITY, (false, false));
            for (gap_s, bytes, took_s, probe) in steps {
                now_s += gap_s;
                if probe {
                    meter.record_answer(took_s, now_s);
                } else {
                    let sending = meter.record_upload(bytes, now_s);
                    now_s += took_s;
                    meter.record_arrival(sending, now_s);
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
        fn whatever_is_sent_and_lost_or_arrives_leaves_nothing_under_way(
            uploads in prop::collection::vec((1_u64..5_000_000, prop::bool::ANY), 0..50)
        ) {
            let mut meter = meter();
            let sending: Vec<_> = uploads.iter().map(|(bytes, kept)| (meter.record_upload(*bytes, 1.0), *kept)).collect();
            for (sending, kept) in sending {
                if kept { meter.record_arrival(sending, 2.0) } else { meter.record_loss(sending) }
            }
            prop_assert_eq!(meter.in_flight_bytes(), 0);
        }
    }
}

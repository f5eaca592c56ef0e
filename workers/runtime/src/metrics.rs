//! What a process counts and measures, in the text that Prometheus reads; whether it lives, and whether it takes work.
//!
//! Counted where it happens ([`answered`], [`took`], `drive`); what signs of life say and how long queues are is looked up
//! when somebody asks. Names and units follow the Prometheus naming practices (prometheus.io/docs/practices/naming): base
//! units, `_total` for counters.

mod queues;
mod server;
mod snapshot;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use schemas::{Heartbeat, Reason, Route, SiteName, Timings};
use streams::Bus;
use tokio::time::Instant;

pub use server::{MetricsSettings, serve};

/// A role that was silent for so long hangs: signs of life are sent every few seconds, and a server that is away holds one
/// up for ten.
const SILENT: Duration = Duration::from_secs(60);

/// How many roles are to begin in this process.
static EXPECTED_ROLES: AtomicUsize = AtomicUsize::new(1);

static KEPT: LazyLock<MetricsRegistry> = LazyLock::new(MetricsRegistry::default);

type HeartbeatSource = BTreeMap<(&'static str, Option<SiteName>), (Heartbeat, Instant)>;

/// Everything that is kept for whoever asks.
struct MetricsRegistry {
    messages: Family<OutcomeLabel, Counter>,
    stages: Family<StageLabel, Histogram>,
    batches: Family<RoleLabel, Histogram>,
    answers: Family<AnswerLabels, Counter>,
    notes: Family<SiteLabel, Counter>,
    /// The latest sign of life of each role and site of this process, and when it was sent.
    beats: Mutex<HeartbeatSource>,
    /// Queues that roles of this process take from.
    queues: Mutex<Vec<QueueConsumer>>,
    /// When certificates and the like end, milliseconds since the epoch, by what they are.
    expiries: Mutex<BTreeMap<String, u64>>,
}

impl Default for MetricsRegistry {
    fn default() -> Self {
        Self {
            messages: Family::default(),
            // 50 µs to 26 s.
            stages: Family::new_with_constructor(|| Histogram::new(exponential_buckets(5e-5, 2.0, 20))),
            batches: Family::new_with_constructor(|| Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])),
            answers: Family::default(),
            notes: Family::default(),
            beats: Mutex::default(),
            queues: Mutex::default(),
            expiries: Mutex::default(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    role: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    role: &'static str,
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabel {
    role: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabels {
    site: String,
    route: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SiteLabel {
    site: String,
}

/// A durable consumer that a role takes from.
#[derive(Clone)]
struct QueueConsumer {
    role: &'static str,
    bus: Bus,
    stream: &'static str,
    durable: String,
}

/// A message of a role came to an end: `finished`, `retried` or `given_up`.
pub(crate) fn count_message(role: &'static str, outcome: &'static str) {
    KEPT.messages.get_or_create(&OutcomeLabel { role, outcome }).inc();
}

/// A final answer was made. One that is made again after a crash is counted again.
pub fn count_answer(site: &SiteName, route: Route, reason: Reason) {
    let labels = AnswerLabels { site: site.to_string(), route: route.as_str(), reason: reason.as_str() };
    KEPT.answers.get_or_create(&labels).inc();
}

/// Says when a certificate or the like ends, milliseconds since the epoch.
pub fn note_expiry(what: &str, ends_at_ms: u64) {
    KEPT.expiries.lock().unwrap_or_else(PoisonError::into_inner).insert(what.to_owned(), ends_at_ms);
}

/// So many oddities of an image were passed over: headers left out, bytes skipped. Its answer says which.
pub fn count_notes(site: &SiteName, count: usize) {
    if count > 0 {
        KEPT.notes.get_or_create(&SiteLabel { site: site.to_string() }).inc_by(count as u64);
    }
}

/// How long the steps of an image took; what did not happen is left out.
pub fn observe_timings(role: &'static str, timings: &Timings) {
    let steps = [
        ("queue", timings.queue_us),
        ("fetch", timings.fetch_us),
        ("wait", timings.wait_us),
        ("decode", timings.decode_us),
        ("infer", timings.infer_us),
    ];
    for (stage, us) in steps.into_iter().filter(|(_, us)| *us > 0) {
        KEPT.stages.get_or_create(&StageLabel { role, stage }).observe(us as f64 / 1e6);
    }
    KEPT.batches.get_or_create(&RoleLabel { role }).observe(f64::from(timings.batch_size.max(1)));
}

/// How many roles this process is to have, one more for each site: until so many have begun, it takes no work.
pub fn expect_roles(count: usize) {
    EXPECTED_ROLES.store(count, Ordering::Relaxed);
}

/// A role lives.
pub(crate) fn record_heartbeat(role: &'static str, beat: &Heartbeat) {
    let mut beats = KEPT.beats.lock().unwrap_or_else(PoisonError::into_inner);
    beats.insert((role, beat.site.clone()), (beat.clone(), Instant::now()));
}

/// A role ended as it should.
pub(crate) fn remove_role(role: &'static str, site: Option<&SiteName>) {
    KEPT.beats.lock().unwrap_or_else(PoisonError::into_inner).remove(&(role, site.cloned()));
}

/// A role takes from a queue from now on.
pub(crate) fn register_queue(role: &'static str, bus: &Bus, stream: &'static str, durable: &str) {
    let queue = QueueConsumer { role, bus: bus.clone(), stream, durable: durable.into() };
    KEPT.queues.lock().unwrap_or_else(PoisonError::into_inner).push(queue);
}

fn beats() -> Vec<(Heartbeat, Duration)> {
    let beats = KEPT.beats.lock().unwrap_or_else(PoisonError::into_inner);
    beats.values().map(|(beat, at)| (beat.clone(), at.elapsed())).collect()
}

/// Roles that hang; a process of which none began loads its model still, and lives.
fn hanging() -> Vec<String> {
    beats().into_iter().filter(|(_, age)| *age > SILENT).map(|(beat, _)| beat.role).collect()
}

fn counted() -> Registry {
    let mut registry = Registry::default();
    registry.register(
        "tributary_messages",
        "Messages by role and outcome: finished, retried or given up",
        KEPT.messages.clone(),
    );
    registry.register("tributary_stage_seconds", "Time of each stage of an image", KEPT.stages.clone());
    registry.register(
        "tributary_batch_images",
        "Size of the batch that an image was recognized in",
        KEPT.batches.clone(),
    );
    registry.register("tributary_answers", "Final answers by route and reason", KEPT.answers.clone());
    registry.register(
        "tributary_image_notes",
        "Ignored headers and skipped bytes of images that were recognized nevertheless; listed in the notes of their answers",
        KEPT.notes.clone(),
    );
    registry
}

/// Everything that is known, as text.
pub async fn render_metrics() -> String {
    let queues: Vec<QueueConsumer> = KEPT.queues.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let beats: Vec<Heartbeat> = beats().into_iter().map(|(beat, _)| beat).collect();
    let found = queues::read_queues(queues).await;
    let mut text = String::new();
    let expiries = KEPT.expiries.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let snapshot = snapshot::of(&beats, &found, &expiries);
    // Writing to a string fails only when a metric says so, and none does.
    let _ = prometheus_client::encoding::text::encode_registry(&mut text, &counted());
    let _ = prometheus_client::encoding::text::encode(&mut text, &snapshot);
    text
}

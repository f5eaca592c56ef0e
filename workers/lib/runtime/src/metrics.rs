//! Metrics of a process in the text format of Prometheus, and its liveness and readiness.
//!
//! Counters count where something happens ([`observe_timings`], `consumer`); what heartbeats and
//! queues say is looked up at each request. Names and units follow the Prometheus naming practices
//! (prometheus.io/docs/practices/naming): base units, `_total` for counters.

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
use schemas::{Heartbeat, Reason, Role, Route, SiteName, Timings};
use streams::Bus;
use tokio::time::Instant;

pub use server::{ENDPOINT_STARTED, MetricsSettings, serve};

/// A role without a heartbeat for this long hangs: heartbeats are sent every few seconds, and a server that is down
/// delays one by ten.
const HANGING_AFTER: Duration = Duration::from_secs(60);

/// Number of roles this process is to run.
static EXPECTED_ROLES: AtomicUsize = AtomicUsize::new(1);

static REGISTRY: LazyLock<MetricsRegistry> = LazyLock::new(MetricsRegistry::default);

type HeartbeatSource = BTreeMap<(Role, Option<SiteName>), (Heartbeat, Instant)>;

/// Everything kept between requests.
struct MetricsRegistry {
    messages: Family<OutcomeLabel, Counter>,
    stages: Family<StageLabel, Histogram>,
    batches: Family<RoleLabel, Histogram>,
    answers: Family<AnswerLabels, Counter>,
    late_answers: Family<LateAnswerLabels, Counter>,
    notes: Family<SiteLabel, Counter>,
    reused: Family<SiteLabel, Counter>,
    reuse_checked: Family<SiteLabel, Counter>,
    reuse_wrong: Family<SiteLabel, Counter>,
    spans: Family<SpanOutcomeLabel, Counter>,
    role_failures: Family<RoleFailureLabels, Counter>,
    /// The latest heartbeat of each role and site of this process, and when it was sent.
    beats: Mutex<HeartbeatSource>,
    /// Queues that roles of this process consume.
    queues: Mutex<Vec<QueueConsumer>>,
    /// Expiry of certificates and the like, milliseconds since the epoch, by name.
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
            late_answers: Family::default(),
            notes: Family::default(),
            reused: Family::default(),
            reuse_checked: Family::default(),
            reuse_wrong: Family::default(),
            spans: Family::default(),
            role_failures: Family::default(),
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
struct LateAnswerLabels {
    site: String,
    route: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SiteLabel {
    site: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SpanOutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleFailureLabels {
    role: &'static str,
    site: String,
}

/// A durable consumer that a role pulls from.
#[derive(Clone)]
struct QueueConsumer {
    role: Role,
    bus: Bus,
    stream: &'static str,
    durable: String,
}

/// Counts a message that a role finished with: `finished`, `retried` or `given_up`.
pub(crate) fn count_message(role: Role, outcome: &'static str) {
    REGISTRY.messages.get_or_create(&OutcomeLabel { role: role.as_str(), outcome }).inc();
}

/// Counts a final answer that was stored.
pub(crate) fn count_answer(site: &SiteName, route: Route, reason: Reason) {
    let labels = AnswerLabels { site: site.to_string(), route: route.as_str(), reason: reason.as_str() };
    REGISTRY.answers.get_or_create(&labels).inc();
}

/// Counts a final answer that was stored after its publisher's deadline.
pub(crate) fn count_late_answer(site: &SiteName, route: Route) {
    let labels = LateAnswerLabels { site: site.to_string(), route: route.as_str() };
    REGISTRY.late_answers.get_or_create(&labels).inc();
}

/// Records when a certificate or the like expires, milliseconds since the epoch.
pub fn note_expiry(what: &str, ends_at_ms: u64) {
    REGISTRY.expiries.lock().unwrap_or_else(PoisonError::into_inner).insert(what.to_owned(), ends_at_ms);
}

/// Counts oddities of an image that were ignored: invalid headers, skipped bytes. Its answer names them.
pub fn count_notes(site: &SiteName, count: usize) {
    if count > 0 {
        REGISTRY.notes.get_or_create(&SiteLabel { site: site.to_string() }).inc_by(count as u64);
    }
}

/// Counts a picture that got the answer of an earlier one.
pub fn count_reused(site: &SiteName) {
    REGISTRY.reused.get_or_create(&SiteLabel { site: site.to_string() }).inc();
}

/// Counts a picture that was recognized to check what reuse would have said, and whether that was wrong.
pub fn count_reuse_check(site: &SiteName, is_wrong: bool) {
    let label = SiteLabel { site: site.to_string() };
    REGISTRY.reuse_checked.get_or_create(&label).inc();
    REGISTRY.reuse_wrong.get_or_create(&label).inc_by(u64::from(is_wrong));
}

/// Counts spans of traces that were `sent` to the collector, or `dropped` because it did not take them.
pub(crate) fn count_spans(outcome: &'static str, count: u64) {
    REGISTRY.spans.get_or_create(&SpanOutcomeLabel { outcome }).inc_by(count);
}

/// Counts a role that failed and is started again.
pub fn count_role_failure(role: Role, site: Option<&SiteName>) {
    let site = site.map_or_else(String::new, SiteName::to_string);
    REGISTRY.role_failures.get_or_create(&RoleFailureLabels { role: role.as_str(), site }).inc();
}

/// Records the duration of an image's steps; a step that did not happen is omitted.
pub fn observe_timings(role: Role, timings: &Timings) {
    let steps = [
        ("queue", timings.queue_us),
        ("fetch", timings.fetch_us),
        ("wait", timings.wait_us),
        ("decode", timings.decode_us),
        ("infer", timings.infer_us),
    ];
    for (stage, us) in steps.into_iter().filter(|(_, us)| *us > 0) {
        REGISTRY.stages.get_or_create(&StageLabel { role: role.as_str(), stage }).observe(us as f64 / 1e6);
    }
    REGISTRY.batches.get_or_create(&RoleLabel { role: role.as_str() }).observe(f64::from(timings.batch_size.max(1)));
}

/// Sets how many roles this process is to run, one more for each further site: it is not ready before all have started.
pub fn expect_roles(count: usize) {
    EXPECTED_ROLES.store(count, Ordering::Relaxed);
}

/// Records a role's heartbeat.
pub(crate) fn record_heartbeat(role: Role, beat: &Heartbeat) {
    let mut beats = REGISTRY.beats.lock().unwrap_or_else(PoisonError::into_inner);
    beats.insert((role, beat.site.clone()), (beat.clone(), Instant::now()));
}

/// Removes a role that ended, so that it does not count as hanging.
pub fn remove_role(role: Role, site: Option<&SiteName>) {
    REGISTRY.beats.lock().unwrap_or_else(PoisonError::into_inner).remove(&(role, site.cloned()));
}

/// Adds a queue that a role consumes.
pub(crate) fn register_queue(role: Role, bus: &Bus, stream: &'static str, durable: &str) {
    let queue = QueueConsumer { role, bus: bus.clone(), stream, durable: durable.into() };
    let mut queues = REGISTRY.queues.lock().unwrap_or_else(PoisonError::into_inner);
    // A role that starts again replaces its earlier entry.
    queues.retain(|known| (known.role, known.stream, &known.durable) != (queue.role, queue.stream, &queue.durable));
    queues.push(queue);
}

fn beats() -> Vec<(Heartbeat, Duration)> {
    let beats = REGISTRY.beats.lock().unwrap_or_else(PoisonError::into_inner);
    beats.values().map(|(beat, at)| (beat.clone(), at.elapsed())).collect()
}

/// Roles that hang; a process of which no role has started is still loading its model, and is alive.
fn hanging() -> Vec<String> {
    beats().into_iter().filter(|(_, age)| *age > HANGING_AFTER).map(|(beat, _)| beat.role.to_string()).collect()
}

fn counted() -> Registry {
    let mut registry = Registry::default();
    registry.register(
        "tributary_messages",
        "Messages by role and outcome: finished, retried or given up",
        REGISTRY.messages.clone(),
    );
    registry.register("tributary_stage_seconds", "Time of each stage of an image", REGISTRY.stages.clone());
    registry.register(
        "tributary_batch_images",
        "Size of the batch that an image was recognized in",
        REGISTRY.batches.clone(),
    );
    registry.register("tributary_answers", "Final answers by route and reason", REGISTRY.answers.clone());
    registry.register(
        "tributary_answers_late",
        "Final answers stored after their publishers' deadlines, by route",
        REGISTRY.late_answers.clone(),
    );
    registry.register(
        "tributary_image_notes",
        "Ignored headers and skipped bytes of images that were recognized nevertheless; listed in the notes of their answers",
        REGISTRY.notes.clone(),
    );
    registry.register(
        "tributary_reused",
        "Answers given to pictures that hardly differ from an earlier one and were not recognized",
        REGISTRY.reused.clone(),
    );
    registry.register(
        "tributary_reuse_checked",
        "Pictures whose answer could be reused and that were recognized to check",
        REGISTRY.reuse_checked.clone(),
    );
    registry.register(
        "tributary_reuse_wrong",
        "Checked pictures to which the model gave another label than reuse would have",
        REGISTRY.reuse_wrong.clone(),
    );
    let help = "Times that a role failed and was started again";
    registry.register("tributary_role_failures", help, REGISTRY.role_failures.clone());
    registry.register("tributary_trace_spans", "Spans of traces, by what became of them", REGISTRY.spans.clone());
    registry
}

/// All metrics as text.
pub async fn render_metrics() -> String {
    let queues: Vec<QueueConsumer> = REGISTRY.queues.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let beats: Vec<Heartbeat> = beats().into_iter().map(|(beat, _)| beat).collect();
    let readings = queues::read_queues(queues).await;
    let mut text = String::new();
    let expiries = REGISTRY.expiries.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let snapshot = snapshot::of(&beats, &readings, &expiries);
    // Writing to a string fails only if a metric does, and none does.
    let _ = prometheus_client::encoding::text::encode_registry(&mut text, &counted());
    let _ = prometheus_client::encoding::text::encode(&mut text, &snapshot);
    text
}

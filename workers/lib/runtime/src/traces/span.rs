//! The span of a stage, with its trace, its attributes and its steps.

use std::fmt::Display;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use ring::rand::{SecureRandom, SystemRandom};
use schemas::trace_parent::HEADER_TRACEPARENT;
use schemas::{CameraName, Role, SiteName, TaskId, Timings, TraceParent};
use streams::Publication;

use super::exporter::SpanSink;
use crate::clock;

/// Longest text of an attribute, in characters. Bounded because texts such as subjects come from the network.
const MAX_TEXT_CHARS: usize = 256;
/// Most attributes of a span, and most steps.
const MAX_ATTRIBUTES: usize = 32;

tokio::task_local! {
    static CURRENT: StageSpan;
}

/// The span of the stage that runs in this async task; outside a stage, a span that does nothing.
pub fn current() -> StageSpan {
    CURRENT.try_with(Clone::clone).unwrap_or_default()
}

/// OpenTelemetry's span kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// A step within a stage.
    Internal,
    /// Publishes the first message of the trace.
    Producer,
    /// Handles a message.
    Consumer,
}

/// A finished span, ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FinishedSpan {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    pub parent_id: Option<[u8; 8]>,
    pub service: &'static str,
    pub name: &'static str,
    pub kind: SpanKind,
    pub start_ns: u64,
    pub end_ns: u64,
    pub attributes: Vec<(&'static str, SpanValue)>,
    /// Kind of the fault that ended the stage; absent if it succeeded.
    pub fault: Option<String>,
}

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum SpanValue {
    Text(String),
    Number(u64),
}

/// The span of one stage. It ends when its last clone is dropped. Without a collector, or in a trace that is not
/// sampled, it only passes the trace on.
#[derive(Clone, Default)]
pub struct StageSpan(Option<Arc<SpanState>>);

enum SpanState {
    /// Not sent; the messages that follow carry the received trace on.
    PassedOn(TraceParent),
    Sent(Box<OpenSpan>),
}

struct OpenSpan {
    sink: Arc<SpanSink>,
    id: [u8; 8],
    content: Mutex<SpanContent>,
}

struct SpanContent {
    /// Id of the trace and whether it is sampled. Taken from the parent, or from the task as soon as that is known.
    trace: Option<([u8; 16], bool)>,
    span: FinishedSpan,
    /// Name, start and end, nanoseconds since the epoch.
    steps: Vec<(&'static str, u64, u64)>,
}

impl StageSpan {
    /// Begins the span of a message that a role handles. `header` looks up a header of the message by name.
    pub fn begin<'h>(name: &'static str, role: Role, header: impl Fn(&'static str) -> Option<&'h str>) -> Self {
        let parent = TraceParent::from_headers(header);
        Self::begin_in(super::sink(), name, role.as_str(), SpanKind::Consumer, parent)
    }

    /// Begins the span of a message that is published for the first time.
    pub fn begin_publishing(task: TaskId, site: &SiteName, camera: &CameraName) -> Self {
        let span = Self::begin_in(super::sink(), "publish", "publisher", SpanKind::Producer, None);
        span.set_task(task, site, camera);
        span
    }

    pub(super) fn begin_in(
        sink: Option<Arc<SpanSink>>,
        name: &'static str,
        service: &'static str,
        kind: SpanKind,
        parent: Option<TraceParent>,
    ) -> Self {
        let state = match (sink, parent) {
            (None, None) => return Self(None),
            (None, Some(parent)) => SpanState::PassedOn(parent),
            (Some(_), Some(parent)) if !parent.is_sampled => SpanState::PassedOn(parent),
            (Some(sink), parent) => {
                let Some(id) = random_id() else { return Self(None) };
                let now_ns = unix_ns();
                let span = FinishedSpan {
                    trace_id: [0; 16],
                    span_id: id,
                    parent_id: parent.map(|parent| parent.span_id),
                    service,
                    name,
                    kind,
                    start_ns: now_ns,
                    end_ns: now_ns,
                    attributes: Vec::new(),
                    fault: None,
                };
                let trace = parent.map(|parent| (parent.trace_id, true));
                let content = Mutex::new(SpanContent { trace, span, steps: Vec::new() });
                SpanState::Sent(Box::new(OpenSpan { sink, id, content }))
            }
        };
        Self(Some(Arc::new(state)))
    }

    /// Runs a stage's work with this span as [`current`].
    pub async fn scope<F: Future>(&self, work: F) -> F::Output {
        CURRENT.scope(self.clone(), work).await
    }

    /// Sets the task. A trace that begins here takes the task's id.
    pub fn set_task(&self, task: TaskId, site: &SiteName, camera: &CameraName) {
        self.set_task_id(task);
        self.set("tributary.site", site);
        self.set("tributary.camera", camera);
    }

    /// Sets the task when its site and camera are not known.
    pub fn set_task_id(&self, task: TaskId) {
        let Some(open) = self.open() else { return };
        open.with(|content| open.decide_trace(content, TraceParent::trace_of_task(task)));
        self.set("tributary.task", &task);
    }

    /// Sets a text attribute.
    pub fn set(&self, key: &'static str, value: &dyn Display) {
        let Some(open) = self.open() else { return };
        let text = value.to_string().chars().take(MAX_TEXT_CHARS).collect();
        open.set(key, SpanValue::Text(text));
    }

    /// Sets a numeric attribute.
    pub fn set_number(&self, key: &'static str, value: u64) {
        if let Some(open) = self.open() {
            open.set(key, SpanValue::Number(value));
        }
    }

    /// Records that a fault of this kind ended the stage.
    pub fn fail(&self, fault: &str) {
        let Some(open) = self.open() else { return };
        open.set("error.type", SpanValue::Text(fault.chars().take(MAX_TEXT_CHARS).collect()));
        open.with(|content| content.span.fault = Some(fault.chars().take(MAX_TEXT_CHARS).collect()));
    }

    /// Adds the steps of an image that was just recognized. Only their durations are known, so they are laid end to end
    /// up to now, although in a batch other images were decoded in between.
    pub fn add_timings(&self, timings: &Timings) {
        let Some(open) = self.open() else { return };
        let mut end_ns = unix_ns();
        open.with(|content| {
            let steps = [
                ("infer", timings.infer_us),
                ("decode", timings.decode_us),
                ("wait", timings.wait_us),
                ("fetch", timings.fetch_us),
            ];
            for (name, us) in steps.into_iter().filter(|(_, us)| *us > 0) {
                let start_ns = end_ns.saturating_sub(us.saturating_mul(1000)).max(content.span.start_ns);
                content.add_step(name, start_ns, end_ns);
                end_ns = start_ns;
            }
        });
        self.set_number("tributary.batch_size", timings.batch_size.into());
    }

    /// Runs a step of the stage and records its duration.
    pub async fn step<F: Future>(&self, name: &'static str, work: F) -> F::Output {
        let Some(open) = self.open() else { return work.await };
        let start_ns = unix_ns();
        let output = work.await;
        open.with(|content| content.add_step(name, start_ns, unix_ns()));
        output
    }

    /// The trace context for the messages that this stage publishes; absent if there is no trace.
    pub fn trace_parent(&self) -> Option<TraceParent> {
        match self.0.as_deref()? {
            SpanState::PassedOn(parent) => Some(*parent),
            SpanState::Sent(open) => open.with(|content| {
                let (trace_id, is_sampled) = open.decide_trace(content, None)?;
                Some(TraceParent { trace_id, span_id: open.id, is_sampled })
            }),
        }
    }

    /// Adds the `traceparent` header to a message that this stage publishes.
    pub fn mark(&self, publication: Publication) -> Publication {
        match self.trace_parent() {
            Some(parent) => publication.header(HEADER_TRACEPARENT, parent.to_string()),
            None => publication,
        }
    }

    /// Whether the span goes to a collector. If not, callers can skip attributes that are costly to compute.
    pub fn is_sent(&self) -> bool {
        self.open().is_some()
    }

    fn open(&self) -> Option<&OpenSpan> {
        match self.0.as_deref()? {
            SpanState::Sent(open) => Some(open),
            SpanState::PassedOn(_) => None,
        }
    }
}

impl OpenSpan {
    fn with<T>(&self, update: impl FnOnce(&mut SpanContent) -> T) -> T {
        update(&mut self.content.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, key: &'static str, value: SpanValue) {
        self.with(|content| {
            let attributes = &mut content.span.attributes;
            let has_room = attributes.len() < MAX_ATTRIBUTES;
            match attributes.iter_mut().find(|(known, _)| *known == key) {
                Some((_, known)) => *known = value,
                None if has_room => attributes.push((key, value)),
                None => {}
            }
        });
    }

    /// Decides the span's trace, unless it is decided already. `wanted`: the trace of its task; if absent, a new one.
    fn decide_trace(&self, content: &mut SpanContent, wanted: Option<[u8; 16]>) -> Option<([u8; 16], bool)> {
        if content.trace.is_none() {
            let trace_id = wanted.or_else(random_id)?;
            content.trace = Some((trace_id, self.sink.samples(&trace_id)));
        }
        content.trace
    }
}

impl SpanContent {
    fn add_step(&mut self, name: &'static str, start_ns: u64, end_ns: u64) {
        if self.steps.len() < MAX_ATTRIBUTES {
            self.steps.push((name, start_ns, end_ns));
        }
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        let content = self.content.get_mut().unwrap_or_else(PoisonError::into_inner);
        let trace = content.trace.or_else(|| Some((random_id()?, true)));
        let Some((trace_id, true)) = trace else { return };
        let mut stage = content.span.clone();
        (stage.trace_id, stage.end_ns) = (trace_id, unix_ns().max(stage.start_ns));
        for (name, start_ns, end_ns) in content.steps.drain(..) {
            let Some(span_id) = random_id() else { return };
            self.sink.send(FinishedSpan {
                trace_id,
                span_id,
                parent_id: Some(stage.span_id),
                service: stage.service,
                name,
                kind: SpanKind::Internal,
                start_ns,
                end_ns: end_ns.max(start_ns),
                attributes: Vec::new(),
                fault: None,
            });
        }
        self.sink.send(stage);
    }
}

/// A random id that is not zero; absent if the system's random generator fails.
fn random_id<const N: usize>() -> Option<[u8; N]> {
    let mut id = [0; N];
    SystemRandom::new().fill(&mut id).ok()?;
    (id != [0; N]).then_some(id)
}

fn unix_ns() -> u64 {
    u64::try_from(clock::now_ns()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: TraceParent = TraceParent { trace_id: [7; 16], span_id: [8; 8], is_sampled: true };

    fn begin(sink: &Arc<SpanSink>, parent: Option<TraceParent>) -> StageSpan {
        StageSpan::begin_in(Some(sink.clone()), "recognize", "recognizer", SpanKind::Consumer, parent)
    }

    fn set_task(span: &StageSpan, task: TaskId) {
        span.set_task(task, &SiteName::default_site(), &CameraName::unknown());
    }

    #[test]
    fn without_a_collector_a_span_only_passes_the_trace_on() {
        let none = StageSpan::begin("recognize", Role::Recognizer, |_| None);
        assert!(none.0.is_none() && none.trace_parent().is_none());
        // Each message then costs its worker one null pointer.
        assert_eq!(size_of::<StageSpan>(), size_of::<usize>());
        let text = PARENT.to_string();
        let passed = StageSpan::begin("recognize", Role::Recognizer, |name| (name == "traceparent").then_some(&*text));
        set_task(&passed, TaskId::new_random());
        assert!(passed.open().is_none());
        assert_eq!(passed.trace_parent(), Some(PARENT));
    }

    #[test]
    fn a_trace_that_is_not_sampled_is_passed_on_and_not_sent() {
        let (sink, mut sent) = SpanSink::new(1.0, 8);
        let parent = TraceParent { is_sampled: false, ..PARENT };
        let span = begin(&sink, Some(parent));
        assert_eq!(span.trace_parent(), Some(parent));
        drop(span);
        assert!(sent.try_recv().is_err());
    }

    #[test]
    fn a_span_continues_its_parents_trace_and_ends_with_its_last_clone() {
        let (sink, mut sent) = SpanSink::new(0.0, 8);
        let span = begin(&sink, Some(PARENT));
        set_task(&span, TaskId::new_random());
        span.add_timings(&Timings { decode_us: 2000, infer_us: 3000, ..Timings::default() });
        span.fail("image_truncated");
        let next = span.trace_parent().unwrap();
        let clone = span.clone();
        drop(span);
        assert!(sent.try_recv().is_err());
        drop(clone);
        let spans: Vec<FinishedSpan> = std::iter::from_fn(|| sent.try_recv().ok()).collect();
        let [infer, decode, stage] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!((infer.name, decode.name, stage.name), ("infer", "decode", "recognize"));
        assert!(decode.end_ns == infer.start_ns && decode.start_ns <= decode.end_ns);
        assert!(spans.iter().all(|span| span.trace_id == PARENT.trace_id));
        assert_eq!((next.trace_id, next.span_id), (PARENT.trace_id, stage.span_id));
        assert_eq!((stage.parent_id, decode.parent_id), (Some(PARENT.span_id), Some(stage.span_id)));
        assert_eq!(stage.fault.as_deref(), Some("image_truncated"));
    }

    #[test]
    fn a_trace_that_begins_here_has_the_tasks_id_and_is_sampled_by_it() {
        let task = TaskId::new_random();
        let (all, mut sent) = SpanSink::new(1.0, 8);
        let span = begin(&all, None);
        set_task(&span, task);
        // Setting another task later does not change the trace.
        span.set_task_id(TaskId::new_random());
        assert_eq!(span.trace_parent().unwrap().trace_id, *task.as_bytes());
        drop(span);
        assert_eq!(sent.try_recv().unwrap().parent_id, None);

        let (none, mut sent) = SpanSink::new(0.0, 8);
        let span = begin(&none, None);
        set_task(&span, task);
        let parent = span.trace_parent().unwrap();
        assert_eq!((parent.trace_id, parent.is_sampled), (*task.as_bytes(), false));
        drop(span);
        assert!(sent.try_recv().is_err(), "an unsampled trace was sent");
    }

    #[test]
    fn the_requested_share_of_traces_is_sampled_and_every_stage_decides_alike() {
        let (sink, _sent) = SpanSink::new(0.25, 8);
        let tasks = || (0..4000).map(|number| TaskId::from_name(&number.to_string()));
        let sampled: Vec<bool> = tasks().map(|task| sink.samples(task.as_bytes())).collect();
        let count = sampled.iter().filter(|sampled| **sampled).count();
        assert!((900..1100).contains(&count), "{count} of 4000");
        assert_eq!(sampled, tasks().map(|task| sink.samples(task.as_bytes())).collect::<Vec<_>>());
    }

    #[test]
    fn a_spans_size_is_bounded_for_any_input() {
        let (sink, mut sent) = SpanSink::new(1.0, 2);
        let span = begin(&sink, None);
        span.set("messaging.destination.name", &"x".repeat(1 << 20));
        for _ in 0..1000 {
            span.add_timings(&Timings { infer_us: 1, ..Timings::default() });
        }
        assert!(span.open().unwrap().with(|content| content.steps.len()) <= MAX_ATTRIBUTES);
        drop(span);
        // The queue holds two spans; the others are dropped and counted.
        assert!(sent.try_recv().is_ok() && sent.try_recv().is_ok() && sent.try_recv().is_err());
        assert_eq!(sink.dropped(), MAX_ATTRIBUTES as u64 + 1 - 2);
    }

    #[tokio::test]
    async fn current_is_the_span_of_the_running_stage() {
        let (sink, _sent) = SpanSink::new(1.0, 8);
        let span = begin(&sink, Some(PARENT));
        let found = span.scope(async { current().trace_parent() }).await;
        assert_eq!(found, span.trace_parent());
        assert!(current().0.is_none());
    }
}

//! Traces: what a collector hears of an image that walks through a site and the cloud.
//!
//! The collector is a small HTTP server that knows of OTLP what it looks at. That the bytes are as OpenTelemetry defines them
//! is compared in `runtime`, with a file that its own definitions wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::pictures::{first_picture, nth_picture};
use harness::program::fixture;
use harness::{TestWorld, WorldPlan, run, until};
use nix::sys::signal::Signal;
use prost::Message;
use schemas::{Route, TaskId};
use streams::reader::{self, StreamRange};
use streams::topology;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::common::{PATIENCE, answered, outcome, publish};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CAMERA_SPAN: &str = "00f067aa0ba902b7";

/// `SPAN_KIND_INTERNAL`: a step within a stage.
const KIND_INTERNAL: i32 = 1;

/// `ExportTraceServiceRequest`.
#[derive(Clone, PartialEq, Message)]
struct ExportedSpans {
    #[prost(message, repeated, tag = "1")]
    services: Vec<ServiceSpans>,
}

/// `ResourceSpans`.
#[derive(Clone, PartialEq, Message)]
struct ServiceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<ServiceResource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<ScopedSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ServiceResource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<Attribute>,
}

/// `ScopeSpans`.
#[derive(Clone, PartialEq, Message)]
struct ScopedSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<Attribute>,
    #[prost(message, optional, tag = "15")]
    status: Option<SpanStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct SpanStatus {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AttributeText>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeText {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
}

/// A span that was heard of.
#[derive(Debug, Clone)]
struct HeardSpan {
    service: String,
    span: Span,
}

impl HeardSpan {
    fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    fn text(&self, key: &str) -> Option<&str> {
        text_of(&self.span.attributes, key)
    }
}

fn text_of<'a>(attributes: &'a [Attribute], key: &str) -> Option<&'a str> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.as_ref()?.text.as_deref()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The id of the trace that a task begins.
fn trace_of(task: TaskId) -> String {
    task.to_string().replace('-', "")
}

/// A collector that takes what it is sent.
struct Collector {
    address: String,
    heard: Arc<Mutex<Vec<HeardSpan>>>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let kept = heard.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, kept.clone()));
            }
        });
        Self { address, heard }
    }

    fn of_trace(&self, trace: &str) -> Vec<HeardSpan> {
        self.heard.lock().unwrap().iter().filter(|span| span.trace() == trace).cloned().collect()
    }

    /// The stages of a trace by name, once so many have come.
    async fn stages(&self, trace: &str, wanted: &[&str]) -> BTreeMap<String, HeardSpan> {
        let what = format!("spans {wanted:?} of trace {trace}");
        let all = until(&what, PATIENCE, async || {
            let spans = self.of_trace(trace);
            let all = wanted.iter().all(|name| spans.iter().any(|heard| heard.span.name == *name));
            Ok(all.then_some(spans))
        });
        let all = all.await.unwrap();
        all.into_iter()
            .filter(|heard| heard.span.kind != KIND_INTERNAL)
            .map(|heard| (heard.span.name.clone(), heard))
            .collect()
    }
}

/// Answers the requests of one connection.
async fn serve(client: TcpStream, heard: Arc<Mutex<Vec<HeardSpan>>>) -> anyhow::Result<()> {
    let mut client = BufReader::new(client);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        while client.read_line(&mut head).await? > 2 {
            let line = head.lines().last().unwrap_or_default().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if head.ends_with("\r\n\r\n") {
                break;
            }
        }
        if head.is_empty() {
            return Ok(());
        }
        assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
        assert!(head.to_ascii_lowercase().contains("content-type: application/x-protobuf\r\n"), "{head}");
        let mut body = vec![0; length];
        client.read_exact(&mut body).await?;
        let request = ExportedSpans::decode(&body[..])?;
        for service in request.services {
            let attributes = service.resource.map(|resource| resource.attributes).unwrap_or_default();
            let spans = service.scopes.into_iter().flat_map(|scope| scope.spans);
            let service = text_of(&attributes, "service.name").unwrap().to_owned();
            heard.lock().unwrap().extend(spans.map(|span| HeardSpan { service: service.clone(), span }));
        }
        client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await?;
    }
}

fn with_collector(plan: WorldPlan, collector: &Collector) -> WorldPlan {
    plan.set(&format!("telemetry.otlp={}", collector.address))
}

#[tokio::test]
async fn a_verified_image_is_one_trace_across_site_and_cloud() {
    let collector = Collector::start().await;
    let world = TestWorld::start_with_workers(with_collector(WorldPlan::leaves(1), &collector)).await.unwrap();
    let site = world.site(0);
    let path = ["recognize", "carry", "verify", "carry verdict"];

    // Begun at the recognizer, under the task's own id.
    let task = publish(&site.bus, &site.name, &first_picture(false).unwrap().bytes, &[]).await;
    assert_eq!(answered(&world, task).await.route, Route::Verified);
    let stages = collector.stages(&trace_of(task), &path).await;
    assert_eq!(
        stages.keys().map(String::as_str).collect::<Vec<_>>(),
        ["carry", "carry verdict", "recognize", "verify"]
    );
    assert_eq!(stages["recognize"].parent(), "", "nobody began it before");
    check_chain(&collector, &stages, &path, task);

    // Continued from a camera's, whichever way its client spells the header.
    for (number, header) in [(1, "traceparent"), (2, "Traceparent")] {
        let trace = format!("{number}{}", &TRACE[1..]);
        let parent = format!("00-{trace}-{CAMERA_SPAN}-01");
        let task =
            publish(&site.bus, &site.name, &nth_picture(false, number).unwrap().bytes, &[(header, &parent)]).await;
        assert_eq!(answered(&world, task).await.route, Route::Verified);
        let stages = collector.stages(&trace, &path).await;
        assert_eq!(stages["recognize"].parent(), CAMERA_SPAN);
        check_chain(&collector, &stages, &path, task);
        assert!(collector.of_trace(&trace_of(task)).is_empty(), "it has a second trace");
        // Who hears the answer may go on with it.
        let last = reader::stream_level(&site.bus, topology::ANSWERS).await.unwrap().last_sequence;
        let mut said = Vec::new();
        reader::read_range(&site.bus, topology::ANSWERS, StreamRange::default(), last, |record| {
            said.extend(record.header("traceparent").filter(|text| text.contains(&trace)).map(str::to_owned));
        })
        .await
        .unwrap();
        let wanted = ["recognize", "carry verdict"].map(|name| format!("00-{trace}-{}-01", stages[name].id()));
        assert_eq!(said, wanted, "the provisional answer and the final one");
    }

    // What is no traceparent costs the image nothing: a new trace is begun, and the answer says nothing about it.
    let long = "x".repeat(5000);
    for bad in ["", "00", &long, &format!("01-{TRACE}-{CAMERA_SPAN}-01"), &format!("00-{TRACE}-{CAMERA_SPAN}-0G")] {
        let task = publish(&site.bus, &site.name, &first_picture(true).unwrap().bytes, &[("traceparent", bad)]).await;
        let answer = answered(&world, task).await;
        assert_eq!((answer.route, answer.notes), (Route::Edge, Vec::new()));
        let stages = collector.stages(&trace_of(task), &["recognize", "infer", "send"]).await;
        assert_eq!((stages["recognize"].parent(), stages.len()), (String::new(), 1));
        assert_eq!(stages["recognize"].text("tributary.route"), Some("edge"));
    }

    // What cannot be recognized says why.
    let task = publish(&site.bus, &site.name, b"no image at all", &[]).await;
    let kind = answered(&world, task).await.fault.unwrap().kind.as_str().to_owned();
    let stages = collector.stages(&trace_of(task), &["recognize"]).await;
    let status = stages["recognize"].span.status.clone().unwrap();
    assert_eq!((status.code, status.message), (2, kind.clone()));
    assert_eq!(stages["recognize"].text("error.type"), Some(&*kind));
    assert_eq!(stages["recognize"].text("tributary.outcome"), Some("given_up"));

    // A camera that does not record its trace is not recorded here either. The image that follows came after it.
    let unsampled = format!("00-{}-{CAMERA_SPAN}-00", TRACE.replace('4', "5"));
    let image = &nth_picture(false, 3).unwrap().bytes;
    let quiet = publish(&site.bus, &site.name, image, &[("traceparent", &unsampled)]).await;
    assert_eq!(answered(&world, quiet).await.route, Route::Verified);
    let task = publish(&site.bus, &site.name, &nth_picture(false, 4).unwrap().bytes, &[]).await;
    answered(&world, task).await;
    collector.stages(&trace_of(task), &path).await;
    for trace in [TRACE.replace('4', "5"), trace_of(quiet)] {
        assert!(collector.of_trace(&trace).is_empty(), "an unsampled trace was sent");
    }

    // `tributary publish` begins the trace itself.
    let (picture, otlp) = (first_picture(true).unwrap(), format!("telemetry.otlp={}", collector.address));
    let file = fixture("images/fashion").join(&picture.file);
    let words = ["publish", file.to_str().unwrap(), "--camera", "own", "--set", &otlp, "--nats", &site.server.url()];
    let ended = run(world.folder(), &[&words[..], &["--site", site.name.as_str()]].concat()).await.unwrap();
    assert!(ended.success, "{}", ended.err);
    let published = until("the publisher's span", PATIENCE, async || {
        Ok(collector.heard.lock().unwrap().iter().find(|heard| heard.span.name == "publish").cloned())
    });
    let published = published.await.unwrap();
    let stages = collector.stages(&published.trace(), &["publish", "recognize"]).await;
    assert_eq!((published.service.as_str(), published.parent()), ("publisher", String::new()));
    assert_eq!(stages["recognize"].parent(), published.id());
    let task: TaskId = published.text("tributary.task").unwrap().parse().unwrap();
    assert_eq!(published.trace(), trace_of(task));
    outcome(&site.bus, &site.name, task).await.unwrap();
}

/// Each stage follows the one before, in its own service, and its steps are its children.
fn check_chain(collector: &Collector, stages: &BTreeMap<String, HeardSpan>, path: &[&str], task: TaskId) {
    for pair in path.windows(2) {
        assert_eq!(stages[pair[1]].parent(), stages[pair[0]].id(), "{} does not follow {}", pair[1], pair[0]);
    }
    // One trace, however many stages.
    let own = task.to_string();
    let heard = collector.heard.lock().unwrap();
    let traces: BTreeSet<String> =
        heard.iter().filter(|heard| heard.text("tributary.task") == Some(&own)).map(HeardSpan::trace).collect();
    assert_eq!(traces.len(), 1, "{traces:?}");
    let services: Vec<&str> = path.iter().map(|name| stages[*name].service.as_str()).collect();
    assert_eq!(services, ["recognizer", "courier", "verifier", "courier"]);
    for stage in stages.values() {
        assert_eq!(stage.text("tributary.task"), Some(&*own), "{}", stage.span.name);
        assert_eq!((stage.text("tributary.site"), stage.text("tributary.camera")), (Some("site-1"), Some("cam-1")));
        assert_eq!(stage.text("messaging.system"), Some("nats"));
        assert!(stage.span.status.is_none() && stage.span.end_time_unix_nano >= stage.span.start_time_unix_nano);
    }
    assert_eq!(stages["carry"].text("messaging.destination.name"), Some("verify.doubtful.site-1.cam-1"));
    assert_eq!(stages["carry verdict"].text("tributary.route"), Some("verified"));
}

#[tokio::test]
async fn a_collector_that_is_dead_or_silent_costs_nothing_but_traces() {
    // One is not there; the other takes connections and never reads.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_address = format!("http://{}", silent.local_addr().unwrap());
    let mut world = TestWorld::start(WorldPlan::leaves(1)).await.unwrap();
    let otlp = |address: &str| vec![("TRIBUTARY_TELEMETRY__OTLP".to_owned(), address.to_owned())];
    world.environment = otlp(&dead);
    world.recognizer("recognizer", 0).unwrap();
    world.courier("courier", 0).unwrap();
    world.environment = otlp(&silent_address);
    world.verifier("verifier").unwrap();
    world.all_started().await.unwrap();
    let mut tasks = Vec::new();
    for number in 0..30 {
        let picture = nth_picture(number % 2 == 0, number / 2).unwrap();
        tasks.push(publish(world.bus(0), &world.site(0).name, &picture.bytes, &[]).await);
    }
    for (number, task) in tasks.into_iter().enumerate() {
        let wanted = if number % 2 == 0 { Route::Edge } else { Route::Verified };
        assert_eq!(answered(&world, task).await.route, wanted);
    }
    world.worker_mut("recognizer").unwrap().wait_for_log("traces not sent", PATIENCE).await.unwrap();
    for name in ["recognizer", "courier", "verifier"] {
        let worker = world.worker_mut(name).unwrap();
        worker.signal(Signal::SIGTERM).unwrap();
        let status = worker.end(Duration::from_secs(15)).await.unwrap();
        let log = worker.log();
        assert!(status.success(), "{name} ended with {status}: {log}");
        assert!(log.matches("traces not sent").count() <= 1, "{name} says it again and again: {log}");
    }
    drop(silent);
}

#[tokio::test]
async fn stages_without_a_collector_pass_on_the_trace_of_the_camera() {
    let collector = Collector::start().await;
    let mut world = TestWorld::start(WorldPlan::leaves(1)).await.unwrap();
    world.recognizer("recognizer", 0).unwrap();
    world.courier("courier", 0).unwrap();
    world.environment = vec![("TRIBUTARY_TELEMETRY__OTLP".into(), collector.address.clone())];
    world.verifier("verifier").unwrap();
    world.all_started().await.unwrap();
    let (picture, parent) = (first_picture(false).unwrap(), format!("00-{TRACE}-{CAMERA_SPAN}-01"));
    let site = &world.site(0).name;
    let task = publish(world.bus(0), site, &picture.bytes, &[("traceparent", &parent)]).await;
    assert_eq!(answered(&world, task).await.route, Route::Verified);
    let stages = collector.stages(TRACE, &["verify"]).await;
    assert_eq!((stages["verify"].parent(), stages.len()), (CAMERA_SPAN.to_owned(), 1));
}

#[tokio::test]
async fn an_address_that_is_none_is_refused_with_what_to_write() {
    let folder = tempfile::tempdir().unwrap();
    let ended = run(folder.path(), &["courier", "--set", "telemetry.otlp=collector:4317"]).await.unwrap();
    assert!(!ended.success);
    for part in ["telemetry.otlp", "collector:4317", "http://127.0.0.1:4318"] {
        assert!(ended.err.contains(part), "{}", ended.err);
    }
}

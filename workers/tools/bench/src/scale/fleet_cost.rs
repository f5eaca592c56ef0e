//! Cost of many lightly loaded sites for the cloud's server and workers. A simulated site is a connection that does what a
//! courier does in the cloud: it measures the round trip, uploads doubtful images, consumes verdicts, rounds and orders,
//! and reports its release.

use std::time::Duration;

use os::process;
use schemas::swap::{MomentSums, ReleaseCounts};
use schemas::task::StorageStamp;
use schemas::{
    Answer, AnswerStage, CameraName, ModelName, Payload, Prediction, Reason, ReleaseId, Route, SiteName, Swap, Task,
    TaskId, VerifyReason, VerifyRequest, encode,
};
use serde_json::{Value, json};
use streams::server::{ClientListener, Durability, LeafMode, Server, ServerSettings};
use streams::topology::{self, PlanScope, RepairMode, StreamSettings};
use streams::{Bus, NatsSettings, Publication, Publisher, Puller, reader, subject};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::bench_site::TestbedPaths;
use crate::error::BenchError;
use crate::worker::BenchWorker;
use crate::workload::Workload;

/// Cameras per site.
const CAMERAS: usize = 5;
/// Interval between two doubtful images of one camera.
const IMAGE_INTERVAL: Duration = Duration::from_secs(30);
/// Interval between two round-trip measurements of a courier.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Time limit for a publication, including retries.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Measured cost of many sites.
pub(super) struct FleetCost {
    sites: usize,
    /// Memory of the server with one site and with all sites, bytes.
    server_bytes: (Option<u64>, Option<u64>),
    /// CPU time of the server during the window, milliseconds per site and second.
    server_cpu_ms: Option<f64>,
    verifier_cpu_ms: Option<f64>,
    verifier_bytes: Option<u64>,
    verdicts: u64,
    seconds: f64,
}

impl FleetCost {
    /// Memory of the server per additional site, kB.
    pub(super) fn server_kb_per_site(&self) -> Option<f64> {
        let (one, all) = (self.server_bytes.0?, self.server_bytes.1?);
        Some(all.saturating_sub(one) as f64 / 1000.0 / (self.sites as f64 - 1.0).max(1.0))
    }

    /// The results, and an extrapolation to 10,000 sites.
    pub(super) fn notes(&self) -> Vec<String> {
        let mb = |bytes: Option<u64>| bytes.map_or_else(|| "?".into(), |bytes| format!("{:.0} MB", bytes as f64 / 1e6));
        let number =
            |value: Option<f64>, digits: usize| value.map_or_else(|| "?".into(), |value| format!("{value:.digits$}"));
        let (each_kb, cpu) = (self.server_kb_per_site(), self.server_cpu_ms);
        let scaled = |value: Option<f64>, factor: f64, digits: usize| number(value.map(|value| value * factor), digits);
        vec![
            format!(
                "{} sites with {CAMERAS} cameras each, one doubtful image per camera every {} s: {} verdicts in {:.0} s. Memory: server {} \
                with one site and {} with all, verifier {}. CPU per site and second: server {} ms, verifier {} ms.",
                self.sites,
                IMAGE_INTERVAL.as_secs(),
                self.verdicts,
                self.seconds,
                mb(self.server_bytes.0),
                mb(self.server_bytes.1),
                mb(self.verifier_bytes),
                number(self.server_cpu_ms, 2),
                number(self.verifier_cpu_ms, 2)
            ),
            format!(
                "Extrapolated linearly to 10,000 sites on one server: {} GB of memory and {} cores. Three durable consumers per site make \
                30,000, which was not tested. Several hubs can share the sites.",
                scaled(each_kb, 10_000.0 / 1e6, 1),
                scaled(cpu, 10_000.0 / 1000.0, 1)
            ),
        ]
    }

    /// The results as JSON.
    pub(super) fn json(&self) -> Value {
        json!({
            "sites": self.sites, "server_bytes_one": self.server_bytes.0, "server_bytes_all": self.server_bytes.1,
            "server_cpu_ms_per_site_and_s": self.server_cpu_ms, "verifier_cpu_ms_per_site_and_s": self.verifier_cpu_ms,
            "verifier_bytes": self.verifier_bytes, "verdicts": self.verdicts, "seconds": self.seconds,
        })
    }
}

pub(super) async fn measure(
    paths: &TestbedPaths,
    workload: &Workload,
    sites: usize,
    quick: bool,
) -> Result<FleetCost, BenchError> {
    let names: Vec<SiteName> = (1..=sites)
        .map(|number| format!("site-{number}").parse())
        .collect::<Result<_, schemas::IdError>>()
        .map_err(|error| BenchError::Dead { why: error.to_string() })?;
    let store = paths.folder.join("hub");
    let settings = ServerSettings {
        encryption_key: None,
        program: paths.nats_server.clone(),
        store: store.clone(),
        name: "hub".into(),
        domain: None,
        port: 0,
        mqtt: None,
        mappings: Vec::new(),
        durability: Durability::Fast,
        max_store_bytes: streams::topology::default_store_bytes(),
        leaf: LeafMode::Alone,
        site: None,
        entry: ClientListener::default(),
    };
    let server = tokio::task::spawn_blocking(move || Server::start(&settings)).await??;
    let nats = NatsSettings { url: server.url(), ..NatsSettings::default() };
    let bus = Bus::connect(&nats, "bench").await?;
    let set_up = async |names: &[SiteName]| {
        let plan = topology::plan_topology(&PlanScope::Cloud(names.to_vec()), &StreamSettings::default());
        // The streams list their sites: those of one are changed for all.
        topology::apply_plan(&bus, &plan, RepairMode::Everything).await.map(|_| ())
    };
    set_up(names.get(..1).unwrap_or_default()).await?;
    let mut arguments = vec!["--nats".to_owned(), server.url(), "--model".into(), paths.model.display().to_string()];
    for pair in paths.onnxruntime.iter().map(|path| format!("onnxruntime={}", path.display())) {
        arguments.extend(["--set".into(), pair]);
    }
    arguments.extend(["--set".into(), "verifier.infer.replicas=1".into()]);
    let verifier = BenchWorker::start("verifier", &paths.folder, &arguments)?;
    let releases = format!("aggregator.store={}", paths.folder.join("releases").display());
    let releaser =
        BenchWorker::start("releaser", &paths.folder, &["--nats".into(), server.url(), "--set".into(), releases])?;
    let process = server.process();
    let resident = || process.and_then(process::resident_bytes_of);
    let settle = Duration::from_secs(if quick { 5 } else { 20 });
    let counted = Duration::from_secs(if quick { 10 } else { 60 });
    let mut running = JoinSet::new();
    let start = async |running: &mut JoinSet<Result<(), BenchError>>, names: &[SiteName]| {
        for (number, name) in names.iter().enumerate() {
            let bus = Bus::connect(&nats, name.as_str()).await?;
            running.spawn(simulate_site(bus, name.clone(), number, workload.clone()));
        }
        Ok::<_, BenchError>(())
    };
    start(&mut running, names.get(..1).unwrap_or_default()).await?;
    tokio::time::sleep(settle).await;
    let one = resident();
    set_up(&names).await?;
    start(&mut running, names.get(1..).unwrap_or_default()).await?;
    tokio::time::sleep(settle + IMAGE_INTERVAL.min(counted)).await;
    let cpu = |process: Option<u32>| process.and_then(process::cpu_time);
    let verdicts = async || reader::stream_level(&bus, topology::VERDICTS).await.map(|level| level.last_sequence);
    let (started, before, verdicts_before) =
        (Instant::now(), (cpu(process), cpu(Some(verifier.process()))), verdicts().await?);
    tokio::select! {
        () = tokio::time::sleep(counted) => {}
        Some(ended) = running.join_next() => ended??,
    }
    let seconds = started.elapsed().as_secs_f64();
    let each = |before: Option<Duration>, after: Option<Duration>| {
        Some(after?.saturating_sub(before?).as_secs_f64() * 1000.0 / seconds / sites as f64)
    };
    let cost = FleetCost {
        sites,
        server_bytes: (one, resident()),
        server_cpu_ms: each(before.0, cpu(process)),
        verifier_cpu_ms: each(before.1, cpu(Some(verifier.process()))),
        verifier_bytes: process::resident_bytes_of(verifier.process()),
        verdicts: verdicts().await? - verdicts_before,
        seconds,
    };
    running.shutdown().await;
    drop(bus);
    tokio::task::spawn_blocking(move || drop((verifier, releaser, server))).await?;
    Ok(cost)
}

/// Simulates a site's courier in the cloud until dropped.
async fn simulate_site(bus: Bus, name: SiteName, number: usize, workload: Workload) -> Result<(), BenchError> {
    let probing = async {
        loop {
            // A courier ignores a failed probe, too.
            let _ = reader::round_trip(&bus, TIMEOUT).await;
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
    };
    let consume = async |stream: &str, durable: String| -> Result<(), BenchError> {
        let mut puller = Puller::new(&bus, stream, &durable, 8);
        loop {
            puller.next().await.ack().await?;
        }
    };
    let publisher = Publisher::new(bus.clone(), TIMEOUT);
    let uploading = async {
        // Sites start at different times, because they are independent.
        tokio::time::sleep(IMAGE_INTERVAL.mul_f64(number as f64 * 0.618 % 1.0)).await;
        for sequence in 0_u64.. {
            for camera in 0..CAMERAS {
                let picture =
                    workload.images.get((number + camera) % workload.images.len().max(1)).cloned().unwrap_or_default();
                publisher.publish(&verify_request(&name, camera, sequence, &picture)?).await?;
                tokio::time::sleep(IMAGE_INTERVAL / CAMERAS as u32).await;
            }
            publish_report(&publisher, &name, sequence).await?;
        }
        Ok::<(), BenchError>(())
    };
    let verdicts = consume(topology::VERDICTS, topology::verdicts_durable(&name));
    let rounds = consume(topology::UPDATES, topology::rounds_durable(&name));
    let orders = consume(topology::ORDERS, topology::orders_durable(&name));
    tokio::select! {
        () = probing => Ok(()),
        ended = verdicts => ended,
        ended = rounds => ended,
        ended = orders => ended,
        ended = uploading => ended,
    }
}

fn verify_request(site: &SiteName, camera: usize, sequence: u64, picture: &[u8]) -> Result<Publication, BenchError> {
    let unusable = |error: schemas::IdError| BenchError::Dead { why: error.to_string() };
    let camera: CameraName = format!("cam-{camera}").parse().map_err(unusable)?;
    let stored = StorageStamp { site: site.clone(), camera: camera.clone(), sequence: sequence + 1, stored_at_ns: 0 };
    let task = Task::from_id(&stored, TaskId::new_random());
    let release = ReleaseId::from_sha256([1; 32]);
    let prediction = Prediction {
        label: "a".into(),
        confidence: 0.5,
        top: Vec::new(),
        labels: None,
        objects: None,
        release,
        temperature: None,
        novelty: None,
    };
    let now_ms = runtime::clock::now_ms();
    let provisional = Answer::for_task(&task, AnswerStage::Provisional, Route::Edge, Reason::LowConfidence, now_ms);
    let request = VerifyRequest {
        reason: VerifyReason::Doubtful,
        payload: Payload::Image(picture.to_vec().into()),
        provisional: provisional.with_prediction(prediction),
        hardness: None,
        ticket: None,
    };
    let payload = encode(&request).map_err(streams::CarryError::from)?;
    let to = subject::verify(VerifyReason::Doubtful, site, &camera);
    Ok(Publication::with_id(to, payload, task.id.to_string()))
}

/// Publishes a recognizer's report about its release.
async fn publish_report(publisher: &Publisher, site: &SiteName, slot: u64) -> Result<(), BenchError> {
    let release = ReleaseId::from_sha256([1; 32]);
    let mut counts = ReleaseCounts::for_release(release.clone());
    (counts.images, counts.doubtful) = (CAMERAS as u64 * 20, CAMERAS as u64);
    counts.confidence = MomentSums { count: counts.images, sum: 90.0, squares: 82.0 };
    let now_ms = runtime::clock::now_ms();
    let swap = Swap {
        site: site.clone(),
        worker: "recognizer-1".into(),
        model: ModelName::from_name("bench"),
        release,
        since_ms: now_ms,
        order: 0,
        refused: Vec::new(),
        runtime: "1.0".into(),
        memory_free_mib: None,
        memory_mib: 100,
        site_labels: Vec::new(),
        slot_ms: slot,
        slot_length_ms: 600_000,
        said_at_ms: now_ms,
        counts: vec![counts],
        left: false,
        agreements: Vec::new(),
    };
    let payload = encode(&swap).map_err(streams::CarryError::from)?;
    let publication =
        Publication::with_id(subject::swap(site, "recognizer-1", slot), payload, TaskId::new_random().to_string());
    publisher.publish(&publication).await?;
    Ok(())
}

//! Many sites of one cloud, with little to do each: what they cost the cloud's server and its workers. A simulated site is a
//! connection that does what a courier does in the cloud: it asks how long the way is, sends doubtful images up, takes its
//! verdicts, listens for rounds and orders, and reports its release.

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

/// Cameras of a site.
const CAMERAS: usize = 5;
/// Between two doubtful images of one camera.
const BETWEEN: Duration = Duration::from_secs(30);
/// How often a courier asks how long the way is.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Publications are retried for so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// What many sites were found to cost.
pub(super) struct FleetCost {
    sites: usize,
    /// Memory of the server with one site, and with all, bytes.
    server_bytes: (Option<u64>, Option<u64>),
    /// Processor time of server and verifier over the stretch, milliseconds for each second and site.
    server_cpu_ms: Option<f64>,
    verifier_cpu_ms: Option<f64>,
    verifier_bytes: Option<u64>,
    verdicts: u64,
    seconds: f64,
}

impl FleetCost {
    /// Memory of the server for each site, kB.
    pub(super) fn server_kb_per_site(&self) -> Option<f64> {
        let (one, all) = (self.server_bytes.0?, self.server_bytes.1?);
        Some(all.saturating_sub(one) as f64 / 1000.0 / (self.sites as f64 - 1.0).max(1.0))
    }

    /// What it says, and what that says about 10,000 sites.
    pub(super) fn notes(&self) -> Vec<String> {
        let mb = |bytes: Option<u64>| bytes.map_or_else(|| "?".into(), |bytes| format!("{:.0} MB", bytes as f64 / 1e6));
        let number =
            |value: Option<f64>, digits: usize| value.map_or_else(|| "?".into(), |value| format!("{value:.digits$}"));
        let (each_kb, cpu) = (self.server_kb_per_site(), self.server_cpu_ms);
        let paper = |value: Option<f64>, factor: f64, digits: usize| number(value.map(|value| value * factor), digits);
        vec![
            format!(
                "{} sites with {CAMERAS} cameras each, one doubtful image of a camera every {} s: {} verdicts in {:.0} s; the server had {} \
                 with one site and {} with all, the verifier {}; a second of a site took {} ms of the server's processor time and {} ms of \
                 the verifier's.",
                self.sites,
                BETWEEN.as_secs(),
                self.verdicts,
                self.seconds,
                mb(self.server_bytes.0),
                mb(self.server_bytes.1),
                mb(self.verifier_bytes),
                number(self.server_cpu_ms, 2),
                number(self.verifier_cpu_ms, 2)
            ),
            format!(
                "On paper, for 10,000 sites: {} GB of memory and {} cores for one server, were it the same for each; three durable \
                 consumers a site are 30,000, which one server was not tried with. Several hubs, each with some of the sites, share it.",
                paper(each_kb, 10_000.0 / 1e6, 1),
                paper(cpu, 10_000.0 / 1000.0, 1)
            ),
        ]
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        json!({
            "sites": self.sites, "server_bytes_one": self.server_bytes.0, "server_bytes_all": self.server_bytes.1,
            "server_cpu_ms_per_site_and_s": self.server_cpu_ms, "verifier_cpu_ms_per_site_and_s": self.verifier_cpu_ms,
            "verifier_bytes": self.verifier_bytes, "verdicts": self.verdicts, "seconds": self.seconds,
        })
    }
}

pub(super) async fn measure(
    ground: &TestbedPaths,
    workload: &Workload,
    sites: usize,
    quick: bool,
) -> Result<FleetCost, BenchError> {
    let names: Vec<SiteName> = (1..=sites)
        .map(|number| format!("site-{number}").parse())
        .collect::<Result<_, schemas::IdError>>()
        .map_err(|error| BenchError::Dead { why: error.to_string() })?;
    let store = ground.folder.join("hub");
    let settings = ServerSettings {
        encryption_key: None,
        program: ground.nats_server.clone(),
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
        topology::apply_plan(&bus, &plan, RepairMode::Missing).await.map(|_| ())
    };
    set_up(names.get(..1).unwrap_or_default()).await?;
    let mut arguments = vec!["--nats".to_owned(), server.url(), "--model".into(), ground.model.display().to_string()];
    for pair in ground.onnxruntime.iter().map(|path| format!("onnxruntime={}", path.display())) {
        arguments.extend(["--set".into(), pair]);
    }
    arguments.extend(["--set".into(), "verifier.infer.replicas=1".into()]);
    let verifier = BenchWorker::start("verifier", &ground.folder, &arguments)?;
    let releases = format!("aggregator.store={}", ground.folder.join("releases").display());
    let releaser =
        BenchWorker::start("releaser", &ground.folder, &["--nats".into(), server.url(), "--set".into(), releases])?;
    let process = server.process();
    let resident = || process.and_then(process::resident_bytes_of);
    let settle = Duration::from_secs(if quick { 5 } else { 20 });
    let counted = Duration::from_secs(if quick { 10 } else { 60 });
    let mut running = JoinSet::new();
    let start = async |running: &mut JoinSet<Result<(), BenchError>>, names: &[SiteName]| {
        for (number, name) in names.iter().enumerate() {
            let bus = Bus::connect(&nats, name.as_str()).await?;
            running.spawn(site(bus, name.clone(), number, workload.clone()));
        }
        Ok::<_, BenchError>(())
    };
    start(&mut running, names.get(..1).unwrap_or_default()).await?;
    tokio::time::sleep(settle).await;
    let one = resident();
    set_up(&names).await?;
    start(&mut running, names.get(1..).unwrap_or_default()).await?;
    tokio::time::sleep(settle + BETWEEN.min(counted)).await;
    let cpu = |process: Option<u32>| process.and_then(process::cpu_time);
    let verdicts = async || reader::stream_level(&bus, topology::VERDICTS).await.map(|level| level.last_sequence);
    let (begun, before, judged) = (Instant::now(), (cpu(process), cpu(Some(verifier.process()))), verdicts().await?);
    tokio::select! {
        () = tokio::time::sleep(counted) => {}
        Some(ended) = running.join_next() => ended??,
    }
    let seconds = begun.elapsed().as_secs_f64();
    let each = |before: Option<Duration>, after: Option<Duration>| {
        Some(after?.saturating_sub(before?).as_secs_f64() * 1000.0 / seconds / sites as f64)
    };
    let crowd = FleetCost {
        sites,
        server_bytes: (one, resident()),
        server_cpu_ms: each(before.0, cpu(process)),
        verifier_cpu_ms: each(before.1, cpu(Some(verifier.process()))),
        verifier_bytes: process::resident_bytes_of(verifier.process()),
        verdicts: verdicts().await? - judged,
        seconds,
    };
    running.shutdown().await;
    drop(bus);
    tokio::task::spawn_blocking(move || drop((verifier, releaser, server))).await?;
    Ok(crowd)
}

/// What a site's courier does in the cloud, until it is dropped.
async fn site(bus: Bus, name: SiteName, number: usize, workload: Workload) -> Result<(), BenchError> {
    let asking = async {
        loop {
            // A busy server answers late, and a courier waits as well.
            let _ = reader::round_trip(&bus, PATIENCE).await;
            tokio::time::sleep(ASK_EVERY).await;
        }
    };
    let taking = async |stream: &str, durable: String| -> Result<(), BenchError> {
        let mut puller = Puller::new(&bus, stream, &durable, 8);
        loop {
            puller.next().await.ack().await?;
        }
    };
    let publisher = Publisher::new(bus.clone(), PATIENCE);
    let sending = async {
        // Not all at once: sites know nothing of each other.
        tokio::time::sleep(BETWEEN.mul_f64(number as f64 * 0.618 % 1.0)).await;
        for sequence in 0_u64.. {
            for camera in 0..CAMERAS {
                let picture =
                    workload.images.get((number + camera) % workload.images.len().max(1)).cloned().unwrap_or_default();
                publisher.publish(&doubtful(&name, camera, sequence, &picture)?).await?;
                tokio::time::sleep(BETWEEN / CAMERAS as u32).await;
            }
            report(&publisher, &name, sequence).await?;
        }
        Ok::<(), BenchError>(())
    };
    let verdicts = taking(topology::VERDICTS, topology::verdicts_durable(&name));
    let rounds = taking(topology::UPDATES, topology::rounds_durable(&name));
    let orders = taking(topology::ORDERS, topology::orders_durable(&name));
    tokio::select! {
        () = asking => Ok(()),
        ended = verdicts => ended,
        ended = rounds => ended,
        ended = orders => ended,
        ended = sending => ended,
    }
}

fn doubtful(site: &SiteName, camera: usize, sequence: u64, picture: &[u8]) -> Result<Publication, BenchError> {
    let unusable = |error: schemas::IdError| BenchError::Dead { why: error.to_string() };
    let camera: CameraName = format!("cam-{camera}").parse().map_err(unusable)?;
    let stored = StorageStamp { site: site.clone(), camera: camera.clone(), sequence: sequence + 1, stored_at_ns: 0 };
    let task = Task::from_id(&stored, TaskId::new_random());
    let release = ReleaseId::from_sha256([1; 32]);
    let opinion = Prediction {
        label: "a".into(),
        confidence: 0.5,
        top: Vec::new(),
        labels: None,
        release,
        temperature: None,
        novelty: None,
    };
    let now_ms = runtime::clock::now_ms();
    let provisional = Answer::for_task(&task, AnswerStage::Provisional, Route::Edge, Reason::LowConfidence, now_ms);
    let request = VerifyRequest {
        reason: VerifyReason::Doubtful,
        payload: Payload::Image(picture.to_vec().into()),
        provisional: provisional.with_prediction(opinion),
        hardness: None,
        ticket: None,
    };
    let payload = encode(&request).map_err(streams::CarryError::from)?;
    let to = subject::verify(VerifyReason::Doubtful, site, &camera);
    Ok(Publication::with_id(to, payload, task.id.to_string()))
}

/// What a site's recognizer says of its release.
async fn report(publisher: &Publisher, site: &SiteName, slot: u64) -> Result<(), BenchError> {
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

//! Measures the overhead of the pipeline over a bare loop: images published to a file-backed stream and recognized by a
//! worker process, against decode, resize and infer in this process.
//!
//! Both use the same cores and images and alternate over several rounds. Every figure is a median over the rounds, and
//! every ratio compares measurements of the same round. Covers both durabilities, closed loops with 1 and 16 images in
//! flight, and an open loop at a fixed rate.

mod results;

use std::path::PathBuf;
use std::time::Duration;

use runtime::Shutdown;
use serde::Serialize;
use serde_json::json;
use streams::server::Durability;
use vision::{InferenceSettings, OnnxRuntime};

use crate::bench_site::{BenchSite, ClientIsolation, TestbedPaths};
use crate::error::BenchError;
use crate::load_generator::{AnswerMilestone, LoadGenerator};
use crate::measurement_window::{MeasurementWindow, WindowLength};
use crate::report::{BenchMachine, BenchReport};
use crate::warm_replicas::WarmReplicas;
use crate::workload::Workload;

/// Images in flight for throughput: enough to keep two replicas busy across the broker.
const IN_FLIGHT: usize = 16;
/// Default rate of the open loop, as a share of the bare loop's throughput.
const OPEN_SHARE: f64 = 0.6;

/// Options of `bench recognize`.
#[derive(Debug, Clone, Default)]
pub(crate) struct RecognizeBenchOptions {
    /// Folder of the model; the project's own model if absent.
    pub model: Option<PathBuf>,
    /// Folder of the images; generated if absent.
    pub images: Option<PathBuf>,
    /// Folder for the servers' stores during the run; the system's temporary folder if absent.
    pub store: Option<PathBuf>,
    /// Rate of the open loop, images per second; a share of the bare loop's if absent.
    pub rate_per_s: Option<f64>,
    /// Finish in less than a minute, with shorter windows.
    pub quick: bool,
    /// The nats-server program; searched for if absent.
    pub nats_server: Option<PathBuf>,
    /// The ONNX Runtime library; searched for if absent.
    pub onnxruntime: Option<PathBuf>,
    /// Inference settings of the bare loop and of the recognizer.
    pub infer: InferenceSettings,
}

struct RecognizeBenchEffort {
    rounds: usize,
    length: WindowLength,
}

impl RecognizeBenchEffort {
    fn new(quick: bool) -> Self {
        let ms = Duration::from_millis;
        match quick {
            true => Self { rounds: 3, length: WindowLength { lead: ms(150), counted: ms(850) } },
            false => Self { rounds: 5, length: WindowLength { lead: ms(300), counted: ms(3000) } },
        }
    }
}

/// A measured configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
enum RecognizeCase {
    /// Bare loop, all replicas.
    Bare,
    /// Bare loop, one replica.
    BareAlone,
    /// Pipeline, closed loop.
    Pipeline { durability: Durability, in_flight: usize },
    /// Pipeline, open loop.
    Open { durability: Durability },
    /// Pipeline, durability fast, closed loop, with one least-privilege user per client; encrypted or not.
    Guarded { encrypted: bool, in_flight: usize },
    /// Publishing only, closed loop.
    Publish { durability: Durability, in_flight: usize },
}

/// All cases in table order; rounds alternate between forward and reverse order.
const CASES: [RecognizeCase; 14] = [
    RecognizeCase::Bare,
    RecognizeCase::Pipeline { durability: Durability::Fast, in_flight: IN_FLIGHT },
    RecognizeCase::Guarded { encrypted: false, in_flight: IN_FLIGHT },
    RecognizeCase::Guarded { encrypted: true, in_flight: IN_FLIGHT },
    RecognizeCase::Pipeline { durability: Durability::PowerSafe, in_flight: IN_FLIGHT },
    RecognizeCase::Publish { durability: Durability::Fast, in_flight: IN_FLIGHT },
    RecognizeCase::Publish { durability: Durability::PowerSafe, in_flight: IN_FLIGHT },
    RecognizeCase::BareAlone,
    RecognizeCase::Pipeline { durability: Durability::Fast, in_flight: 1 },
    RecognizeCase::Pipeline { durability: Durability::PowerSafe, in_flight: 1 },
    RecognizeCase::Guarded { encrypted: false, in_flight: 1 },
    RecognizeCase::Guarded { encrypted: true, in_flight: 1 },
    RecognizeCase::Open { durability: Durability::Fast },
    RecognizeCase::Open { durability: Durability::PowerSafe },
];

impl RecognizeCase {
    fn title(self, replicas: usize, rate_per_s: f64) -> String {
        let word = |durability| match durability {
            Durability::PowerSafe => "power-safe",
            Durability::Fast => "fast",
        };
        match self {
            Self::Bare => format!("bare loop, {replicas} threads"),
            Self::BareAlone => "bare loop, 1 thread".into(),
            Self::Pipeline { durability, in_flight } => {
                format!("pipeline, {}, {in_flight} in flight", word(durability))
            }
            Self::Guarded { encrypted, in_flight } => {
                let how = if encrypted { "users with permissions, TLS" } else { "users with permissions" };
                format!("pipeline, fast, {how}, {in_flight} in flight")
            }
            Self::Open { durability } => format!("pipeline, {}, open loop at {rate_per_s:.0}/s", word(durability)),
            Self::Publish { durability, in_flight } => {
                format!("publishing only, {}, {in_flight} in flight", word(durability))
            }
        }
    }
}

/// Two sites of one durability: one recognizes, the other only stores.
struct DurabilityPair {
    // Connections drop before their servers.
    load: LoadGenerator,
    site: BenchSite,
    store_load: LoadGenerator,
    store: BenchSite,
}

impl DurabilityPair {
    async fn start(durability: Durability, paths: &TestbedPaths, workload: &Workload) -> Result<Self, BenchError> {
        let label = match durability {
            Durability::PowerSafe => "power-safe",
            Durability::Fast => "fast",
        };
        let mut site = BenchSite::start(label, durability, paths).await?;
        site.start_recognizer(paths)?;
        let load = LoadGenerator::open(&site, workload.images.clone()).await?;
        let first = load.send_image(AnswerMilestone::Answered, std::time::Instant::now());
        tokio::select! {
            answered = first => { answered?; }
            ended = site.wait_for_exit() => return Err(ended),
        }
        let store = BenchSite::start(&format!("{label}-store"), durability, paths).await?;
        let store_load = LoadGenerator::open(&store, workload.images.clone()).await?;
        Ok(Self { site, load, store, store_load })
    }
}

/// A recognizing site with client isolation.
struct GuardedSite {
    // The connection drops before its server.
    load: LoadGenerator,
    site: BenchSite,
}

impl GuardedSite {
    async fn start(isolation: ClientIsolation, paths: &TestbedPaths, workload: &Workload) -> Result<Self, BenchError> {
        let label = if isolation == ClientIsolation::Tls { "tls" } else { "users" };
        let mut site = BenchSite::start_isolated(label, Durability::Fast, paths, isolation).await?;
        site.start_recognizer(paths)?;
        let load = LoadGenerator::open(&site, workload.images.clone()).await?;
        let first = load.send_image(AnswerMilestone::Answered, std::time::Instant::now());
        tokio::select! {
            answered = first => { answered?; }
            ended = site.wait_for_exit() => return Err(ended),
        }
        Ok(Self { load, site })
    }
}

struct RecognizeBench {
    bare: WarmReplicas,
    users: GuardedSite,
    tls: GuardedSite,
    fast: DurabilityPair,
    safe: DurabilityPair,
    rate_per_s: f64,
}

impl RecognizeBench {
    fn pair(&mut self, durability: Durability) -> &mut DurabilityPair {
        match durability {
            Durability::Fast => &mut self.fast,
            Durability::PowerSafe => &mut self.safe,
        }
    }

    async fn measure(&mut self, case: RecognizeCase, length: WindowLength) -> Result<MeasurementWindow, BenchError> {
        let rate_per_s = self.rate_per_s;
        match case {
            RecognizeCase::Bare => self.bare.run(usize::MAX, length).await,
            RecognizeCase::BareAlone => self.bare.run(1, length).await,
            RecognizeCase::Publish { durability, in_flight } => {
                let DurabilityPair { store, store_load, .. } = self.pair(durability);
                let window =
                    store_load.run_closed_loop(AnswerMilestone::Stored, in_flight, &store.processes(), length).await?;
                store.clear_streams().await?;
                Ok(window)
            }
            RecognizeCase::Guarded { encrypted, in_flight } => {
                let GuardedSite { site, load } = if encrypted { &mut self.tls } else { &mut self.users };
                measure_closed_loop(site, load, in_flight, length).await
            }
            RecognizeCase::Pipeline { durability, in_flight } => {
                let DurabilityPair { site, load, .. } = self.pair(durability);
                measure_closed_loop(site, load, in_flight, length).await
            }
            RecognizeCase::Open { durability } => {
                let DurabilityPair { site, load, .. } = self.pair(durability);
                let processes = site.processes();
                let window = tokio::select! {
                    window = load.run_at_rate(rate_per_s, &processes, length) => window?,
                    ended = site.wait_for_exit() => return Err(ended),
                };
                site.clear_streams().await?;
                Ok(window)
            }
        }
    }
}

/// Measures a closed loop, then empties the streams.
async fn measure_closed_loop(
    site: &mut BenchSite,
    load: &LoadGenerator,
    in_flight: usize,
    length: WindowLength,
) -> Result<MeasurementWindow, BenchError> {
    let processes = site.processes();
    let window = tokio::select! {
        window = load.run_closed_loop(AnswerMilestone::Answered, in_flight, &processes, length) => window?,
        ended = site.wait_for_exit() => return Err(ended),
    };
    site.clear_streams().await?;
    Ok(window)
}

/// Runs the bench: some minutes, or less than one if `quick`.
pub(crate) async fn run(options: &RecognizeBenchOptions, shutdown: Shutdown) -> Result<BenchReport, BenchError> {
    tokio::select! {
        report = measure(options) => report,
        () = shutdown.wait_for_request() => Err(BenchError::Stopped),
    }
}

async fn measure(options: &RecognizeBenchOptions) -> Result<BenchReport, BenchError> {
    let folder = match &options.store {
        Some(folder) => tempfile::tempdir_in(folder).map_err(BenchError::file(folder))?,
        None => tempfile::tempdir().map_err(BenchError::file(std::env::temp_dir()))?,
    };
    let mut machine = BenchMachine::here(folder.path());
    print_step("preparing images, model and servers");
    let (model, images) = (options.model.clone(), options.images.clone());
    let workload = run_blocking(move || Workload::open(model.as_deref(), images.as_deref())).await?;
    let (loading, library, infer) = (workload.clone(), options.onnxruntime.clone(), options.infer.clone());
    let bare =
        run_blocking(move || WarmReplicas::open(&loading, &OnnxRuntime::find_and_load(library.as_deref())?, &infer))
            .await?;
    let paths = TestbedPaths {
        folder: folder.path().to_owned(),
        nats_server: options.nats_server.clone(),
        onnxruntime: options.onnxruntime.clone(),
        model: workload.model.clone(),
        infer: options.infer.clone(),
    };
    let fast = DurabilityPair::start(Durability::Fast, &paths, &workload).await?;
    let safe = DurabilityPair::start(Durability::PowerSafe, &paths, &workload).await?;
    let users = GuardedSite::start(ClientIsolation::Users, &paths, &workload).await?;
    let tls = GuardedSite::start(ClientIsolation::Tls, &paths, &workload).await?;
    machine.nats_server = Some(fast.site.bus.server_version());
    let replicas = bare.replicas();
    let mut bench = RecognizeBench { bare, users, tls, fast, safe, rate_per_s: 0.0 };

    let effort = RecognizeBenchEffort::new(options.quick);
    print_step("warming up");
    let warm = WindowLength { lead: effort.length.lead, counted: effort.length.counted / 2 };
    let bare = bench.measure(RecognizeCase::Bare, warm).await?;
    bench.rate_per_s = options.rate_per_s.unwrap_or((bare.images_per_s * OPEN_SHARE / 10.0).round().max(1.0) * 10.0);
    for durability in [Durability::Fast, Durability::PowerSafe] {
        bench.measure(RecognizeCase::Pipeline { durability, in_flight: IN_FLIGHT }, warm).await?;
    }
    for encrypted in [false, true] {
        bench.measure(RecognizeCase::Guarded { encrypted, in_flight: IN_FLIGHT }, warm).await?;
    }
    let mut windows: [Vec<MeasurementWindow>; CASES.len()] = Default::default();
    for round in 0..effort.rounds {
        let mut order: Vec<usize> = (0..CASES.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for (step, index) in order.into_iter().enumerate() {
            let title = CASES[index].title(replicas, bench.rate_per_s);
            print_step(&format!("round {} of {}, {} of {}: {title}", round + 1, effort.rounds, step + 1, CASES.len()));
            windows[index].push(bench.measure(CASES[index], effort.length).await?);
        }
    }
    let memory = results::PeakMemory::of([&bench.fast.site, &bench.safe.site]);
    let (rate_per_s, open_rate_given) = (bench.rate_per_s, options.rate_per_s.is_some());
    // Dropping blocks until the processes have exited.
    tokio::task::spawn_blocking(move || drop(bench)).await?;
    let own = options.model.is_none() && options.images.is_none();
    let threads = replicas * options.infer.threads.max(1);
    let cpu_share = windows.first().and_then(|bare| results::cpu_share(bare, threads.min(machine.cores)));
    Ok(BenchReport {
        bench: "recognize",
        settings: json!({
            "quick": options.quick,
            "rounds": effort.rounds,
            "counted_s": effort.length.counted.as_secs_f64(),
            "replicas": replicas,
            "threads_per_replica": options.infer.threads,
            "max_batch": options.infer.max_batch,
            "open_loop_rate_per_s": rate_per_s,
            "open_loop_rate_given": open_rate_given,
            "cores_got_by_bare_loop_ratio": cpu_share,
            "workload": workload.summary,
        }),
        rows: results::rows(&windows, replicas, rate_per_s),
        table: results::table(&windows, replicas, rate_per_s),
        headline: results::headline(&windows, &memory, own),
        notes: results::notes(&machine, &memory, &workload, replicas, cpu_share),
        charts: Vec::new(),
        machine,
    })
}

async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BenchError> + Send + 'static,
) -> Result<T, BenchError> {
    tokio::task::spawn_blocking(work).await?
}

fn print_step(what: &str) {
    eprintln!("bench: {what}");
}

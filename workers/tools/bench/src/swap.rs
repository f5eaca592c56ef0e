//! Measures the cost of release swaps for answers: a site under a steady load of 80 % of its capacity swaps between two
//! releases. Windows with and without swaps alternate; latency figures are differences within a round. Orders arrive as
//! a courier delivers them: a note in the site's ledger, and the package in its bucket. From there on everything is as in
//! production, including the trial in a separate process.

mod results;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use os::process;
use releases::prepare::{self, ReleaseOrigin};
use releases::trial::TrialRunner;
use runtime::Shutdown;
use schemas::{ModelName, Order, Release, ReleaseStage, encode};
use serde_json::json;
use streams::server::Durability;
use streams::{Blobs, Publication, Publisher, subject};
use training::folder;
use vision::{InferenceSettings, Model};

use crate::bench_site::{BenchSite, TestbedPaths};
use crate::error::BenchError;
use crate::load_generator::{AnswerMilestone, LoadGenerator};
use crate::measurement_window::{MeasurementWindow, WindowLength};
use crate::report::{BenchMachine, BenchReport};
use crate::workload::Workload;
use results::SwapBenchRound;

/// Images in flight for the capacity measurement.
const IN_FLIGHT: usize = 16;
/// Load, as a share of the capacity.
const LOAD_SHARE: f64 = 0.8;
/// Factor between the weights of the two releases.
const WEIGHT_FACTOR: f32 = 1.01;
/// Pause between a swap and the next order.
const SWAP_PAUSE: Duration = Duration::from_millis(400);
/// Time limit of a swap.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Options of `bench swap`.
#[derive(Debug, Clone, Default)]
pub(crate) struct SwapBenchOptions {
    /// Folder of the model; the project's own model if absent.
    pub model: Option<PathBuf>,
    /// Folder of the images; generated if absent.
    pub images: Option<PathBuf>,
    /// Folder for the server's store during the run; the system's temporary folder if absent.
    pub store: Option<PathBuf>,
    /// Total number of swaps, even, at least 2.
    pub swaps: usize,
    /// Finish in a minute, with fewer swaps.
    pub quick: bool,
    /// The nats-server program; searched for if absent.
    pub nats_server: Option<PathBuf>,
    /// The ONNX Runtime library; searched for if absent.
    pub onnxruntime: Option<PathBuf>,
    /// Inference settings of the recognizer.
    pub infer: InferenceSettings,
}

/// Runs the bench; takes some minutes.
pub(crate) async fn run(options: &SwapBenchOptions, shutdown: Shutdown) -> Result<BenchReport, BenchError> {
    tokio::select! {
        report = measure(options) => report,
        () = shutdown.wait_for_request() => Err(BenchError::Stopped),
    }
}

/// The two alternating releases.
struct ReleasePair {
    model: ModelName,
    releases: [Release; 2],
}

async fn measure(options: &SwapBenchOptions) -> Result<BenchReport, BenchError> {
    let folder = match &options.store {
        Some(folder) => tempfile::tempdir_in(folder).map_err(BenchError::file(folder))?,
        None => tempfile::tempdir().map_err(BenchError::file(std::env::temp_dir()))?,
    };
    let mut machine = BenchMachine::here(folder.path());
    print_step("preparing images, releases and a server");
    let (model, images) = (options.model.clone(), options.images.clone());
    let workload = run_blocking(move || Workload::open(model.as_deref(), images.as_deref())).await?;
    let paths = TestbedPaths {
        folder: folder.path().to_owned(),
        nats_server: options.nats_server.clone(),
        onnxruntime: options.onnxruntime.clone(),
        model: workload.model.clone(),
        infer: options.infer.clone(),
    };
    let mut site = BenchSite::start("site", Durability::PowerSafe, &paths).await?;
    machine.nats_server = Some(site.bus.server_version());
    let pair = prepare_pair(&workload.model, options.onnxruntime.clone(), folder.path(), &site).await?;
    site.start_recognizer(&paths)?;
    let load = LoadGenerator::open(&site, workload.images.clone()).await?;
    tokio::select! {
        answered = load.send_image(AnswerMilestone::Answered, Instant::now()) => { answered?; }
        ended = site.wait_for_exit() => return Err(ended),
    }
    let effort = SwapBenchEffort::new(options);
    let processes = site.processes();
    let recognizer = site.recognizer_process().unwrap_or_default();
    let resident = || process::resident_bytes_of(recognizer).map(|bytes| bytes as f64 / (1 << 20) as f64);
    let mut orders = OrderSender { pair, number: 0, site: &site, load: &load };
    // Two swaps and a full load first, so that one-time allocations do not count as growth.
    let before_any_mib = resident();
    let first = vec![orders.swap().await?, orders.swap().await?];
    print_step("measuring the capacity");
    let capacity = load.run_closed_loop(AnswerMilestone::Answered, IN_FLIGHT, &processes, effort.capacity).await?;
    let rate_per_s = (capacity.images_per_s * LOAD_SHARE).max(1.0);
    let mut memory_mib = Vec::new();
    let mut windows = Vec::new();
    for round in 0..effort.rounds {
        print_step(&format!(
            "round {} of {}: {rate_per_s:.0} images per second, without swaps",
            round + 1,
            effort.rounds
        ));
        let plain = load.run_at_rate(rate_per_s, &processes, effort.window).await?;
        // Always after the same work: a process keeps memory that it allocated for a backlog.
        memory_mib.push(resident());
        print_step(&format!("round {} of {}: {} swaps", round + 1, effort.rounds, effort.swaps));
        let (swapped, took) = measure_with_swaps(&mut orders, rate_per_s, &processes, effort.swaps).await?;
        windows.push(SwapBenchRound { plain, swapped, took });
    }
    print_step("final window without swaps");
    load.run_at_rate(rate_per_s, &processes, effort.window).await?;
    memory_mib.push(resident());
    let lost = count_lost(&site).await?;
    let by_release = load.answers_by_release();
    let swaps = effort.rounds * effort.swaps;
    // Dropping blocks until the processes have exited.
    tokio::task::spawn_blocking(move || drop((load, site))).await?;
    let result =
        results::SwapBenchResult { rounds: windows, first, memory_mib, before_any_mib, lost, by_release, swaps };
    Ok(BenchReport {
        bench: "swap",
        settings: json!({
            "quick": options.quick,
            "rounds": effort.rounds,
            "swaps": swaps,
            "capacity_per_s": capacity.images_per_s,
            "rate_per_s": rate_per_s,
            "load_share": LOAD_SHARE,
            "workload": workload.summary,
        }),
        rows: result.rows(),
        table: result.table(),
        headline: result.headline(),
        notes: result.notes(capacity.images_per_s, rate_per_s),
        charts: Vec::new(),
        machine,
    })
}

struct SwapBenchEffort {
    rounds: usize,
    /// Swaps per round.
    swaps: usize,
    capacity: WindowLength,
    window: WindowLength,
}

impl SwapBenchEffort {
    fn new(options: &SwapBenchOptions) -> Self {
        let ms = Duration::from_millis;
        let (rounds, counted) = if options.quick { (2, 5000) } else { (5, 15_000) };
        Self {
            rounds,
            // An even number, so that each round starts with the same release.
            swaps: (options.swaps / rounds / 2).max(1) * 2,
            capacity: WindowLength { lead: ms(1000), counted: ms(counted / 2) },
            window: WindowLength { lead: ms(500), counted: ms(counted) },
        }
    }
}

/// Packages the model and a copy with scaled weights, and stores both in the site's bucket.
async fn prepare_pair(
    model: &Path,
    onnxruntime: Option<PathBuf>,
    work: &Path,
    site: &BenchSite,
) -> Result<ReleasePair, BenchError> {
    let (from, into) = (model.to_owned(), work.join("other"));
    let models = run_blocking(move || {
        let root = Model::load(&from)?;
        let graph = autograd::onnx::read(&root.graph)?;
        let mut weights = BTreeMap::new();
        for (name, _) in graph.floats()? {
            let scaled = graph.weight(&name)?.into_iter().map(|value| value * WEIGHT_FACTOR).collect();
            weights.insert(name, scaled);
        }
        let other = folder::write(&root, &graph, &weights, &into)?;
        Ok([root, other])
    });
    let models = models.await?;
    let (trial, blobs) = (TrialRunner::of_this_program(onnxruntime), Blobs::open(&site.bus).await?);
    let mut releases = Vec::new();
    for model in &models {
        let origin = ReleaseOrigin { words: "bench".into(), ..ReleaseOrigin::default() };
        let prepared = prepare::prepare(model, origin, &trial, work).await;
        let (release, file) = prepared.map_err(|fault| BenchError::Dead { why: fault.reason })?;
        let bytes = tokio::fs::read(&file).await.map_err(BenchError::file(&file))?;
        for piece in bytes.chunks(schemas::limits::PIECE_BYTES) {
            blobs.store_blob(piece).await?;
        }
        releases.push(release);
    }
    let model = ModelName::from_name(&models[0].description.name);
    match <[Release; 2]>::try_from(releases) {
        Ok(releases) => Ok(ReleasePair { model, releases }),
        Err(_) => Err(BenchError::Dead { why: "expected two releases".into() }),
    }
}

/// Sends orders, alternating between the two releases.
struct OrderSender<'a> {
    pair: ReleasePair,
    number: u64,
    site: &'a BenchSite,
    load: &'a LoadGenerator,
}

impl OrderSender<'_> {
    /// Orders the other release and waits for its first answer; returns the time this took.
    async fn swap(&mut self) -> Result<Duration, BenchError> {
        self.number += 1;
        let release = self.pair.releases[(self.number % 2) as usize].clone();
        let wanted = release.release.clone();
        let order = Order {
            site: self.site.name.clone(),
            model: self.pair.model.clone(),
            number: self.number,
            release,
            stage: ReleaseStage::Stable,
            said_at_ms: runtime::clock::now_ms(),
            signature: None,
        };
        let subject = subject::note_subject(&subject::order_note(&self.pair.model));
        let payload = encode(&order).map_err(streams::CarryError::from)?.into();
        let note = Publication { subject, payload, headers: Vec::new(), first_only: false };
        let started = Instant::now();
        Publisher::new(self.site.bus.clone(), TIMEOUT).publish(&note).await?;
        let is_serving = async {
            while self.load.latest_release().as_ref() != Some(&wanted) {
                // Without load, an image must be sent to get an answer from the new release.
                if self.load.is_idle() {
                    self.load.send_image(AnswerMilestone::Answered, Instant::now()).await?;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(started.elapsed())
        };
        match tokio::time::timeout(TIMEOUT, is_serving).await {
            Ok(took) => took,
            Err(_) => Err(BenchError::NoAnswer { timeout: TIMEOUT }),
        }
    }
}

/// Runs `swaps` swaps under load; the window covers them.
async fn measure_with_swaps(
    orders: &mut OrderSender<'_>,
    rate_per_s: f64,
    processes: &crate::measurement_window::NamedProcesses,
    swaps: usize,
) -> Result<(MeasurementWindow, Vec<Duration>), BenchError> {
    const LEAD: Duration = Duration::from_millis(500);
    let (done, wait_for_done) = tokio::sync::oneshot::channel();
    let load = orders.load.clone();
    // Fails only if the swaps failed, which is reported below.
    let end = async { drop(wait_for_done.await) };
    let loading = load.run_at_rate_until(rate_per_s, processes, LEAD, end);
    let ordering = async {
        tokio::time::sleep(2 * LEAD).await;
        let mut took = Vec::new();
        for _ in 0..swaps {
            took.push(orders.swap().await?);
            tokio::time::sleep(SWAP_PAUSE).await;
        }
        // Fails only if the load has stopped already.
        let _ = done.send(());
        Ok::<_, BenchError>(took)
    };
    tokio::try_join!(loading, ordering)
}

/// Counts stored images without a final answer, after waiting for the last ones.
async fn count_lost(site: &BenchSite) -> Result<u64, BenchError> {
    let mut left = u64::MAX;
    for _ in 0..50 {
        let images = streams::reader::stream_level(&site.bus, streams::topology::IMAGES).await?;
        let answers = streams::reader::stream_level(&site.bus, streams::topology::ANSWERS).await?;
        left = images.messages.saturating_sub(answers.messages);
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(left)
}

async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BenchError> + Send + 'static,
) -> Result<T, BenchError> {
    tokio::task::spawn_blocking(work).await?
}

fn print_step(what: &str) {
    eprintln!("bench: {what}");
}

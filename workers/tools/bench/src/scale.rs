//! Measures scaling: replicas as threads of one worker and as separate workers, autoscaling under a load step, and the cost
//! of many sites for the cloud.
//!
//! Cases alternate between forward and reverse order over several rounds; every figure is a median over the rounds. All
//! workers are separate `tributary` processes.

mod fleet_cost;
mod step_response;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use runtime::Shutdown;
use serde_json::{Value, json};
use streams::fleet;
use streams::server::Durability;
use vision::{InferenceSettings, Replicas};

use crate::bench_site::{BenchSite, TestbedPaths};
use crate::chart::{Chart, ChartLine};
use crate::error::BenchError;
use crate::load_generator::{AnswerMilestone, LoadGenerator};
use crate::measurement_window::{MeasurementWindow, WindowLength};
use crate::report::{BenchMachine, BenchReport, HeadlineFigure, ReportChart, ReportTable};
use crate::stats::median;
use crate::workload::Workload;

/// Images in flight: enough to keep four replicas busy across the broker.
const IN_FLIGHT: usize = 32;
/// Load before the step, as a share of one replica's throughput. Five times as much is more than one replica can process,
/// and less than two can on two cores.
const BASE_SHARE: f64 = 0.25;
/// Compared numbers of replicas.
const COUNTS: [usize; 3] = [1, 2, 4];

/// Options of `bench scale`.
#[derive(Debug, Clone, Default)]
pub(crate) struct ScaleBenchOptions {
    /// Folder of the model; the project's own model if absent.
    pub model: Option<PathBuf>,
    /// Folder of the images; generated if absent.
    pub images: Option<PathBuf>,
    /// Folder for the servers' stores during the run; the system's temporary folder if absent.
    pub store: Option<PathBuf>,
    /// Simulated sites of one cloud, at least 1.
    pub sites: usize,
    /// Finish in about two minutes, with shorter windows.
    pub quick: bool,
    /// The nats-server program; searched for if absent.
    pub nats_server: Option<PathBuf>,
    /// The ONNX Runtime library; searched for if absent.
    pub onnxruntime: Option<PathBuf>,
}

/// How replicas are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ReplicaMode {
    Threads,
    Processes,
}

impl ReplicaMode {
    fn as_str(self) -> &'static str {
        match self {
            ReplicaMode::Threads => "threads",
            ReplicaMode::Processes => "processes",
        }
    }
}

/// One case in one round.
struct ScaleRun {
    window: MeasurementWindow,
    /// Images of the busiest process relative to the mean; absent for one process.
    unfair: Option<f64>,
}

/// Runs the bench; takes some minutes.
pub(crate) async fn run(options: &ScaleBenchOptions, shutdown: Shutdown) -> Result<BenchReport, BenchError> {
    tokio::select! {
        report = measure(options) => report,
        () = shutdown.wait_for_request() => Err(BenchError::Stopped),
    }
}

async fn measure(options: &ScaleBenchOptions) -> Result<BenchReport, BenchError> {
    let folder = match &options.store {
        Some(folder) => tempfile::tempdir_in(folder).map_err(BenchError::file(folder))?,
        None => tempfile::tempdir().map_err(BenchError::file(std::env::temp_dir()))?,
    };
    let mut machine = BenchMachine::here(folder.path());
    let (model, images) = (options.model.clone(), options.images.clone());
    let workload = tokio::task::spawn_blocking(move || Workload::open(model.as_deref(), images.as_deref())).await??;
    let paths = |replicas: usize| TestbedPaths {
        folder: folder.path().to_owned(),
        nats_server: options.nats_server.clone(),
        onnxruntime: options.onnxruntime.clone(),
        model: workload.model.clone(),
        infer: InferenceSettings { replicas: Replicas::Count(replicas), ..InferenceSettings::default() },
    };
    let rounds = if options.quick { 2 } else { 5 };
    let counted = Duration::from_secs(if options.quick { 2 } else { 4 });
    let length = WindowLength { lead: Duration::from_millis(500), counted };
    let mut site = BenchSite::start("site", Durability::Fast, &paths(1)).await?;
    machine.nats_server = Some(site.bus.server_version());
    let mut cases: Vec<(ReplicaMode, usize)> =
        COUNTS.iter().flat_map(|count| [(ReplicaMode::Threads, *count), (ReplicaMode::Processes, *count)]).collect();
    let mut runs: BTreeMap<(ReplicaMode, usize), Vec<ScaleRun>> = BTreeMap::new();
    for round in 0..rounds {
        for (how, count) in &cases {
            print_step(&format!("round {} of {rounds}: {count} as {}", round + 1, how.as_str()));
            let (each, processes) = if *how == ReplicaMode::Threads { (*count, 1) } else { (1, *count) };
            for _ in 0..processes {
                site.start_recognizer(&paths(each))?;
            }
            runs.entry((*how, *count)).or_default().push(run_case(&mut site, &workload, processes, length).await?);
            site = without_recognizers(site).await?;
            site.clear_streams().await?;
        }
        cases.reverse();
    }
    let rate_of = |how: ReplicaMode, count: usize| {
        median(&runs[&(how, count)].iter().map(|run| run.window.images_per_s).collect::<Vec<_>>())
    };
    let base_per_s = BASE_SHARE * rate_of(ReplicaMode::Threads, 1);
    print_step("load step");
    let response = step_response::measure(&mut site, &paths(1), &workload, base_per_s, options.quick).await?;
    tokio::task::spawn_blocking(move || drop(site)).await?;
    print_step(&format!("{} sites on one cloud", options.sites));
    let cost = fleet_cost::measure(&paths(1), &workload, options.sites, options.quick).await?;
    Ok(report(options, machine, &workload, &runs, &response, &cost, base_per_s))
}

/// Measures one case once.
async fn run_case(
    site: &mut BenchSite,
    workload: &Workload,
    processes: usize,
    length: WindowLength,
) -> Result<ScaleRun, BenchError> {
    let load = LoadGenerator::open(site, workload.images.clone()).await?;
    let workers = site.recognizer_processes();
    tokio::select! {
        ready = wait_until_working(&load, site.bus.clone(), workers.clone()) => ready?,
        ended = site.wait_for_exit() => return Err(ended),
    }
    let measured = site.processes();
    let window = load.run_closed_loop(AnswerMilestone::Answered, IN_FLIGHT, &measured, length).await?;
    // Heartbeats report what each worker did, at most a second later.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let finished: Vec<f64> =
        recognizer_heartbeats(&site.bus, &workers).await?.iter().map(|beat| beat.finished as f64).collect();
    let mean = finished.iter().sum::<f64>() / finished.len().max(1) as f64;
    let most = finished.iter().copied().fold(0.0, f64::max);
    Ok(ScaleRun { window, unfair: (processes > 1 && mean > 0.0).then_some(most / mean) })
}

/// Waits until all workers send heartbeats and the first image is answered.
async fn wait_until_working(load: &LoadGenerator, bus: streams::Bus, processes: Vec<u32>) -> Result<(), BenchError> {
    const TIMEOUT: Duration = Duration::from_secs(60);
    let deadline = Instant::now() + TIMEOUT;
    while recognizer_heartbeats(&bus, &processes).await?.len() < processes.len() {
        if Instant::now() > deadline {
            return Err(BenchError::NotReady { what: "a heartbeat of every recognizer", timeout: TIMEOUT });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    load.send_image(AnswerMilestone::Answered, Instant::now()).await?;
    Ok(())
}

/// Heartbeats of these processes; those of earlier workers may still be listed.
async fn recognizer_heartbeats(bus: &streams::Bus, processes: &[u32]) -> Result<Vec<schemas::Heartbeat>, BenchError> {
    let beats = fleet::live_workers(bus).await?;
    let is_listed =
        |beat: &schemas::Heartbeat| processes.iter().any(|process| beat.worker.ends_with(&format!("-{process}")));
    Ok(beats.into_iter().filter(is_listed).collect())
}

/// Stops the site's recognizers off the async threads.
async fn without_recognizers(mut site: BenchSite) -> Result<BenchSite, BenchError> {
    let stopping = tokio::task::spawn_blocking(move || {
        site.stop_recognizers();
        site
    });
    Ok(stopping.await?)
}

fn report(
    options: &ScaleBenchOptions,
    machine: BenchMachine,
    workload: &Workload,
    runs: &BTreeMap<(ReplicaMode, usize), Vec<ScaleRun>>,
    response: &step_response::StepResponse,
    cost: &fleet_cost::FleetCost,
    base_per_s: f64,
) -> BenchReport {
    let of = |case: &(ReplicaMode, usize), value: &dyn Fn(&ScaleRun) -> Option<f64>| {
        let values: Vec<f64> = runs[case].iter().filter_map(value).collect();
        (!values.is_empty()).then(|| median(&values))
    };
    let rate = |case: &(ReplicaMode, usize)| of(case, &|run| Some(run.window.images_per_s));
    let lines = runs.keys().map(|case| {
        let shown =
            |value: Option<f64>, digits: usize| value.map_or_else(String::new, |value| format!("{value:.digits$}"));
        vec![
            format!("{} as {}", case.1, case.0.as_str()),
            shown(rate(case), 0),
            shown(of(case, &|run| run.window.cpu_ms_per_image), 2),
            shown(of(case, &|run| Some(run.window.latency.p50_ms)), 1),
            shown(of(case, &|run| Some(run.window.latency.p99_ms)), 1),
            shown(of(case, &|run| run.unfair), 2),
        ]
    });
    // Compares measurements of the same round.
    let pairs = runs[&(ReplicaMode::Threads, 2)].iter().zip(&runs[&(ReplicaMode::Threads, 1)]);
    let two_over_one: Vec<f64> = pairs.map(|(two, one)| two.window.images_per_s / one.window.images_per_s).collect();
    let unfair = [(ReplicaMode::Processes, 2), (ReplicaMode::Processes, 4)]
        .iter()
        .filter_map(|case| of(case, &|run| run.unfair));
    let figure = |name, title, value, unit, goal| HeadlineFigure { name, title, value, unit, goal };
    let headline = vec![
        figure(
            "throughput_2_over_1",
            "throughput of two replicas relative to one, as threads",
            Some(median(&two_over_one)),
            "",
            None,
        ),
        figure(
            "fairness_max_over_mean",
            "images of the busiest worker relative to the mean, worst case",
            Some(unfair.fold(0.0, f64::max)),
            "",
            Some(crate::report::FigureGoal::AtMost(2.0)),
        ),
        figure(
            "recovery_s",
            "time until the queue stays under its target, after a five-fold load step",
            response.recovery_s,
            "s",
            Some(crate::report::FigureGoal::AtMost(5.0)),
        ),
        figure("server_kb_per_site", "memory of the cloud's server per site", cost.server_kb_per_site(), "kB", None),
    ];
    let rows = runs.iter().flat_map(|((how, count), of_case)| {
        of_case.iter().map(move |run| {
            json!({ "replicas": count, "as": how.as_str(), "window": run.window, "max_over_mean": run.unfair })
        })
    });
    let series = |of: fn(&step_response::QueueSample) -> f64| {
        response.samples.iter().map(|sample| (sample.at_s, of(sample))).collect()
    };
    let chart = Chart {
        title: format!("Five-fold load from {:.0} s to {:.0} s", response.from_s, response.to_s),
        x_label: "seconds".into(),
        y_label: "replicas; seconds of queued work".into(),
        lines: vec![
            ChartLine { name: "replicas".into(), points: series(|sample| sample.replicas) },
            ChartLine { name: "seconds of queued work".into(), points: series(|sample| sample.queued_s) },
        ],
        marks: Vec::new(),
    };
    let at_end =
        response.samples.iter().rfind(|sample| sample.at_s < response.to_s).map_or(0.0, |sample| sample.replicas);
    let mut notes = vec![format!(
        "Load step from {base_per_s:.0} to {:.0} images per second; target: {:.1} s of queued work; one replica at the start, {at_end:.0} \
         at the end of the load and {:.0} at peak; longest queue: {:.1} s.",
        5.0 * base_per_s,
        step_response::TARGET_S,
        response.samples.iter().map(|sample| sample.replicas).fold(0.0, f64::max),
        response.samples.iter().map(|sample| sample.queued_s).fold(0.0, f64::max)
    )];
    notes.extend(response.reasons.iter().map(|reason| format!("  {reason}")));
    notes.extend(cost.notes());
    let all: Vec<Value> = rows
        .chain(
            response
                .samples
                .iter()
                .map(|sample| json!({ "at_s": sample.at_s, "replicas": sample.replicas, "queued_s": sample.queued_s })),
        )
        .chain([cost.json()])
        .collect();
    BenchReport {
        bench: "scale",
        settings: json!({
            "quick": options.quick, "sites": options.sites, "in_flight": IN_FLIGHT, "base_per_s": base_per_s,
            "workload": workload.summary,
        }),
        machine,
        rows: all,
        table: ReportTable {
            columns: vec!["replicas", "images/s", "CPU ms/image", "p50 ms", "p99 ms", "max/mean"],
            lines: lines.collect(),
        },
        headline,
        notes,
        charts: vec![("scale-step".into(), ReportChart::Lines(chart))],
    }
}

fn print_step(what: &str) {
    eprintln!("bench: {what}");
}

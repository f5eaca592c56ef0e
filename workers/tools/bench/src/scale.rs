//! What replicas bring: as threads of one worker and as workers of their own; how a queue that suddenly grows brings them; and
//! what many sites cost the cloud.
//!
//! Stretches take turns, several rounds, forwards and backwards; every figure is a median over the rounds. All workers are this
//! very program in processes of their own.

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

/// Images in flight: what keeps four replicas busy across the broker.
const IN_FLIGHT: usize = 32;
/// Share of what one replica does that comes in before the step: five times as much is more than one can do, and less than
/// two can on two cores.
const BASE_SHARE: f64 = 0.25;
/// Numbers of replicas that are compared.
const COUNTS: [usize; 3] = [1, 2, 4];

/// What an operator may choose.
#[derive(Debug, Clone, Default)]
pub struct ScaleBenchOptions {
    /// Folder of the model; the project's own if absent.
    pub model: Option<PathBuf>,
    /// Folder of the images; generated if absent.
    pub images: Option<PathBuf>,
    /// Folder for the servers' stores while it runs; the system's for temporary files if absent.
    pub store: Option<PathBuf>,
    /// Simulated sites of one cloud, at least 1.
    pub sites: usize,
    /// In about two minutes, with shorter stretches.
    pub quick: bool,
    /// The nats-server program; looked for if absent.
    pub nats_server: Option<PathBuf>,
    /// The ONNX Runtime library; looked for if absent.
    pub onnxruntime: Option<PathBuf>,
}

/// How replicas are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ReplicaMode {
    Threads,
    Processes,
}

impl ReplicaMode {
    fn word(self) -> &'static str {
        match self {
            ReplicaMode::Threads => "threads",
            ReplicaMode::Processes => "processes",
        }
    }
}

/// What one case did in one round.
struct ScaleRun {
    window: MeasurementWindow,
    /// The most that one process did over what each did on average; absent for one process.
    unfair: Option<f64>,
}

/// Measures; takes some minutes.
pub async fn run(options: &ScaleBenchOptions, shutdown: Shutdown) -> Result<BenchReport, BenchError> {
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
    let ground = |replicas: usize| TestbedPaths {
        folder: folder.path().to_owned(),
        nats_server: options.nats_server.clone(),
        onnxruntime: options.onnxruntime.clone(),
        model: workload.model.clone(),
        infer: InferenceSettings { replicas: Replicas::Count(replicas), ..InferenceSettings::default() },
    };
    let rounds = if options.quick { 2 } else { 5 };
    let counted = Duration::from_secs(if options.quick { 2 } else { 4 });
    let length = WindowLength { lead: Duration::from_millis(500), counted };
    let mut site = BenchSite::start("site", Durability::Fast, &ground(1)).await?;
    machine.nats_server = Some(site.bus.server_version());
    let mut cases: Vec<(ReplicaMode, usize)> =
        COUNTS.iter().flat_map(|count| [(ReplicaMode::Threads, *count), (ReplicaMode::Processes, *count)]).collect();
    let mut found: BTreeMap<(ReplicaMode, usize), Vec<ScaleRun>> = BTreeMap::new();
    for round in 0..rounds {
        for (how, count) in &cases {
            print_step(&format!("round {} of {rounds}: {count} as {}", round + 1, how.word()));
            let (each, processes) = if *how == ReplicaMode::Threads { (*count, 1) } else { (1, *count) };
            for _ in 0..processes {
                site.recognize(&ground(each))?;
            }
            found.entry((*how, *count)).or_default().push(stretch(&mut site, &workload, processes, length).await?);
            site = dismissed(site).await?;
            site.clear().await?;
        }
        cases.reverse();
    }
    let rate_of = |how: ReplicaMode, count: usize| {
        median(&found[&(how, count)].iter().map(|ran| ran.window.images_per_s).collect::<Vec<_>>())
    };
    let base_per_s = BASE_SHARE * rate_of(ReplicaMode::Threads, 1);
    print_step("a queue that suddenly grows");
    let stepped = step_response::measure(&mut site, &ground(1), &workload, base_per_s, options.quick).await?;
    tokio::task::spawn_blocking(move || drop(site)).await?;
    print_step(&format!("{} sites of one cloud", options.sites));
    let crowd = fleet_cost::measure(&ground(1), &workload, options.sites, options.quick).await?;
    Ok(report(options, machine, &workload, &found, &stepped, &crowd, base_per_s))
}

/// One stretch of one case.
async fn stretch(
    site: &mut BenchSite,
    workload: &Workload,
    processes: usize,
    length: WindowLength,
) -> Result<ScaleRun, BenchError> {
    let load = LoadGenerator::open(site, workload.images.clone()).await?;
    let workers = site.recognizer_processes();
    tokio::select! {
        ready = begun(&load, site.bus.clone(), workers.clone()) => ready?,
        ended = site.ended() => return Err(ended),
    }
    let measured = site.processes();
    let window = load.closed(AnswerMilestone::Answered, IN_FLIGHT, &measured, length).await?;
    // Signs of life say what each did, a second later at the most.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let finished: Vec<f64> = recognizers(&site.bus, &workers).await?.iter().map(|beat| beat.finished as f64).collect();
    let mean = finished.iter().sum::<f64>() / finished.len().max(1) as f64;
    let most = finished.iter().copied().fold(0.0, f64::max);
    Ok(ScaleRun { window, unfair: (processes > 1 && mean > 0.0).then_some(most / mean) })
}

/// Waits until all workers give signs of life and the first image is answered.
async fn begun(load: &LoadGenerator, bus: streams::Bus, processes: Vec<u32>) -> Result<(), BenchError> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let until = Instant::now() + PATIENCE;
    while recognizers(&bus, &processes).await?.len() < processes.len() {
        if Instant::now() > until {
            return Err(BenchError::NotReady { what: "a sign of life of every recognizer", patience: PATIENCE });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    load.send_image(AnswerMilestone::Answered, Instant::now()).await?;
    Ok(())
}

/// Signs of life of these processes; others may have been there a moment ago.
async fn recognizers(bus: &streams::Bus, processes: &[u32]) -> Result<Vec<schemas::Heartbeat>, BenchError> {
    let beats = fleet::live_workers(bus).await?;
    let is_one =
        |beat: &schemas::Heartbeat| processes.iter().any(|process| beat.worker.ends_with(&format!("-{process}")));
    Ok(beats.into_iter().filter(is_one).collect())
}

/// The site without its recognizers.
async fn dismissed(mut site: BenchSite) -> Result<BenchSite, BenchError> {
    let dismissing = tokio::task::spawn_blocking(move || {
        site.dismiss();
        site
    });
    Ok(dismissing.await?)
}

fn report(
    options: &ScaleBenchOptions,
    machine: BenchMachine,
    workload: &Workload,
    found: &BTreeMap<(ReplicaMode, usize), Vec<ScaleRun>>,
    stepped: &step_response::StepResponse,
    crowd: &fleet_cost::FleetCost,
    base_per_s: f64,
) -> BenchReport {
    let of = |case: &(ReplicaMode, usize), value: &dyn Fn(&ScaleRun) -> Option<f64>| {
        let values: Vec<f64> = found[case].iter().filter_map(value).collect();
        (!values.is_empty()).then(|| median(&values))
    };
    let rate = |case: &(ReplicaMode, usize)| of(case, &|ran| Some(ran.window.images_per_s));
    let lines = found.keys().map(|case| {
        let shown =
            |value: Option<f64>, digits: usize| value.map_or_else(String::new, |value| format!("{value:.digits$}"));
        vec![
            format!("{} as {}", case.1, case.0.word()),
            shown(rate(case), 0),
            shown(of(case, &|ran| ran.window.cpu_ms_per_image), 2),
            shown(of(case, &|ran| Some(ran.window.latency.p50_ms)), 1),
            shown(of(case, &|ran| Some(ran.window.latency.p99_ms)), 1),
            shown(of(case, &|ran| ran.unfair), 2),
        ]
    });
    // Of neighbours: a round's two over the same round's one.
    let pairs = found[&(ReplicaMode::Threads, 2)].iter().zip(&found[&(ReplicaMode::Threads, 1)]);
    let two_over_one: Vec<f64> = pairs.map(|(two, one)| two.window.images_per_s / one.window.images_per_s).collect();
    let unfair = [(ReplicaMode::Processes, 2), (ReplicaMode::Processes, 4)]
        .iter()
        .filter_map(|case| of(case, &|ran| ran.unfair));
    let figure = |name, title, value, unit, goal| HeadlineFigure { name, title, value, unit, goal };
    let headline = vec![
        figure("throughput_2_over_1", "two replicas over one, as threads", Some(median(&two_over_one)), "", None),
        figure(
            "fairness_max_over_mean",
            "what one of several workers did over their mean, at the most",
            Some(unfair.fold(0.0, f64::max)),
            "",
            Some(crate::report::FigureGoal::AtMost(2.0)),
        ),
        figure(
            "recovery_s",
            "until the queue is under its target again, after five times the load",
            stepped.recovery_s,
            "s",
            Some(crate::report::FigureGoal::AtMost(5.0)),
        ),
        figure(
            "server_kb_per_site",
            "memory of the cloud's server for each site",
            crowd.server_kb_per_site(),
            "kB",
            None,
        ),
    ];
    let rows = found.iter().flat_map(|((how, count), rans)| {
        rans.iter().map(move |ran| {
            json!({ "replicas": count, "as": how.word(), "window": ran.window, "max_over_mean": ran.unfair })
        })
    });
    let series =
        |of: fn(&step_response::QueueSample) -> f64| stepped.looks.iter().map(|look| (look.at_s, of(look))).collect();
    let chart = Chart {
        title: format!("Five times the load from {:.0} s to {:.0} s", stepped.from_s, stepped.to_s),
        x_label: "seconds".into(),
        y_label: "replicas; seconds of queued work".into(),
        lines: vec![
            ChartLine { name: "replicas".into(), points: series(|look| look.replicas) },
            ChartLine { name: "seconds of queued work".into(), points: series(|look| look.queued_s) },
        ],
        marks: Vec::new(),
    };
    let in_the_end = stepped.looks.iter().rfind(|look| look.at_s < stepped.to_s).map_or(0.0, |look| look.replicas);
    let mut notes = vec![format!(
        "A step from {base_per_s:.0} to {:.0} images a second, target {:.1} s of queued work, one replica at the start, {in_the_end:.0} \
             at the end of the load and {:.0} at the most; the longest queue was {:.1} s.",
        5.0 * base_per_s,
        step_response::TARGET_S,
        stepped.looks.iter().map(|look| look.replicas).fold(0.0, f64::max),
        stepped.looks.iter().map(|look| look.queued_s).fold(0.0, f64::max)
    )];
    notes.extend(stepped.why.iter().map(|why| format!("  {why}")));
    notes.extend(crowd.notes());
    let all: Vec<Value> = rows
        .chain(
            stepped
                .looks
                .iter()
                .map(|look| json!({ "at_s": look.at_s, "replicas": look.replicas, "queued_s": look.queued_s })),
        )
        .chain([crowd.json()])
        .collect();
    BenchReport {
        bench: "scale",
        settings: json!({
            "quick": options.quick, "sites": options.sites, "in_flight": IN_FLIGHT, "base_per_s": base_per_s,
            "workload": workload.described,
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

//! What the pipeline costs over the bare loop: decode, resize and infer in this process against images
//! published to a file-backed stream, recognized by a worker in a process of its own and answered.
//!
//! Both on the same cores with the same images, by turns, several rounds; every figure is a median over
//! the rounds, every ratio one of neighbours in a round. Both durabilities; closed loop alone and with 16
//! in flight, open loop at a given rate.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use runtime::Shutdown;
use serde::Serialize;
use serde_json::json;
use streams::server::Durability;
use vision::{InferSettings, Onnx};

use crate::bare::{Bare, LOOP};
use crate::error::BenchError;
use crate::load::{Load, Until};
use crate::process;
use crate::report::{Figure, Goal, Machine, Report, Table, amount};
use crate::site::{Ground, LOAD, RECOGNIZER, SERVER, Site};
use crate::stats::median;
use crate::window::{Length, Window};
use crate::workload::Workload;

/// Images in flight where throughput is measured: what keeps two replicas busy across the broker.
const IN_FLIGHT: usize = 16;
const PROCESSES: [&str; 4] = [LOOP, LOAD, SERVER, RECOGNIZER];
/// Share of the bare loop's throughput at which an open loop runs when no rate is given.
const OPEN_SHARE: f64 = 0.6;

/// What an operator may choose.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Folder of the model; the project's own if absent.
    pub model: Option<PathBuf>,
    /// Folder of the images; generated if absent.
    pub images: Option<PathBuf>,
    /// Folder for the servers' stores while it runs; the system's for temporary files if absent.
    pub store: Option<PathBuf>,
    /// Images a second of the open loop; a share of the bare loop's if absent.
    pub rate_per_s: Option<f64>,
    /// In less than a minute, with shorter stretches.
    pub quick: bool,
    /// The nats-server program; looked for if absent.
    pub nats_server: Option<PathBuf>,
    /// The ONNX Runtime library; looked for if absent.
    pub onnxruntime: Option<PathBuf>,
    /// Replicas and batches, of the bare loop and of the recognizer.
    pub infer: InferSettings,
}

struct Effort {
    rounds: usize,
    length: Length,
}

impl Effort {
    fn new(quick: bool) -> Self {
        let ms = Duration::from_millis;
        match quick {
            true => Self { rounds: 3, length: Length { lead: ms(150), counted: ms(850) } },
            false => Self { rounds: 5, length: Length { lead: ms(300), counted: ms(3000) } },
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
enum Case {
    /// All replicas at once, without the pipeline.
    Bare,
    /// One replica, without the pipeline.
    BareAlone,
    /// The whole pipeline, closed loop.
    Pipeline { durability: Durability, in_flight: usize },
    /// The whole pipeline, open loop.
    Open { durability: Durability },
    /// Publishing alone, closed loop.
    Publish { durability: Durability, in_flight: usize },
}

/// In the order of the table; a round goes through them forwards, the next one backwards.
const CASES: [Case; 10] = [
    Case::Bare,
    Case::Pipeline { durability: Durability::Fast, in_flight: IN_FLIGHT },
    Case::Pipeline { durability: Durability::PowerSafe, in_flight: IN_FLIGHT },
    Case::Publish { durability: Durability::Fast, in_flight: IN_FLIGHT },
    Case::Publish { durability: Durability::PowerSafe, in_flight: IN_FLIGHT },
    Case::BareAlone,
    Case::Pipeline { durability: Durability::Fast, in_flight: 1 },
    Case::Pipeline { durability: Durability::PowerSafe, in_flight: 1 },
    Case::Open { durability: Durability::Fast },
    Case::Open { durability: Durability::PowerSafe },
];

impl Case {
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
            Self::Open { durability } => format!("pipeline, {}, {rate_per_s:.0}/s come in", word(durability)),
            Self::Publish { durability, in_flight } => {
                format!("publishing alone, {}, {in_flight} in flight", word(durability))
            }
        }
    }
}

/// One durability: a site that recognizes, and one that only stores.
struct Pair {
    // Connections end before their servers.
    load: Load,
    site: Site,
    store_load: Load,
    store: Site,
}

impl Pair {
    async fn start(durability: Durability, ground: &Ground, workload: &Workload) -> Result<Self, BenchError> {
        let label = match durability {
            Durability::PowerSafe => "power-safe",
            Durability::Fast => "fast",
        };
        let mut site = Site::start(label, durability, ground).await?;
        site.recognize(ground)?;
        let load = Load::open(&site, workload.images.clone()).await?;
        let first = load.one(Until::Answered, std::time::Instant::now());
        tokio::select! {
            answered = first => { answered?; }
            ended = site.ended() => return Err(ended),
        }
        let store = Site::start(&format!("{label}-store"), durability, ground).await?;
        let store_load = Load::open(&store, workload.images.clone()).await?;
        Ok(Self { site, load, store, store_load })
    }
}

struct Bench {
    bare: Bare,
    fast: Pair,
    safe: Pair,
    rate_per_s: f64,
}

impl Bench {
    fn pair(&mut self, durability: Durability) -> &mut Pair {
        match durability {
            Durability::Fast => &mut self.fast,
            Durability::PowerSafe => &mut self.safe,
        }
    }

    async fn measure(&mut self, case: Case, length: Length) -> Result<Window, BenchError> {
        let rate_per_s = self.rate_per_s;
        match case {
            Case::Bare => self.bare.run(usize::MAX, length).await,
            Case::BareAlone => self.bare.run(1, length).await,
            Case::Publish { durability, in_flight } => {
                let Pair { store, store_load, .. } = self.pair(durability);
                let window = store_load.closed(Until::Stored, in_flight, &store.processes(), length).await?;
                store.clear().await?;
                Ok(window)
            }
            Case::Pipeline { durability, in_flight } => {
                let Pair { site, load, .. } = self.pair(durability);
                let processes = site.processes();
                let window = tokio::select! {
                    window = load.closed(Until::Answered, in_flight, &processes, length) => window?,
                    ended = site.ended() => return Err(ended),
                };
                site.clear().await?;
                Ok(window)
            }
            Case::Open { durability } => {
                let Pair { site, load, .. } = self.pair(durability);
                let processes = site.processes();
                let window = tokio::select! {
                    window = load.at_rate(rate_per_s, &processes, length) => window?,
                    ended = site.ended() => return Err(ended),
                };
                site.clear().await?;
                Ok(window)
            }
        }
    }
}

/// Measures; takes minutes, or less than one if `quick`.
pub async fn run(options: &Options, shutdown: Shutdown) -> Result<Report, BenchError> {
    tokio::select! {
        report = measure(options) => report,
        () = shutdown.wanted() => Err(BenchError::Stopped),
    }
}

async fn measure(options: &Options) -> Result<Report, BenchError> {
    let folder = match &options.store {
        Some(folder) => tempfile::tempdir_in(folder).map_err(BenchError::file(folder))?,
        None => tempfile::tempdir().map_err(BenchError::file(std::env::temp_dir()))?,
    };
    let mut machine = Machine::here(folder.path());
    say("preparing images, model and servers");
    let (model, images) = (options.model.clone(), options.images.clone());
    let workload = blocking(move || Workload::open(model.as_deref(), images.as_deref())).await?;
    let (loading, library, infer) = (workload.clone(), options.onnxruntime.clone(), options.infer.clone());
    let bare = blocking(move || Bare::open(&loading, &Onnx::find_and_load(library.as_deref())?, &infer)).await?;
    let ground = Ground {
        folder: folder.path().to_owned(),
        nats_server: options.nats_server.clone(),
        onnxruntime: options.onnxruntime.clone(),
        model: workload.model.clone(),
        infer: options.infer.clone(),
    };
    let fast = Pair::start(Durability::Fast, &ground, &workload).await?;
    let safe = Pair::start(Durability::PowerSafe, &ground, &workload).await?;
    machine.nats_server = Some(fast.site.bus.server_version());
    let replicas = bare.replicas();
    let mut bench = Bench { bare, fast, safe, rate_per_s: 0.0 };

    let effort = Effort::new(options.quick);
    say("warming up");
    let warm = Length { lead: effort.length.lead, counted: effort.length.counted / 2 };
    let bare = bench.measure(Case::Bare, warm).await?;
    bench.rate_per_s = options.rate_per_s.unwrap_or((bare.images_per_s * OPEN_SHARE / 10.0).round().max(1.0) * 10.0);
    for durability in [Durability::Fast, Durability::PowerSafe] {
        bench.measure(Case::Pipeline { durability, in_flight: IN_FLIGHT }, warm).await?;
    }
    let mut found: [Vec<Window>; CASES.len()] = Default::default();
    for round in 0..effort.rounds {
        let mut order: Vec<usize> = (0..CASES.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for (step, index) in order.into_iter().enumerate() {
            let title = CASES[index].title(replicas, bench.rate_per_s);
            say(&format!("round {} of {}, {} of {}: {title}", round + 1, effort.rounds, step + 1, CASES.len()));
            found[index].push(bench.measure(CASES[index], effort.length).await?);
        }
    }
    let memory = Memory::of(&bench);
    let (rate_per_s, open_rate_given) = (bench.rate_per_s, options.rate_per_s.is_some());
    // Stopping waits for processes.
    tokio::task::spawn_blocking(move || drop(bench)).await?;
    let own = options.model.is_none() && options.images.is_none();
    Ok(Report {
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
            "workload": workload.described,
        }),
        rows: rows(&found, replicas, rate_per_s),
        table: table(&found, replicas, rate_per_s),
        headline: headline(&found, &memory, own),
        notes: notes(&machine, &memory, &workload, replicas),
        machine,
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BenchError> + Send + 'static,
) -> Result<T, BenchError> {
    tokio::task::spawn_blocking(work).await?
}

fn say(what: &str) {
    eprintln!("bench: {what}");
}

/// The most memory each process had at a time, megabytes (10⁶ bytes).
struct Memory {
    recognizer_mb: Option<f64>,
    server_mb: Option<f64>,
}

impl Memory {
    fn of(bench: &Bench) -> Self {
        let sites = [&bench.fast.site, &bench.safe.site];
        let peak = |process: Option<u32>| process.and_then(process::peak_bytes);
        let most = |process: fn(&Site) -> Option<u32>| {
            let bytes = sites.iter().filter_map(|site| peak(process(site))).max();
            bytes.map(|bytes| bytes as f64 / 1e6)
        };
        Self { recognizer_mb: most(Site::recognizer_process), server_mb: most(Site::server_process) }
    }
}

fn over(windows: &[Window], value: impl Fn(&Window) -> f64) -> f64 {
    median(&windows.iter().map(value).collect::<Vec<_>>())
}

fn cpu(windows: &[Window]) -> Option<f64> {
    let all: Option<Vec<f64>> = windows.iter().map(|window| window.cpu_ms_per_image).collect();
    all.map(|all| median(&all))
}

/// Of one process.
fn cpu_of(windows: &[Window], process: &str) -> Option<f64> {
    let all: Option<Vec<f64>> = windows.iter().map(|window| window.cpu_ms_by_process.get(process).copied()).collect();
    all.map(|all| median(&all))
}

fn rows(found: &[Vec<Window>], replicas: usize, rate_per_s: f64) -> Vec<serde_json::Value> {
    let row = |(case, windows): (&Case, &Vec<Window>)| {
        json!({
            "title": case.title(replicas, rate_per_s),
            "case": case,
            "images_per_s": over(windows, |window| window.images_per_s),
            "cpu_ms_per_image": cpu(windows),
            "cpu_ms_by_process": PROCESSES.iter().filter_map(|name| Some((*name, cpu_of(windows, name)?))).collect::<BTreeMap<_, _>>(),
            "p50_ms": over(windows, |window| window.latency.p50_ms),
            "p99_ms": over(windows, |window| window.latency.p99_ms),
            "max_ms": windows.iter().map(|window| window.latency.max_ms).fold(0.0, f64::max),
            "rounds": windows,
        })
    };
    CASES.iter().zip(found).map(row).collect()
}

fn table(found: &[Vec<Window>], replicas: usize, rate_per_s: f64) -> Table {
    let line = |(case, windows): (&Case, &Vec<Window>)| {
        vec![
            case.title(replicas, rate_per_s),
            amount(over(windows, |window| window.images_per_s), ""),
            cpu(windows).map_or_else(|| "unknown".into(), |ms| amount(ms, "")),
            parts(windows),
            amount(over(windows, |window| window.latency.p50_ms), ""),
            amount(over(windows, |window| window.latency.p99_ms), ""),
        ]
    };
    Table {
        columns: vec!["measured", "images/s", "CPU ms/image", "= load + server + recognizer", "p50 ms", "p99 ms"],
        lines: CASES.iter().zip(found).map(line).collect(),
    }
}

/// What of the processor time was whose, where more than one process worked.
fn parts(windows: &[Window]) -> String {
    let part = |name: &&str| cpu_of(windows, name).map(|ms| amount(ms, ""));
    let parts: Vec<String> = [LOAD, SERVER, RECOGNIZER].iter().filter_map(part).collect();
    parts.join(" + ")
}

fn headline(found: &[Vec<Window>], memory: &Memory, own_workload: bool) -> Vec<Figure> {
    let of = |case: Case| {
        let index = CASES.iter().position(|known| *known == case);
        index.and_then(|index| found.get(index)).map_or(&[][..], Vec::as_slice)
    };
    let pipeline = |durability, in_flight| of(Case::Pipeline { durability, in_flight });
    let (bare, alone) = (of(Case::Bare), of(Case::BareAlone));
    let publish = of(Case::Publish { durability: Durability::PowerSafe, in_flight: IN_FLIGHT });
    let fast = pipeline(Durability::Fast, IN_FLIGHT);
    let by_round = |values: Vec<f64>| (!values.is_empty()).then(|| median(&values));
    let rate = |window: &Window| window.images_per_s;
    let ratio = by_round(fast.iter().zip(bare).map(|(window, bare)| rate(window) / rate(bare)).collect());
    let limits = bare.iter().zip(publish).map(|(bare, publish)| rate(bare).min(rate(publish)));
    let safe = pipeline(Durability::PowerSafe, IN_FLIGHT).iter().zip(limits);
    let safe_ratio = by_round(safe.map(|(window, limit)| rate(window) / limit).collect());
    let single = pipeline(Durability::Fast, 1).iter().zip(alone);
    let added_ms = by_round(single.map(|(window, bare)| window.latency.p50_ms - bare.latency.p50_ms).collect());
    let added_cpu_ms = cpu(fast).zip(cpu(bare)).map(|(fast, bare)| fast - bare);
    // These depend on what is recognized; the goals are for the project's own.
    let own = |goal: Goal| own_workload.then_some(goal);
    let figure = |name, title, value, unit, goal| Figure { name, title, value, unit, goal };
    vec![
        figure("throughput_over_bare", "throughput over the bare loop", ratio, "", Some(Goal::AtLeast(0.90))),
        figure(
            "throughput_over_bare_power_safe",
            "the same, power-safe, over the lower of bare loop and publishing alone",
            safe_ratio,
            "",
            Some(Goal::AtLeast(0.90)),
        ),
        figure("images_per_s", "images a second", by_round(fast.iter().map(rate).collect()), "", None),
        figure("cpu_ms_per_image", "CPU for an image, all processes", cpu(fast), "ms", own(Goal::AtMost(2.3))),
        figure("cpu_over_bare_ms", "of it beyond the bare loop", added_cpu_ms, "ms", None),
        figure("p50_over_bare_ms", "latency alone beyond the bare loop, p50", added_ms, "ms", Some(Goal::AtMost(1.0))),
        figure(
            "p99_ms_at_16",
            "latency with 16 in flight, p99",
            by_round(fast.iter().map(|window| window.latency.p99_ms).collect()),
            "ms",
            None,
        ),
        figure("recognizer_rss_mb", "peak memory of a recognizer", memory.recognizer_mb, "MB", own(Goal::AtMost(80.0))),
    ]
}

fn notes(machine: &Machine, memory: &Memory, workload: &Workload, replicas: usize) -> Vec<String> {
    let described = &workload.described;
    let mut notes = vec![
        format!(
            "Model {}, {} images ({}), {} kB on average; {replicas} replicas on {} cores.",
            described.model,
            described.different_images,
            described.images,
            described.mean_bytes / 1000,
            machine.cores
        ),
        "The CPU time is that of load generator, nats-server and recognizer together; headline figures are of durability fast unless they say otherwise.".into(),
    ];
    notes.extend(memory.server_mb.map(|mb| format!("The nats-server had {mb:.0} MB at most.")));
    let file_system = machine.store_file_system.as_deref().unwrap_or("an unknown file system");
    notes.push(match file_system {
        "tmpfs" | "ramfs" => format!("The store was in memory ({file_system}): name a folder on a disk with --dir."),
        _ => format!("The store was on {file_system}."),
    });
    if let Some(load) = machine.load_before.filter(|load| *load > 0.5) {
        notes.push(format!(
            "The machine was busy before the start (load {load:.1}): ratios hold, rates and latencies are worse than alone."
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Latency;

    fn window(images_per_s: f64, cpu_ms: f64, p50_ms: f64) -> Window {
        let latency = Latency { p50_ms, p99_ms: p50_ms * 2.0, max_ms: p50_ms * 3.0 };
        let cpu_ms_by_process = [(LOOP, cpu_ms)].into();
        Window { images: 100, images_per_s, cpu_ms_per_image: Some(cpu_ms), cpu_ms_by_process, latency }
    }

    fn value(figures: &[Figure], name: &str) -> f64 {
        figures.iter().find(|figure| figure.name == name).unwrap().value.unwrap()
    }

    #[test]
    fn ratios_are_of_neighbours_in_a_round_and_power_safe_is_held_against_the_lower_limit() {
        let found = CASES.map(|case| match case {
            Case::Bare => vec![window(1000.0, 2.0, 2.0), window(500.0, 2.0, 2.0)],
            Case::BareAlone => vec![window(500.0, 2.0, 2.0); 2],
            Case::Pipeline { durability: Durability::Fast, in_flight: 1 } => vec![window(300.0, 3.0, 2.7); 2],
            Case::Pipeline { durability: Durability::Fast, .. } => {
                vec![window(900.0, 2.4, 20.0), window(450.0, 2.4, 20.0)]
            }
            Case::Publish { durability: Durability::PowerSafe, .. } => vec![window(400.0, 1.0, 1.0); 2],
            _ => vec![window(300.0, 2.5, 30.0); 2],
        });
        let figures = headline(&found, &Memory { recognizer_mb: Some(60.0), server_mb: None }, true);
        assert!((value(&figures, "throughput_over_bare") - 0.9).abs() < 1e-9);
        assert!((value(&figures, "throughput_over_bare_power_safe") - 0.75).abs() < 1e-9);
        assert!((value(&figures, "p50_over_bare_ms") - 0.7).abs() < 1e-9);
        assert!((value(&figures, "cpu_over_bare_ms") - 0.4).abs() < 1e-9);
        assert_eq!(value(&figures, "p99_ms_at_16"), 40.0);
    }

    #[test]
    fn goals_that_depend_on_the_workload_are_for_the_projects_own() {
        let found = CASES.map(|_| vec![window(1.0, 1.0, 1.0)]);
        let memory = Memory { recognizer_mb: None, server_mb: None };
        let goals = |own| headline(&found, &memory, own).into_iter().filter(|figure| figure.goal.is_some()).count();
        assert_eq!((goals(true), goals(false)), (5, 3));
    }
}

//! Results of the recognize bench: rows, table, headline and notes.

use std::collections::BTreeMap;

use serde_json::json;
use streams::server::Durability;

use super::{CASES, IN_FLIGHT, RecognizeCase};
use crate::bench_site::{BenchSite, LOAD, RECOGNIZER, SERVER};
use crate::measurement_window::MeasurementWindow;
use crate::report::{BenchMachine, FigureGoal, HeadlineFigure, ReportTable, amount};
use crate::stats::median;
use crate::warm_replicas::LOOP;
use crate::workload::Workload;
use os::process;

/// Share of its cores that the bare loop gets on an otherwise idle machine.
const QUIET: f64 = 0.95;
const PROCESSES: [&str; 4] = [LOOP, LOAD, SERVER, RECOGNIZER];

/// Peak memory by process, megabytes (10⁶ bytes).
pub(super) struct PeakMemory {
    /// The larger peak of the two recognizers.
    pub recognizer_mb: Option<f64>,
    /// The larger peak of the two nats-servers.
    pub server_mb: Option<f64>,
}

impl PeakMemory {
    /// Reads the peaks of these sites' processes.
    pub(super) fn of(sites: [&BenchSite; 2]) -> Self {
        let peak = |process: Option<u32>| process.and_then(process::peak_bytes);
        let most = |process: fn(&BenchSite) -> Option<u32>| {
            let bytes = sites.iter().filter_map(|site| peak(process(site))).max();
            bytes.map(|bytes| bytes as f64 / 1e6)
        };
        Self { recognizer_mb: most(BenchSite::recognizer_process), server_mb: most(BenchSite::server_process) }
    }
}

fn median_over(windows: &[MeasurementWindow], value: impl Fn(&MeasurementWindow) -> f64) -> f64 {
    median(&windows.iter().map(value).collect::<Vec<_>>())
}

/// Median CPU time per image of all processes, milliseconds.
fn cpu(windows: &[MeasurementWindow]) -> Option<f64> {
    let all: Option<Vec<f64>> = windows.iter().map(|window| window.cpu_ms_per_image).collect();
    all.map(|all| median(&all))
}

/// Median CPU time per image of one process, milliseconds.
fn cpu_of(windows: &[MeasurementWindow], process: &str) -> Option<f64> {
    let all: Option<Vec<f64>> = windows.iter().map(|window| window.cpu_ms_by_process.get(process).copied()).collect();
    all.map(|all| median(&all))
}

/// One JSON row per case.
pub(super) fn rows(
    windows_by_case: &[Vec<MeasurementWindow>],
    replicas: usize,
    rate_per_s: f64,
) -> Vec<serde_json::Value> {
    let row = |(case, windows): (&RecognizeCase, &Vec<MeasurementWindow>)| {
        json!({
            "title": case.title(replicas, rate_per_s),
            "case": case,
            "images_per_s": median_over(windows, |window| window.images_per_s),
            "cpu_ms_per_image": cpu(windows),
            "cpu_ms_by_process": PROCESSES.iter().filter_map(|name| Some((*name, cpu_of(windows, name)?))).collect::<BTreeMap<_, _>>(),
            "p50_ms": median_over(windows, |window| window.latency.p50_ms),
            "p99_ms": median_over(windows, |window| window.latency.p99_ms),
            "max_ms": windows.iter().map(|window| window.latency.max_ms).fold(0.0, f64::max),
            "rounds": windows,
        })
    };
    CASES.iter().zip(windows_by_case).map(row).collect()
}

/// One table line per case.
pub(super) fn table(windows_by_case: &[Vec<MeasurementWindow>], replicas: usize, rate_per_s: f64) -> ReportTable {
    let line = |(case, windows): (&RecognizeCase, &Vec<MeasurementWindow>)| {
        vec![
            case.title(replicas, rate_per_s),
            amount(median_over(windows, |window| window.images_per_s), ""),
            cpu(windows).map_or_else(|| "unknown".into(), |ms| amount(ms, "")),
            cpu_parts(windows),
            amount(median_over(windows, |window| window.latency.p50_ms), ""),
            amount(median_over(windows, |window| window.latency.p99_ms), ""),
        ]
    };
    ReportTable {
        columns: vec!["measured", "images/s", "CPU ms/image", "= load + server + recognizer", "p50 ms", "p99 ms"],
        lines: CASES.iter().zip(windows_by_case).map(line).collect(),
    }
}

/// CPU time by process, where more than one process worked.
fn cpu_parts(windows: &[MeasurementWindow]) -> String {
    let part = |name: &&str| cpu_of(windows, name).map(|ms| amount(ms, ""));
    let parts: Vec<String> = [LOAD, SERVER, RECOGNIZER].iter().filter_map(part).collect();
    parts.join(" + ")
}

/// Headline figures; ratios and differences compare windows of the same round.
pub(super) fn headline(
    windows_by_case: &[Vec<MeasurementWindow>],
    memory: &PeakMemory,
    own_workload: bool,
) -> Vec<HeadlineFigure> {
    let of = |case: RecognizeCase| {
        let index = CASES.iter().position(|known| *known == case);
        index.and_then(|index| windows_by_case.get(index)).map_or(&[][..], Vec::as_slice)
    };
    let pipeline = |durability, in_flight| of(RecognizeCase::Pipeline { durability, in_flight });
    let (bare, alone) = (of(RecognizeCase::Bare), of(RecognizeCase::BareAlone));
    let publish = of(RecognizeCase::Publish { durability: Durability::PowerSafe, in_flight: IN_FLIGHT });
    let fast = pipeline(Durability::Fast, IN_FLIGHT);
    let by_round = |values: Vec<f64>| (!values.is_empty()).then(|| median(&values));
    let rate = |window: &MeasurementWindow| window.images_per_s;
    let ratio = by_round(fast.iter().zip(bare).map(|(window, bare)| rate(window) / rate(bare)).collect());
    let limits = bare.iter().zip(publish).map(|(bare, publish)| rate(bare).min(rate(publish)));
    let safe = pipeline(Durability::PowerSafe, IN_FLIGHT).iter().zip(limits);
    let safe_ratio = by_round(safe.map(|(window, limit)| rate(window) / limit).collect());
    let single = pipeline(Durability::Fast, 1).iter().zip(alone);
    let added_ms = by_round(single.map(|(window, bare)| window.latency.p50_ms - bare.latency.p50_ms).collect());
    let added_cpu_ms = cpu(fast).zip(cpu(bare)).map(|(fast, bare)| fast - bare);
    // Overhead of client isolation as a share of the cost without it, within a round.
    let guarded = |encrypted, in_flight| of(RecognizeCase::Guarded { encrypted, in_flight });
    let more_cpu = |encrypted| {
        let both = guarded(encrypted, IN_FLIGHT).iter().zip(fast);
        let shares = both.filter_map(|(guarded, open)| Some(guarded.cpu_ms_per_image? / open.cpu_ms_per_image? - 1.0));
        by_round(shares.collect())
    };
    let more_p50 = |encrypted| {
        let both = guarded(encrypted, 1).iter().zip(pipeline(Durability::Fast, 1));
        by_round(both.map(|(guarded, open)| guarded.latency.p50_ms / open.latency.p50_ms - 1.0).collect())
    };
    // These depend on the workload; the goals apply to the project's own.
    let own = |goal: FigureGoal| own_workload.then_some(goal);
    let figure = |name, title, value, unit, goal| HeadlineFigure { name, title, value, unit, goal };
    vec![
        figure(
            "throughput_over_bare",
            "throughput relative to the bare loop",
            ratio,
            "",
            Some(FigureGoal::AtLeast(0.90)),
        ),
        figure(
            "throughput_over_bare_power_safe",
            "power-safe: throughput relative to the lower of bare loop and publishing only",
            safe_ratio,
            "",
            Some(FigureGoal::AtLeast(0.90)),
        ),
        figure("images_per_s", "images per second", by_round(fast.iter().map(rate).collect()), "", None),
        figure("cpu_ms_per_image", "CPU per image, all processes", cpu(fast), "ms", own(FigureGoal::AtMost(2.3))),
        figure("cpu_over_bare_ms", "CPU per image beyond the bare loop", added_cpu_ms, "ms", None),
        figure(
            "p50_over_bare_ms",
            "latency with 1 in flight beyond the bare loop, p50",
            added_ms,
            "ms",
            Some(FigureGoal::AtMost(1.0)),
        ),
        figure(
            "p99_ms_at_16",
            "latency with 16 in flight, p99",
            by_round(fast.iter().map(|window| window.latency.p99_ms).collect()),
            "ms",
            None,
        ),
        figure(
            "users_cpu_more",
            "additional CPU with least-privilege users",
            more_cpu(false),
            "",
            Some(FigureGoal::AtMost(0.05)),
        ),
        figure(
            "users_p50_more",
            "additional latency with least-privilege users, 1 in flight, p50",
            more_p50(false),
            "",
            Some(FigureGoal::AtMost(0.05)),
        ),
        figure("tls_cpu_more", "additional CPU with users and TLS", more_cpu(true), "", None),
        figure("tls_p50_more", "additional latency with users and TLS, 1 in flight, p50", more_p50(true), "", None),
        figure(
            "recognizer_rss_mb",
            "peak memory of the recognizer",
            memory.recognizer_mb,
            "MB",
            own(FigureGoal::AtMost(80.0)),
        ),
    ]
}

/// Share of the available CPU time that the bare loop's threads got; less than 1 means that other programs ran.
pub(super) fn cpu_share(bare: &[MeasurementWindow], threads: usize) -> Option<f64> {
    let cores = threads as f64;
    let shares: Option<Vec<f64>> =
        bare.iter().map(|window| Some(window.images_per_s * window.cpu_ms_per_image? / 1e3 / cores)).collect();
    shares.map(|shares| median(&shares))
}

/// Notes below the table.
pub(super) fn notes(
    machine: &BenchMachine,
    memory: &PeakMemory,
    workload: &Workload,
    replicas: usize,
    cpu_share: Option<f64>,
) -> Vec<String> {
    let summary = &workload.summary;
    let mut notes = vec![
        format!(
            "Model {}, {} images ({}), {} kB on average; {replicas} replicas on {} cores.",
            summary.model,
            summary.different_images,
            summary.images,
            summary.mean_bytes / 1000,
            machine.cores
        ),
        "CPU time includes load generator, nats-server and recognizer. Headline figures are for durability fast unless stated otherwise.".into(),
    ];
    notes.extend(memory.server_mb.map(|mb| format!("Peak memory of the nats-server: {mb:.0} MB.")));
    let file_system = machine.store_file_system.as_deref().unwrap_or("an unknown file system");
    notes.push(match file_system {
        "tmpfs" | "ramfs" => format!("The store was in memory ({file_system}): name a folder on a disk with --dir."),
        _ => format!("The store was on {file_system}."),
    });
    if let Some(share) = cpu_share.filter(|share| *share < QUIET) {
        notes.push(format!(
            "The bare loop got {:.0} % of its cores because other programs ran. Rates, latencies and their ratios are unreliable; CPU per image is more reliable.",
            share * 100.0
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use tributary::demo::latency::Latency;

    fn window(images_per_s: f64, cpu_ms: f64, p50_ms: f64) -> MeasurementWindow {
        let latency = Latency { p50_ms, p99_ms: p50_ms * 2.0, max_ms: p50_ms * 3.0 };
        let cpu_ms_by_process = [(LOOP, cpu_ms)].into();
        MeasurementWindow { images: 100, images_per_s, cpu_ms_per_image: Some(cpu_ms), cpu_ms_by_process, latency }
    }

    fn value(figures: &[HeadlineFigure], name: &str) -> f64 {
        figures.iter().find(|figure| figure.name == name).unwrap().value.unwrap()
    }

    #[test]
    fn ratios_compare_windows_of_a_round_and_power_safe_uses_the_lower_limit() {
        let windows_by_case = CASES.map(|case| match case {
            RecognizeCase::Bare => vec![window(1000.0, 2.0, 2.0), window(500.0, 2.0, 2.0)],
            RecognizeCase::BareAlone => vec![window(500.0, 2.0, 2.0); 2],
            RecognizeCase::Pipeline { durability: Durability::Fast, in_flight: 1 } => vec![window(300.0, 3.0, 2.7); 2],
            RecognizeCase::Pipeline { durability: Durability::Fast, .. } => {
                vec![window(900.0, 2.4, 20.0), window(450.0, 2.4, 20.0)]
            }
            RecognizeCase::Publish { durability: Durability::PowerSafe, .. } => vec![window(400.0, 1.0, 1.0); 2],
            _ => vec![window(300.0, 2.5, 30.0); 2],
        });
        let figures = headline(&windows_by_case, &PeakMemory { recognizer_mb: Some(60.0), server_mb: None }, true);
        assert!((value(&figures, "throughput_over_bare") - 0.9).abs() < 1e-9);
        assert!((value(&figures, "throughput_over_bare_power_safe") - 0.75).abs() < 1e-9);
        assert!((value(&figures, "p50_over_bare_ms") - 0.7).abs() < 1e-9);
        assert!((value(&figures, "cpu_over_bare_ms") - 0.4).abs() < 1e-9);
        assert_eq!(value(&figures, "p99_ms_at_16"), 40.0);
    }

    #[test]
    fn cpu_share_is_below_one_when_other_programs_ran() {
        assert_eq!(cpu_share(&[window(1000.0, 2.0, 2.0)], 2), Some(1.0));
        assert_eq!(cpu_share(&[window(600.0, 2.0, 2.0)], 2), Some(0.6));
    }

    #[test]
    fn workload_dependent_goals_apply_only_to_the_projects_own_workload() {
        let windows_by_case = CASES.map(|_| vec![window(1.0, 1.0, 1.0)]);
        let memory = PeakMemory { recognizer_mb: None, server_mb: None };
        let goals =
            |own| headline(&windows_by_case, &memory, own).into_iter().filter(|figure| figure.goal.is_some()).count();
        assert_eq!((goals(true), goals(false)), (7, 5));
    }
}

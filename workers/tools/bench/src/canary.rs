//! Simulates canaries of known quality: how often a good release is promoted and a bad one withdrawn, after how much time
//! and how many images. Uses the releaser's own evidence and judgement, without NATS; the answers per image come from
//! real models on real pictures. Nothing is timed, so other load on the machine does not matter.

mod fleet;
mod releases;
mod results;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use releaser::CanarySettings;
use runtime::Shutdown;
use vision::OnnxRuntime;

use crate::error::BenchError;
use crate::experiments;
use crate::report::BenchReport;
use fleet::CanaryRun;
use releases::{CanaryCandidate, CanaryCandidates, KINDS};

/// Options of `bench canary`.
#[derive(Debug, Clone, Default)]
pub(crate) struct CanaryBenchOptions {
    /// Use one seed; takes less than a minute.
    pub quick: bool,
    /// Canaries per kind, at least 1.
    pub seeds: u64,
    /// The ONNX Runtime library; searched for if absent.
    pub onnxruntime: Option<PathBuf>,
}

/// Runs the bench; a hundred seeds take about two minutes.
pub(crate) async fn run(options: &CanaryBenchOptions, shutdown: Shutdown) -> Result<BenchReport, BenchError> {
    let (options, stop) = (options.clone(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let work = tokio::task::spawn_blocking(move || measure(&options, &stopped));
    tokio::select! {
        report = work => report?,
        () = shutdown.wait_for_request() => {
            stop.store(true, Ordering::Relaxed);
            Err(BenchError::Stopped)
        }
    }
}

fn measure(options: &CanaryBenchOptions, stop: &AtomicBool) -> Result<BenchReport, BenchError> {
    let runtime = OnnxRuntime::find_and_load(options.onnxruntime.as_deref())?;
    let releases = CanaryCandidates::create(&runtime)?;
    let settings = CanarySettings::default();
    let runs = run_all(&releases, &settings, options, stop)?;
    Ok(results::report(&releases, &runs, &settings, options))
}

/// Runs every kind of candidate with every seed, on all cores.
fn run_all(
    releases: &CanaryCandidates,
    settings: &CanarySettings,
    options: &CanaryBenchOptions,
    stop: &AtomicBool,
) -> Result<Vec<CanaryRun>, BenchError> {
    let experiments: Vec<(&CanaryCandidate, u64)> = (1..=options.seeds)
        .flat_map(|seed| releases.candidates.iter().map(move |candidate| (candidate, seed)))
        .collect();
    let mut runs = experiments::run_experiments(
        &experiments,
        ("canaries", KINDS.len() * 5),
        || stop.load(Ordering::Relaxed),
        || Ok(()),
        |(), (candidate, seed)| Ok(fleet::run_canary(releases, candidate, settings, *seed)),
    )?;
    runs.sort_by_key(|run| (run.seed, run.kind));
    Ok(runs)
}

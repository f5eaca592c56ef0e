//! Canaries whose truth is known: how often a good release is promoted and a bad one withdrawn, after how long, and on how
//! many images. Evidence and judgement are the releaser's own functions, without the bus; what single images come to is
//! what real models say of real pictures. Chance, not time, so that it may run beside anything.

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

/// What an operator may choose.
#[derive(Debug, Clone, Default)]
pub(crate) struct CanaryBenchOptions {
    /// One seed, in less than a minute.
    pub quick: bool,
    /// Canaries of each kind, at least 1.
    pub seeds: u64,
    /// The ONNX Runtime library; looked for if absent.
    pub onnxruntime: Option<PathBuf>,
}

/// Measures; a hundred seeds take about two minutes.
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
    let releases = CanaryCandidates::make(&runtime)?;
    let settings = CanarySettings::default();
    let played = play_all(&releases, &settings, options, stop)?;
    Ok(results::report(&releases, &played, &settings, options))
}

/// Every kind with every seed, on all cores.
fn play_all(
    releases: &CanaryCandidates,
    settings: &CanarySettings,
    options: &CanaryBenchOptions,
    stop: &AtomicBool,
) -> Result<Vec<CanaryRun>, BenchError> {
    let games: Vec<(&CanaryCandidate, u64)> =
        (1..=options.seeds).flat_map(|seed| releases.candidates.iter().map(move |kind| (kind, seed))).collect();
    let mut played = experiments::run_experiments(
        &games,
        ("canaries", KINDS.len() * 5),
        || stop.load(Ordering::Relaxed),
        || Ok(()),
        |(), (candidate, seed)| Ok(fleet::run_canary(releases, candidate, settings, *seed)),
    )?;
    played.sort_by_key(|played| (played.seed, played.kind));
    Ok(played)
}

//! Rounds that start from a good, deployed model: accuracy of each release on unseen pictures, against the start model and
//! against the reported accuracy. Uses the trainer's and the aggregator's own code with default settings, without NATS.
//! Measures accuracy, not time, so other load on the machine does not matter.

mod experiment;
mod results;
mod steering;
mod world;

use std::path::PathBuf;

use runtime::Shutdown;
use tokio_util::sync::CancellationToken;
use vision::OnnxRuntime;

use crate::error::BenchError;
use crate::experiments::run_experiments;
use crate::report::BenchReport;
use experiment::{RoundsExperiment, run_experiment};
use steering::Steering;
use world::{CASES, LabelQuality, RoundsWorld};

/// Repetitions per case in the comparison of hard-case steering.
const REPETITIONS: u64 = 3;

/// Options of `bench rounds`.
#[derive(Debug, Clone, Default)]
pub(crate) struct RoundsBenchOptions {
    /// One round of few experiments.
    pub quick: bool,
    /// Folder of labelled images; the project's own images if absent.
    pub data: Option<PathBuf>,
    /// Folder of the deployed model; the project's own model if absent.
    pub model: Option<PathBuf>,
    /// Folder of the cloud's model, whose answers are labels; the project's own model if absent.
    pub cloud: Option<PathBuf>,
    /// Start models to run: `random`, `60 %`, `80 %`, `model` or `cloud`; all if empty.
    pub starts: Vec<String>,
    /// Also compare ways in which hard cases steer learning.
    pub hard_cases: bool,
    /// The ONNX Runtime library; searched for if absent.
    pub onnxruntime: Option<PathBuf>,
}

/// Runs the bench: about a quarter of an hour, or a minute if `quick`.
pub(crate) async fn run(options: &RoundsBenchOptions, shutdown: Shutdown) -> Result<BenchReport, BenchError> {
    let (options, stop) = (options.clone(), CancellationToken::new());
    let stop_signal = stop.clone();
    let work = tokio::task::spawn_blocking(move || measure(&options, &stop_signal));
    tokio::select! {
        report = work => report?,
        () = shutdown.wait_for_request() => {
            stop.cancel();
            Err(BenchError::Stopped)
        }
    }
}

fn measure(options: &RoundsBenchOptions, stop: &CancellationToken) -> Result<BenchReport, BenchError> {
    let runtime = OnnxRuntime::find_and_load(options.onnxruntime.as_deref())?;
    let world = RoundsWorld::create(&runtime, options)?;
    let mut experiments = Vec::new();
    for start in &world.starts {
        for (number, case) in CASES.iter().enumerate() {
            let labels: &[LabelQuality] = match (options.quick, start.is_slow) {
                (true, _) => &[LabelQuality::True],
                (false, true) => &[LabelQuality::Verdicts],
                (false, false) => &LabelQuality::ALL,
            };
            // A large model takes half a minute per site, so a third of the cases must suffice.
            if start.is_slow && ![0, 4, 5].contains(&number) {
                continue;
            }
            for labels in labels {
                let seed = experiments.len() as u64 + 1;
                experiments.push(RoundsExperiment { start, case, labels: *labels, steering: Steering::Default, seed });
            }
        }
    }
    if options.quick {
        experiments.retain(|experiment| !experiment.start.is_slow);
        experiments = experiments.into_iter().step_by(3).collect();
    } else if options.hard_cases {
        experiments.extend(steering_comparison(&world));
    }
    let rounds = if options.quick { 1 } else { experiment::ROUNDS };
    let results = run_experiments(
        &experiments,
        ("experiments", 10),
        || stop.is_cancelled(),
        || Ok(()),
        |(), experiment| run_experiment(&runtime, &world, experiment, rounds, stop),
    )?;
    Ok(results::report(&world, &results, options))
}

/// Experiments that differ only in their steering by hard cases, from trained start models.
fn steering_comparison(world: &RoundsWorld) -> impl Iterator<Item = RoundsExperiment<'_>> {
    let start =
        world.starts.iter().filter(|start| [world::NAMED, "60 %"].contains(&start.name.as_str()) && !start.is_slow);
    start.flat_map(|start| {
        let cases =
            CASES.iter().enumerate().flat_map(|case| (0..REPETITIONS).map(move |repetition| (case, repetition)));
        cases.flat_map(move |((number, case), repetition)| {
            let seed = 1000 + number as u64 * REPETITIONS + repetition;
            let labels = if repetition == 0 { LabelQuality::TenthWrong } else { LabelQuality::True };
            let experiment = move |steering| RoundsExperiment { start, case, labels, steering, seed };
            std::iter::once(Steering::None).chain(Steering::COMPARED).map(experiment)
        })
    })
}

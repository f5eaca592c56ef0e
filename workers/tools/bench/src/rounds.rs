//! Rounds that begin with a model that is deployed and good: what a release is worth on pictures nobody saw, against the
//! model that sites had and against what is shown of it. The trainer's and the aggregator's own recipes with default
//! settings, without the bus. Accuracy, not time, so that it may run beside anything.

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

/// Games of each case in which hard cases do one thing or another.
const COMPARED: u64 = 3;

/// What an operator may choose.
#[derive(Debug, Clone, Default)]
pub(crate) struct RoundsBenchOptions {
    /// One round of few games.
    pub quick: bool,
    /// Folder of labelled images; the project's own if absent.
    pub data: Option<PathBuf>,
    /// Folder of the model that is deployed; the project's own if absent.
    pub model: Option<PathBuf>,
    /// Folder of the cloud's model, whose answers are labels; the project's own if absent.
    pub cloud: Option<PathBuf>,
    /// Only games that begin with this model: `random`, `60 %`, `80 %`, `model` or `cloud`; all if empty.
    pub starts: Vec<String>,
    /// Also games in which hard cases steer what is learned.
    pub hard_cases: bool,
    /// The ONNX Runtime library; looked for if absent.
    pub onnxruntime: Option<PathBuf>,
}

/// Measures; takes about a quarter of an hour, or a minute if `quick`.
pub(crate) async fn run(options: &RoundsBenchOptions, shutdown: Shutdown) -> Result<BenchReport, BenchError> {
    let (options, stop) = (options.clone(), CancellationToken::new());
    let told = stop.clone();
    let work = tokio::task::spawn_blocking(move || measure(&options, &told));
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
    let world = RoundsWorld::make(&runtime, options)?;
    let mut games = Vec::new();
    for start in &world.starts {
        for (number, case) in CASES.iter().enumerate() {
            let labels: &[LabelQuality] = match (options.quick, start.is_slow) {
                (true, _) => &[LabelQuality::True],
                (false, true) => &[LabelQuality::Verdicts],
                (false, false) => &LabelQuality::ALL,
            };
            // A large model takes half a minute a site: a third of the cases will do.
            if start.is_slow && ![0, 4, 5].contains(&number) {
                continue;
            }
            for labels in labels {
                let seed = games.len() as u64 + 1;
                games.push(RoundsExperiment { start, case, labels: *labels, steering: Steering::Default, seed });
            }
        }
    }
    if options.quick {
        games.retain(|game| !game.start.is_slow);
        games = games.into_iter().step_by(3).collect();
    } else if options.hard_cases {
        games.extend(compared(&world));
    }
    let rounds = if options.quick { 1 } else { experiment::ROUNDS };
    let played = run_experiments(
        &games,
        ("games", 10),
        || stop.is_cancelled(),
        || Ok(()),
        |(), game| run_experiment(&runtime, &world, game, rounds, stop),
    )?;
    Ok(results::report(&world, &played, options))
}

/// Games from models that know something, the same but for what hard cases do.
fn compared(world: &RoundsWorld) -> impl Iterator<Item = RoundsExperiment<'_>> {
    let start =
        world.starts.iter().filter(|start| [world::NAMED, "60 %"].contains(&start.name.as_str()) && !start.is_slow);
    start.flat_map(|start| {
        let cases = CASES.iter().enumerate().flat_map(|case| (0..COMPARED).map(move |again| (case, again)));
        cases.flat_map(move |((number, case), again)| {
            let seed = 1000 + number as u64 * COMPARED + again;
            let labels = if again == 0 { LabelQuality::TenthWrong } else { LabelQuality::True };
            let game = move |steering| RoundsExperiment { start, case, labels, steering, seed };
            std::iter::once(Steering::None).chain(Steering::COMPARED).map(game)
        })
    })
}

//! Rounds that begin with a model that is deployed and good: what a release is worth on pictures nobody saw, against the
//! model that sites had and against what is shown of it. The trainer's and the aggregator's own recipes with default
//! settings, without the bus. Accuracy, not time, so that it may run beside anything.

mod found;
mod play;
mod world;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use runtime::Shutdown;
use tokio_util::sync::CancellationToken;
use vision::Onnx;

use crate::error::BenchError;
use crate::report::Report;
use play::{Game, Played, play};
use world::{CASES, Labels, World};

/// What an operator may choose.
#[derive(Debug, Clone, Default)]
pub struct Options {
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
    /// The ONNX Runtime library; looked for if absent.
    pub onnxruntime: Option<PathBuf>,
}

/// Measures; takes about half an hour, or a minute if `quick`.
pub async fn run(options: &Options, shutdown: Shutdown) -> Result<Report, BenchError> {
    let (options, stop) = (options.clone(), CancellationToken::new());
    let told = stop.clone();
    let work = tokio::task::spawn_blocking(move || measure(&options, &told));
    tokio::select! {
        report = work => report?,
        () = shutdown.wanted() => {
            stop.cancel();
            Err(BenchError::Stopped)
        }
    }
}

fn measure(options: &Options, stop: &CancellationToken) -> Result<Report, BenchError> {
    let runtime = Onnx::find_and_load(options.onnxruntime.as_deref())?;
    let world = World::make(&runtime, options)?;
    let mut games = Vec::new();
    for start in &world.starts {
        for (number, case) in CASES.iter().enumerate() {
            let labels: &[Labels] = match (options.quick, start.is_slow) {
                (true, _) => &[Labels::True],
                (false, true) => &[Labels::Verdicts],
                (false, false) => &Labels::ALL,
            };
            // A large model takes half a minute a site: a third of the cases will do.
            if start.is_slow && ![0, 4, 5].contains(&number) {
                continue;
            }
            for labels in labels {
                games.push(Game { start, case, labels: *labels, seed: games.len() as u64 + 1 });
            }
        }
    }
    if options.quick {
        games.retain(|game| !game.start.is_slow);
        games = games.into_iter().step_by(3).collect();
    }
    let rounds = if options.quick { 1 } else { play::ROUNDS };
    let played = play_all(&runtime, &world, &games, rounds, stop)?;
    Ok(found::report(&world, &played, options))
}

/// Every game, on all cores.
fn play_all(
    runtime: &Onnx,
    world: &World,
    games: &[Game<'_>],
    rounds: usize,
    stop: &CancellationToken,
) -> Result<Vec<Played>, BenchError> {
    let (next, played) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(games.len())));
    let failed = AtomicBool::new(false);
    let work = || -> Result<(), BenchError> {
        while let Some(game) = games.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let one =
                play(runtime, world, game, rounds, stop).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
            let mut played = played.lock().unwrap_or_else(PoisonError::into_inner);
            played.push(one);
            if played.len() % 10 == 0 {
                eprintln!("bench: {} of {} games", played.len(), games.len());
            }
        }
        Ok(())
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(ended) => ended,
            Err(_) => Err(BenchError::Stopped),
        })
    })?;
    let mut played = played.into_inner().unwrap_or_else(PoisonError::into_inner);
    played.sort_by(|a, b| (&a.start, &a.case, &a.labels).cmp(&(&b.start, &b.case, &b.labels)));
    Ok(played)
}

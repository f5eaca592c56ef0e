//! Runs many experiments on all cores.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::BenchError;

/// Runs every experiment and returns the results in their order. The first failure, or `is_stopped`, ends all.
/// `open`: prepares a runner per thread. `what`: name of the experiments in the progress line, printed after every
/// `every` of them.
pub(crate) fn run_experiments<Experiment: Sync, Runner, Outcome: Send>(
    experiments: &[Experiment],
    (what, every): (&str, usize),
    is_stopped: impl Fn() -> bool + Sync,
    open: impl Fn() -> Result<Runner, BenchError> + Sync,
    run: impl Fn(&mut Runner, &Experiment) -> Result<Outcome, BenchError> + Sync,
) -> Result<Vec<Outcome>, BenchError> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results = Mutex::new(Vec::with_capacity(experiments.len()));
    let work = || -> Result<(), BenchError> {
        let mut runner = open()?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(experiment) = experiments.get(number).filter(|_| !failed.load(Ordering::Relaxed)) else {
                return Ok(());
            };
            if is_stopped() {
                return Err(BenchError::Stopped);
            }
            let result = run(&mut runner, experiment)?;
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            results.push((number, result));
            if results.len().is_multiple_of(every) {
                eprintln!("bench: {} of {} {what}", results.len(), experiments.len());
            }
        }
    };
    let work = || work().inspect_err(|_| failed.store(true, Ordering::Relaxed));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(BenchError::Stopped)))
    })?;
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(number, _)| *number);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_their_order_and_one_failure_ends_all() {
        let experiments: Vec<usize> = (0..200).collect();
        let double = |_: &mut (), number: &usize| Ok(number * 2);
        let results = run_experiments(&experiments, ("experiments", 1000), || false, || Ok(()), double).unwrap();
        assert_eq!(results, (0..200).map(|number| number * 2).collect::<Vec<_>>());
        let third = |_: &mut (), number: &usize| if *number == 3 { Err(BenchError::Stopped) } else { Ok(*number) };
        assert!(run_experiments(&experiments, ("experiments", 1000), || false, || Ok(()), third).is_err());
        assert!(run_experiments(&experiments, ("experiments", 1000), || true, || Ok(()), double).is_err());
    }
}

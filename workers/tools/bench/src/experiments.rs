//! Many games, on all cores.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::BenchError;

/// Plays every game; what came of them in the order of the games. The first that fails ends all, as does `is_stopped`.
/// `open`: what a core needs to play. `what`: games as progress names them, told after every so many.
pub(crate) fn run_experiments<Game: Sync, Player, Played: Send>(
    games: &[Game],
    (what, every): (&str, usize),
    is_stopped: impl Fn() -> bool + Sync,
    open: impl Fn() -> Result<Player, BenchError> + Sync,
    play: impl Fn(&mut Player, &Game) -> Result<Played, BenchError> + Sync,
) -> Result<Vec<Played>, BenchError> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let played = Mutex::new(Vec::with_capacity(games.len()));
    let work = || -> Result<(), BenchError> {
        let mut player = open()?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(game) = games.get(number).filter(|_| !failed.load(Ordering::Relaxed)) else { return Ok(()) };
            if is_stopped() {
                return Err(BenchError::Stopped);
            }
            let one = play(&mut player, game)?;
            let mut played = played.lock().unwrap_or_else(PoisonError::into_inner);
            played.push((number, one));
            if played.len().is_multiple_of(every) {
                eprintln!("bench: {} of {} {what}", played.len(), games.len());
            }
        }
    };
    let work = || work().inspect_err(|_| failed.store(true, Ordering::Relaxed));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(BenchError::Stopped)))
    })?;
    let mut played = played.into_inner().unwrap_or_else(PoisonError::into_inner);
    played.sort_by_key(|(number, _)| *number);
    Ok(played.into_iter().map(|(_, one)| one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn games_come_back_in_order_and_one_that_fails_ends_all() {
        let games: Vec<usize> = (0..200).collect();
        let double = |_: &mut (), game: &usize| Ok(game * 2);
        let played = run_experiments(&games, ("games", 1000), || false, || Ok(()), double).unwrap();
        assert_eq!(played, (0..200).map(|game| game * 2).collect::<Vec<_>>());
        let third = |_: &mut (), game: &usize| if *game == 3 { Err(BenchError::Stopped) } else { Ok(*game) };
        assert!(run_experiments(&games, ("games", 1000), || false, || Ok(()), third).is_err());
        assert!(run_experiments(&games, ("games", 1000), || true, || Ok(()), double).is_err());
    }
}

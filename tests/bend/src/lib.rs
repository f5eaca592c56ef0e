//! A small mutation fuzzer for parsers of untrusted bytes: whatever the input, a parser accepts or refuses it, and
//! never panics, hangs, or uses more memory than allowed. For tests only: `tests/hostile` fuzzes what is public, and
//! crates fuzz their own private parsers.
//!
//! `TRIBUTARY_HOSTILE_TURNS` sets the number of inputs and `TRIBUTARY_HOSTILE_SEED` the random seed; equal seeds give
//! equal inputs.

#![allow(clippy::indexing_slicing)]
// Only tests run this code, and a failure must end them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_gettime};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Default number of turns for the fastest parsers.
const TURNS: usize = 20_000;
/// Default seed.
const SEED: u64 = 20_264;
/// Processor time that parsing one input of a few kilobytes may take in an unoptimized build.
const MAX_CPU: Duration = Duration::from_secs(5);
/// Address space of a fuzzing process; an allocation beyond it aborts the process.
const MAX_MEMORY_BYTES: u64 = 2 << 30;
/// Byte values that often break parsers, such as MessagePack markers.
const EDGES: [u8; 10] = [0, 1, 0x7f, 0x80, 0xc1, 0xca, 0xcb, 0xdd, 0xdf, 0xff];
/// Most bytes of a failing input that are printed.
const SHOWN_BYTES: usize = 4096;

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Number of turns for the fastest parsers; slow ones use a fraction of it.
pub fn turns() -> usize {
    variable("TRIBUTARY_HOSTILE_TURNS").unwrap_or(TURNS)
}

/// Random seed.
pub fn seed() -> u64 {
    variable("TRIBUTARY_HOSTILE_SEED").unwrap_or(SEED)
}

/// Permanently limits this process's memory, so that a parser that takes too much aborts it. Call it only in a process
/// that does nothing else.
pub fn limit_memory() {
    let (_, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
    setrlimit(Resource::RLIMIT_AS, MAX_MEMORY_BYTES.min(hard), hard).unwrap();
}

/// This process's peak resident memory, MiB; 0 if the system does not report it.
pub fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// All files below a folder, sorted by path.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Reads the files below a folder of the repository whose names have one of these endings and that are at most
/// `most_bytes` long.
pub fn corpus(folder: &str, endings: &[&str], most_bytes: usize) -> Vec<Vec<u8>> {
    let named = |path: &PathBuf| endings.iter().any(|ending| path.to_string_lossy().ends_with(ending));
    let read = |path: PathBuf| std::fs::read(&path).unwrap();
    let mut found: Vec<Vec<u8>> = files(&root().join(folder)).into_iter().filter(named).map(read).collect();
    found.retain(|bytes| bytes.len() <= most_bytes);
    assert!(!found.is_empty(), "no files below {folder} with endings {endings:?}");
    found
}

/// Makes a corpus of texts.
pub fn texts<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Vec<Vec<u8>> {
    texts.into_iter().map(|text| text.as_ref().as_bytes().to_vec()).collect()
}

/// Mutates a few places of an input: changes bytes and lengths, cuts and repeats pieces, splices pieces of another
/// input.
pub fn bend(bytes: &[u8], other: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut bent = bytes.to_vec();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bent.len());
        let end = (at + rng.random_range(0..16)).min(bent.len());
        match rng.random_range(0..9) {
            0 if at < bent.len() => bent[at] ^= 1 << rng.random_range(0..8),
            1 if at < bent.len() => bent[at] = EDGES[rng.random_range(0..EDGES.len())],
            2 => bent.truncate(at),
            3 => drop(bent.drain(at..end)),
            4 => bent
                .splice(at..at, bytes[at.min(bytes.len())..].iter().take(32).copied().collect::<Vec<u8>>())
                .for_each(drop),
            5 if !other.is_empty() => {
                let from = rng.random_range(0..other.len());
                bent.splice(at..end, other[from..].iter().take(24).copied().collect::<Vec<u8>>()).for_each(drop);
            }
            6 if at + 8 <= bent.len() => bent[at..at + 8].copy_from_slice(&[0xff; 8]),
            7 => bend_number(&mut bent, at, rng),
            _ => bent.insert(at, rng.random()),
        }
    }
    bent
}

/// Numbers in text form, at the limits of their types.
const NUMBERS: [&str; 10] = [
    "0",
    "-1",
    "255",
    "4294967295",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "-1e308",
    "1e-320",
];

/// Replaces the next number in a text.
fn bend_number(bent: &mut Vec<u8>, from: usize, rng: &mut StdRng) {
    let Some(start) = bent[from..].iter().position(u8::is_ascii_digit).map(|place| from + place) else { return };
    let end = bent[start..].iter().position(|byte| !byte.is_ascii_digit()).map_or(bent.len(), |place| start + place);
    bent.splice(start..end, NUMBERS[rng.random_range(0..NUMBERS.len())].bytes()).for_each(drop);
}

/// Prints the current input if the test panics.
struct InputReporter<'a> {
    name: &'a str,
    turn: usize,
    bytes: &'a [u8],
}

impl Drop for InputReporter<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let shown: String = self
                .bytes
                .iter()
                .take(SHOWN_BYTES)
                .flat_map(|byte| std::ascii::escape_default(*byte))
                .map(char::from)
                .collect();
            let (name, turn, seed, length) = (self.name, self.turn, seed(), self.bytes.len());
            println!("bent {name}: turn {turn} of seed {seed}, {length} bytes: {shown}");
        }
    }
}

/// Runs a parser on the corpus as it is, then on `turns` mutations. `parse` returns the number of executions that it
/// made.
pub fn bend_all(name: &str, corpus: &[Vec<u8>], turns: usize, parse: impl FnMut(&[u8]) -> usize) -> usize {
    bend_some(name, corpus, turns, |bent, _| bent, parse)
}

/// Like [`bend_all`], but passes half of the mutations through `touch`, for instance to repair a checksum without which
/// a parser reads no further.
pub fn bend_some(
    name: &str,
    corpus: &[Vec<u8>],
    turns: usize,
    mut touch: impl FnMut(Vec<u8>, &mut StdRng) -> Vec<u8>,
    mut parse: impl FnMut(&[u8]) -> usize,
) -> usize {
    let (mut rng, started) = (StdRng::seed_from_u64(seed()), Instant::now());
    let (mut executions, mut slowest) = (0, Duration::ZERO);
    let mut try_one = |turn: usize, bytes: &[u8]| {
        let tried = InputReporter { name, turn, bytes };
        let before = cpu();
        executions += parse(bytes);
        let took = cpu().saturating_sub(before);
        assert!(took < MAX_CPU, "parsing took {took:?} of processor time, more than {MAX_CPU:?}");
        slowest = slowest.max(took);
        drop(tried);
    };
    corpus.iter().for_each(|bytes| try_one(0, bytes));
    for turn in 1..=turns {
        let (one, other) = (rng.random_range(0..corpus.len()), rng.random_range(0..corpus.len()));
        let bent = bend(&corpus[one], &corpus[other], &mut rng);
        let bent = if rng.random_bool(0.5) { touch(bent, &mut rng) } else { bent };
        try_one(turn, &bent);
    }
    let seconds = started.elapsed().as_secs_f64();
    let (a_second, peak) = (executions as f64 / seconds, peak_mib());
    println!(
        "bent {name}: {executions} executions in {seconds:.1} s, {a_second:.0}/s, slowest {slowest:.1?}, {} files, peak {peak} MiB",
        corpus.len()
    );
    executions
}

/// Processor time of this thread.
fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_reproducible_and_mutates_its_inputs() {
        let corpus = texts(["{\"number\": 17, \"name\": \"a\"}", "another text that is longer than the first"]);
        let inputs = || {
            let mut inputs = Vec::new();
            bend_all("itself", &corpus, 200, |bytes| {
                inputs.push(bytes.to_vec());
                1
            });
            inputs
        };
        let first = inputs();
        assert_eq!(first, inputs());
        assert!(first.iter().filter(|bytes| !corpus.contains(bytes)).count() > 150);
    }

    #[test]
    #[should_panic(expected = "too much")]
    fn a_parser_that_panics_is_found() {
        bend_all("panics", &texts(["aaaa"]), 1000, |bytes| {
            assert!(bytes.len() < 8, "too much");
            1
        });
    }
}

//! What merging costs: many updates as memory-mapped files, summed by their shares, their median and their trimmed mean,
//! each over a plain read of the same memory in the same run, on one thread. Checking and scoring are told apart.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aggregator::ParameterLayout;
use aggregator::merge::{SiteDelta, WeightedRow, sum_into, trimmed_of, without_extremes};
use aggregator::public_set::PublicSet;
use aggregator::score::{ModelScorer, ScoringModel};
use aggregator::weights_file::{WeightRow, WeightsFile};
use autograd::TrainableSelection;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use runtime::Shutdown;
use schemas::WeightFormat;
use serde_json::json;
use training::weights::{NamedTensors, encode};
use vision::{Model, OnnxRuntime};

use crate::error::BenchError;
use crate::report::{BenchMachine, BenchReport, FigureGoal, HeadlineFigure, ReportTable};
use crate::stats::median;

/// Updates and megabytes of each.
const SIZES: [(usize, usize); 3] = [(10, 25), (10, 100), (32, 100)];
/// Tensors of a model.
const TENSORS: usize = 50;
const MODEL: &str = "fixtures/models/fashion-light";
const IMAGES: &str = "fixtures/images/fashion";

/// What an operator may choose.
#[derive(Debug, Clone, Default)]
pub(crate) struct AggregateBenchOptions {
    /// The smallest size alone, one round.
    pub quick: bool,
    /// The ONNX Runtime library; looked for if absent.
    pub onnxruntime: Option<std::path::PathBuf>,
    /// Folder on the disk for the updates; the system's folder for temporary files if absent.
    pub dir: Option<std::path::PathBuf>,
}

/// One size's figures, milliseconds, medians of the rounds.
struct AggregateBenchResult {
    updates: usize,
    megabytes: usize,
    read: f64,
    sum: f64,
    median: f64,
    trimmed: f64,
    check: f64,
    /// Memory of its own that a sum took at the most, over that of one model.
    peak: f64,
}

/// Measures; takes about two minutes, and 3.3 GB on the disk.
pub(crate) async fn run(options: &AggregateBenchOptions, shutdown: Shutdown) -> Result<BenchReport, BenchError> {
    let options = options.clone();
    let work = tokio::task::spawn_blocking(move || measure(&options));
    tokio::select! {
        report = work => report?,
        () = shutdown.wait_for_request() => Err(BenchError::Stopped),
    }
}

fn measure(options: &AggregateBenchOptions) -> Result<BenchReport, BenchError> {
    let sizes = if options.quick { &SIZES[..1] } else { &SIZES[..] };
    let rounds = if options.quick { 1 } else { 5 };
    let place = match &options.dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    };
    let place = place.map_err(BenchError::file("a folder for the updates"))?;
    let mut found = Vec::new();
    for (updates, megabytes) in sizes {
        eprintln!("bench: {updates} updates of {megabytes} MB");
        found.push(one(place.path(), *updates, *megabytes, rounds)?);
    }
    Ok(report(&found, score(options)?, options.quick))
}

fn layout(megabytes: usize) -> ParameterLayout {
    let each = megabytes * 1_000_000 / 4 / TENSORS;
    ParameterLayout::new((0..TENSORS).map(|number| (format!("layer{number:02}"), vec![each])).collect())
}

fn one(place: &Path, updates: usize, megabytes: usize, rounds: usize) -> Result<AggregateBenchResult, BenchError> {
    let layout = layout(megabytes);
    let mut random = StdRng::seed_from_u64(5);
    let mut files = Vec::with_capacity(updates);
    let path = |number: usize| place.join(format!("{megabytes}-{number}.safetensors"));
    for number in 0..updates {
        let path = path(number);
        let mut value = |_| random.random_range(-1.0_f32..1.0);
        let tensors: NamedTensors = layout
            .places()
            .iter()
            .map(|place| (place.name.clone(), (place.shape.clone(), (0..place.len).map(&mut value).collect())))
            .collect();
        let bytes = encode(&tensors, &Default::default(), WeightFormat::F32, None)?;
        std::fs::write(&path, bytes).map_err(BenchError::file(&path))?;
        let file = WeightsFile::open(&path, WeightFormat::F32, &layout);
        files.push(file.map_err(|error| BenchError::file(&path)(std::io::Error::other(error)))?);
    }
    let base = vec![0.01_f32; layout.len()];
    let share = 1.0 / updates as f64;
    let terms: Vec<WeightedRow<'_>> =
        files.iter().map(|file| WeightedRow { values: WeightRow::File(file), times: share }).collect();
    let changes: Vec<SiteDelta<'_>> =
        files.iter().map(|file| SiteDelta { values: WeightRow::File(file), base: &base, times: 1.0 }).collect();
    let (mut reads, mut sums, mut medians, mut trims, mut checks, mut peaks) =
        (vec![], vec![], vec![], vec![], vec![], vec![]);
    let mut row = vec![0.0_f32; layout.len()];
    for _ in 0..=rounds {
        reads.push(timed(|| files.iter().map(|file| read(file.bytes())).fold(0, u64::wrapping_add)));
        sums.push(timed(|| sum_into(&terms, &layout, &mut row)));
        medians.push(timed(|| without_extremes(&base, &changes, &layout, (updates - 1) / 2)));
        trims.push(timed(|| without_extremes(&base, &changes, &layout, trimmed_of(updates, 0.2))));
        checks.push(timed(|| changes.iter().filter(|change| change.norm(&layout).1).count()));
        peaks.push(peak(|| sum_into(&terms, &layout, &mut row)));
    }
    for number in 0..updates {
        // The next size needs the room.
        let _removed_with_the_folder = std::fs::remove_file(path(number));
    }
    // The first round brought the files into memory.
    let middle = |times: &[f64]| median(&times[1..]);
    Ok(AggregateBenchResult {
        updates,
        megabytes,
        read: middle(&reads),
        sum: middle(&sums),
        median: middle(&medians),
        trimmed: middle(&trims),
        check: middle(&checks),
        peak: (middle(&peaks) + layout.len() as f64 * 4.0) / (layout.len() as f64 * 4.0),
    })
}

fn timed<T>(work: impl FnOnce() -> T) -> f64 {
    let begun = Instant::now();
    std::hint::black_box(work());
    begun.elapsed().as_secs_f64() * 1e3
}

/// Every eight bytes of some memory, added up: as fast as one thread can read it.
fn read(bytes: &[u8]) -> u64 {
    let mut sums = [0_u64; 16];
    let chunks = bytes.chunks_exact(128);
    for chunk in chunks {
        for (sum, eight) in sums.iter_mut().zip(chunk.chunks_exact(8)) {
            *sum = sum.wrapping_add(eight.try_into().map_or(0, u64::from_le_bytes));
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

/// How much memory of its own the process grows by at the most while it works, bytes; files that are mapped are the
/// kernel's.
fn peak(work: impl FnOnce()) -> f64 {
    let (stop, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let before = own_bytes();
    let (done, seen) = (stop.clone(), most.clone());
    let watch = std::thread::spawn(move || {
        while !done.load(Ordering::Relaxed) {
            seen.fetch_max(own_bytes(), Ordering::Relaxed);
            std::thread::park_timeout(Duration::from_millis(2));
        }
    });
    work();
    stop.store(true, Ordering::Relaxed);
    let _it_only_watched = watch.join();
    most.load(Ordering::Relaxed).saturating_sub(before) as f64
}

fn own_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Milliseconds to try one of ten models on 200 pictures, on one core and on all.
fn score(options: &AggregateBenchOptions) -> Result<(f64, f64), BenchError> {
    let runtime = OnnxRuntime::find_and_load(options.onnxruntime.as_deref())?;
    let looked_for = Path::new(MODEL);
    if !looked_for.is_dir() {
        return Err(BenchError::NoModel { looked_for: looked_for.into() });
    }
    let model = Model::load(looked_for)?;
    let public = PublicSet::read(Path::new(IMAGES), &model, 20, 1 << 28)?;
    let ground = ScoringModel::for_model(&runtime, &model, &TrainableSelection::All, &[])?;
    let all = public.all();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut judges =
        (0..cores).map(|_| ModelScorer::new(&runtime, &ground, 1)).collect::<Result<Vec<_>, training::TrainError>>()?;
    let models = 10;
    let mut on = |count: usize| -> Result<f64, BenchError> {
        let begun = Instant::now();
        let left = std::sync::atomic::AtomicUsize::new(models);
        let work = |judge: &mut ModelScorer| -> Result<(), training::TrainError> {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                judge.score(&ground.base, &public, &all)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = judges.iter_mut().take(count).map(|judge| scope.spawn(|| work(judge))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
        })?;
        Ok(begun.elapsed().as_secs_f64() * 1e3 / models as f64)
    };
    on(1)?;
    Ok((on(1)?, on(cores)?))
}

fn report(found: &[AggregateBenchResult], (one_core, all_cores): (f64, f64), quick: bool) -> BenchReport {
    let columns =
        vec!["updates", "read ms", "sum", "over read", "median", "over read", "trimmed", "over read", "check"];
    let lines = found
        .iter()
        .map(|found| {
            let over = |value: f64| format!("{:.2}", value / found.read);
            vec![
                format!("{} x {} MB", found.updates, found.megabytes),
                format!("{:.1}", found.read),
                format!("{:.1}", found.sum),
                over(found.sum),
                format!("{:.1}", found.median),
                over(found.median),
                format!("{:.1}", found.trimmed),
                over(found.trimmed),
                format!("{:.1}", found.check),
            ]
        })
        .collect();
    let of = |place: usize, value: &dyn Fn(&AggregateBenchResult) -> f64| found.get(place).map(value);
    let figure = |name, title, value, most: f64| HeadlineFigure {
        name,
        title,
        value,
        unit: "",
        goal: Some(FigureGoal::AtMost(most)),
    };
    let over = |value: fn(&AggregateBenchResult) -> f64| move |found: &AggregateBenchResult| value(found) / found.read;
    let headline = vec![
        figure(
            "sum_over_read_10x25",
            "weighted sum over a plain read, 10 x 25 MB",
            of(0, &over(|found| found.sum)),
            2.0,
        ),
        figure("sum_over_read_10x100", "10 x 100 MB", of(1, &over(|found| found.sum)), 2.0),
        figure("sum_over_read_32x100", "32 x 100 MB", of(2, &over(|found| found.sum)), 2.0),
        figure(
            "median_over_read_10x25",
            "median over a plain read, 10 x 25 MB",
            of(0, &over(|found| found.median)),
            10.0,
        ),
        figure(
            "trimmed_over_read_10x25",
            "trimmed mean over a plain read, 10 x 25 MB",
            of(0, &over(|found| found.trimmed)),
            10.0,
        ),
        HeadlineFigure {
            name: "peak_over_one_model",
            title: "memory of its own a sum takes, over one model's, at the most",
            value: found.iter().map(|found| found.peak).reduce(f64::max),
            unit: "",
            goal: None,
        },
    ];
    let rows = found
        .iter()
        .map(|found| {
            json!({
                "updates": found.updates, "megabytes": found.megabytes, "read_ms": found.read, "sum_ms": found.sum,
                "median_ms": found.median, "trimmed_ms": found.trimmed, "check_ms": found.check,
                "peak_over_one_model": found.peak,
            })
        })
        .collect();
    BenchReport {
        bench: "aggregate",
        settings: json!({ "quick": quick, "tensors": TENSORS }),
        machine: BenchMachine::here(&std::env::temp_dir()),
        rows,
        table: ReportTable { columns, lines },
        headline,
        notes: vec![
            "Updates are memory-mapped safetensors files in the page cache; one thread, milliseconds, medians of alternated rounds.".into(),
            "check: every number finite, and the length of the change, of all updates.".into(),
            format!("Scoring one model (27,000 weights) on 200 pictures: {one_core:.1} ms on one core, {all_cores:.1} ms each with all cores."),
        ],
        charts: Vec::new(),
    }
}

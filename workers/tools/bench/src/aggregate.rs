//! Measures merging: the weighted sum, median and trimmed mean of memory-mapped updates, each relative to a plain read
//! of the same memory in the same run, on one thread. Checking and scoring are measured separately.

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

/// Number of updates, and megabytes per update.
const SIZES: [(usize, usize); 3] = [(10, 25), (10, 100), (32, 100)];
/// Tensors per model.
const TENSORS: usize = 50;
const MODEL: &str = "fixtures/models/fashion-light";
const IMAGES: &str = "fixtures/images/fashion";

/// Options of `bench aggregate`.
#[derive(Debug, Clone, Default)]
pub(crate) struct AggregateBenchOptions {
    /// Measure the smallest size only, in one round.
    pub quick: bool,
    /// The ONNX Runtime library; searched for if absent.
    pub onnxruntime: Option<std::path::PathBuf>,
    /// Folder for the updates; the system's temporary folder if absent.
    pub dir: Option<std::path::PathBuf>,
}

/// Figures for one size: milliseconds, medians over the rounds.
struct AggregateBenchResult {
    updates: usize,
    megabytes: usize,
    read: f64,
    sum: f64,
    median: f64,
    trimmed: f64,
    check: f64,
    /// Peak private memory of a sum, relative to one model's.
    peak: f64,
}

/// Runs the bench: about two minutes, and 3.3 GB on disk.
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
    let mut results = Vec::new();
    for (updates, megabytes) in sizes {
        eprintln!("bench: {updates} updates of {megabytes} MB");
        results.push(measure_size(place.path(), *updates, *megabytes, rounds)?);
    }
    Ok(report(&results, measure_scoring(options)?, options.quick))
}

fn make_layout(megabytes: usize) -> ParameterLayout {
    let each = megabytes * 1_000_000 / 4 / TENSORS;
    ParameterLayout::new((0..TENSORS).map(|number| (format!("layer{number:02}"), vec![each])).collect())
}

fn measure_size(
    place: &Path,
    updates: usize,
    megabytes: usize,
    rounds: usize,
) -> Result<AggregateBenchResult, BenchError> {
    let layout = make_layout(megabytes);
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
        reads.push(timed(|| files.iter().map(|file| sum_bytes(file.bytes())).fold(0, u64::wrapping_add)));
        sums.push(timed(|| sum_into(&terms, &layout, &mut row)));
        medians.push(timed(|| without_extremes(&base, &changes, &layout, (updates - 1) / 2)));
        trims.push(timed(|| without_extremes(&base, &changes, &layout, trimmed_of(updates, 0.2))));
        checks.push(timed(|| changes.iter().filter(|change| change.norm(&layout).1).count()));
        peaks.push(peak_growth(|| sum_into(&terms, &layout, &mut row)));
    }
    for number in 0..updates {
        // Frees disk space for the next size.
        let _removed_with_the_folder = std::fs::remove_file(path(number));
    }
    // The first round only loads the files into the page cache.
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
    let started = Instant::now();
    std::hint::black_box(work());
    started.elapsed().as_secs_f64() * 1e3
}

/// Sums memory as 64-bit words, as fast as one thread can read it.
fn sum_bytes(bytes: &[u8]) -> u64 {
    let mut sums = [0_u64; 16];
    let chunks = bytes.chunks_exact(128);
    for chunk in chunks {
        for (sum, eight) in sums.iter_mut().zip(chunk.chunks_exact(8)) {
            *sum = sum.wrapping_add(eight.try_into().map_or(0, u64::from_le_bytes));
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

/// Peak growth of the process's private memory during `work`, bytes. Mapped files are not counted.
fn peak_growth(work: impl FnOnce()) -> f64 {
    let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let before = private_bytes();
    let (done, seen) = (stop.clone(), peak.clone());
    let watch = std::thread::spawn(move || {
        while !done.load(Ordering::Relaxed) {
            seen.fetch_max(private_bytes(), Ordering::Relaxed);
            std::thread::park_timeout(Duration::from_millis(2));
        }
    });
    work();
    stop.store(true, Ordering::Relaxed);
    let _ignored = watch.join();
    peak.load(Ordering::Relaxed).saturating_sub(before) as f64
}

fn private_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Milliseconds to score a model (mean of ten) on 200 pictures, on one core and on all cores.
fn measure_scoring(options: &AggregateBenchOptions) -> Result<(f64, f64), BenchError> {
    let runtime = OnnxRuntime::find_and_load(options.onnxruntime.as_deref())?;
    let looked_for = Path::new(MODEL);
    if !looked_for.is_dir() {
        return Err(BenchError::NoModel { looked_for: looked_for.into() });
    }
    let model = Model::load(looked_for)?;
    let public = PublicSet::read(Path::new(IMAGES), &model, 20, 1 << 28)?;
    let scoring = ScoringModel::for_model(&runtime, &model, &TrainableSelection::All, &[])?;
    let all = public.all();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut scorers = (0..cores)
        .map(|_| ModelScorer::new(&runtime, &scoring, 1))
        .collect::<Result<Vec<_>, training::TrainError>>()?;
    let models = 10;
    let mut on = |count: usize| -> Result<f64, BenchError> {
        let started = Instant::now();
        let left = std::sync::atomic::AtomicUsize::new(models);
        let work = |scorer: &mut ModelScorer| -> Result<(), training::TrainError> {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                scorer.score(&scoring.base, &public, &all)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = scorers.iter_mut().take(count).map(|scorer| scope.spawn(|| work(scorer))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
        })?;
        Ok(started.elapsed().as_secs_f64() * 1e3 / models as f64)
    };
    on(1)?;
    Ok((on(1)?, on(cores)?))
}

fn report(results: &[AggregateBenchResult], (one_core, all_cores): (f64, f64), quick: bool) -> BenchReport {
    let columns =
        vec!["updates", "read ms", "sum", "over read", "median", "over read", "trimmed", "over read", "check"];
    let lines = results
        .iter()
        .map(|result| {
            let over = |value: f64| format!("{:.2}", value / result.read);
            vec![
                format!("{} x {} MB", result.updates, result.megabytes),
                format!("{:.1}", result.read),
                format!("{:.1}", result.sum),
                over(result.sum),
                format!("{:.1}", result.median),
                over(result.median),
                format!("{:.1}", result.trimmed),
                over(result.trimmed),
                format!("{:.1}", result.check),
            ]
        })
        .collect();
    let of = |place: usize, value: &dyn Fn(&AggregateBenchResult) -> f64| results.get(place).map(value);
    let figure = |name, title, value, most: f64| HeadlineFigure {
        name,
        title,
        value,
        unit: "",
        goal: Some(FigureGoal::AtMost(most)),
    };
    let over =
        |value: fn(&AggregateBenchResult) -> f64| move |result: &AggregateBenchResult| value(result) / result.read;
    let headline = vec![
        figure(
            "sum_over_read_10x25",
            "weighted sum over a plain read, 10 x 25 MB",
            of(0, &over(|result| result.sum)),
            2.0,
        ),
        figure("sum_over_read_10x100", "10 x 100 MB", of(1, &over(|result| result.sum)), 2.0),
        figure("sum_over_read_32x100", "32 x 100 MB", of(2, &over(|result| result.sum)), 2.0),
        figure(
            "median_over_read_10x25",
            "median over a plain read, 10 x 25 MB",
            of(0, &over(|result| result.median)),
            10.0,
        ),
        figure(
            "trimmed_over_read_10x25",
            "trimmed mean over a plain read, 10 x 25 MB",
            of(0, &over(|result| result.trimmed)),
            10.0,
        ),
        HeadlineFigure {
            name: "peak_over_one_model",
            title: "peak private memory of a sum, relative to one model",
            value: results.iter().map(|result| result.peak).reduce(f64::max),
            unit: "",
            goal: None,
        },
    ];
    let rows = results
        .iter()
        .map(|result| {
            json!({
                "updates": result.updates, "megabytes": result.megabytes, "read_ms": result.read, "sum_ms": result.sum,
                "median_ms": result.median, "trimmed_ms": result.trimmed, "check_ms": result.check,
                "peak_over_one_model": result.peak,
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
            "Updates are memory-mapped safetensors files in the page cache; milliseconds on one thread, medians over alternating rounds.".into(),
            "check: test all values for finiteness and compute the norm of each update.".into(),
            format!("Scoring one model (27,000 weights) on 200 pictures: {one_core:.1} ms on one core, {all_cores:.1} ms per model on all cores."),
        ],
        charts: Vec::new(),
    }
}

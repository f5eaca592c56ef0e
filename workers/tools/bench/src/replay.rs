//! Measures export and evaluate: images of a stream to a folder, to an archive and through a model, against a raw pull of
//! the same stream and a sequential write of the same bytes; and their effect on live images.
//!
//! Each replay is a `tributary` process, as a user would start it, measured end to end. The measurements alternate over
//! several rounds. Every figure is a median over the rounds, and every ratio compares measurements of the same round.
//!
//! Each round has its own folders, kept until the end: ext4 skips inodes that were freed in the last minutes
//! (`recently_deleted` in fs/ext4/ialloc.c), so removing one export makes the next one several times slower.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use runtime::Shutdown;
use serde_json::{Value, json};
use streams::reader::{self, MessageReader, StreamRange};
use streams::server::Durability;
use streams::topology;
use vision::InferenceSettings;

use crate::bench_site::{BenchSite, TestbedPaths};
use crate::error::BenchError;
use crate::load_generator::{AnswerMilestone, LoadGenerator};
use crate::measurement_window::{MeasurementWindow, WindowLength};
use crate::report::{BenchMachine, BenchReport, FigureGoal, HeadlineFigure, ReportTable};
use crate::stats::median;
use crate::workload::Workload;

/// Images in flight for the pipeline's throughput, as in the recognize bench.
const IN_FLIGHT: usize = 16;
/// Rate of live images, as a share of the pipeline's throughput.
const LIVE_SHARE: f64 = 0.5;
/// Time limit of a replay.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Pause after live images, because a replay is slower right after them.
const QUIET: Duration = Duration::from_secs(3);
/// Bytes per write of the sequential write.
const CHUNK_BYTES: usize = 1024 * 1024;

/// Options of `bench replay`.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReplayBenchOptions {
    /// Folder of the model; the project's own model if absent.
    pub model: Option<PathBuf>,
    /// Folder of the images; generated if absent.
    pub images: Option<PathBuf>,
    /// Folder for the server's store and the exports during the run; the system's temporary folder if absent.
    pub store: Option<PathBuf>,
    /// Finish in about a minute, with fewer images.
    pub quick: bool,
    /// The nats-server program; searched for if absent.
    pub nats_server: Option<PathBuf>,
    /// The ONNX Runtime library; searched for if absent.
    pub onnxruntime: Option<PathBuf>,
    /// Inference settings of the recognizer and of the evaluated model.
    pub infer: InferenceSettings,
}

/// Runs the bench; takes some minutes.
pub(crate) async fn run(options: &ReplayBenchOptions, shutdown: Shutdown) -> Result<BenchReport, BenchError> {
    tokio::select! {
        report = measure(options) => report,
        () = shutdown.wait_for_request() => Err(BenchError::Stopped),
    }
}

/// Work done and the time it took.
#[derive(Debug, Clone, Copy, Default)]
struct ReplayRate {
    images: f64,
    bytes: f64,
    seconds: f64,
}

impl ReplayRate {
    fn images_per_s(self) -> f64 {
        self.images / self.seconds.max(1e-9)
    }

    fn mb_per_s(self) -> f64 {
        self.bytes / 1e6 / self.seconds.max(1e-9)
    }
}

/// One round: each measurement once.
struct ReplayBenchRound {
    raw: ReplayRate,
    write: ReplayRate,
    files: ReplayRate,
    folder: ReplayRate,
    tar: ReplayRate,
    model: ReplayRate,
    pipeline: MeasurementWindow,
}

/// Live images without and with a concurrent replay.
struct LiveComparison {
    alone: MeasurementWindow,
    beside: MeasurementWindow,
}

async fn measure(options: &ReplayBenchOptions) -> Result<BenchReport, BenchError> {
    let folder = match &options.store {
        Some(folder) => tempfile::tempdir_in(folder).map_err(BenchError::file(folder))?,
        None => tempfile::tempdir().map_err(BenchError::file(std::env::temp_dir()))?,
    };
    let mut machine = BenchMachine::here(folder.path());
    let (count, rounds, live_s) = if options.quick { (1500, 3, 4) } else { (6000, 5, 15) };
    print_step(&format!("publishing {count} images to a recognizer"));
    let (model, images) = (options.model.clone(), options.images.clone());
    let workload = tokio::task::spawn_blocking(move || Workload::open(model.as_deref(), images.as_deref())).await??;
    let paths = TestbedPaths {
        folder: folder.path().to_owned(),
        nats_server: options.nats_server.clone(),
        onnxruntime: options.onnxruntime.clone(),
        model: workload.model.clone(),
        infer: options.infer.clone(),
    };
    let mut site = BenchSite::start("site", Durability::Fast, &paths).await?;
    machine.nats_server = Some(site.bus.server_version());
    site.start_recognizer(&paths)?;
    let load = LoadGenerator::open(&site, workload.images.clone()).await?;
    tokio::select! {
        answered = fill_stream(&load, count) => answered?,
        ended = site.wait_for_exit() => return Err(ended),
    }
    let processes = site.processes();
    let target = ReplayTarget { site: &site, work: folder.path(), model: &workload.model, paths: &paths };
    let length = WindowLength { lead: Duration::from_millis(300), counted: Duration::from_secs(2) };
    let mut results = Vec::new();
    for number in 0..rounds {
        print_step(&format!("round {} of {rounds}", number + 1));
        let last = reader::stream_level(&site.bus, topology::IMAGES).await?.last_sequence;
        let (mut round, turned) = (
            ReplayBenchRound::empty(
                load.run_closed_loop(AnswerMilestone::Answered, IN_FLIGHT, &processes, length).await?,
            ),
            number % 2 == 1,
        );
        tokio::time::sleep(QUIET).await;
        // Every other round runs in reverse order, so that pending disk writes do not always hit the same measurement.
        let mut order = [0, 1, 2, 3, 4, 5];
        if turned {
            order.reverse();
        }
        for step in order {
            tokio::time::sleep(Duration::from_millis(300)).await;
            match step {
                0 => round.raw = target.pull_raw(last).await?,
                1 => round.write = target.write_plain(last).await?,
                2 => round.files = target.write_files(&format!("files-{number}"), last).await?,
                3 => round.folder = target.replay(&format!("set-{number}"), &[], last).await?,
                4 => round.tar = target.export_archive(&format!("set-{number}.tar"), last).await?,
                _ => round.model = target.evaluate(last).await?,
            }
        }
        results.push(round);
    }
    let pipeline = median(&results.iter().map(|round| round.pipeline.images_per_s).collect::<Vec<_>>());
    let rate_per_s = pipeline * LIVE_SHARE;
    let live_for = WindowLength { lead: Duration::from_secs(1), counted: Duration::from_secs(live_s) };
    let mut live = Vec::new();
    for number in 0..rounds {
        print_step(&format!(
            "live images, round {} of {rounds}: {rate_per_s:.0} per second, without and with a replay",
            number + 1
        ));
        let alone = load.run_at_rate(rate_per_s, &processes, live_for).await?;
        let replaying = target.start(&format!("live-{number}"), &[], None)?;
        let beside = load.run_at_rate(rate_per_s, &processes, live_for).await;
        drop(replaying);
        live.push(LiveComparison { alone, beside: beside? });
    }
    drop(load);
    tokio::task::spawn_blocking(move || drop(site)).await?;
    Ok(report(options, machine, &workload, count, &results, &live, rate_per_s))
}

impl ReplayBenchRound {
    fn empty(pipeline: MeasurementWindow) -> Self {
        let none = ReplayRate::default();
        Self { raw: none, write: none, files: none, folder: none, tar: none, model: none, pipeline }
    }
}

/// Publishes `count` images and waits for their answers.
async fn fill_stream(load: &LoadGenerator, count: usize) -> Result<(), BenchError> {
    let mut left = count;
    while left > 0 {
        let some = left.min(IN_FLIGHT);
        let sending = (0..some).map(|_| load.send_image(AnswerMilestone::Answered, Instant::now()));
        futures::future::try_join_all(sending).await?;
        left -= some;
    }
    Ok(())
}

/// Source and target of the replays.
struct ReplayTarget<'a> {
    site: &'a BenchSite,
    work: &'a Path,
    model: &'a Path,
    paths: &'a TestbedPaths,
}

impl ReplayTarget<'_> {
    /// Reads every image once and discards it.
    async fn pull_raw(&self, last: u64) -> Result<ReplayRate, BenchError> {
        let started = Instant::now();
        let mut pace = ReplayRate::default();
        let mut reader = MessageReader::open(&self.site.bus, topology::IMAGES, StreamRange::default(), last).await?;
        while let Some(record) = reader.next().await? {
            pace.images += 1.0;
            pace.bytes += record.payload.len() as f64;
        }
        pace.seconds = started.elapsed().as_secs_f64();
        Ok(pace)
    }

    /// Writes the same number of bytes to one file.
    async fn write_plain(&self, last: u64) -> Result<ReplayRate, BenchError> {
        // Message headers are not exported.
        let (images, bytes) = (last as f64, self.count_bytes(last).await?);
        let path = self.work.join("plain");
        let written = path.clone();
        let seconds = tokio::task::spawn_blocking(move || -> std::io::Result<f64> {
            let chunk = vec![7_u8; CHUNK_BYTES];
            let started = Instant::now();
            let mut file = std::fs::File::create(&written)?;
            let mut left = bytes as usize;
            while left > 0 {
                let some = left.min(CHUNK_BYTES);
                file.write_all(chunk.get(..some).unwrap_or_default())?;
                left -= some;
            }
            // No fsync: an export syncs only its index.
            drop(file);
            Ok(started.elapsed().as_secs_f64())
        });
        let seconds = seconds.await?.map_err(BenchError::file(&path))?;
        std::fs::remove_file(&path).map_err(BenchError::file(&path))?;
        Ok(ReplayRate { images, bytes: bytes as f64, seconds })
    }

    /// Writes the same number of files, of the mean size, to a folder.
    async fn write_files(&self, to: &str, last: u64) -> Result<ReplayRate, BenchError> {
        let bytes = self.count_bytes(last).await?;
        let folder = self.work.join(to);
        let written = folder.clone();
        let seconds = tokio::task::spawn_blocking(move || -> std::io::Result<f64> {
            let image = vec![7_u8; usize::try_from(bytes / last.max(1)).unwrap_or(0)];
            std::fs::create_dir(&written)?;
            let started = Instant::now();
            for number in 0..last {
                std::fs::write(written.join(format!("{number:032x}.jpg")), &image)?;
            }
            Ok(started.elapsed().as_secs_f64())
        });
        let seconds = seconds.await?.map_err(BenchError::file(&folder))?;
        Ok(ReplayRate { images: last as f64, bytes: bytes as f64, seconds })
    }

    async fn count_bytes(&self, last: u64) -> Result<u64, BenchError> {
        let mut bytes = 0;
        let headers = StreamRange { headers_only: true, ..StreamRange::default() };
        reader::read_range(&self.site.bus, topology::IMAGES, headers, last, |record| bytes += record.payload_bytes())
            .await?;
        Ok(bytes)
    }

    fn arguments(&self, to: &str, more: &[String], last: Option<u64>) -> Vec<String> {
        let command = if to.is_empty() { "evaluate" } else { "export" };
        let mut arguments = vec![command.to_owned(), "--nats".into(), self.site.url(), "--json".into()];
        arguments.extend(["--site".into(), self.site.name.to_string()]);
        if !to.is_empty() {
            arguments.extend(["--to".into(), self.work.join(to).display().to_string()]);
        }
        if let Some(last) = last {
            arguments.extend(["--to-sequence".into(), last.to_string()]);
        }
        arguments.extend(
            self.paths
                .onnxruntime
                .iter()
                .flat_map(|path| ["--set".to_owned(), format!("onnxruntime={}", path.display())]),
        );
        arguments.extend(more.iter().cloned());
        arguments
    }

    fn start(&self, to: &str, more: &[String], last: Option<u64>) -> Result<tokio::process::Child, BenchError> {
        let failed = |source| BenchError::NotStarted { role: "replay", source };
        let mut command = tokio::process::Command::new(crate::worker::find_tributary().map_err(failed)?);
        command.args(self.arguments(to, more, last)).current_dir(self.work).env("TRIBUTARY_LOG", "error");
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped()).kill_on_drop(true);
        command.spawn().map_err(failed)
    }

    /// Runs a replay and returns its summary, which covers the first answer read to the last byte written.
    async fn replay(&self, to: &str, more: &[String], last: u64) -> Result<ReplayRate, BenchError> {
        let running = self.start(to, more, Some(last))?;
        let ended = tokio::time::timeout(TIMEOUT, running.wait_with_output()).await;
        let ended = ended.map_err(|_| BenchError::NotReady { what: "a replay", timeout: TIMEOUT })?;
        let output = ended.map_err(|source| BenchError::NotStarted { role: "replay", source })?;
        if !output.status.success() {
            return Err(BenchError::Ended { role: "replay", how: output.status.to_string() });
        }
        let summary: Value = serde_json::from_slice(&output.stdout)?;
        let number = |name: &str| summary[name].as_f64().unwrap_or(0.0);
        Ok(ReplayRate { images: number("through"), bytes: number("bytes"), seconds: number("elapsed_ms") / 1000.0 })
    }

    /// Exports to an archive.
    async fn export_archive(&self, to: &str, last: u64) -> Result<ReplayRate, BenchError> {
        let pace = self.replay(to, &[], last).await?;
        let path = self.work.join(to);
        std::fs::remove_file(&path).map_err(BenchError::file(&path))?;
        Ok(pace)
    }

    /// Evaluates the images with the model.
    async fn evaluate(&self, last: u64) -> Result<ReplayRate, BenchError> {
        let InferenceSettings { replicas, threads, max_batch, .. } = &self.paths.infer;
        let mut more = vec!["--model".to_owned(), self.model.display().to_string()];
        for setting in [
            format!("recognizer.infer.replicas={}", replicas.count(*threads)),
            format!("recognizer.infer.threads={threads}"),
            format!("recognizer.infer.max_batch={max_batch}"),
        ] {
            more.extend(["--set".into(), setting]);
        }
        self.replay("", &more, last).await
    }
}

fn report(
    options: &ReplayBenchOptions,
    machine: BenchMachine,
    workload: &Workload,
    count: usize,
    rounds: &[ReplayBenchRound],
    live: &[LiveComparison],
    rate_per_s: f64,
) -> BenchReport {
    let median_over = |of: fn(&ReplayBenchRound) -> f64| median(&rounds.iter().map(of).collect::<Vec<_>>());
    let slower = |round: &ReplayBenchRound| round.raw.mb_per_s().min(round.write.mb_per_s());
    let ratios = |of: fn(&ReplayBenchRound) -> ReplayRate| -> f64 {
        median(&rounds.iter().map(|round| of(round).mb_per_s() / slower(round)).collect::<Vec<_>>())
    };
    let p99 = |of: fn(&LiveComparison) -> &MeasurementWindow| {
        median(&live.iter().map(|live| of(live).latency.p99_ms).collect::<Vec<_>>())
    };
    let live_ratio: Vec<f64> =
        live.iter().map(|live| live.beside.latency.p99_ms / live.alone.latency.p99_ms.max(1e-9)).collect();
    let model_ratios: Vec<f64> =
        rounds.iter().map(|round| round.model.images_per_s() / round.pipeline.images_per_s).collect();
    let figure = |name, title, value, goal| HeadlineFigure { name, title, value: Some(value), unit: "", goal };
    let line = |name: &str, of: fn(&ReplayBenchRound) -> ReplayRate| {
        let median_of = |value: &dyn Fn(ReplayRate) -> f64| {
            median(&rounds.iter().map(|round| value(of(round))).collect::<Vec<_>>())
        };
        vec![
            name.to_owned(),
            format!("{:.0}", median_of(&|pace| pace.images_per_s())),
            format!("{:.0}", median_of(&|pace| pace.mb_per_s())),
        ]
    };
    let mut lines = vec![
        line("raw pull of the stream", |round| round.raw),
        line("sequential write", |round| round.write),
        line("write of as many files", |round| round.files),
        line("export to a folder", |round| round.folder),
        line("export to an archive", |round| round.tar),
        line("evaluate with the model", |round| round.model),
    ];
    lines.push(vec![
        format!("pipeline, {IN_FLIGHT} in flight"),
        format!("{:.0}", median_over(|round| round.pipeline.images_per_s)),
        String::new(),
    ]);
    let rows = rounds.iter().map(|round| {
        let pace = |pace: ReplayRate| json!({ "images_per_s": pace.images_per_s(), "mb_per_s": pace.mb_per_s() });
        json!({
            "raw": pace(round.raw), "write": pace(round.write),
            "files": pace(round.files), "folder": pace(round.folder), "tar": pace(round.tar),
            "model": pace(round.model), "pipeline": round.pipeline,
        })
    });
    let live_rows = live.iter().map(|live| json!({ "alone": live.alone, "beside": live.beside }));
    BenchReport {
        bench: "replay",
        settings: json!({
            "quick": options.quick, "rounds": rounds.len(), "images": count, "live_per_s": rate_per_s,
            "workload": workload.summary,
        }),
        machine,
        rows: rows.chain(live_rows).collect(),
        table: ReportTable { columns: vec!["measured", "images/s", "MB/s"], lines },
        headline: vec![
            figure(
                "folder_over_raw_pull",
                "export to a folder, relative to the slower of raw pull and sequential write",
                ratios(|round| round.folder),
                Some(FigureGoal::AtLeast(0.7)),
            ),
            figure(
                "folder_over_plain_files",
                "export to a folder, relative to writing as many files",
                median(
                    &rounds.iter().map(|round| round.folder.mb_per_s() / round.files.mb_per_s()).collect::<Vec<_>>(),
                ),
                None,
            ),
            figure(
                "tar_over_raw_pull",
                "export to an archive, relative to the slower of raw pull and sequential write",
                ratios(|round| round.tar),
                Some(FigureGoal::AtLeast(0.7)),
            ),
            figure(
                "recognize_over_bench",
                "evaluate, relative to the pipeline",
                median(&model_ratios),
                Some(FigureGoal::AtLeast(0.9)),
            ),
            figure(
                "live_p99_ratio",
                "p99 of live answers with a replay, relative to without",
                median(&live_ratio),
                Some(FigureGoal::AtMost(1.1)),
            ),
        ],
        notes: vec![
            format!(
                "{} images of {} bytes on average, durability fast; live: {rate_per_s:.0} images per second, p99 {:.1} ms \
                without and {:.1} ms with a replay.",
                count,
                workload.summary.mean_bytes,
                p99(|live| &live.alone),
                p99(|live| &live.beside)
            ),
            "A replay's time runs from the first answer read until its index is synced to disk; the images may still be in the \
            page cache then, as is the sequentially written file."
                .into(),
        ],
        charts: Vec::new(),
    }
}

fn print_step(what: &str) {
    eprintln!("bench: {what}");
}

//! `tributary-bench`: reproducible measurements, one module per bench: [`recognize`], [`policy`], [`train`],
//! [`federated`], [`rounds`], [`aggregate`], [`canary`], [`swap`], [`replay`], [`scale`], [`cameras`]; and the long demo,
//! [`training_loop`].
//!
//! Shared: [`workload`] (model and images), [`warm_replicas`] (inference without the pipeline), [`bench_site`] (a server
//! and recognizers in their own processes), [`load_generator`] (publishes images, receives answers),
//! [`measurement_window`] (throughput, latency and CPU over a time window), [`stats`], [`experiments`] (many runs on all
//! cores), [`camera`] (simulated cameras), [`report`] (table and JSON), [`chart`] and [`bar_chart`]. For policies:
//! [`testbed`] (a site and a cloud), [`link_shaper`] (the link between them), [`fake_cloud`] (a cloud of fixed speed),
//! [`labelled_images`] (images with true labels), [`worker`].
//!
//! This crate contains no role logic: it measures the program `tributary` in the same folder.

// The bench indexes only data that it created.
#![allow(clippy::indexing_slicing)]

mod aggregate;
mod bar_chart;
mod baseline;
mod bench_site;
mod camera;
mod cameras;
mod canary;
mod chart;
mod demo_chart;
mod error;
mod experiments;
mod fake_cloud;
mod federated;
mod labelled_images;
mod link_shaper;
mod load_generator;
mod measurement_window;
mod policy;
mod recognize;
mod replay;
mod report;
mod rounds;
mod scale;
mod stats;
mod swap;
mod testbed;
mod train;
mod training_loop;
mod warm_replicas;
mod worker;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use runtime::Shutdown;
use tributary::CommonArgs;
use tributary::settings::{self, Settings};
use tributary::stdout;

const EXAMPLES: &str = "\
Each bench starts its own servers and workers; workers use the program `tributary` in the same folder. Run from a
checkout of the project, in a release build.

Examples:
  tributary-bench recognize --quick
  tributary-bench policy --scenario \"cloud down\" --charts ./charts
  tributary-bench loop --rounds 8 --json loop.json
  tributary-bench loop --dark-cameras             a good model, after it gets dark
  tributary-bench loop --data ./photos";

/// Measure Tributary on this machine.
#[derive(Parser)]
#[command(name = "tributary-bench", version, max_term_width = 100, after_help = EXAMPLES)]
struct BenchCli {
    /// Settings file [default: `tributary.toml` in this folder, if it exists].
    #[arg(long, global = true, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Override a setting, for example recognizer.infer.replicas=2; repeatable.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(clap::Subcommand)]
enum BenchCommand {
    /// Close the loop on this machine: two sites learn from the cloud's verdicts, round by round (1 minute).
    Loop(training_loop::LoopArgs),
    Chart(demo_chart::DemoChartArgs),
    /// Compare the whole pipeline with a bare loop of decode, resize and infer (3 minutes).
    ///
    /// Images per second, CPU, latency and memory, for both durabilities.
    Recognize(RecognizeBenchArgs),
    /// Compare policies over a link that is good, slow, flapping or down (50 minutes).
    ///
    /// A hub and a leaf with a shaped link between them: completion time, latency, accuracy, uploads, CPU and energy.
    Policy(PolicyBenchArgs),
    /// Measure training: step time, gradients and learning curves (several minutes).
    ///
    /// Three networks, against the forward pass alone and against PyTorch, if installed. Also the cost of training for a
    /// recognizer on the same machine.
    Train(TrainBenchArgs),
    /// Compare merge rules by accuracy over ten rounds of ten sites (an hour or more).
    ///
    /// Images are divided evenly, unevenly, and with a bad site among the ten; several seeds each.
    Federated(FederatedBenchArgs),
    /// Measure how much rounds improve a model that is already good (15 minutes).
    ///
    /// Accuracy of releases on unseen images, against the deployed model and against their reported accuracy.
    Rounds(RoundsBenchArgs),
    /// Measure merging: weighted sum, median and trimmed mean against a plain read (2 minutes).
    ///
    /// Needs 3.3 GB on disk.
    Aggregate(AggregateBenchArgs),
    /// Measure how often a canary decides correctly, and after how many images (2 minutes).
    ///
    /// Simulated releases of known quality: good ones should be promoted, bad ones withdrawn.
    Canary(CanaryBenchArgs),
    /// Measure what swapping releases under load costs (4 minutes).
    ///
    /// Lost images, added latency and memory, at 80 % of the site's capacity.
    Swap(SwapBenchArgs),
    /// Measure export and evaluation of a replay against a raw pull, and their cost for live work (5 minutes).
    ///
    /// Exports to a folder and to an archive, and evaluates a model.
    Replay(ReplayBenchArgs),
    /// Measure replicas, workers, a sudden backlog, and many sites on one cloud (8 minutes).
    ///
    /// Images per second, CPU, fairness, recovery time, and memory per site.
    Scale(ScaleBenchArgs),
    /// Measure what cameras cost, against ffmpeg, and how soon and how often they are answered (13 minutes).
    ///
    /// CPU and memory for each camera, 32 cameras at once, the time to the first answer, and what the motion gate and the
    /// reuse of answers save. Needs the packages of deploy/fetch-cameras.sh.
    Cameras(CamerasBenchArgs),
    /// Run a recognizer with a baseline policy; used by `policy`.
    #[command(hide = true)]
    Baseline(baseline::BaselineArgs),
    /// Try a release in this process; used by `loop` and `swap`.
    #[command(name = releases::trial::COMMAND, hide = true)]
    TryRelease,
}

#[derive(clap::Args)]
struct CamerasBenchArgs {
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct ScaleBenchArgs {
    /// Folder of a model [default: fixtures/models/bench-cnn].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder of images [default: 64 generated JPEGs of 640x480].
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Number of simulated sites on one cloud.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u16).range(2..=2000))]
    sites: u16,
    /// Folder for the servers' stores [default: the system's temporary folder].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Write charts to this folder.
    #[arg(long, value_name = "DIR")]
    charts: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct ReplayBenchArgs {
    /// Folder of a model [default: fixtures/models/bench-cnn].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder of images [default: 64 generated JPEGs of 640x480].
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Folder for the server's store and the exports, removed at the end [default: the system's temporary folder].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct SwapBenchArgs {
    /// Folder of a model [default: fixtures/models/bench-cnn].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder of images [default: 64 generated JPEGs of 640x480].
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Number of swaps.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(2..=10_000))]
    swaps: u16,
    /// Replicas of the recognizer [default: one per core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    replicas: Option<u16>,
    /// Folder for the server's store [default: the system's temporary folder].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct CanaryBenchArgs {
    /// Simulated canaries of each kind, each with its own random seed.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Write charts to this folder.
    #[arg(long, value_name = "DIR")]
    charts: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct AggregateBenchArgs {
    /// Folder for the updates, removed at the end [default: the system's temporary folder].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct FederatedBenchArgs {
    /// Folder of labelled images with an index.csv (columns file or path, label or class_name, split; split test is the
    /// holdout); repeatable [default: fixtures/images/fashion].
    #[arg(long, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// Column of the index.csv that groups images, such as a video track: scheme "natural" gives whole groups to a
    /// site.
    #[arg(long, value_name = "COLUMN", default_value = "track")]
    groups: String,
    /// Measure this merge rule only, for example fedavg or "paper literal"; repeatable [default: all].
    #[arg(long, value_name = "NAME")]
    rule: Vec<String>,
    /// Number of repetitions, each with its own random seed.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,
    /// Write charts to this folder.
    #[arg(long, value_name = "DIR")]
    charts: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct RoundsBenchArgs {
    /// Folder of labelled images with an index.csv (columns file or path, label or class_name, split; split test is the
    /// holdout) [default: fixtures/images/fashion].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder of the deployed model [default: fixtures/models/fashion-light].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder of the cloud's model, whose answers label some runs [default: fixtures/models/fashion-heavy].
    #[arg(long, value_name = "DIR")]
    cloud: Option<PathBuf>,
    /// Start from this only: random weights, about 60 % or 80 % accuracy, the deployed model, or the cloud's; repeatable
    /// [default: all].
    #[arg(long, value_name = "WHICH", value_parser = ["random", "60 %", "80 %", "model", "cloud"])]
    start: Vec<String>,
    /// Also compare ways in which hard cases steer training, which triples the time.
    #[arg(long, conflicts_with = "quick")]
    hard_cases: bool,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct TrainBenchArgs {
    /// Python interpreter with PyTorch [default: python3].
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// Additional folder of labelled images for a learning curve, with an index.csv (columns file or path, label or
    /// class_name, split: train, val or test); repeatable.
    #[arg(long, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// Folder of models with reference gradients, made by fixtures/make_gradients.py [default: fixtures/gradients].
    #[arg(long, value_name = "DIR")]
    gradients: Option<PathBuf>,
    /// Write charts of the learning curves to this folder.
    #[arg(long, value_name = "DIR")]
    charts: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct PolicyBenchArgs {
    /// Folder of labelled images with an index.csv (columns file or path, label or class_name, split) [default:
    /// fixtures/images/fashion].
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Folder of the site's model [default: fixtures/models/fashion-light].
    #[arg(long, value_name = "DIR")]
    edge_model: Option<PathBuf>,
    /// Folder of the cloud's model, with the same labels [default: fixtures/models/fashion-heavy].
    #[arg(long, value_name = "DIR")]
    cloud_model: Option<PathBuf>,
    /// Simulate the cloud with MS milliseconds per image on each of four replicas, without using this machine's CPU.
    #[arg(long, value_name = "MS")]
    paced_ms: Option<f64>,
    /// Folder for the servers' stores [default: the system's temporary folder].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Run this scenario only, for example "cloud down"; repeatable [default: all].
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(policy::scenario_names()))]
    scenario: Vec<String>,
    /// Write charts of the completion times to this folder.
    #[arg(long, value_name = "DIR")]
    charts: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct RecognizeBenchArgs {
    /// Folder of a model [default: fixtures/models/bench-cnn].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder of images [default: 64 generated JPEGs of 640x480].
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Replicas of the bare loop and of the recognizer [default: one per core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    replicas: Option<u16>,
    /// Arrival rate of the open loop, images per second [default: 60 % of the bare loop's rate].
    #[arg(long, value_name = "N", value_parser = parse_rate)]
    rate: Option<f64>,
    /// Folder on the disk to measure, for the servers' stores [default: the system's temporary folder].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

/// Options common to all benches.
#[derive(clap::Args)]
struct BenchCommonArgs {
    /// Write all measurements to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Finish within two minutes, with shorter and fewer measurements.
    #[arg(long)]
    quick: bool,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.1..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("use 0.1 to 100000 images per second".into()),
    }
}

fn main() -> ExitCode {
    let cli = BenchCli::parse();
    runtime::telemetry::init_logging("warn", false);
    os::process::set_malloc_policy(os::process::MallocPolicy::All);
    if let Err(error) = os::scheduling::set_batch_scheduling() {
        tracing::debug!(%error, "scheduling policy not set; continuing with default scheduling");
    }
    // Before other threads start: the sandbox of a trial applies to the calling thread only.
    if let BenchCommand::TryRelease = &cli.command {
        return stdout::exit_code(tributary::roles::try_release());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    stdout::exit_code(runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(cli))))
}

async fn run(cli: BenchCli) -> anyhow::Result<()> {
    let common = CommonArgs::from_settings(cli.settings, cli.set);
    let settings = settings::load(&common, &[])?.settings;
    settings.check()?;
    let shutdown = Shutdown::on_signals()?;
    match &cli.command {
        BenchCommand::Loop(args) => training_loop::command(&settings, args, shutdown).await,
        BenchCommand::Chart(args) => demo_chart::command(args),
        BenchCommand::Baseline(args) => baseline::command(&settings, args, shutdown).await,
        BenchCommand::TryRelease => Ok(()),
        command => measure(&settings, command, shutdown).await,
    }
}

/// Runs a bench, writes its files and prints its table.
async fn measure(settings: &Settings, command: &BenchCommand, shutdown: Shutdown) -> anyhow::Result<()> {
    let common = match command {
        BenchCommand::Recognize(args) => &args.common,
        BenchCommand::Policy(args) => &args.common,
        BenchCommand::Train(args) => &args.common,
        BenchCommand::Federated(args) => &args.common,
        BenchCommand::Rounds(args) => &args.common,
        BenchCommand::Aggregate(args) => &args.common,
        BenchCommand::Canary(args) => &args.common,
        BenchCommand::Swap(args) => &args.common,
        BenchCommand::Replay(args) => &args.common,
        BenchCommand::Scale(args) => &args.common,
        BenchCommand::Cameras(args) => &args.common,
        BenchCommand::Loop(_) | BenchCommand::Chart(_) | BenchCommand::Baseline(_) | BenchCommand::TryRelease => {
            return Ok(());
        }
    };
    if let Some(path) = &common.json {
        // Fail now rather than after minutes of measuring.
        std::fs::write(path, "").with_context(|| format!("could not write {}", path.display()))?;
    }
    let (report, charts) = match command {
        BenchCommand::Recognize(args) => (recognize::run(&recognize_options(settings, args), shutdown).await?, None),
        BenchCommand::Train(args) => {
            (train::run(&train_options(settings, args), shutdown).await?, args.charts.as_ref())
        }
        BenchCommand::Aggregate(args) => {
            let options = aggregate::AggregateBenchOptions {
                quick: args.common.quick,
                onnxruntime: settings.onnxruntime.clone(),
                dir: args.dir.clone(),
            };
            (aggregate::run(&options, shutdown).await?, None)
        }
        BenchCommand::Federated(args) => {
            (federated::run(&federated_options(settings, args), shutdown).await?, args.charts.as_ref())
        }
        BenchCommand::Rounds(args) => {
            let options = rounds::RoundsBenchOptions {
                quick: args.common.quick,
                data: args.data.clone(),
                model: args.model.clone(),
                cloud: args.cloud.clone(),
                starts: args.start.clone(),
                hard_cases: args.hard_cases,
                onnxruntime: settings.onnxruntime.clone(),
            };
            (rounds::run(&options, shutdown).await?, None)
        }
        BenchCommand::Scale(args) => {
            let options = scale::ScaleBenchOptions {
                model: args.model.clone(),
                images: args.images.clone(),
                store: args.dir.clone(),
                sites: args.sites.into(),
                quick: args.common.quick,
                nats_server: settings.up.nats_server.clone(),
                onnxruntime: settings.onnxruntime.clone(),
            };
            (scale::run(&options, shutdown).await?, args.charts.as_ref())
        }
        BenchCommand::Cameras(args) => {
            let options = cameras::CameraBenchOptions {
                quick: args.common.quick,
                nats_server: settings.up.nats_server.clone(),
                onnxruntime: settings.onnxruntime.clone(),
            };
            (cameras::run(&options, shutdown).await?, None)
        }
        BenchCommand::Replay(args) => {
            let options = replay::ReplayBenchOptions {
                model: args.model.clone(),
                images: args.images.clone(),
                store: args.dir.clone(),
                quick: args.common.quick,
                nats_server: settings.up.nats_server.clone(),
                onnxruntime: settings.onnxruntime.clone(),
                infer: settings.recognizer.infer.clone(),
            };
            (replay::run(&options, shutdown).await?, None)
        }
        BenchCommand::Swap(args) => (swap::run(&swap_options(settings, args), shutdown).await?, None),
        BenchCommand::Canary(args) => {
            let options = canary::CanaryBenchOptions {
                quick: args.common.quick,
                seeds: if args.common.quick { 1 } else { args.seeds },
                onnxruntime: settings.onnxruntime.clone(),
            };
            (canary::run(&options, shutdown).await?, args.charts.as_ref())
        }
        BenchCommand::Policy(args) => {
            (policy::run(&policy_options(settings, args), shutdown).await?, args.charts.as_ref())
        }
        BenchCommand::Loop(_) | BenchCommand::Chart(_) | BenchCommand::Baseline(_) | BenchCommand::TryRelease => {
            return Ok(());
        }
    };
    if let Some(path) = &common.json {
        report.write(path)?;
    }
    for path in charts.map(|folder| report.draw(folder)).transpose()?.unwrap_or_default() {
        stdout::print_note(format_args!("chart: {}", path.display()));
    }
    stdout::print_line(report.text())
}

fn swap_options(settings: &Settings, args: &SwapBenchArgs) -> swap::SwapBenchOptions {
    let mut infer = settings.recognizer.infer.clone();
    if let Some(replicas) = args.replicas {
        infer.replicas = vision::Replicas::Count(replicas.into());
    }
    swap::SwapBenchOptions {
        model: args.model.clone(),
        images: args.images.clone(),
        store: args.dir.clone(),
        swaps: if args.common.quick { 12 } else { args.swaps.into() },
        quick: args.common.quick,
        nats_server: settings.up.nats_server.clone(),
        onnxruntime: settings.onnxruntime.clone(),
        infer,
    }
}

fn train_options(settings: &Settings, args: &TrainBenchArgs) -> train::TrainBenchOptions {
    train::TrainBenchOptions {
        quick: args.common.quick,
        python: args.python.clone(),
        data: args.data.clone(),
        gradients: args.gradients.clone(),
        onnxruntime: settings.onnxruntime.clone(),
    }
}

fn federated_options(settings: &Settings, args: &FederatedBenchArgs) -> federated::FederatedBenchOptions {
    federated::FederatedBenchOptions {
        quick: args.common.quick,
        data: args.data.clone(),
        groups: args.groups.clone(),
        rules: args.rule.clone(),
        seeds: if args.common.quick { 1 } else { args.seeds },
        onnxruntime: settings.onnxruntime.clone(),
    }
}

fn recognize_options(settings: &Settings, args: &RecognizeBenchArgs) -> recognize::RecognizeBenchOptions {
    let mut infer = settings.recognizer.infer.clone();
    if let Some(replicas) = args.replicas {
        infer.replicas = vision::Replicas::Count(replicas.into());
    }
    recognize::RecognizeBenchOptions {
        model: args.model.clone(),
        images: args.images.clone(),
        store: args.dir.clone(),
        rate_per_s: args.rate,
        quick: args.common.quick,
        nats_server: settings.up.nats_server.clone(),
        onnxruntime: settings.onnxruntime.clone(),
        infer,
    }
}

fn policy_options(settings: &Settings, args: &PolicyBenchArgs) -> policy::PolicyBenchOptions {
    policy::PolicyBenchOptions {
        images: args.images.clone(),
        edge_model: args.edge_model.clone(),
        cloud_model: args.cloud_model.clone(),
        paced_ms: args.paced_ms,
        store: args.dir.clone(),
        scenarios: args.scenario.clone(),
        quick: args.common.quick,
        nats_server: settings.up.nats_server.clone(),
        onnxruntime: settings.onnxruntime.clone(),
    }
}

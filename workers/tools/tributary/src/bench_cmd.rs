//! `tributary bench`: measurements anyone can repeat.

use std::path::PathBuf;

use anyhow::Context;
use bench::{aggregate, canary, federated, policy, recognize, replay, rounds, scale, swap, train};
use runtime::Shutdown;

use crate::settings::Settings;
use crate::stdout;

/// Measure on this machine, with servers and workers of its own; nothing that runs is touched.
#[derive(clap::Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    which: BenchCommand,
}

#[derive(clap::Subcommand)]
enum BenchCommand {
    /// What the whole pipeline costs over a bare loop of decode, resize and infer: images a second, CPU,
    /// latency and memory, for both durabilities. Takes about three minutes.
    Recognize(RecognizeBenchArgs),
    /// Policies against each other, on a hub and a leaf with a shaped link between them: completion time,
    /// latency, accuracy, uploads, CPU and energy, with the link good, slow, flapping or gone. Takes about a
    /// third of an hour.
    Policy(PolicyBenchArgs),
    /// Training: steps of three networks against the forward pass alone, gradients against references, learning
    /// curves; and against PyTorch where it is installed. Takes some minutes.
    Train(TrainBenchArgs),
    /// Rules of merging against each other: ten sites, pictures divided evenly, unevenly and with a bad site among
    /// them, ten rounds, several seeds. Accuracy, not time. Takes more than an hour for a folder with all rules.
    Federated(FederatedBenchArgs),
    /// Rounds that begin with a model that is deployed and good: what releases are worth on images nobody saw, against that
    /// model and against what is shown of them. Accuracy, not time. Takes about a quarter of an hour.
    Rounds(RoundsBenchArgs),
    /// Merging updates: weighted sum, median and trimmed mean over a plain read of the same memory. Takes about two
    /// minutes, and 3.3 GB on the disk.
    Aggregate(AggregateBenchArgs),
    /// Canaries whose truth is known: how often a good release is promoted and a bad one withdrawn, after how many
    /// images. Chance, not time. Takes about two minutes.
    Canary(CanaryBenchArgs),
    /// Another release again and again while a site works at eight tenths of what it can do: images lost, what that adds to
    /// their time, memory. Takes about four minutes.
    Swap(SwapBenchArgs),
    /// Replaying a stream to a folder, to an archive and through a model, over the raw pull of the same stream; and what live
    /// images feel of it. Takes about five minutes.
    Replay(ReplayBenchArgs),
    /// Replicas as threads and as workers, a queue that suddenly grows, and many sites of one cloud: images a second, CPU,
    /// fairness, recovery, memory for each site. Takes about eight minutes.
    Scale(ScaleBenchArgs),
}

#[derive(clap::Args)]
struct ScaleBenchArgs {
    /// Folder of a model; the project's own, fixtures/models/bench-cnn, if absent.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder of images; 64 generated JPEGs of 640x480 if absent.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Simulated sites of one cloud.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u16).range(2..=2000))]
    sites: u16,
    /// Folder on the disk for the servers' stores. The system's folder for temporary files if absent.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Draw the step into this folder.
    #[arg(long, value_name = "DIR")]
    charts: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct ReplayBenchArgs {
    /// Folder of a model; the project's own, fixtures/models/bench-cnn, if absent.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder of images; 64 generated JPEGs of 640x480 if absent.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Folder on the disk for the server's store and what is exported, removed at the end. The system's folder for temporary
    /// files if absent.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct SwapBenchArgs {
    /// Folder of a model; the project's own, fixtures/models/bench-cnn, if absent.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder of images; 64 generated JPEGs of 640x480 if absent.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Swaps in all.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(2..=10_000))]
    swaps: u16,
    /// Replicas of the recognizer; one a core if absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    replicas: Option<u16>,
    /// Folder on the disk for the server's store. The system's folder for temporary files if absent.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct CanaryBenchArgs {
    /// Canaries of each kind, with other chance each time.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Draw a picture into this folder.
    #[arg(long, value_name = "DIR")]
    charts: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct AggregateBenchArgs {
    /// Folder on the disk for the updates, removed at the end. The system's folder for temporary files if absent.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct FederatedBenchArgs {
    /// Folder of labelled images with an index.csv (columns file or path, label or class_name, and split: test is held
    /// back); may be given more than once. fixtures/images/fashion if absent.
    #[arg(long, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// Column of the index.csv that says which images belong together, such as a track: whole groups go to a site in the
    /// scheme "natural".
    #[arg(long, value_name = "COLUMN", default_value = "track")]
    groups: String,
    /// Only the rule of this name, for example fedavg or "paper literal"; may be given more than once. All if absent.
    #[arg(long, value_name = "NAME")]
    rule: Vec<String>,
    /// How often everything is done, with other chance each time.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,
    /// Draw pictures into this folder.
    #[arg(long, value_name = "DIR")]
    charts: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct RoundsBenchArgs {
    /// Folder of labelled images with an index.csv (columns file or path, label or class_name, and split: test is held
    /// back). fixtures/images/fashion if absent.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder of the model that is deployed. fixtures/models/fashion-light if absent.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder of the cloud's model, whose answers are the labels of some games. fixtures/models/fashion-heavy if absent.
    #[arg(long, value_name = "DIR")]
    cloud: Option<PathBuf>,
    /// Only games that begin with this: random weights, what is right in about 60 % or 80 %, the model, or the cloud's;
    /// may be given more than once.
    #[arg(long, value_name = "WHICH", value_parser = ["random", "60 %", "80 %", "model", "cloud"])]
    start: Vec<String>,
    /// Play the games in which hard cases steer what is learned, too: twice as many as all others.
    #[arg(long, conflicts_with = "quick")]
    hard_cases: bool,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct TrainBenchArgs {
    /// The Python that has PyTorch; python3 if absent.
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// Folder of labelled images to learn from, besides fixtures/images/fashion; may be given more than once. It needs an
    /// index.csv (columns file or path, label or class_name, and split: train, val, test).
    #[arg(long, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// Folder of models and their gradients, as fixtures/make_gradients.py makes them; fixtures/gradients if absent.
    #[arg(long, value_name = "DIR")]
    gradients: Option<PathBuf>,
    /// Draw the learning curves into this folder.
    #[arg(long, value_name = "DIR")]
    charts: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct PolicyBenchArgs {
    /// Folder of labelled images with an index.csv (columns file or path, label or class_name, and split);
    /// fixtures/images/fashion if absent.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Folder of the site's model; fixtures/models/fashion-light if absent.
    #[arg(long, value_name = "DIR")]
    edge_model: Option<PathBuf>,
    /// Folder of the cloud's model, with the same labels; fixtures/models/fashion-heavy if absent.
    #[arg(long, value_name = "DIR")]
    cloud_model: Option<PathBuf>,
    /// Let the cloud answer at a pace of its own, so many milliseconds an image on each of four replicas,
    /// instead of sharing this machine's processor.
    #[arg(long, value_name = "MS")]
    paced_ms: Option<f64>,
    /// Folder on the disk for the servers' stores. The system's folder for temporary files if absent.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Only the scenario of this name, for example "cloud down"; may be given more than once. All if absent.
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(policy::scenario_names()))]
    scenario: Vec<String>,
    /// Draw the completion times into this folder.
    #[arg(long, value_name = "DIR")]
    charts: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

#[derive(clap::Args)]
struct RecognizeBenchArgs {
    /// Folder of a model; the project's own, fixtures/models/bench-cnn, if absent.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder of images; 64 generated JPEGs of 640x480 if absent.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Replicas of the bare loop and of the recognizer; one a core if absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    replicas: Option<u16>,
    /// Images that come in each second in the open loop; six tenths of what the bare loop does if absent.
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// Folder on the disk to be measured; the servers' stores are made in it and removed at the end. The
    /// system's folder for temporary files if absent.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    common: BenchCommonArgs,
}

/// What every bench takes.
#[derive(clap::Args)]
struct BenchCommonArgs {
    /// Write everything measured into this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// In less than a minute: shorter and fewer stretches.
    #[arg(long)]
    quick: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.1..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("write images a second, 0.1 to 100000".into()),
    }
}

/// Measures, prints a table, writes files.
pub async fn command(settings: &Settings, args: &BenchArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let common = match &args.which {
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
    };
    if let Some(path) = &common.json {
        // Said before minutes have passed.
        std::fs::write(path, "").with_context(|| format!("{} cannot be written", path.display()))?;
    }
    let (report, charts) = match &args.which {
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
    };
    if let Some(path) = &common.json {
        report.write(path)?;
    }
    for path in charts.map(|folder| report.draw(folder)).transpose()?.unwrap_or_default() {
        stdout::print_note(format_args!("picture: {}", path.display()));
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

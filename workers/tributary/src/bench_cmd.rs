//! `tributary bench`: measurements anyone can repeat.

use std::path::PathBuf;

use anyhow::Context;
use bench::recognize;
use runtime::Shutdown;

use crate::out;
use crate::settings::Settings;

/// Measure on this machine, with servers and workers of its own; nothing that runs is touched.
#[derive(clap::Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    which: Which,
}

#[derive(clap::Subcommand)]
enum Which {
    /// What the whole pipeline costs over a bare loop of decode, resize and infer: images a second, CPU,
    /// latency and memory, for both durabilities. Takes about three minutes.
    Recognize(RecognizeArgs),
}

#[derive(clap::Args)]
struct RecognizeArgs {
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
    common: BenchCommon,
}

/// What every bench takes.
#[derive(clap::Args)]
struct BenchCommon {
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

/// Measures, prints a table, writes a file.
pub async fn command(settings: &Settings, args: &BenchArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let Which::Recognize(args) = &args.which;
    let mut infer = settings.recognizer.infer.clone();
    if let Some(replicas) = args.replicas {
        infer.replicas = vision::Replicas::Count(replicas.into());
    }
    if let Some(path) = &args.common.json {
        // Said before minutes have passed.
        std::fs::write(path, "").with_context(|| format!("{} cannot be written", path.display()))?;
    }
    let options = recognize::Options {
        model: args.model.clone(),
        images: args.images.clone(),
        store: args.dir.clone(),
        rate_per_s: args.rate,
        quick: args.common.quick,
        nats_server: settings.up.nats_server.clone(),
        onnxruntime: settings.onnxruntime.clone(),
        infer,
    };
    let report = recognize::run(&options, shutdown).await?;
    if let Some(path) = &args.common.json {
        report.write(path)?;
    }
    out::line(report.text())
}

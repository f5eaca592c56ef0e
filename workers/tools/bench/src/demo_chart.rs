//! `tributary-bench chart`: draws the results of `tributary demo --json`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;
use tributary::stdout;

use crate::chart::{Chart, ChartLine, ChartPoint};

/// Draw accuracy against images sent up, from the results of `tributary demo --json FILE`.
#[derive(clap::Args)]
pub(crate) struct DemoChartArgs {
    /// Results of the demo, as JSON.
    #[arg(value_name = "FILE")]
    results: PathBuf,
    /// Write the chart to this file, as SVG.
    #[arg(long, value_name = "FILE", default_value = "accuracy.svg")]
    out: PathBuf,
}

/// The demo results that the chart needs; ratios from 0 to 1.
#[derive(Deserialize)]
struct DemoCurve {
    accuracy_edge_ratio: f64,
    accuracy_collaborative_ratio: f64,
    accuracy_cloud_ratio: f64,
    verified_ratio: f64,
    curve: CurvePoints,
}

#[derive(Deserialize)]
struct CurvePoints {
    /// Share sent up, and accuracy, each 0 to 1.
    points: Vec<(f64, f64)>,
}

/// Draws the chart.
pub(crate) fn command(args: &DemoChartArgs) -> anyhow::Result<()> {
    let path = &args.results;
    let text = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let results: DemoCurve = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a result of `tributary demo --json`", path.display()))?;
    write(&args.out, &draw(&results).svg()?)?;
    stdout::print_line(format_args!("{}", args.out.display()))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}

fn draw(results: &DemoCurve) -> Chart {
    let percent = |(share, right): &(f64, f64)| (share * 100.0, right * 100.0);
    let at_random = [(0.0, results.accuracy_edge_ratio), (1.0, results.accuracy_cloud_ratio)];
    let here = (results.verified_ratio, results.accuracy_collaborative_ratio);
    Chart {
        title: "Accuracy against images sent up".into(),
        x_label: "images sent up to the cloud, %".into(),
        y_label: "accuracy, %".into(),
        lines: vec![
            ChartLine {
                name: "least confident first".into(),
                points: results.curve.points.iter().map(percent).collect(),
            },
            ChartLine { name: "at random".into(), points: at_random.iter().map(percent).collect() },
        ],
        marks: vec![ChartPoint { name: "this run".into(), point: percent(&here) }],
    }
}

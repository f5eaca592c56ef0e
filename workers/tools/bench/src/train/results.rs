//! Results of the training bench as table, headline, notes and charts.

use serde_json::json;

use super::interference::{BackgroundLoad, TrainingInterference};
use super::{TrainRun, TrainedPart, gradients, learning_curve, networks};
use crate::report::{BenchMachine, BenchReport, FigureGoal, HeadlineFigure, ReportChart, ReportTable};
use crate::stats::median;

/// Goal for a recognizer's p99 latency with background training, relative to without.
const MAX_P99_RATIO: f64 = 1.5;

/// All measurements.
pub(super) struct TrainBenchResult {
    /// Steps of every network, part and round.
    pub runs: Vec<TrainRun>,
    /// Gradient errors.
    pub gradient_checks: Vec<gradients::GradientCheck>,
    /// Learning curves.
    pub curves: Vec<learning_curve::LearningCurve>,
    /// Version of PyTorch; absent without it.
    pub pytorch_version: Option<String>,
    /// Latency of a recognizer, window by window.
    pub interference: Vec<TrainingInterference>,
    /// Whether the notes list every gradient check, because the user named the folder; otherwise only the worst.
    pub lists_all_gradients: bool,
}

/// Builds the report.
pub(super) fn report(result: &TrainBenchResult, quick: bool) -> BenchReport {
    let TrainBenchResult { runs, gradient_checks, curves, pytorch_version, interference, .. } = result;
    let networks = networks();
    let median_of = |net: &str, part: TrainedPart, value: &dyn Fn(&TrainRun) -> Option<f64>| {
        let matching = runs.iter().filter(|run| run.net == net && run.part == part);
        let values: Vec<f64> = matching.filter_map(value).collect();
        (!values.is_empty()).then(|| median(&values))
    };
    let cell = |value: Option<f64>, digits: usize| value.map_or(String::new(), |value| format!("{value:.digits$}"));
    let mut lines = Vec::new();
    for net in &networks {
        for part in TrainedPart::VARIANTS {
            let value = |value: &dyn Fn(&TrainRun) -> Option<f64>| median_of(net.name, part, value);
            lines.push(vec![
                format!("{}, {}", net.name, part.as_str()),
                cell(value(&|run| Some(run.forward_ms)), 1),
                cell(value(&|run| Some(run.step_ms)), 1),
                cell(value(&|run| Some(run.step_ms / run.forward_ms)), 2),
                cell(value(&|run| run.peer_forward_ms), 1),
                cell(value(&|run| run.peer_step_ms), 1),
                cell(value(&|run| Some(run.step_ms / run.peer_step_ms?)), 2),
                cell(value(&|run| Some(run.peak_bytes? as f64 / 1e6)), 0),
            ]);
        }
    }
    let columns = vec![
        "network, trained",
        "forward ms",
        "step ms",
        "over forward",
        "PyTorch forward",
        "step",
        "over PyTorch",
        "MB",
    ];
    let all_trained = |net: &str, value: &dyn Fn(&TrainRun) -> Option<f64>| median_of(net, TrainedPart::All, value);
    let over_forward = |name, title, net| HeadlineFigure {
        name,
        title,
        value: all_trained(net, &|run| Some(run.step_ms / run.forward_ms)),
        unit: "",
        goal: None,
    };
    let over_pytorch = |name, title, net, most| HeadlineFigure {
        name,
        title,
        value: all_trained(net, &|run| Some(run.step_ms / run.peer_step_ms?)),
        unit: "",
        goal: Some(FigureGoal::AtMost(most)),
    };
    let mut headline = vec![
        over_forward("step_over_forward_small", "small: step over forward pass (about 3 is ideal)", "small"),
        over_forward("step_over_forward_mobilenetv2", "mobilenetv2: step over forward pass", "mobilenetv2"),
        over_forward("step_over_forward_resnet18", "resnet18: step over forward pass", "resnet18"),
    ];
    if pytorch_version.is_some() {
        for (name, title, net, most) in [
            ("step_over_pytorch_small", "small: step over PyTorch's", "small", 1.0),
            ("step_over_pytorch_mobilenetv2", "mobilenetv2: step over PyTorch's", "mobilenetv2", 1.25),
            ("step_over_pytorch_resnet18", "resnet18: step over PyTorch's", "resnet18", 1.25),
        ] {
            headline.push(over_pytorch(name, title, net, most));
        }
    }
    let p99 = |training| median_window(interference, training, &|window| window.p99_ms);
    for (name, title, training) in [
        (
            "recognizer_p99_training_ratio",
            "p99 of a recognizer with background training, over without",
            BackgroundLoad::Idle,
        ),
        (
            "recognizer_p99_least_share_ratio",
            "the same, where training has a tenth of a processor at least",
            BackgroundLoad::LeastShare,
        ),
    ] {
        headline.push(HeadlineFigure {
            name,
            title,
            value: Some(p99(training) / p99(BackgroundLoad::None)),
            unit: "",
            goal: Some(FigureGoal::AtMost(MAX_P99_RATIO)),
        });
    }
    let worst_error = gradient_checks.iter().map(|check| check.error).reduce(f64::max);
    headline.push(HeadlineFigure {
        name: "worst_gradient_error",
        title: "worst gradient error, relative to its largest value",
        value: worst_error.map(|error| error * 1e6),
        unit: "e-6",
        goal: Some(FigureGoal::AtMost(100.0)),
    });
    let pytorch_note = pytorch_version.as_ref().map_or("PyTorch is not installed.".to_owned(), |version| {
        format!("PyTorch {version}: same layers and optimizer, frozen statistics.")
    });
    BenchReport {
        bench: "train",
        settings: json!({ "quick": quick, "nets": networks, "pytorch": pytorch_version }),
        machine: BenchMachine::here(&std::env::temp_dir()),
        rows: rows(result),
        table: ReportTable { columns, lines },
        headline,
        notes: notes(result, pytorch_note),
        charts: curves
            .iter()
            .map(|curve| (format!("learning-{}", curve.data), ReportChart::Lines(learning_curve::chart(curve))))
            .collect(),
    }
}

fn rows(result: &TrainBenchResult) -> Vec<serde_json::Value> {
    let runs = result.runs.iter().map(|run| json!(run));
    let gradients = result.gradient_checks.iter().map(|check| json!({ "gradients": check }));
    let interference = result.interference.iter().map(|window| json!({ "beside": window }));
    let curves = result.curves.iter().map(|curve| json!({ "learned": curve }));
    runs.chain(gradients).chain(interference).chain(curves).collect()
}

/// Note on the test accuracy at the end of a learning curve.
fn curve_note(curve: &learning_curve::LearningCurve) -> String {
    let percent = |ratio: f64| format!("{:.1} %", ratio * 100.0);
    let peer = curve.peer_test.map(|test| format!(", PyTorch {}", percent(test))).unwrap_or_default();
    let epochs = curve.ours.len() - 1;
    let [images, _, test] = curve.images;
    format!(
        "Trained on {images} images of {} for {epochs} epochs: accuracy {} on {test} test images{peer}.",
        curve.data,
        percent(curve.test)
    )
}

fn notes(result: &TrainBenchResult, pytorch_note: String) -> Vec<String> {
    let TrainBenchResult { curves, gradient_checks, lists_all_gradients, .. } = result;
    let mut notes = vec![
        "CPU milliseconds on one thread; batches of 32 at 28 pixels (small) and of 16 at 96; medians of all rounds."
            .into(),
        pytorch_note,
        interference_note(&result.interference),
    ];
    notes.extend(curves.iter().map(curve_note));
    let worst = gradient_checks.iter().max_by(|a, b| a.error.total_cmp(&b.error));
    let listed = gradient_checks
        .iter()
        .filter(|check| *lists_all_gradients || worst.is_some_and(|worst| std::ptr::eq(worst, *check)));
    notes.extend(listed.map(|check| {
        let gradients::GradientCheck { case, trained, weights, error } = check;
        let what = if *lists_all_gradients { "Gradients" } else { "Worst gradients" };
        format!("{what}: {case}, trained layers {trained}, {weights} weight tensors: error {error:.1e} at most.")
    }));
    notes
}

/// Note on the latency of a recognizer with and without background training.
fn interference_note(windows: &[TrainingInterference]) -> String {
    let value = |training, value: &dyn Fn(&TrainingInterference) -> f64| median_window(windows, training, value);
    let latency = |training| {
        let (p50, p99) = (value(training, &|window| window.p50_ms), value(training, &|window| window.p99_ms));
        format!("{p50:.2} and {p99:.2} ms")
    };
    let steps = |training| value(training, &|window| window.steps_per_s);
    format!(
        "Recognizing {:.0} images/s, 60 % of capacity: p50 and p99 {} without background training, {} with {:.1} steps/s of mobilenetv2 \
         on idle processors, {} with {:.1} pieces/s of four images where training has a tenth of a processor at least.",
        value(BackgroundLoad::None, &|window| window.images_per_s),
        latency(BackgroundLoad::None),
        latency(BackgroundLoad::Idle),
        steps(BackgroundLoad::Idle),
        latency(BackgroundLoad::LeastShare),
        steps(BackgroundLoad::LeastShare),
    )
}

/// Median over the windows with this training.
fn median_window(
    windows: &[TrainingInterference],
    training: BackgroundLoad,
    value: &dyn Fn(&TrainingInterference) -> f64,
) -> f64 {
    median(&windows.iter().filter(|window| window.training == training).map(value).collect::<Vec<_>>())
}

//! What the measurements of training say: table, headline, notes. Pure.

use serde_json::json;

use super::interference::TrainingInterference;
use super::{TrainRun, TrainedPart, gradients, learning_curve, nets};
use crate::report::{BenchMachine, BenchReport, FigureGoal, HeadlineFigure, ReportChart, ReportTable};
use crate::stats::median;

/// Training beside it may cost a recognizer's p99 so much.
const P99_BOUND: f64 = 1.5;

/// Everything that was measured.
pub(super) struct TrainBenchResult {
    /// Steps.
    pub runs: Vec<TrainRun>,
    /// Gradients against references.
    pub checked: Vec<gradients::GradientCheck>,
    /// Learning curves.
    pub learned: Vec<learning_curve::LearningCurve>,
    /// PyTorch's version, where it is installed.
    pub version: Option<String>,
    /// A recognizer with training beside it, and without.
    pub beside: Vec<TrainingInterference>,
    /// Whether the folder of references was named: each is told then.
    pub named_gradients: bool,
}

/// The report.
pub(super) fn report(found: &TrainBenchResult, quick: bool) -> BenchReport {
    let TrainBenchResult { runs, checked, learned, version, beside, .. } = found;
    let nets = nets();
    let middle = |net: &str, part: TrainedPart, value: &dyn Fn(&TrainRun) -> Option<f64>| {
        let own = runs.iter().filter(|run| run.net == net && run.part == part);
        let values: Vec<f64> = own.filter_map(value).collect();
        (!values.is_empty()).then(|| median(&values))
    };
    let shown = |value: Option<f64>, digits: usize| value.map_or(String::new(), |value| format!("{value:.digits$}"));
    let mut lines = Vec::new();
    for net in &nets {
        for part in TrainedPart::EVERY {
            let value = |value: &dyn Fn(&TrainRun) -> Option<f64>| middle(net.name, part, value);
            lines.push(vec![
                format!("{}, {}", net.name, part.as_str()),
                shown(value(&|run| Some(run.forward_ms)), 1),
                shown(value(&|run| Some(run.step_ms)), 1),
                shown(value(&|run| Some(run.step_ms / run.forward_ms)), 2),
                shown(value(&|run| run.peer_forward_ms), 1),
                shown(value(&|run| run.peer_step_ms), 1),
                shown(value(&|run| Some(run.step_ms / run.peer_step_ms?)), 2),
                shown(value(&|run| Some(run.peak_bytes? as f64 / 1e6)), 0),
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
    let over = |net: &str, value: &dyn Fn(&TrainRun) -> Option<f64>| middle(net, TrainedPart::All, value);
    let forward = |name, title, net| HeadlineFigure {
        name,
        title,
        value: over(net, &|run| Some(run.step_ms / run.forward_ms)),
        unit: "",
        goal: None,
    };
    let peer = |name, title, net, most| HeadlineFigure {
        name,
        title,
        value: over(net, &|run| Some(run.step_ms / run.peer_step_ms?)),
        unit: "",
        goal: Some(FigureGoal::AtMost(most)),
    };
    let mut headline = vec![
        forward("step_over_forward_small", "small: a step over the forward pass alone (about 3 is the limit)", "small"),
        forward("step_over_forward_mobilenetv2", "mobilenetv2: the same", "mobilenetv2"),
        forward("step_over_forward_resnet18", "resnet18: the same", "resnet18"),
    ];
    if version.is_some() {
        headline.push(peer("step_over_pytorch_small", "small: a step over PyTorch's", "small", 1.0));
        headline.push(peer("step_over_pytorch_mobilenetv2", "mobilenetv2: the same", "mobilenetv2", 1.25));
        headline.push(peer("step_over_pytorch_resnet18", "resnet18: the same", "resnet18", 1.25));
    }
    let p99 = |trains: bool| middle_stretch(beside, trains, &|stretch| stretch.p99_ms);
    headline.push(HeadlineFigure {
        name: "recognizer_p99_training_ratio",
        title: "p99 of a recognizer with training beside it, over without",
        value: Some(p99(true) / p99(false)),
        unit: "",
        goal: Some(FigureGoal::AtMost(P99_BOUND)),
    });
    let wrong = checked.iter().map(|checked| checked.error).reduce(f64::max);
    headline.push(HeadlineFigure {
        name: "worst_gradient_error",
        title: "worst gradient, as a share of its largest value, millionths",
        value: wrong.map(|wrong| wrong * 1e6),
        unit: "e-6",
        goal: Some(FigureGoal::AtMost(100.0)),
    });
    let peer = version.as_ref().map_or("PyTorch is not installed.".to_owned(), |version| {
        format!("PyTorch {version}, the same layers, statistics frozen, the same optimizer.")
    });
    BenchReport {
        bench: "train",
        settings: json!({ "quick": quick, "nets": nets, "pytorch": version }),
        machine: BenchMachine::here(&std::env::temp_dir()),
        rows: rows(found),
        table: ReportTable { columns, lines },
        headline,
        notes: notes(found, peer),
        charts: learned
            .iter()
            .map(|learned| (format!("learning-{}", learned.data), ReportChart::Lines(learning_curve::chart(learned))))
            .collect(),
    }
}

fn rows(found: &TrainBenchResult) -> Vec<serde_json::Value> {
    let runs = found.runs.iter().map(|run| json!(run));
    let checked = found.checked.iter().map(|checked| json!({ "gradients": checked }));
    let beside = found.beside.iter().map(|stretch| json!({ "beside": stretch }));
    runs.chain(checked).chain(beside).chain(found.learned.iter().map(|learned| json!({ "learned": learned }))).collect()
}

/// A learning curve's end, in words.
fn said(learned: &learning_curve::LearningCurve) -> String {
    let percent = |ratio: f64| format!("{:.1} %", ratio * 100.0);
    let peer = learned.peer_test.map(|test| format!(", PyTorch {}", percent(test))).unwrap_or_default();
    let epochs = learned.ours.len() - 1;
    let [images, _, test] = learned.images;
    format!(
        "Learned from {images} images of {}, {epochs} epochs: {} right of {test} to test with{peer}.",
        learned.data,
        percent(learned.test)
    )
}

fn notes(found: &TrainBenchResult, peer: String) -> Vec<String> {
    let TrainBenchResult { learned, checked, named_gradients, .. } = found;
    let mut notes = vec![
        "Processor milliseconds on one thread; batches of 32 at 28 pixels (small) and of 16 at 96; medians of the rounds.".into(),
        peer,
        beside(found),
    ];
    notes.extend(learned.iter().map(said));
    let worst = checked.iter().max_by(|a, b| a.error.total_cmp(&b.error));
    let shown =
        checked.iter().filter(|checked| *named_gradients || worst.is_some_and(|worst| std::ptr::eq(worst, *checked)));
    notes.extend(shown.map(|checked| {
        let gradients::GradientCheck { case, trained, weights, error } = checked;
        let worst = if *named_gradients { "" } else { "the worst of all, " };
        format!("Gradients of {case}, {worst}trained {trained}: {weights} weights, wrong by {error:.1e} at the most.")
    }));
    notes
}

/// What training beside it cost a recognizer, in words.
fn beside(found: &TrainBenchResult) -> String {
    let value =
        |trains: bool, value: &dyn Fn(&TrainingInterference) -> f64| middle_stretch(&found.beside, trains, value);
    format!(
        "Recognizing {:.0} images/s, six tenths of what the site can: p50 {:.2} and p99 {:.2} ms without training beside it, {:.2} and {:.2} ms with {:.1} steps/s of mobilenetv2.",
        value(false, &|stretch| stretch.images_per_s),
        value(false, &|stretch| stretch.p50_ms),
        value(false, &|stretch| stretch.p99_ms),
        value(true, &|stretch| stretch.p50_ms),
        value(true, &|stretch| stretch.p99_ms),
        value(true, &|stretch| stretch.steps_per_s),
    )
}

fn middle_stretch(
    stretches: &[TrainingInterference],
    trains: bool,
    value: &dyn Fn(&TrainingInterference) -> f64,
) -> f64 {
    median(&stretches.iter().filter(|stretch| stretch.trains == trains).map(value).collect::<Vec<_>>())
}

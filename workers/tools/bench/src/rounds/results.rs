//! Results of the experiments: table and headline.

use serde_json::json;

use super::RoundsBenchOptions;
use super::experiment::{ExperimentRound, ROUNDS, RoundsResult, SITES};
use super::steering::Steering;
use super::world::{LabelQuality, RoundsWorld};
use crate::report::{BenchMachine, BenchReport, FigureGoal, HeadlineFigure, ReportTable};

/// Builds the report.
pub(super) fn report(world: &RoundsWorld, all: &[RoundsResult], options: &RoundsBenchOptions) -> BenchReport {
    let (played, compared): (Vec<&RoundsResult>, Vec<&RoundsResult>) =
        all.iter().partition(|played| played.steering == Steering::Default);
    let columns =
        vec!["start model", "case", "labels", "start %", "end %", "points", "sealed", "reported, round by round"];
    let [learn, public, test] = world.counts();
    BenchReport {
        bench: "rounds",
        settings: json!({
            "quick": options.quick,
            "images": world.name,
            "sites": SITES,
            "rounds": if options.quick { 1 } else { ROUNDS },
            "pictures": { "to_divide": learn, "public": public, "test": test },
        }),
        machine: BenchMachine::here(&std::env::temp_dir()),
        rows: all.iter().map(|played| json!(played)).collect(),
        table: ReportTable { columns, lines: played.iter().map(|played| line(played)).collect() },
        headline: headline(&played),
        notes: notes(world, &played).into_iter().chain(compare(&compared)).collect(),
        charts: Vec::new(),
    }
}

fn points(played: &RoundsResult) -> f64 {
    (played.end_ratio() - played.start_ratio) * 100.0
}

/// Reported minus true accuracy of a sealed release, percentage points.
fn reported_minus_true(round: &ExperimentRound) -> Option<f64> {
    let reported = round.reported.filter(|_| round.is_sealed())?;
    Some((reported.after.accuracy_ratio - round.after_ratio) * 100.0)
}

fn sealed<'a>(played: &[&'a RoundsResult]) -> impl Iterator<Item = &'a ExperimentRound> {
    played.iter().flat_map(|played| &played.rounds).filter(|round| round.is_sealed())
}

fn line(played: &RoundsResult) -> Vec<String> {
    let percent = |ratio: f64| format!("{:.1}", ratio * 100.0);
    let labels = match played.labels {
        LabelQuality::True => "true",
        LabelQuality::Verdicts => "verdicts",
        LabelQuality::TenthWrong => "a tenth wrong",
    };
    let shown = |round: &ExperimentRound| match round.reported.filter(|_| round.is_sealed()) {
        None => "none".to_owned(),
        Some(reported) => {
            let change = if reported.is_measured() { "" } else { " (no change measured)" };
            format!("{} -> {}{change}", percent(reported.before.accuracy_ratio), percent(reported.after.accuracy_ratio))
        }
    };
    vec![
        played.start.clone(),
        played.case.clone(),
        labels.into(),
        percent(played.start_ratio),
        percent(played.end_ratio()),
        format!("{:+.1}", points(played)),
        played.rounds.iter().filter(|round| round.is_sealed()).count().to_string(),
        played.rounds.iter().map(shown).collect::<Vec<_>>().join(", "),
    ]
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn headline(played: &[&RoundsResult]) -> Vec<HeadlineFigure> {
    let shifted: Vec<f64> = played.iter().filter(|played| played.is_shifted).map(|played| points(played)).collect();
    let shown: Vec<f64> = sealed(played).filter_map(reported_minus_true).collect();
    let rounds = played.iter().map(|played| played.rounds.len()).sum::<usize>();
    let worse = sealed(played).filter(|round| round.after_ratio < round.before_ratio).count();
    let figure = |name, title, value, unit, goal| HeadlineFigure { name, title, value, unit, goal: Some(goal) };
    vec![
        figure(
            "worst_release_minus_start_points",
            "accuracy of the last release minus the start model, worst experiment",
            played.iter().map(|played| points(played)).reduce(f64::min),
            "points",
            FigureGoal::AtLeast(-0.3),
        ),
        figure(
            "mean_gain_points_shifted",
            "accuracy of the last release minus the start model, changed cameras, mean",
            mean(&shifted),
            "points",
            FigureGoal::AtLeast(3.0),
        ),
        figure(
            "shown_minus_true_points",
            "reported accuracy minus accuracy on unseen pictures, absolute value of the mean",
            mean(&shown).map(f64::abs),
            "points",
            FigureGoal::AtMost(1.0),
        ),
        figure(
            "shown_minus_true_worst_points",
            "reported accuracy minus accuracy on unseen pictures, worst release",
            shown.iter().map(|shown| shown.abs()).reduce(f64::max),
            "points",
            FigureGoal::AtMost(2.5),
        ),
        figure(
            "rounds_that_sealed_a_worse_release",
            "rounds that sealed a release worse than the previous one",
            (rounds > 0).then(|| worse as f64 * 100.0 / rounds as f64),
            "%",
            FigureGoal::AtMost(2.0),
        ),
    ]
}

fn notes(world: &RoundsWorld, played: &[&RoundsResult]) -> Vec<String> {
    let [learn, public, test] = world.counts();
    let mut notes = vec![format!(
        "{SITES} sites; {learn} pictures to divide, {public} in the public set (a third each for fitting, selection and reporting), {test} unseen. Every other site, and every other public and unseen picture, uses the case's camera."
    )];
    let covers = |round: &ExperimentRound| {
        let (low, high) = round.reported?.after_interval;
        Some((low..=high).contains(&round.after_ratio))
    };
    let covered: Vec<bool> = sealed(played).filter_map(covers).collect();
    let within = covered.iter().filter(|covered| **covered).count();
    notes.push(format!(
        "The reported interval contains the accuracy on unseen pictures for {within} of {} releases.",
        covered.len()
    ));
    let mut starts: Vec<&str> = played.iter().map(|played| played.start.as_str()).collect();
    starts.dedup();
    for start in starts {
        let of: Vec<&&RoundsResult> = played.iter().filter(|played| played.start == start).collect();
        let means = |shifted: bool| {
            let values: Vec<f64> =
                of.iter().filter(|played| played.is_shifted == shifted).map(|played| points(played)).collect();
            mean(&values).map_or("none".into(), |mean| format!("{mean:+.1}"))
        };
        let rounds: usize = of.iter().map(|played| played.rounds.len()).sum();
        let sealed = of.iter().flat_map(|played| &played.rounds).filter(|round| round.is_sealed()).count();
        notes.push(format!(
            "Start model {start}: {} points with unchanged cameras, {} with changed ones; {sealed} of {rounds} rounds sealed a release.",
            means(false),
            means(true)
        ));
    }
    notes
}

/// Gain of each steering over the same experiments without steering.
fn compare(played: &[&RoundsResult]) -> Vec<String> {
    let with = |steering: Steering| {
        let of = |wanted: Steering| played.iter().filter(move |played| played.steering == wanted);
        let plain = |game: &RoundsResult| {
            of(Steering::None)
                .find(|plain| plain.seed == game.seed && plain.start == game.start)
                .map(|plain| points(plain))
        };
        let added: Vec<f64> = of(steering).filter_map(|game| Some(points(game) - plain(game)?)).collect();
        let mean = mean(&added)?;
        let spread =
            added.iter().map(|added| (added - mean).powi(2)).sum::<f64>() / (added.len() as f64 - 1.0).max(1.0);
        let error = (spread / added.len() as f64).sqrt();
        let what = match steering {
            Steering::Repeats => "a site's own hard cases twice as often (trainer.collect.hard_repeats = 2)",
            Steering::Focus => "pictures like the fleet's hard cases more often (aggregator.round.hard_focus = 1)",
            Steering::Coverage => "updates weighted by their hard cases (aggregator.merge.weigh.coverage = 1)",
            Steering::Default | Steering::None => "no steering",
        };
        Some(format!(
            "{what}: {mean:+.2} points relative to no steering, ±{:.2} (95 % confidence), {} experiments with rule fedavg.",
            1.96 * error,
            added.len()
        ))
    };
    Steering::COMPARED.into_iter().filter_map(with).collect()
}

//! Results of policy runs: table, headline, charts.

use std::collections::BTreeMap;

use schemas::{Reason, Route, TaskId};
use serde::Serialize;
use serde_json::{Value, json};

use super::measured::MeasuredPolicy;
use super::measured::names::{CLOUD_ONLY, EARLIEST_FINISH, EDGE_ONLY, HARD_EXAMPLE, PAPER, RANDOM};
use super::scenario::{DEADLINES, PolicyQuestion, Scenario};
use crate::bar_chart::{BarChart, BarGroup};
use crate::labelled_images::LabelledImage;
use crate::report::{FigureGoal, HeadlineFigure, ReportChart, ReportTable, amount};
use crate::stats::{median, median_interval};
use crate::testbed::CpuUsage;
use tributary::demo::answer_listener::AnswerListener;
use tributary::demo::latency::Latency;

/// One run of a scenario under a policy.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PolicyRun {
    /// Part of the bench.
    pub part: PolicyQuestion,
    /// Name of the scenario.
    pub scenario: &'static str,
    /// Policy under test.
    pub policy: MeasuredPolicy,
    /// Round, from 0.
    pub round: usize,
    /// Measurements of the run.
    #[serde(flatten)]
    pub outcome: PolicyRunOutcome,
}

/// Measurements of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct PolicyRunOutcome {
    /// Images published.
    pub images: usize,
    /// Time to the last final answer, seconds.
    pub completion_s: f64,
    /// Time until every image had an answer, provisional or final, seconds.
    pub edge_completion_s: f64,
    /// Whether every image had its final answer before the time limit.
    pub complete: bool,
    /// Latency of the first answer, provisional or final.
    pub first: Latency,
    /// Latency of the final answer.
    #[serde(rename = "final")]
    pub last: Latency,
    /// Latency of the first answer for confident images.
    pub confident: Latency,
    /// Share of images whose final answer is correct.
    pub accuracy_ratio: f64,
    /// Macro F1 of the final answers.
    pub macro_f1: f64,
    /// Requests that reached the cloud, per image.
    pub uploaded_ratio: f64,
    /// Total size of these requests, bytes.
    pub uploaded_bytes: u64,
    /// CPU time of the site's processes, milliseconds per image.
    pub site_cpu_ms: f64,
    /// CPU time of the cloud's processes, milliseconds per image.
    pub cloud_cpu_ms: f64,
    /// Energy estimated by the answers, millijoules per image.
    pub energy_mj: f64,
    /// Images whose deadline passed without a verdict or an answer.
    pub deadline_misses: u64,
    /// Images whose final answer says that it is late.
    pub late: u64,
    /// Late answers as the site's workers counted them.
    pub late_counted: u64,
    /// Images that had no final answer, or one that came to the publisher later than the deadline after they were due to
    /// be published: what `late` does not know of is on the way to and from the site.
    pub late_seen: u64,
    /// Images that no schedule answers in time, given the site's capacity, the link and the cloud.
    pub unavoidable_late: u64,
    /// Images without an answer in time by the answers themselves, as a share.
    pub late_ratio: f64,
    /// Number of final answers by route.
    pub routes: BTreeMap<String, u64>,
}

impl PolicyRunOutcome {
    /// Evaluates the received answers.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn of(
        listener: &AnswerListener,
        tasks: &[TaskId],
        images: &[LabelledImage],
        scenario: &Scenario,
        edge_completion_s: f64,
        completion_s: f64,
        complete: bool,
        (before, after): (CpuUsage, CpuUsage),
    ) -> Self {
        let (mut first, mut last, mut confident) = (Vec::new(), Vec::new(), Vec::new());
        let mut labels: Vec<(&str, Option<String>)> = Vec::new();
        let mut routes: BTreeMap<String, u64> = BTreeMap::new();
        let (mut energy_mj, mut deadline_misses) = (0.0, 0);
        let (mut late, mut unanswered, mut late_seen) = (0, 0, 0);
        let deadline = scenario.deadline_ms.map(std::time::Duration::from_millis);
        for (task, image) in tasks.iter().zip(images) {
            let Some(answers) = listener.take_answers(*task) else { continue };
            first.extend(answers.first);
            let Some((took, answer)) = answers.last else {
                deadline_misses += u64::from(scenario.deadline_ms.is_some());
                unanswered += 1;
                labels.push((&image.label, None));
                continue;
            };
            last.push(took);
            late += u64::from(answer.late_ms.is_some());
            late_seen += u64::from(deadline.is_some_and(|deadline| took > deadline));
            if answer.route == Route::Edge && answer.reason == Reason::Confident {
                confident.extend(answers.first);
            }
            deadline_misses += u64::from(scenario.deadline_ms.is_some() && answer.route == Route::Expired);
            energy_mj += f64::from(answer.energy_mj.unwrap_or(0.0));
            *routes.entry(answer.route.to_string()).or_default() += 1;
            labels.push((&image.label, answer.label));
        }
        let count = tasks.len().max(1) as f64;
        let uploads = listener.cloud_arrivals();
        let cpu_ms = |before: std::time::Duration, after: std::time::Duration| {
            after.saturating_sub(before).as_secs_f64() * 1000.0 / count
        };
        let correct = labels.iter().filter(|(truth, answer)| answer.as_deref() == Some(*truth)).count();
        Self {
            images: tasks.len(),
            completion_s,
            edge_completion_s,
            complete,
            first: Latency::of(first),
            last: Latency::of(last),
            confident: Latency::of(confident),
            accuracy_ratio: correct as f64 / count,
            macro_f1: macro_f1(&labels),
            uploaded_ratio: uploads.requests as f64 / count,
            uploaded_bytes: uploads.bytes,
            site_cpu_ms: cpu_ms(before.site, after.site),
            cloud_cpu_ms: cpu_ms(before.cloud, after.cloud),
            energy_mj: energy_mj / count,
            deadline_misses,
            late,
            late_counted: late,
            late_seen: late_seen + if deadline.is_some() { unanswered } else { 0 },
            unavoidable_late: 0,
            late_ratio: if deadline.is_some() { (late + unanswered) as f64 / count } else { 0.0 },
            routes,
        }
    }
}

/// Macro F1: mean over the true labels of the harmonic mean of precision and recall.
fn macro_f1(labels: &[(&str, Option<String>)]) -> f64 {
    let mut counts: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    for (truth, answer) in labels {
        counts.entry(truth).or_default().1 += 1;
        if let Some(answer) = answer {
            let (right, _, named) = counts.entry(answer).or_default();
            *named += 1;
            *right += u64::from(answer == truth);
        }
    }
    let of_labels: Vec<f64> = counts
        .values()
        .filter(|(_, is, _)| *is > 0)
        .map(|(right, is, named)| 2.0 * *right as f64 / (is + named).max(1) as f64)
        .collect();
    of_labels.iter().sum::<f64>() / of_labels.len().max(1) as f64
}

fn of<'r>(
    runs: &'r [PolicyRun],
    part: PolicyQuestion,
    scenario: &str,
    policy: MeasuredPolicy,
) -> Vec<&'r PolicyRunOutcome> {
    let wanted = |run: &&PolicyRun| run.part == part && run.scenario == scenario && run.policy == policy;
    runs.iter().filter(wanted).map(|run| &run.outcome).collect()
}

/// Median over the rounds; `None` without rounds.
fn middle(outcomes: &[&PolicyRunOutcome], value: impl Fn(&PolicyRunOutcome) -> f64) -> Option<f64> {
    let values: Vec<f64> = outcomes.iter().map(|outcome| value(outcome)).collect();
    (!values.is_empty()).then(|| median(&values))
}

/// All combinations of part, scenario and policy, in measuring order.
fn cells(runs: &[PolicyRun]) -> Vec<(PolicyQuestion, &'static str, MeasuredPolicy)> {
    let mut cells = Vec::new();
    for run in runs {
        let cell = (run.part, run.scenario, run.policy);
        if !cells.contains(&cell) {
            cells.push(cell);
        }
    }
    cells
}

/// One JSON row per run.
pub(super) fn rows(runs: &[PolicyRun]) -> Vec<Value> {
    runs.iter().map(|run| json!(run)).collect()
}

/// Table of medians over the rounds.
pub(super) fn table(runs: &[PolicyRun]) -> ReportTable {
    let line = |(part, scenario, policy): (PolicyQuestion, &'static str, MeasuredPolicy)| {
        let outcomes = of(runs, part, scenario, policy);
        let middle = |value: fn(&PolicyRunOutcome) -> f64| middle(&outcomes, value).unwrap_or(f64::NAN);
        let all = outcomes.iter().all(|outcome| outcome.complete);
        let percent = |ratio: f64| amount(ratio * 100.0, "");
        vec![
            format!("{}, {scenario}: {policy}", part.as_str()),
            format!("{}{}", if all { "" } else { "> " }, amount(middle(|o| o.completion_s), "")),
            amount(middle(|o| o.edge_completion_s), ""),
            amount(middle(|o| o.first.p50_ms), ""),
            amount(middle(|o| o.first.p99_ms), ""),
            amount(middle(|o| o.last.p99_ms), ""),
            if part == PolicyQuestion::Verification { percent(middle(|o| o.accuracy_ratio)) } else { String::new() },
            if part == PolicyQuestion::Verification { percent(middle(|o| o.macro_f1)) } else { String::new() },
            percent(middle(|o| o.uploaded_ratio)),
            amount(middle(|o| o.uploaded_bytes as f64 / 1e3), ""),
            amount(middle(|o| o.site_cpu_ms), ""),
            amount(middle(|o| o.cloud_cpu_ms), ""),
            amount(middle(|o| o.energy_mj), ""),
            amount(middle(|o| o.deadline_misses as f64), ""),
            late_cell(part, middle(|o| o.late_ratio)),
            late_cell(part, middle(|o| o.late_seen as f64 / o.images.max(1) as f64)),
            late_cell(part, middle(|o| o.unavoidable_late as f64 / o.images.max(1) as f64)),
        ]
    };
    ReportTable {
        columns: vec![
            "scenario: policy",
            "all s",
            "edge s",
            "first p50 ms",
            "p99",
            "final p99",
            "correct %",
            "F1 %",
            "up %",
            "kB",
            "site CPU ms",
            "cloud",
            "mJ",
            "missed",
            "late %",
            "seen late %",
            "unavoidable %",
        ],
        lines: cells(runs).into_iter().map(line).collect(),
    }
}

fn late_cell(part: PolicyQuestion, ratio: f64) -> String {
    if part == PolicyQuestion::Deadlines { amount(ratio * 100.0, "") } else { String::new() }
}

/// Ratios of earliest-finish to the best of the others in the same round, by what `value` says of a run.
fn paired_ratios(
    runs: &[PolicyRun],
    part: PolicyQuestion,
    scenario: &str,
    others: &[MeasuredPolicy],
    value: impl Fn(&PolicyRunOutcome) -> f64,
) -> Vec<f64> {
    let of = |round: usize, policy: MeasuredPolicy| {
        let is_it = |run: &&PolicyRun| {
            run.part == part && run.scenario == scenario && run.policy == policy && run.round == round
        };
        runs.iter().find(is_it).map(|run| value(&run.outcome))
    };
    let rounds = runs.iter().map(|run| run.round + 1).max().unwrap_or(0);
    let ratio = |round| {
        let best = others.iter().filter_map(|other| of(round, *other)).reduce(f64::min)?;
        Some(of(round, EARLIEST_FINISH)? / best).filter(|ratio| ratio.is_finite())
    };
    (0..rounds).filter_map(ratio).collect()
}

/// What is compared round by round: name, part, scenario, others, value.
type PairedComparison =
    (&'static str, PolicyQuestion, &'static str, &'static [MeasuredPolicy], fn(&PolicyRunOutcome) -> f64);

const PAIRED: [PairedComparison; 6] = {
    const FIXED: &[MeasuredPolicy] = &[EDGE_ONLY, CLOUD_ONLY];
    const EDGE: &[MeasuredPolicy] = &[EDGE_ONLY];
    const fn completion(outcome: &PolicyRunOutcome) -> f64 {
        outcome.completion_s
    }
    const fn confident(outcome: &PolicyRunOutcome) -> f64 {
        outcome.confident.p99_ms
    }
    [
        ("completion", PolicyQuestion::Offloading, "link slow", FIXED, completion),
        ("completion", PolicyQuestion::Offloading, "link flapping", FIXED, completion),
        ("completion", PolicyQuestion::Offloading, "cloud down", FIXED, completion),
        ("completion", PolicyQuestion::Offloading, "cloud stalled", FIXED, completion),
        ("p99 of confident answers", PolicyQuestion::Verification, "cloud down", EDGE, confident),
        ("p99 of confident answers", PolicyQuestion::Verification, "cloud stalled", EDGE, confident),
    ]
};

/// How certain the paired comparisons are, one line each.
fn intervals(runs: &[PolicyRun]) -> Vec<String> {
    let line = |(what, part, scenario, others, value): &PairedComparison| {
        let ratios = paired_ratios(runs, *part, scenario, others, value);
        let (low, high) = median_interval(&ratios)?;
        let others: Vec<String> = others.iter().map(ToString::to_string).collect();
        Some(format!(
            "{}, {scenario}: {what} relative to {} in the same round: median {:.2}, 95 % interval {low:.2} to {high:.2}, {} rounds.",
            part.as_str(),
            others.join(" or "),
            median(&ratios),
            ratios.len()
        ))
    };
    PAIRED.iter().filter_map(line).collect()
}

/// Headline figures: ratios of medians over the rounds; where rounds differ most, medians of the ratios of a round.
pub(super) fn headline(runs: &[PolicyRun]) -> Vec<HeadlineFigure> {
    let value = |part, scenario: &str, policy, value: fn(&PolicyRunOutcome) -> f64| {
        middle(&of(runs, part, scenario, policy), value)
    };
    let ratio = |part, scenario: &str, policy, over, what: fn(&PolicyRunOutcome) -> f64| {
        Some(value(part, scenario, policy, what)? / value(part, scenario, over, what)?)
    };
    let completion = |outcome: &PolicyRunOutcome| outcome.completion_s;
    let worse = |scenario: &str| {
        let one = ratio(PolicyQuestion::Verification, scenario, EARLIEST_FINISH, HARD_EXAMPLE, completion)?;
        Some(one.max(ratio(PolicyQuestion::Verification, scenario, PAPER, HARD_EXAMPLE, completion)?))
    };
    // Relative to the better of the two fixed policies.
    let best_fixed = |scenario: &str| {
        let own = value(PolicyQuestion::Offloading, scenario, EARLIEST_FINISH, completion)?;
        let edge = value(PolicyQuestion::Offloading, scenario, EDGE_ONLY, completion)?;
        let cloud = value(PolicyQuestion::Offloading, scenario, CLOUD_ONLY, completion).unwrap_or(f64::INFINITY);
        Some(own / edge.min(cloud))
    };
    let paired = |wanted: PolicyQuestion, name: Option<&str>| {
        let comparisons = PAIRED
            .iter()
            .filter(move |(_, part, scenario, ..)| *part == wanted && name.is_none_or(|name| name == *scenario));
        let ratios =
            comparisons.map(|(_, part, scenario, others, value)| paired_ratios(runs, *part, scenario, others, value));
        ratios.filter(|ratios| !ratios.is_empty()).map(|ratios| median(&ratios)).reduce(f64::max)
    };
    let worst_bad = paired(PolicyQuestion::Offloading, None);
    let points = |policy, over| {
        let accuracy = |policy| value(PolicyQuestion::Verification, "steady", policy, |o| o.accuracy_ratio);
        Some((accuracy(policy)? - accuracy(over)?) * 100.0)
    };
    let confident = |scenario: &str| paired(PolicyQuestion::Verification, Some(scenario));
    let avoidable = |outcome: &PolicyRunOutcome| {
        let unavoidable = outcome.unavoidable_late as f64 / outcome.images.max(1) as f64;
        (outcome.late_ratio - unavoidable).max(0.0) * 100.0
    };
    let late = DEADLINES
        .iter()
        .filter_map(|scenario| value(PolicyQuestion::Deadlines, scenario.name, EARLIEST_FINISH, avoidable))
        .reduce(f64::max);
    let with_deadlines = runs.iter().filter(|run| run.part == PolicyQuestion::Deadlines);
    let uncounted = with_deadlines.map(|run| run.outcome.late.abs_diff(run.outcome.late_counted)).max();
    let figure = |name, title, value, unit, goal| HeadlineFigure { name, title, value, unit, goal };
    let most = |most| Some(FigureGoal::AtMost(most));
    vec![
        figure(
            "completion_over_hard_example_batch",
            "batch: completion relative to hard-example, worse of earliest-finish and paper",
            worse("batch"),
            "",
            most(0.5),
        ),
        figure(
            "completion_over_hard_example_burst",
            "burst: completion relative to hard-example",
            worse("burst"),
            "",
            most(0.5),
        ),
        figure(
            "steady_p99_over_hard_example",
            "steady: p99 of the first answer relative to hard-example",
            ratio(PolicyQuestion::Verification, "steady", EARLIEST_FINISH, HARD_EXAMPLE, |outcome| {
                outcome.first.p99_ms
            }),
            "",
            most(0.5),
        ),
        figure(
            "offload_completion_over_best_fixed",
            "offloading, both work: completion relative to the better of edge-only and cloud-only",
            best_fixed("both work"),
            "",
            most(0.9),
        ),
        figure(
            "offload_completion_over_best_fixed_bad_link",
            "offloading, link slow or flapping, cloud down or stalled: the worst",
            worst_bad,
            "",
            most(1.05),
        ),
        figure(
            "accuracy_minus_hard_example_points_at_equal_uploads",
            "steady: accuracy minus hard-example's, at equal uploads",
            points(EARLIEST_FINISH, HARD_EXAMPLE),
            "points",
            Some(FigureGoal::AtLeast(0.0)),
        ),
        figure(
            "accuracy_minus_random_points_at_equal_uploads",
            "steady: accuracy minus random's, at equal uploads",
            points(EARLIEST_FINISH, RANDOM),
            "points",
            Some(FigureGoal::AtLeast(0.0)),
        ),
        figure(
            "cloud_down_p99_over_edge_only",
            "cloud down: p99 of confident answers relative to edge-only",
            confident("cloud down"),
            "",
            most(1.1),
        ),
        figure(
            "cloud_stalled_p99_over_edge_only",
            "cloud stalled: p99 of confident answers relative to edge-only",
            confident("cloud stalled"),
            "",
            most(1.1),
        ),
        figure(
            "deadline_avoidable_late_percent",
            "deadlines of 400 ms, threefold burst or cloud stalled: answers late that some schedule would have met",
            late,
            "%",
            most(1.0),
        ),
        figure(
            "deadline_late_uncounted",
            "deadlines: late answers that the workers did not count, in the worst run",
            uncounted.map(|count| count as f64),
            "",
            most(0.0),
        ),
    ]
}

/// Notes below the table.
pub(super) fn notes(runs: &[PolicyRun], images: &[LabelledImage], paced_ms: Option<f64>, rounds: usize) -> Vec<String> {
    let mean = images.iter().map(|image| image.bytes.len()).sum::<usize>() / images.len().max(1);
    let cloud = match paced_ms {
        Some(ms) => {
            format!("a simulated cloud with {ms} ms per image on each of 4 replicas and the real model's predictions")
        }
        None => "the real verifier, on the same cores as everything else".into(),
    };
    let mut notes = intervals(runs);
    notes.extend([
        format!("Medians of {rounds} rounds, or of more where the line above says so. Verification: {} labelled images of {mean} bytes on average, {cloud}.", images.len()),
        "The project's own images are first enlarged to 480x480 JPEGs; the site has one replica.".into(),
        "Offloading: generated 640x480 JPEGs, one replica at the site, a simulated cloud with 3 ms per image on each of 4 replicas.".into(),
        format!("hard-example abandons an upload after {} ms; the library that it stands for waits 12 s and more.", super::BASELINE_TIMEOUT.as_millis()),
        "Deadlines: the same images and simulated cloud; the site's model has the shape of ResNet-18 at 96 pixels. *Late* is by the answers, *seen late* by the publisher's clock from the time an image was due to be published, *unavoidable* what a scheduler that knows capacity, link and cloud cannot meet.".into(),
        "`>` marks runs that reached the time limit.".into(),
    ]);
    notes
}

/// Completion times, one chart per part.
pub(super) fn charts(runs: &[PolicyRun]) -> Vec<(String, ReportChart)> {
    let chart = |part: PolicyQuestion, title: &str| {
        let mut groups: Vec<BarGroup> = Vec::new();
        for (_, scenario, policy) in cells(runs).into_iter().filter(|(of, ..)| *of == part) {
            let Some(seconds) = middle(&of(runs, part, scenario, policy), |outcome| outcome.completion_s) else {
                continue;
            };
            match groups.iter_mut().find(|group| group.name == scenario) {
                Some(group) => group.bars.push((policy.to_string(), seconds)),
                None => groups.push(BarGroup { name: scenario.into(), bars: vec![(policy.to_string(), seconds)] }),
            }
        }
        ReportChart::Bars(BarChart {
            title: title.into(),
            y_label: "seconds until the last final answer".into(),
            groups,
        })
    };
    vec![
        (
            "policy-verification".into(),
            chart(PolicyQuestion::Verification, "Completion time, doubtful images verified"),
        ),
        ("policy-offloading".into(), chart(PolicyQuestion::Offloading, "Completion time, no doubtful images")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macro_f1_matches_hand_computed_values() {
        let answered = |pairs: &[(&'static str, &str)]| -> Vec<(&'static str, Option<String>)> {
            pairs.iter().map(|(truth, answer)| (*truth, Some((*answer).to_owned()))).collect()
        };
        assert_eq!(macro_f1(&answered(&[("a", "a"), ("b", "b")])), 1.0);
        // a: precision 1/2, recall 1; b: precision 1, recall 1/2: both 2/3.
        let mixed = answered(&[("a", "a"), ("b", "a"), ("b", "b")]);
        assert!((macro_f1(&mixed) - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!(macro_f1(&[("a", None)]), 0.0);
    }
}

//! What a run came to, and what all of them say. Pure but for the ear.

use std::collections::BTreeMap;

use schemas::{Reason, Route, TaskId};
use serde::Serialize;
use serde_json::{Value, json};

use super::measured::MeasuredPolicy;
use super::measured::names::{CLOUD_ONLY, EARLIEST_FINISH, EDGE_ONLY, HARD_EXAMPLE, PAPER, RANDOM};
use super::scenario::{PolicyQuestion, Scenario};
use crate::bar_chart::{BarChart, BarGroup};
use crate::labelled_images::LabelledImage;
use crate::report::{FigureGoal, HeadlineFigure, ReportChart, ReportTable, amount};
use crate::stats::median;
use crate::testbed::CpuUsage;
use tributary::demo::answer_listener::AnswerListener;
use tributary::demo::latency::Latency;

/// One run.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PolicyRun {
    /// Which question.
    pub part: PolicyQuestion,
    /// Which scenario.
    pub scenario: &'static str,
    /// Which policy.
    pub policy: MeasuredPolicy,
    /// Which round, from 0.
    pub round: usize,
    /// What it came to.
    #[serde(flatten)]
    pub outcome: PolicyRunOutcome,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct PolicyRunOutcome {
    /// Until the last final answer, seconds.
    pub completion_s: f64,
    /// Until the last image had an answer of any kind, seconds.
    pub edge_completion_s: f64,
    /// Whether every image had its final answer before the run was cut off.
    pub complete: bool,
    /// Until the first answer, provisional or final.
    pub first: Latency,
    /// Until the final answer.
    #[serde(rename = "final")]
    pub last: Latency,
    /// Until the first answer of those that were confident.
    pub confident: Latency,
    /// Share of the final answers that name the true label.
    pub accuracy_ratio: f64,
    /// Mean over the labels of the harmonic mean of precision and recall.
    pub macro_f1: f64,
    /// Requests that reached the cloud, over images.
    pub uploaded_ratio: f64,
    /// Bytes of them.
    pub uploaded_bytes: u64,
    /// Processor time of the site's processes, milliseconds an image.
    pub site_cpu_ms: f64,
    /// Of the cloud's.
    pub cloud_cpu_ms: f64,
    /// Energy as the answers estimate it, millijoules an image.
    pub energy_mj: f64,
    /// Images whose deadline passed without a verdict, or without an answer.
    pub deadline_misses: u64,
    /// Final answers by route.
    pub routes: BTreeMap<String, u64>,
}

impl PolicyRunOutcome {
    /// From what was heard.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn of(
        ear: &AnswerListener,
        tasks: &[TaskId],
        images: &[LabelledImage],
        scenario: &Scenario,
        edge_completion_s: f64,
        completion_s: f64,
        complete: bool,
        (before, after): (CpuUsage, CpuUsage),
    ) -> Self {
        let (mut first, mut last, mut confident) = (Vec::new(), Vec::new(), Vec::new());
        let mut said: Vec<(&str, Option<String>)> = Vec::new();
        let mut routes: BTreeMap<String, u64> = BTreeMap::new();
        let (mut energy_mj, mut deadline_misses) = (0.0, 0);
        for (task, image) in tasks.iter().zip(images) {
            let Some(heard) = ear.take_answers(*task) else { continue };
            first.extend(heard.first);
            let Some((took, answer)) = heard.last else {
                deadline_misses += u64::from(scenario.deadline_ms.is_some());
                said.push((&image.label, None));
                continue;
            };
            last.push(took);
            if answer.route == Route::Edge && answer.reason == Reason::Confident {
                confident.extend(heard.first);
            }
            deadline_misses += u64::from(scenario.deadline_ms.is_some() && answer.route == Route::Expired);
            energy_mj += f64::from(answer.energy_mj.unwrap_or(0.0));
            *routes.entry(answer.route.to_string()).or_default() += 1;
            said.push((&image.label, answer.label));
        }
        let count = tasks.len().max(1) as f64;
        let up = ear.cloud_arrivals();
        let cpu_ms = |before: std::time::Duration, after: std::time::Duration| {
            after.saturating_sub(before).as_secs_f64() * 1000.0 / count
        };
        let right = said.iter().filter(|(truth, said)| said.as_deref() == Some(*truth)).count();
        Self {
            completion_s,
            edge_completion_s,
            complete,
            first: Latency::of(first),
            last: Latency::of(last),
            confident: Latency::of(confident),
            accuracy_ratio: right as f64 / count,
            macro_f1: macro_f1(&said),
            uploaded_ratio: up.requests as f64 / count,
            uploaded_bytes: up.bytes,
            site_cpu_ms: cpu_ms(before.site, after.site),
            cloud_cpu_ms: cpu_ms(before.cloud, after.cloud),
            energy_mj: energy_mj / count,
            deadline_misses,
            routes,
        }
    }
}

/// The mean over the true labels of the harmonic mean of precision and recall.
fn macro_f1(said: &[(&str, Option<String>)]) -> f64 {
    let mut counts: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    for (truth, said) in said {
        counts.entry(truth).or_default().1 += 1;
        if let Some(said) = said {
            let (right, _, named) = counts.entry(said).or_default();
            *named += 1;
            *right += u64::from(said == truth);
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

/// The median over the rounds; `None` without any.
fn middle(outcomes: &[&PolicyRunOutcome], value: impl Fn(&PolicyRunOutcome) -> f64) -> Option<f64> {
    let values: Vec<f64> = outcomes.iter().map(|outcome| value(outcome)).collect();
    (!values.is_empty()).then(|| median(&values))
}

/// Each scenario and policy once, in the order they were measured first.
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

/// For programs.
pub(super) fn rows(runs: &[PolicyRun]) -> Vec<Value> {
    runs.iter().map(|run| json!(run)).collect()
}

/// For people: medians over the rounds.
pub(super) fn table(runs: &[PolicyRun]) -> ReportTable {
    let line = |(part, scenario, policy): (PolicyQuestion, &'static str, MeasuredPolicy)| {
        let found = of(runs, part, scenario, policy);
        let middle = |value: fn(&PolicyRunOutcome) -> f64| middle(&found, value).unwrap_or(f64::NAN);
        let all = found.iter().all(|outcome| outcome.complete);
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
            "right %",
            "F1 %",
            "up %",
            "kB",
            "site CPU ms",
            "cloud",
            "mJ",
            "missed",
        ],
        lines: cells(runs).into_iter().map(line).collect(),
    }
}

/// What matters: ratios of medians over the rounds.
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
    // Against the better of the two that do not decide.
    let best_fixed = |scenario: &str| {
        let own = value(PolicyQuestion::Offloading, scenario, EARLIEST_FINISH, completion)?;
        let edge = value(PolicyQuestion::Offloading, scenario, EDGE_ONLY, completion)?;
        let cloud = value(PolicyQuestion::Offloading, scenario, CLOUD_ONLY, completion).unwrap_or(f64::INFINITY);
        Some(own / edge.min(cloud))
    };
    let bad = ["link slow", "link flapping", "cloud down", "cloud stalled"];
    let worst_bad = bad.iter().filter_map(|scenario| best_fixed(scenario)).reduce(f64::max);
    let points = |policy, over| {
        let accuracy = |policy| value(PolicyQuestion::Verification, "steady", policy, |o| o.accuracy_ratio);
        Some((accuracy(policy)? - accuracy(over)?) * 100.0)
    };
    let confident = |scenario: &str| {
        ratio(PolicyQuestion::Verification, scenario, EARLIEST_FINISH, EDGE_ONLY, |outcome| outcome.confident.p99_ms)
    };
    let figure = |name, title, value, unit, goal| HeadlineFigure { name, title, value, unit, goal };
    let most = |most| Some(FigureGoal::AtMost(most));
    vec![
        figure(
            "completion_over_hard_example_batch",
            "batch: completion over hard-example's, the worse of earliest-finish and paper",
            worse("batch"),
            "",
            most(0.5),
        ),
        figure("completion_over_hard_example_burst", "burst: the same", worse("burst"), "", most(0.5)),
        figure(
            "steady_p99_over_hard_example",
            "steady: p99 of the first answer over hard-example's",
            ratio(PolicyQuestion::Verification, "steady", EARLIEST_FINISH, HARD_EXAMPLE, |outcome| {
                outcome.first.p99_ms
            }),
            "",
            most(0.5),
        ),
        figure(
            "offload_completion_over_best_fixed",
            "offloading, both work: completion over the better of edge-only and cloud-only",
            best_fixed("both work"),
            "",
            most(0.9),
        ),
        figure(
            "offload_completion_over_best_fixed_bad_link",
            "the same, link slow or flapping, cloud down or stalled: the worst",
            worst_bad,
            "",
            most(1.05),
        ),
        figure(
            "accuracy_minus_hard_example_points_at_equal_uploads",
            "steady: accuracy beyond hard-example's, which sends up as much",
            points(EARLIEST_FINISH, HARD_EXAMPLE),
            "points",
            Some(FigureGoal::AtLeast(0.0)),
        ),
        figure(
            "accuracy_minus_random_points_at_equal_uploads",
            "steady: accuracy beyond random's, which sends up as much",
            points(EARLIEST_FINISH, RANDOM),
            "points",
            Some(FigureGoal::AtLeast(0.0)),
        ),
        figure(
            "cloud_down_p99_over_edge_only",
            "cloud down: p99 of confident answers over edge-only's",
            confident("cloud down"),
            "",
            most(1.1),
        ),
        figure(
            "cloud_stalled_p99_over_edge_only",
            "cloud stalled: the same",
            confident("cloud stalled"),
            "",
            most(1.1),
        ),
    ]
}

/// What a reader should know.
pub(super) fn notes(images: &[LabelledImage], paced_ms: Option<f64>, rounds: usize) -> Vec<String> {
    let mean = images.iter().map(|image| image.bytes.len()).sum::<usize>() / images.len().max(1);
    let cloud = match paced_ms {
        Some(ms) => {
            format!("a cloud that takes {ms} ms an image on each of 4 replicas, with the real model's opinions")
        }
        None => "the real verifier, on the same cores as everything else".into(),
    };
    vec![
        format!("Medians of {rounds} rounds. Verification: {} labelled images of {mean} bytes on average, {cloud}.", images.len()),
        "The project's own images are enlarged to JPEGs of 480x480 before, and the site has one replica.".into(),
        "Offloading: generated 640x480 JPEGs, one replica at the site, a cloud that takes 3 ms an image on each of 4 replicas.".into(),
        format!("hard-example gives up an upload after {} ms; the library it stands for takes 12 s and more.", super::BASELINE_TIMEOUT.as_millis()),
        "A `>` stands before what was cut off.".into(),
    ]
}

/// Completion times, a picture a part.
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
        ("policy-offloading".into(), chart(PolicyQuestion::Offloading, "Completion time, nothing in doubt")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macro_f1_is_that_of_the_textbook() {
        let said = |pairs: &[(&'static str, &str)]| -> Vec<(&'static str, Option<String>)> {
            pairs.iter().map(|(truth, said)| (*truth, Some((*said).to_owned()))).collect()
        };
        assert_eq!(macro_f1(&said(&[("a", "a"), ("b", "b")])), 1.0);
        // a: precision 1/2, recall 1; b: precision 1, recall 1/2: both 2/3.
        let mixed = said(&[("a", "a"), ("b", "a"), ("b", "b")]);
        assert!((macro_f1(&mixed) - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!(macro_f1(&[("a", None)]), 0.0);
    }
}

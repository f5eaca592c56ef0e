//! Results of the experiments: table, headline, charts.

use serde_json::{Value, json};

use super::experiment::{ExperimentResult, LAST, ROUNDS};
use super::scheme::{SCHEMES, SITES, SiteHarm};
use super::{FederatedBenchOptions, RuleVariant};
use crate::bar_chart::{BarChart, BarGroup};
use crate::chart::{Chart, ChartLine};
use crate::report::{BenchMachine, BenchReport, FigureGoal, HeadlineFigure, ReportChart, ReportTable};

/// Share of FedAvg's final accuracy on the even scheme that counts as reached.
const NEAR_RATIO: f64 = 0.9;
const FEDAVG: &str = "fedavg";

/// Experiments on one folder.
pub(super) struct ExperimentSet {
    /// Name of the folder.
    pub name: String,
    /// Number of classes.
    pub classes: usize,
    /// Number of training pictures and of test pictures.
    pub pictures: [usize; 2],
    /// Result of every experiment.
    pub results: Vec<ExperimentResult>,
}

impl ExperimentSet {
    fn of<'a>(&'a self, scheme: &'a str, rule: &'a str) -> impl Iterator<Item = &'a ExperimentResult> + 'a {
        self.results.iter().filter(move |result| result.scheme == scheme && result.rule == rule)
    }

    fn mean(&self, scheme: &str, rule: &str, value: &dyn Fn(&ExperimentResult) -> f64) -> Option<f64> {
        let values: Vec<f64> = self.of(scheme, rule).map(value).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    fn schemes(&self) -> impl Iterator<Item = &'static str> + '_ {
        SCHEMES.iter().map(|scheme| scheme.name).filter(|name| self.results.iter().any(|result| result.scheme == *name))
    }

    /// A rule minus FedAvg, in percentage points, for each uneven scheme.
    fn over_fedavg(&self, rule: &str, value: &dyn Fn(&ExperimentResult) -> f64) -> Vec<(&'static str, f64)> {
        let of = |scheme: &'static str| {
            let points = (self.mean(scheme, rule, value)? - self.mean(scheme, FEDAVG, value)?) * 100.0;
            Some((scheme, points))
        };
        self.schemes().filter(|scheme| *scheme != SCHEMES[0].name).filter_map(of).collect()
    }

    /// Mean number of rounds to reach `NEAR_RATIO`; all rounds if an experiment never does.
    fn rounds(&self, scheme: &str, rule: &str) -> Option<f64> {
        let target = self.mean(SCHEMES[0].name, FEDAVG, &|result| result.accuracy_ratio)? * NEAR_RATIO;
        self.mean(scheme, rule, &|result| {
            let reached = result.accuracy.iter().position(|accuracy| *accuracy >= target);
            reached.map_or(ROUNDS as f64, |round| round as f64 + 1.0)
        })
    }
}

fn accuracy(result: &ExperimentResult) -> f64 {
    result.accuracy_ratio
}

fn recall(result: &ExperimentResult) -> f64 {
    result.weakest_recall
}

fn mean(values: &[(&str, f64)]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().map(|(_, value)| value).sum::<f64>() / values.len() as f64)
}

fn deviation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len().max(1) as f64).sqrt()
}

/// Builds the report.
pub(super) fn report(sets: &[ExperimentSet], variants: &[RuleVariant], options: &FederatedBenchOptions) -> BenchReport {
    let columns = vec!["images, scheme, rule", "accuracy %", "±", "macro F1 %", "±", "weakest class %", "±", "rounds"];
    let mut lines = Vec::new();
    for set in sets {
        for scheme in set.schemes() {
            for variant in variants {
                lines.extend(line(set, scheme, &variant.name));
            }
        }
    }
    let rows =
        sets.iter().flat_map(|set| set.results.iter().map(|result| json!({ "images": set.name, "run": result })));
    BenchReport {
        bench: "federated",
        settings: json!({
            "quick": options.quick,
            "seeds": options.seeds,
            "sites": SITES,
            "rounds": ROUNDS,
            "images": sets.iter().map(|set| json!({ "name": set.name, "classes": set.classes, "pictures": set.pictures })).collect::<Vec<_>>(),
        }),
        machine: BenchMachine::here(&std::env::temp_dir()),
        rows: rows.chain(sets.iter().flat_map(|set| summary(set, variants))).collect(),
        table: ReportTable { columns, lines },
        headline: headline(sets),
        notes: notes(sets, variants, options),
        charts: sets.iter().flat_map(|set| charts(set, variants)).collect(),
    }
}

fn line(set: &ExperimentSet, scheme: &str, rule: &str) -> Option<Vec<String>> {
    let shown = |value: &dyn Fn(&ExperimentResult) -> f64| {
        let values: Vec<f64> = set.of(scheme, rule).map(|result| value(result) * 100.0).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        [format!("{mean:.1}"), format!("{:.1}", deviation(&values))]
    };
    let rounds = set.rounds(scheme, rule);
    set.of(scheme, rule).next()?;
    let mut line = vec![format!("{}, {scheme}, {rule}", set.name)];
    for value in [&accuracy as &dyn Fn(&ExperimentResult) -> f64, &|result: &ExperimentResult| result.macro_f1, &recall]
    {
        line.extend(shown(value));
    }
    line.push(rounds.map_or(String::new(), |rounds| format!("{rounds:.1}")));
    Some(line)
}

/// Every rule minus FedAvg over all uneven schemes.
fn summary(set: &ExperimentSet, variants: &[RuleVariant]) -> Vec<Value> {
    let of = |variant: &RuleVariant| {
        let (right, weakest) = (set.over_fedavg(&variant.name, &accuracy), set.over_fedavg(&variant.name, &recall));
        let worst = right.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
        Some(json!({
            "images": set.name,
            "rule": variant.name,
            "mean_points": mean(&right)?,
            "worst_points": worst.1,
            "worst_scheme": worst.0,
            "weakest_recall_points": mean(&weakest)?,
        }))
    };
    variants.iter().filter_map(of).collect()
}

fn headline(sets: &[ExperimentSet]) -> Vec<HeadlineFigure> {
    // Every image set must meet the goal, so the headline shows the worst set.
    let least = |of: &dyn Fn(&ExperimentSet) -> Option<f64>| sets.iter().filter_map(of).reduce(f64::min);
    let worst = |rule: &'static str| {
        least(&|set| {
            let even = set
                .mean(SCHEMES[0].name, rule, &accuracy)
                .zip(set.mean(SCHEMES[0].name, FEDAVG, &accuracy))
                .map(|(own, other)| (own - other) * 100.0);
            let uneven = set.over_fedavg(rule, &accuracy).into_iter().map(|(_, points)| points);
            uneven.chain(even).reduce(f64::min)
        })
    };
    let right = |rule: &'static str| least(&|set| mean(&set.over_fedavg(rule, &accuracy)));
    let is_benign = |name: &str| SCHEMES.iter().any(|scheme| scheme.name == name && scheme.harm == SiteHarm::None);
    let benign = |rule: &'static str| {
        least(&|set| {
            let all = set.over_fedavg(rule, &accuracy);
            mean(&all.into_iter().filter(|(name, _)| is_benign(name)).collect::<Vec<_>>())
        })
    };
    let weakest = |rule: &'static str| least(&|set| mean(&set.over_fedavg(rule, &recall)));
    let figure = |name, title, value, goal: Option<f64>| HeadlineFigure {
        name,
        title,
        value,
        unit: "points",
        goal: goal.map(FigureGoal::AtLeast),
    };
    vec![
        figure(
            "pick_minus_fedavg_worst_scheme_points",
            "pick minus FedAvg: accuracy on the worst scheme",
            worst("pick"),
            Some(-0.5),
        ),
        figure(
            "pick_minus_fedavg_mean_points",
            "pick minus FedAvg: mean accuracy on the uneven schemes",
            right("pick"),
            Some(5.0),
        ),
        figure(
            "pick_minus_fedavg_well_meaning_points",
            "pick minus FedAvg: mean accuracy, schemes without a bad site",
            benign("pick"),
            Some(3.0),
        ),
        figure(
            "pick_minus_fedavg_weakest_recall_points",
            "pick minus FedAvg: recall of the weakest class",
            weakest("pick"),
            Some(15.0),
        ),
        figure(
            "paper_minus_fedavg_worst_scheme_points",
            "paper with a floor minus FedAvg: worst scheme",
            worst("paper"),
            None,
        ),
        figure("paper_minus_fedavg_mean_points", "paper with a floor minus FedAvg: mean", right("paper"), None),
        figure(
            "paper_minus_fedavg_weakest_recall_points",
            "paper with a floor minus FedAvg: weakest class",
            weakest("paper"),
            None,
        ),
        figure(
            "paper_literal_minus_fedavg_worst_scheme_points",
            "paper literally minus FedAvg: worst scheme",
            worst("paper literal"),
            None,
        ),
        figure(
            "paper_literal_minus_fedavg_mean_points",
            "paper literally minus FedAvg: mean",
            right("paper literal"),
            None,
        ),
        figure(
            "paper_literal_minus_fedavg_weakest_recall_points",
            "paper literally minus FedAvg: weakest class",
            weakest("paper literal"),
            None,
        ),
    ]
}

fn notes(sets: &[ExperimentSet], variants: &[RuleVariant], options: &FederatedBenchOptions) -> Vec<String> {
    let mut notes = vec![format!(
        "{SITES} sites, {ROUNDS} rounds, {} seeds; means of the last {LAST} rounds, ± is the deviation over seeds. rounds: until 90 % of FedAvg's final accuracy with even sites.",
        options.seeds
    )];
    for set in sets {
        let [learn, test] = set.pictures;
        notes.push(format!(
            "{}: {} classes, {learn} pictures to divide, {test} test pictures. Minus FedAvg over the uneven schemes:",
            set.name, set.classes
        ));
        for row in summary(set, variants) {
            let number = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
            notes.push(format!(
                "  {:<22} accuracy {:+.1}, worst {:+.1} ({}), weakest class {:+.1}",
                row["rule"].as_str().unwrap_or_default(),
                number("mean_points"),
                number("worst_points"),
                row["worst_scheme"].as_str().unwrap_or_default(),
                number("weakest_recall_points"),
            ));
        }
        let mut taken: Vec<(String, usize)> = Vec::new();
        for (rule, count) in set.results.iter().flat_map(|result| &result.taken) {
            match taken.iter_mut().find(|(own, _)| own == rule) {
                Some((_, sum)) => *sum += count,
                None => taken.push((rule.clone(), *count)),
            }
        }
        taken.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let all: usize = taken.iter().map(|(_, count)| count).sum();
        let shares: Vec<String> =
            taken.iter().map(|(rule, count)| format!("{rule} {:.0} %", *count as f64 * 100.0 / all as f64)).collect();
        if !shares.is_empty() {
            notes.push(format!("  Candidates chosen by pick: {}.", shares.join(", ")));
        }
    }
    notes
}

fn charts(set: &ExperimentSet, variants: &[RuleVariant]) -> Vec<(String, ReportChart)> {
    let shown: Vec<&str> = ["fedavg", "paper literal", "paper", "pick", "val-only"]
        .into_iter()
        .filter(|name| variants.iter().any(|variant| variant.name == *name))
        .collect();
    let group = |scheme: &'static str| BarGroup {
        name: scheme.into(),
        bars: shown
            .iter()
            .filter_map(|rule| Some(((*rule).to_owned(), set.mean(scheme, rule, &accuracy)? * 100.0)))
            .collect(),
    };
    let mut pictures = Vec::new();
    for (file, title, harmed) in [("federated", "no bad site", false), ("federated-harmed", "one bad site", true)] {
        let is_harmed = |name: &str| SCHEMES.iter().any(|scheme| scheme.name == name && scheme.harm != SiteHarm::None);
        let groups: Vec<BarGroup> = set.schemes().filter(|name| is_harmed(name) == harmed).map(group).collect();
        if !groups.is_empty() {
            let title = format!("Merge rules on {}: {title}", set.name);
            let bars = BarChart { title, y_label: "accuracy, %".into(), groups };
            pictures.push((format!("{file}-{}", set.name), ReportChart::Bars(bars)));
        }
    }
    let scheme = "dirichlet 0.1";
    let lines = ["fedavg", "paper literal", "law", "pick"].into_iter().filter_map(|rule| {
        set.of(scheme, rule).next()?;
        let points = (0..ROUNDS).filter_map(|round| {
            Some((round as f64 + 1.0, set.mean(scheme, rule, &|result| result.accuracy[round])? * 100.0))
        });
        Some(ChartLine { name: rule.into(), points: points.collect() })
    });
    let lines: Vec<ChartLine> = lines.collect();
    if !lines.is_empty() {
        let chart = Chart {
            title: format!("Round by round on {}, {scheme}", set.name),
            x_label: "rounds".into(),
            y_label: "accuracy, %".into(),
            lines,
            marks: Vec::new(),
        };
        pictures.push((format!("federated-rounds-{}", set.name), ReportChart::Lines(chart)));
    }
    pictures
}

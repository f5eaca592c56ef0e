//! What the experiments say: table, headline, pictures. Pure.

use serde_json::{Value, json};

use super::experiment::{ExperimentResult, LAST, ROUNDS};
use super::scheme::{SCHEMES, SITES, SiteHarm};
use super::{FederatedBenchOptions, RuleVariant};
use crate::bar_chart::{BarChart, BarGroup};
use crate::chart::{Chart, ChartLine};
use crate::report::{BenchMachine, BenchReport, FigureGoal, HeadlineFigure, ReportChart, ReportTable};

/// A round is near the end when it is within so much of what FedAvg comes to with even sites.
const NEAR_RATIO: f64 = 0.9;
const FEDAVG: &str = "fedavg";

/// One folder's experiments.
pub(super) struct ExperimentSet {
    /// Name of the folder.
    pub name: String,
    /// Classes.
    pub classes: usize,
    /// Pictures to be divided, and to test with.
    pub pictures: [usize; 2],
    /// Every experiment.
    pub played: Vec<ExperimentResult>,
}

impl ExperimentSet {
    fn of<'a>(&'a self, scheme: &'a str, rule: &'a str) -> impl Iterator<Item = &'a ExperimentResult> + 'a {
        self.played.iter().filter(move |played| played.scheme == scheme && played.rule == rule)
    }

    fn mean(&self, scheme: &str, rule: &str, value: &dyn Fn(&ExperimentResult) -> f64) -> Option<f64> {
        let values: Vec<f64> = self.of(scheme, rule).map(value).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    fn schemes(&self) -> impl Iterator<Item = &'static str> + '_ {
        SCHEMES.iter().map(|scheme| scheme.name).filter(|name| self.played.iter().any(|played| played.scheme == *name))
    }

    /// A rule less FedAvg, points, for each scheme but the even one.
    fn over_fedavg(&self, rule: &str, value: &dyn Fn(&ExperimentResult) -> f64) -> Vec<(&'static str, f64)> {
        let of = |scheme: &'static str| {
            let points = (self.mean(scheme, rule, value)? - self.mean(scheme, FEDAVG, value)?) * 100.0;
            Some((scheme, points))
        };
        self.schemes().filter(|scheme| *scheme != SCHEMES[0].name).filter_map(of).collect()
    }

    /// Rounds until an experiment is near the end, on average; all rounds where it never is.
    fn rounds(&self, scheme: &str, rule: &str) -> Option<f64> {
        let aim = self.mean(SCHEMES[0].name, FEDAVG, &|played| played.accuracy_ratio)? * NEAR_RATIO;
        self.mean(scheme, rule, &|played| {
            let reached = played.accuracy.iter().position(|accuracy| *accuracy >= aim);
            reached.map_or(ROUNDS as f64, |round| round as f64 + 1.0)
        })
    }
}

fn accuracy(played: &ExperimentResult) -> f64 {
    played.accuracy_ratio
}

fn recall(played: &ExperimentResult) -> f64 {
    played.weakest_recall
}

fn mean(values: &[(&str, f64)]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().map(|(_, value)| value).sum::<f64>() / values.len() as f64)
}

fn deviation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len().max(1) as f64).sqrt()
}

/// The report.
pub(super) fn report(sets: &[ExperimentSet], ways: &[RuleVariant], options: &FederatedBenchOptions) -> BenchReport {
    let columns = vec!["images, scheme, rule", "accuracy %", "±", "macro F1 %", "±", "weakest class %", "±", "rounds"];
    let mut lines = Vec::new();
    for set in sets {
        for scheme in set.schemes() {
            for way in ways {
                lines.extend(line(set, scheme, &way.name));
            }
        }
    }
    let rows = sets.iter().flat_map(|set| set.played.iter().map(|played| json!({ "images": set.name, "run": played })));
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
        rows: rows.chain(sets.iter().flat_map(|set| summary(set, ways))).collect(),
        table: ReportTable { columns, lines },
        headline: headline(sets),
        notes: notes(sets, ways, options),
        charts: sets.iter().flat_map(|set| charts(set, ways)).collect(),
    }
}

fn line(set: &ExperimentSet, scheme: &str, rule: &str) -> Option<Vec<String>> {
    let shown = |value: &dyn Fn(&ExperimentResult) -> f64| {
        let values: Vec<f64> = set.of(scheme, rule).map(|played| value(played) * 100.0).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        [format!("{mean:.1}"), format!("{:.1}", deviation(&values))]
    };
    let rounds = set.rounds(scheme, rule);
    set.of(scheme, rule).next()?;
    let mut line = vec![format!("{}, {scheme}, {rule}", set.name)];
    for value in [&accuracy as &dyn Fn(&ExperimentResult) -> f64, &|played: &ExperimentResult| played.macro_f1, &recall]
    {
        line.extend(shown(value));
    }
    line.push(rounds.map_or(String::new(), |rounds| format!("{rounds:.1}")));
    Some(line)
}

/// Every rule less FedAvg over all uneven schemes.
fn summary(set: &ExperimentSet, ways: &[RuleVariant]) -> Vec<Value> {
    let of = |way: &RuleVariant| {
        let (right, weakest) = (set.over_fedavg(&way.name, &accuracy), set.over_fedavg(&way.name, &recall));
        let worst = right.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
        Some(json!({
            "images": set.name,
            "rule": way.name,
            "mean_points": mean(&right)?,
            "worst_points": worst.1,
            "worst_scheme": worst.0,
            "weakest_recall_points": mean(&weakest)?,
        }))
    };
    ways.iter().filter_map(of).collect()
}

fn headline(sets: &[ExperimentSet]) -> Vec<HeadlineFigure> {
    // The goal is one that every set is held against: the headline is the set that fares worst.
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
    let means_well = |name: &str| SCHEMES.iter().any(|scheme| scheme.name == name && scheme.harm == SiteHarm::None);
    let well_meaning = |rule: &'static str| {
        least(&|set| {
            let all = set.over_fedavg(rule, &accuracy);
            mean(&all.into_iter().filter(|(name, _)| means_well(name)).collect::<Vec<_>>())
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
            "pick less FedAvg, accuracy on the worst scheme",
            worst("pick"),
            Some(-0.5),
        ),
        figure(
            "pick_minus_fedavg_mean_points",
            "pick less FedAvg, accuracy over the uneven schemes",
            right("pick"),
            Some(5.0),
        ),
        figure(
            "pick_minus_fedavg_well_meaning_points",
            "the same where every site means well",
            well_meaning("pick"),
            Some(3.0),
        ),
        figure(
            "pick_minus_fedavg_weakest_recall_points",
            "pick less FedAvg, recall of the weakest class there",
            weakest("pick"),
            Some(15.0),
        ),
        figure("paper_minus_fedavg_worst_scheme_points", "paper with a floor: the same three", worst("paper"), None),
        figure("paper_minus_fedavg_mean_points", "", right("paper"), None),
        figure("paper_minus_fedavg_weakest_recall_points", "", weakest("paper"), None),
        figure(
            "paper_literal_minus_fedavg_worst_scheme_points",
            "paper to the letter: the same three",
            worst("paper literal"),
            None,
        ),
        figure("paper_literal_minus_fedavg_mean_points", "", right("paper literal"), None),
        figure("paper_literal_minus_fedavg_weakest_recall_points", "", weakest("paper literal"), None),
    ]
}

fn notes(sets: &[ExperimentSet], ways: &[RuleVariant], options: &FederatedBenchOptions) -> Vec<String> {
    let mut notes = vec![format!(
        "{SITES} sites, {ROUNDS} rounds, {} seeds; means of the last {LAST} rounds, ± over seeds. rounds: until within a tenth of FedAvg with even sites.",
        options.seeds
    )];
    for set in sets {
        let [learn, test] = set.pictures;
        notes.push(format!(
            "{}: {} classes, {learn} pictures to divide, {test} to test with. Less FedAvg over the uneven schemes:",
            set.name, set.classes
        ));
        for said in summary(set, ways) {
            let number = |name: &str| said[name].as_f64().unwrap_or(f64::NAN);
            notes.push(format!(
                "  {:<22} accuracy {:+.1}, worst {:+.1} ({}), weakest class {:+.1}",
                said["rule"].as_str().unwrap_or_default(),
                number("mean_points"),
                number("worst_points"),
                said["worst_scheme"].as_str().unwrap_or_default(),
                number("weakest_recall_points"),
            ));
        }
        let mut taken: Vec<(String, usize)> = Vec::new();
        for (rule, count) in set.played.iter().flat_map(|played| &played.taken) {
            match taken.iter_mut().find(|(own, _)| own == rule) {
                Some((_, sum)) => *sum += count,
                None => taken.push((rule.clone(), *count)),
            }
        }
        taken.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let all: usize = taken.iter().map(|(_, count)| count).sum();
        let said: Vec<String> =
            taken.iter().map(|(rule, count)| format!("{rule} {:.0} %", *count as f64 * 100.0 / all as f64)).collect();
        if !said.is_empty() {
            notes.push(format!("  What pick took: {}.", said.join(", ")));
        }
    }
    notes
}

fn charts(set: &ExperimentSet, ways: &[RuleVariant]) -> Vec<(String, ReportChart)> {
    let shown: Vec<&str> = ["fedavg", "paper literal", "paper", "pick", "val-only"]
        .into_iter()
        .filter(|name| ways.iter().any(|way| way.name == *name))
        .collect();
    let group = |scheme: &'static str| BarGroup {
        name: scheme.into(),
        bars: shown
            .iter()
            .filter_map(|rule| Some(((*rule).to_owned(), set.mean(scheme, rule, &accuracy)? * 100.0)))
            .collect(),
    };
    let mut pictures = Vec::new();
    for (file, title, harmed) in
        [("federated", "every site means well", false), ("federated-harmed", "one site does not", true)]
    {
        let is_harmed = |name: &str| SCHEMES.iter().any(|scheme| scheme.name == name && scheme.harm != SiteHarm::None);
        let groups: Vec<BarGroup> = set.schemes().filter(|name| is_harmed(name) == harmed).map(group).collect();
        if !groups.is_empty() {
            let title = format!("Rules of merging on {}: {title}", set.name);
            let bars = BarChart { title, y_label: "% right".into(), groups };
            pictures.push((format!("{file}-{}", set.name), ReportChart::Bars(bars)));
        }
    }
    let scheme = "dirichlet 0.1";
    let lines = ["fedavg", "paper literal", "law", "pick"].into_iter().filter_map(|rule| {
        set.of(scheme, rule).next()?;
        let points = (0..ROUNDS).filter_map(|round| {
            Some((round as f64 + 1.0, set.mean(scheme, rule, &|played| played.accuracy[round])? * 100.0))
        });
        Some(ChartLine { name: rule.into(), points: points.collect() })
    });
    let lines: Vec<ChartLine> = lines.collect();
    if !lines.is_empty() {
        let chart = Chart {
            title: format!("Round by round on {}, {scheme}", set.name),
            x_label: "rounds".into(),
            y_label: "% right".into(),
            lines,
            marks: Vec::new(),
        };
        pictures.push((format!("federated-rounds-{}", set.name), ReportChart::Lines(chart)));
    }
    pictures
}

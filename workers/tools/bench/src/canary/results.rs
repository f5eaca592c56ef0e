//! Results of the canary bench as table, headline, notes and chart.

use releaser::CanarySettings;
use serde_json::json;

use super::CanaryBenchOptions;
use super::fleet::{CanaryEnd, CanaryRun, RING, SITES};
use super::releases::{CanaryCandidates, CandidateKind, KINDS};
use crate::chart::{Chart, ChartLine};
use crate::report::{BenchMachine, BenchReport, FigureGoal, HeadlineFigure, ReportChart, ReportTable};
use crate::stats::median;

/// Builds the report.
pub(super) fn report(
    releases: &CanaryCandidates,
    runs: &[CanaryRun],
    settings: &CanarySettings,
    options: &CanaryBenchOptions,
) -> BenchReport {
    let columns = vec![
        "release",
        "canaries",
        "promoted",
        "withdrawn",
        "not decided",
        "median time",
        "longest",
        "median images",
        "verdicts",
        "agreement, points",
    ];
    let lines = KINDS.iter().map(|kind| table_line(*kind, runs)).collect();
    let candidates = releases.candidates.iter().map(|candidate| {
        json!({
            "kind": candidate.kind,
            "agreement_ratio": candidate.agreement_ratio,
            "doubtful_ratio": candidate.doubtful_ratio,
        })
    });
    BenchReport {
        bench: "canary",
        settings: json!({
            "quick": options.quick,
            "seeds": options.seeds,
            "sites": SITES,
            "ring": RING,
            "stable_agreement_ratio": releases.stable.agreement_ratio,
            "stable_doubtful_ratio": releases.stable.doubtful_ratio,
            "releases": candidates.collect::<Vec<_>>(),
            "canary": settings,
        }),
        machine: BenchMachine::here(&std::env::temp_dir()),
        rows: runs.iter().map(|run| json!({ "run": run })).collect(),
        table: ReportTable { columns, lines },
        headline: headline(runs, settings),
        notes: notes(releases, runs, settings),
        charts: vec![("canary".into(), ReportChart::Lines(chart(runs)))],
    }
}

fn runs_of(kind: CandidateKind, runs: &[CanaryRun]) -> impl Iterator<Item = &CanaryRun> {
    runs.iter().filter(move |run| run.kind == kind)
}

fn count_ended(kind: CandidateKind, ended: CanaryEnd, runs: &[CanaryRun]) -> usize {
    runs_of(kind, runs).filter(|run| run.ended == ended).count()
}

fn median_of(kind: CandidateKind, runs: &[CanaryRun], value: &dyn Fn(&CanaryRun) -> f64) -> f64 {
    median(&runs_of(kind, runs).map(value).collect::<Vec<_>>())
}

fn table_line(kind: CandidateKind, runs: &[CanaryRun]) -> Vec<String> {
    let time = |minutes: f64| format!("{}:{:02} h", minutes as u64 / 60, minutes as u64 % 60);
    let longest = runs_of(kind, runs).map(|run| run.minutes).max().unwrap_or(0);
    let numbers =
        [CanaryEnd::Promoted, CanaryEnd::Withdrawn, CanaryEnd::Undecided].map(|ended| count_ended(kind, ended, runs));
    let counts = numbers.iter().map(ToString::to_string);
    [kind.as_str().to_owned(), runs_of(kind, runs).count().to_string()]
        .into_iter()
        .chain(counts)
        .chain([
            time(median_of(kind, runs, &|run| run.minutes as f64)),
            time(longest as f64),
            format!("{:.0}", median_of(kind, runs, &|run| run.images as f64)),
            format!("{:.0}", median_of(kind, runs, &|run| run.verdicts as f64)),
            format!("{:+.1}", median_of(kind, runs, &|run| run.truly_better_ratio * 100.0)),
        ])
        .collect()
}

/// Share of the canaries of a kind that ended correctly; an undecided release counts as withdrawn.
fn correct_ratio(kind: CandidateKind, runs: &[CanaryRun]) -> Option<f64> {
    let all = runs_of(kind, runs).count();
    let right = runs_of(kind, runs).filter(|run| (run.ended == CanaryEnd::Promoted) == kind.is_good()).count();
    (all > 0).then(|| right as f64 / all as f64)
}

/// Good releases withdrawn as worse, and all good releases.
fn count_false_alarms(runs: &[CanaryRun]) -> (usize, usize) {
    count_among(runs, &|run| run.kind.is_good(), CanaryEnd::Withdrawn)
}

/// Slightly worse releases that were promoted although they are worse at the ring's sites by at least the margin, and all
/// such releases. Others do not count: sites that rarely see what a release is bad at cannot notice it.
fn count_misses(runs: &[CanaryRun], settings: &CanarySettings) -> (usize, usize) {
    let margin = settings.agreement_margin_ratio;
    let is_worse = |run: &CanaryRun| run.kind == CandidateKind::Slightly && run.truly_better_ratio <= -margin;
    count_among(runs, &is_worse, CanaryEnd::Promoted)
}

/// Runs that ended in this wrong way, and all runs, among those that `keep` selects.
fn count_among(runs: &[CanaryRun], keep: &dyn Fn(&CanaryRun) -> bool, wrong_end: CanaryEnd) -> (usize, usize) {
    let all: Vec<&CanaryRun> = runs.iter().filter(|run| keep(run)).collect();
    (all.iter().filter(|run| run.ended == wrong_end).count(), all.len())
}

fn headline(runs: &[CanaryRun], settings: &CanarySettings) -> Vec<HeadlineFigure> {
    let figure = |name, title, kind, goal: Option<f64>| HeadlineFigure {
        name,
        title,
        value: correct_ratio(kind, runs),
        unit: "",
        goal: goal.map(FigureGoal::AtLeast),
    };
    let rate = |name, title, (wrong, all): (usize, usize), most| HeadlineFigure {
        name,
        title,
        value: (all > 0).then(|| wrong as f64 / all as f64),
        unit: "",
        goal: Some(FigureGoal::AtMost(most)),
    };
    let images: Vec<f64> = runs.iter().map(|run| run.images as f64).collect();
    vec![
        figure("good_promoted_ratio", "better release promoted", CandidateKind::Good, Some(0.95)),
        figure("equal_promoted_ratio", "equal release promoted", CandidateKind::Equal, Some(0.9)),
        figure("worse_withdrawn_ratio", "slightly worse release withdrawn", CandidateKind::Slightly, None),
        figure("bad_withdrawn_ratio", "bad release withdrawn", CandidateKind::Bad, Some(0.95)),
        figure("slow_withdrawn_ratio", "slow release withdrawn", CandidateKind::Slow, Some(0.95)),
        figure("crashing_withdrawn_ratio", "crashing release withdrawn", CandidateKind::Crashing, Some(0.95)),
        rate(
            "false_alarm_ratio",
            "better or equal release withdrawn as worse",
            count_false_alarms(runs),
            settings.false_alarm_ratio,
        ),
        rate(
            "miss_ratio",
            "release worse by the margin at its ring promoted",
            count_misses(runs, settings),
            settings.miss_ratio,
        ),
        HeadlineFigure {
            name: "images_to_decide_median",
            title: "images at the ring until the decision, median",
            value: (!images.is_empty()).then(|| median(&images)),
            unit: "images",
            goal: None,
        },
    ]
}

fn notes(releases: &CanaryCandidates, runs: &[CanaryRun], settings: &CanarySettings) -> Vec<String> {
    let points = |ratio: f64| format!("{:.1} %", ratio * 100.0);
    let ((alarms, good), (misses, worse)) = (count_false_alarms(runs), count_misses(runs, settings));
    let candidates = releases.candidates.iter().map(|candidate| {
        let name = candidate.kind.as_str();
        format!("{name} {} ({} doubtful)", points(candidate.agreement_ratio), points(candidate.doubtful_ratio))
    });
    vec![
        format!(
            "{SITES} sites, {RING} of them in the ring, one image per second each; judged every minute for up to {} h of simulated time.",
            settings.max_duration_s / 3600
        ),
        format!(
            "Verdicts agree with the stable release on {} of the pictures ({} doubtful); with the candidates: {}.",
            points(releases.stable.agreement_ratio),
            points(releases.stable.doubtful_ratio),
            candidates.collect::<Vec<_>>().join(", ")
        ),
        "agreement, points: the release's true gain at the ring's sites, median. Class mixes differ between sites, so a \
         release that is slightly worse for the fleet is hardly worse at some rings."
            .into(),
        format!(
            "Better or equal releases withdrawn as worse: {alarms} of {good} (goal: {}). Releases slightly worse by at \
             least {} at their ring and promoted: {misses} of {worse} (goal: {}).",
            points(settings.false_alarm_ratio),
            points(settings.agreement_margin_ratio),
            points(settings.miss_ratio),
        ),
    ]
}

/// Share of correct decisions over time.
fn chart(runs: &[CanaryRun]) -> Chart {
    let longest = runs.iter().map(|run| run.minutes).max().unwrap_or(0);
    let line = |kind: CandidateKind| {
        let all = runs_of(kind, runs).count().max(1) as f64;
        let share = |minutes: u64| {
            let right = runs_of(kind, runs).filter(|run| (run.ended == CanaryEnd::Promoted) == kind.is_good());
            right.filter(|run| run.minutes <= minutes).count() as f64 * 100.0 / all
        };
        let expected = if kind.is_good() { "promoted" } else { "withdrawn" };
        ChartLine {
            name: format!("{}: {expected}", kind.as_str()),
            points: (0..=longest).step_by(5).map(|minutes| (minutes as f64 / 60.0, share(minutes))).collect(),
        }
    };
    Chart {
        title: "Correct canary decisions".into(),
        x_label: "hours since the ring got the release".into(),
        y_label: "% of canaries".into(),
        lines: KINDS.into_iter().map(line).collect(),
        marks: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(kind: CandidateKind, ended: CanaryEnd, truly_better_ratio: f64) -> CanaryRun {
        CanaryRun {
            kind,
            seed: 1,
            ended,
            why: String::new(),
            minutes: 7,
            images: 500,
            verdicts: 50,
            truly_better_ratio,
        }
    }

    #[test]
    fn only_a_release_that_is_worse_at_its_ring_can_be_missed() {
        let all = [
            run(CandidateKind::Good, CanaryEnd::Promoted, 0.02),
            run(CandidateKind::Equal, CanaryEnd::Withdrawn, 0.0),
            run(CandidateKind::Equal, CanaryEnd::Undecided, 0.0),
            run(CandidateKind::Slightly, CanaryEnd::Promoted, -0.01),
            run(CandidateKind::Slightly, CanaryEnd::Promoted, -0.03),
            run(CandidateKind::Slightly, CanaryEnd::Undecided, -0.03),
        ];
        assert_eq!((count_false_alarms(&all), count_misses(&all, &CanarySettings::default())), ((1, 3), (1, 2)));
        assert_eq!(
            (correct_ratio(CandidateKind::Equal, &all), correct_ratio(CandidateKind::Slightly, &all)),
            (Some(0.0), Some(1.0 / 3.0))
        );
        assert_eq!(correct_ratio(CandidateKind::Bad, &all), None);
        let figures = headline(&all, &CanarySettings::default());
        assert!(figures.iter().any(|figure| figure.name == "miss_ratio" && figure.value == Some(0.5)));
    }
}

//! What the canaries say: table, headline, picture. Pure.

use releaser::CanarySettings;
use serde_json::json;

use super::CanaryBenchOptions;
use super::fleet::{CanaryEnd, CanaryRun, RING, SITES};
use super::releases::{CanaryCandidates, CandidateKind, KINDS};
use crate::chart::{Chart, ChartLine};
use crate::report::{BenchMachine, BenchReport, FigureGoal, HeadlineFigure, ReportChart, ReportTable};
use crate::stats::median;

/// The report.
pub(super) fn report(
    releases: &CanaryCandidates,
    played: &[CanaryRun],
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
    let lines = KINDS.iter().map(|kind| line(*kind, played)).collect();
    let tried = releases.candidates.iter().map(|candidate| {
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
            "releases": tried.collect::<Vec<_>>(),
            "canary": settings,
        }),
        machine: BenchMachine::here(&std::env::temp_dir()),
        rows: played.iter().map(|played| json!({ "run": played })).collect(),
        table: ReportTable { columns, lines },
        headline: headline(played, settings),
        notes: notes(releases, played, settings),
        charts: vec![("canary".into(), ReportChart::Lines(chart(played)))],
    }
}

fn of(kind: CandidateKind, played: &[CanaryRun]) -> impl Iterator<Item = &CanaryRun> {
    played.iter().filter(move |played| played.kind == kind)
}

fn count(kind: CandidateKind, ended: CanaryEnd, played: &[CanaryRun]) -> usize {
    of(kind, played).filter(|played| played.ended == ended).count()
}

fn middle(kind: CandidateKind, played: &[CanaryRun], value: &dyn Fn(&CanaryRun) -> f64) -> f64 {
    median(&of(kind, played).map(value).collect::<Vec<_>>())
}

fn line(kind: CandidateKind, played: &[CanaryRun]) -> Vec<String> {
    let time = |minutes: f64| format!("{}:{:02} h", minutes as u64 / 60, minutes as u64 % 60);
    let longest = of(kind, played).map(|played| played.minutes).max().unwrap_or(0);
    let numbers =
        [CanaryEnd::Promoted, CanaryEnd::Withdrawn, CanaryEnd::Undecided].map(|ended| count(kind, ended, played));
    let counts = numbers.iter().map(ToString::to_string);
    [kind.as_str().to_owned(), of(kind, played).count().to_string()]
        .into_iter()
        .chain(counts)
        .chain([
            time(middle(kind, played, &|played| played.minutes as f64)),
            time(longest as f64),
            format!("{:.0}", middle(kind, played, &|played| played.images as f64)),
            format!("{:.0}", middle(kind, played, &|played| played.verdicts as f64)),
            format!("{:+.1}", middle(kind, played, &|played| played.truly_better_ratio * 100.0)),
        ])
        .collect()
}

/// Share of the canaries of a kind that ended as they ought to: what is withdrawn undecided is withdrawn too.
fn rightly(kind: CandidateKind, played: &[CanaryRun]) -> Option<f64> {
    let all = of(kind, played).count();
    let right = of(kind, played).filter(|played| (played.ended == CanaryEnd::Promoted) == kind.is_good()).count();
    (all > 0).then(|| right as f64 / all as f64)
}

/// A release that is good and withdrawn as worse: how many of how many.
fn alarms(played: &[CanaryRun]) -> (usize, usize) {
    among(played, &|played| played.kind.is_good(), CanaryEnd::Withdrawn)
}

/// A release that is slightly worse, at the sites of its own ring by the margin or more, and promoted. A ring whose sites
/// rarely see what a release is bad at can tell nobody that it is worse.
fn misses(played: &[CanaryRun], settings: &CanarySettings) -> (usize, usize) {
    let margin = settings.agreement_margin_ratio;
    let is_worse = |played: &CanaryRun| played.kind == CandidateKind::Slightly && played.truly_better_ratio <= -margin;
    among(played, &is_worse, CanaryEnd::Promoted)
}

fn among(played: &[CanaryRun], keep: &dyn Fn(&CanaryRun) -> bool, wrong: CanaryEnd) -> (usize, usize) {
    let all: Vec<&CanaryRun> = played.iter().filter(|played| keep(played)).collect();
    (all.iter().filter(|played| played.ended == wrong).count(), all.len())
}

fn headline(played: &[CanaryRun], settings: &CanarySettings) -> Vec<HeadlineFigure> {
    let figure = |name, title, kind, goal: Option<f64>| HeadlineFigure {
        name,
        title,
        value: rightly(kind, played),
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
    let images: Vec<f64> = played.iter().map(|played| played.images as f64).collect();
    vec![
        figure("good_promoted_ratio", "a better release is promoted", CandidateKind::Good, Some(0.95)),
        figure("equal_promoted_ratio", "one as good is promoted", CandidateKind::Equal, Some(0.9)),
        figure("worse_withdrawn_ratio", "one slightly worse is withdrawn", CandidateKind::Slightly, None),
        figure("bad_withdrawn_ratio", "a bad one is withdrawn", CandidateKind::Bad, Some(0.95)),
        figure("slow_withdrawn_ratio", "a slow one is withdrawn", CandidateKind::Slow, Some(0.95)),
        figure("crashing_withdrawn_ratio", "a crashing one is withdrawn", CandidateKind::Crashing, Some(0.95)),
        rate(
            "false_alarm_ratio",
            "a better or equal one is withdrawn as worse",
            alarms(played),
            settings.false_alarm_ratio,
        ),
        rate(
            "miss_ratio",
            "one worse by the margin at its ring is promoted",
            misses(played, settings),
            settings.miss_ratio,
        ),
        HeadlineFigure {
            name: "images_to_decide_median",
            title: "images of the ring until it is decided, median of all",
            value: (!images.is_empty()).then(|| median(&images)),
            unit: "images",
            goal: None,
        },
    ]
}

fn notes(releases: &CanaryCandidates, played: &[CanaryRun], settings: &CanarySettings) -> Vec<String> {
    let points = |ratio: f64| format!("{:.1} %", ratio * 100.0);
    let ((alarms, good), (misses, worse)) = (alarms(played), misses(played, settings));
    let tried = releases.candidates.iter().map(|candidate| {
        let name = candidate.kind.as_str();
        format!("{name} {} ({} in doubt)", points(candidate.agreement_ratio), points(candidate.doubtful_ratio))
    });
    vec![
        format!(
            "{SITES} sites, {RING} of them in the ring, an image a second each; judged every minute for up to {} h. Times are simulated.",
            settings.max_duration_s / 3600
        ),
        format!(
            "Verdicts agree with the stable release on {} of the pictures ({} in doubt); with the others: {}.",
            points(releases.stable.agreement_ratio),
            points(releases.stable.doubtful_ratio),
            tried.collect::<Vec<_>>().join(", ")
        ),
        "agreement, points: what the release truly gains at the sites of the ring, whose mixes of classes are their own; \
         median. One that is slightly worse for the fleet is hardly worse at some rings."
            .into(),
        format!(
            "Better or equal, and withdrawn as worse: {alarms} of {good}, {} asked for. Slightly worse, by {} or more at \
             its own ring, and promoted: {misses} of {worse}, {} asked for.",
            points(settings.false_alarm_ratio),
            points(settings.agreement_margin_ratio),
            points(settings.miss_ratio),
        ),
    ]
}

/// How many were decided as they ought to be after so long.
fn chart(played: &[CanaryRun]) -> Chart {
    let longest = played.iter().map(|played| played.minutes).max().unwrap_or(0);
    let line = |kind: CandidateKind| {
        let all = of(kind, played).count().max(1) as f64;
        let share = |minutes: u64| {
            let right = of(kind, played).filter(|played| (played.ended == CanaryEnd::Promoted) == kind.is_good());
            right.filter(|played| played.minutes <= minutes).count() as f64 * 100.0 / all
        };
        let wanted = if kind.is_good() { "promoted" } else { "withdrawn" };
        ChartLine {
            name: format!("{}: {wanted}", kind.as_str()),
            points: (0..=longest).step_by(5).map(|minutes| (minutes as f64 / 60.0, share(minutes))).collect(),
        }
    };
    Chart {
        title: "Canaries decided as they ought to be".into(),
        x_label: "hours since the release was given to the ring".into(),
        y_label: "% of the canaries".into(),
        lines: KINDS.into_iter().map(line).collect(),
        marks: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn played(kind: CandidateKind, ended: CanaryEnd, truly_better_ratio: f64) -> CanaryRun {
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
    fn only_what_is_worse_at_its_ring_can_be_missed() {
        let all = [
            played(CandidateKind::Good, CanaryEnd::Promoted, 0.02),
            played(CandidateKind::Equal, CanaryEnd::Withdrawn, 0.0),
            played(CandidateKind::Equal, CanaryEnd::Undecided, 0.0),
            played(CandidateKind::Slightly, CanaryEnd::Promoted, -0.01),
            played(CandidateKind::Slightly, CanaryEnd::Promoted, -0.03),
            played(CandidateKind::Slightly, CanaryEnd::Undecided, -0.03),
        ];
        assert_eq!((alarms(&all), misses(&all, &CanarySettings::default())), ((1, 3), (1, 2)));
        assert_eq!(
            (rightly(CandidateKind::Equal, &all), rightly(CandidateKind::Slightly, &all)),
            (Some(0.0), Some(1.0 / 3.0))
        );
        assert_eq!(rightly(CandidateKind::Bad, &all), None);
        let figures = headline(&all, &CanarySettings::default());
        assert!(figures.iter().any(|figure| figure.name == "miss_ratio" && figure.value == Some(0.5)));
    }
}

//! Drift: one line for a site on what its answers are like, compared with what they used to be. Pure.

use schemas::{DriftLevel, DriftMeasure, DriftReport, Heartbeat};

use crate::format;

/// Each measure, and what is said of it when it fell and when it rose.
const WORDS: [(&str, &str, &str); 3] = [
    ("confidence", "the model is less sure", "the model is surer"),
    ("novelty", "pictures are less strange to the model", "pictures are stranger to the model"),
    ("agreement", "the cloud agrees less often", "the cloud agrees more often"),
];

/// The site's drift line; `None` where nobody measures it.
pub(super) fn line(workers: &[Heartbeat]) -> Option<String> {
    let reports: Vec<&DriftReport> = workers.iter().filter_map(|beat| beat.drift.as_ref()).collect();
    let measures = worst(&reports);
    let worst_level = measures.iter().map(|(_, measure)| measure.level).max().unwrap_or_default();
    if measures.is_empty() {
        // The recognizers' windows fill first.
        return reports.iter().max_by_key(|report| report.reference_full).map(|report| filling(report));
    }
    let moved = |(_, measure): &&(&str, DriftMeasure)| measure.level == worst_level;
    let text = match worst_level {
        DriftLevel::Steady => format!("steady; {}", numbers(&measures)),
        level => {
            let moved: Vec<String> =
                measures.iter().filter(moved).map(|(name, measure)| change(name, measure)).collect();
            format!("{}: {}", level.as_str(), moved.join("; "))
        }
    };
    Some(text)
}

/// What to do about an alarm; `None` without one.
pub(super) fn advice(workers: &[Heartbeat]) -> Option<String> {
    let reports: Vec<&DriftReport> = workers.iter().filter_map(|beat| beat.drift.as_ref()).collect();
    let alarmed: Vec<String> = worst(&reports)
        .iter()
        .filter(|(_, measure)| measure.level == DriftLevel::Alarm)
        .map(|(name, measure)| change(name, measure))
        .collect();
    (!alarmed.is_empty()).then(|| {
        format!(
            "Answers are not what they used to be: {}. Look at what cameras send (`tributary replay --since 1h --limit 100 --to \
             DIR`). Where a camera, its light or its view is at fault, mend that; where the world has changed, label some of \
             it and retrain; then `tributary drift --accept` takes what comes as usual.",
            alarmed.join("; ")
        )
    })
}

/// Of each measure the worst that a worker of the site says.
fn worst(reports: &[&DriftReport]) -> Vec<(&'static str, DriftMeasure)> {
    let of = |name: &str| {
        let all = reports.iter().flat_map(|report| report.measures()).filter(move |(measure, _)| *measure == name);
        all.max_by(|(_, one), (_, other)| {
            one.level.cmp(&other.level).then(one.distance_ratio.total_cmp(&other.distance_ratio))
        })
    };
    WORDS.iter().filter_map(|(name, ..)| of(name)).map(|(name, measure)| (name, *measure)).collect()
}

/// How much is still missing.
fn filling(report: &DriftReport) -> String {
    let DriftReport { reference_answers, reference_full, recent_answers, recent_full, .. } = report;
    match reference_answers < reference_full {
        true => format!("learning what is usual: {reference_answers} of {reference_full} answers of this release"),
        false => format!(
            "what is usual is known; compared with it from {recent_full} more answers on: {recent_answers} so far"
        ),
    }
}

fn numbers(measures: &[(&str, DriftMeasure)]) -> String {
    let number = |(name, measure): &(&str, DriftMeasure)| {
        format!("{name} {} ({} before)", ratio(measure.recent_ratio), ratio(measure.reference_ratio))
    };
    measures.iter().map(number).collect::<Vec<_>>().join(", ")
}

fn change(name: &str, measure: &DriftMeasure) -> String {
    let words = WORDS
        .iter()
        .find(|(known, ..)| *known == name)
        .map_or(name, |(_, fell, rose)| if measure.recent_ratio < measure.reference_ratio { fell } else { rose });
    let (before, now) = (ratio(measure.reference_ratio), ratio(measure.recent_ratio));
    format!("{words} ({name} {now} on average, {before} before, distance {:.2})", measure.distance_ratio)
}

fn ratio(ratio: f64) -> String {
    format::percent(ratio)
}

#[cfg(test)]
mod tests {
    use schemas::{ReleaseId, Role};

    use super::*;

    fn measure(before: f64, now: f64, level: DriftLevel) -> Option<DriftMeasure> {
        let distance_ratio = (before - now).abs();
        Some(DriftMeasure { reference_ratio: before, recent_ratio: now, distance_ratio, level })
    }

    fn beat(role: Role, change: impl FnOnce(&mut DriftReport)) -> Heartbeat {
        let mut report = DriftReport {
            release: ReleaseId::from_sha256([1; 32]),
            reference_answers: 2000,
            reference_full: 2000,
            recent_answers: 500,
            recent_full: 500,
            confidence: None,
            novelty: None,
            agreement: None,
        };
        change(&mut report);
        Heartbeat { drift: Some(report), ..Heartbeat::for_worker(role, "host-1".into(), None, 0) }
    }

    #[test]
    fn one_line_says_what_changed_at_the_site_by_the_worst_of_its_workers() {
        let steady = beat(Role::Recognizer, |report| report.novelty = measure(0.5, 0.51, DriftLevel::Steady));
        let alarm = beat(Role::Recognizer, |report| {
            report.novelty = measure(0.5, 0.97, DriftLevel::Alarm);
            report.confidence = measure(0.9, 0.8, DriftLevel::Watch);
        });
        let courier = beat(Role::Courier, |report| report.agreement = measure(0.97, 0.96, DriftLevel::Steady));
        let text = line(&[steady.clone(), courier.clone()]).unwrap();
        assert!(
            text.starts_with("steady; novelty 51.0 %") && text.contains("agreement 96.0 % (97.0 % before)"),
            "{text}"
        );
        assert_eq!(advice(&[steady.clone(), courier.clone()]), None);
        let all = [steady, alarm, courier];
        let text = line(&all).unwrap();
        assert!(text.starts_with("alarm: pictures are stranger to the model (novelty 97.0 %"), "{text}");
        assert!(!text.contains("surer") && !text.contains("confidence"), "only what alarms: {text}");
        assert!(advice(&all).unwrap().contains("`tributary drift --accept`"));
    }

    #[test]
    fn before_there_is_enough_it_says_how_much_is_missing() {
        let learning = beat(Role::Recognizer, |report| report.reference_answers = 120);
        let courier = beat(Role::Courier, |report| (report.reference_answers, report.reference_full) = (0, 400));
        let text = line(&[learning, courier]).unwrap();
        assert!(text.contains("120 of 2000"), "{text}");
        let comparing = beat(Role::Recognizer, |report| report.recent_answers = 7);
        assert!(line(&[comparing]).unwrap().ends_with("from 500 more answers on: 7 so far"));
        assert_eq!(line(&[Heartbeat::for_worker(Role::Recognizer, "host-1".into(), None, 0)]), None);
    }
}

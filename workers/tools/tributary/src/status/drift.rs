//! Drift of a site's answers from their reference, in one line. Pure.

use schemas::{DriftLevel, DriftMeasure, DriftReport, Heartbeat};

use crate::format;

/// Each measure, and its sentence when it fell and when it rose.
const WORDS: [(&str, &str, &str); 3] = [
    ("confidence", "the model is less confident", "the model is more confident"),
    ("novelty", "images are less novel to the model", "images are more novel to the model"),
    ("agreement", "the cloud agrees less often", "the cloud agrees more often"),
];

/// The site's drift line; `None` if no worker measures drift.
pub(super) fn line(workers: &[Heartbeat]) -> Option<String> {
    let reports: Vec<&DriftReport> = workers.iter().filter_map(|beat| beat.drift.as_ref()).collect();
    let measures = worst(&reports);
    let worst_level = measures.iter().map(|(_, measure)| measure.level).max().unwrap_or_default();
    if measures.is_empty() {
        // The recognizers' windows fill before the courier's.
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
            "Answers have drifted: {}. Look at recent images (`tributary export --since 1h --limit 100 --to DIR`). If a camera, \
             its light or its view is at fault, fix it; if the world has changed, label some images and retrain. Then start a \
             new reference with `tributary drift --accept`.",
            alarmed.join("; ")
        )
    })
}

/// The worst report of each measure among the site's workers.
fn worst(reports: &[&DriftReport]) -> Vec<(&'static str, DriftMeasure)> {
    let of = |name: &str| {
        let all = reports.iter().flat_map(|report| report.measures()).filter(move |(measure, _)| *measure == name);
        all.max_by(|(_, one), (_, other)| {
            one.level.cmp(&other.level).then(one.distance_ratio.total_cmp(&other.distance_ratio))
        })
    };
    WORDS.iter().filter_map(|(name, ..)| of(name)).map(|(name, measure)| (name, *measure)).collect()
}

/// How far the windows are filled.
fn filling(report: &DriftReport) -> String {
    let DriftReport { reference_answers, reference_full, recent_answers, recent_full, .. } = report;
    match reference_answers < reference_full {
        true => format!("collecting the reference: {reference_answers} of {reference_full} answers of this release"),
        false => format!("reference complete; collecting recent answers: {recent_answers} of {recent_full}"),
    }
}

fn numbers(measures: &[(&str, DriftMeasure)]) -> String {
    let number = |(name, measure): &(&str, DriftMeasure)| {
        format!("{name} {} (reference {})", ratio(measure.recent_ratio), ratio(measure.reference_ratio))
    };
    measures.iter().map(number).collect::<Vec<_>>().join(", ")
}

fn change(name: &str, measure: &DriftMeasure) -> String {
    let words = WORDS
        .iter()
        .find(|(known, ..)| *known == name)
        .map_or(name, |(_, fell, rose)| if measure.recent_ratio < measure.reference_ratio { fell } else { rose });
    let (before, now) = (ratio(measure.reference_ratio), ratio(measure.recent_ratio));
    format!("{words} (mean {name} {now}, reference {before}, distance {:.2})", measure.distance_ratio)
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
    fn one_line_shows_the_worst_change_among_the_sites_workers() {
        let steady = beat(Role::Recognizer, |report| report.novelty = measure(0.5, 0.51, DriftLevel::Steady));
        let alarm = beat(Role::Recognizer, |report| {
            report.novelty = measure(0.5, 0.97, DriftLevel::Alarm);
            report.confidence = measure(0.9, 0.8, DriftLevel::Watch);
        });
        let courier = beat(Role::Courier, |report| report.agreement = measure(0.97, 0.96, DriftLevel::Steady));
        let text = line(&[steady.clone(), courier.clone()]).unwrap();
        assert!(
            text.starts_with("steady; novelty 51.0 %") && text.contains("agreement 96.0 % (reference 97.0 %)"),
            "{text}"
        );
        assert_eq!(advice(&[steady.clone(), courier.clone()]), None);
        let all = [steady, alarm, courier];
        let text = line(&all).unwrap();
        assert!(text.starts_with("alarm: images are more novel to the model (mean novelty 97.0 %"), "{text}");
        assert!(!text.contains("confiden"), "only what alarms: {text}");
        assert!(advice(&all).unwrap().contains("`tributary drift --accept`"));
    }

    #[test]
    fn before_there_is_enough_it_shows_how_far_the_windows_are_filled() {
        let collecting = beat(Role::Recognizer, |report| report.reference_answers = 120);
        let courier = beat(Role::Courier, |report| (report.reference_answers, report.reference_full) = (0, 400));
        let text = line(&[collecting, courier]).unwrap();
        assert!(text.contains("120 of 2000"), "{text}");
        let comparing = beat(Role::Recognizer, |report| report.recent_answers = 7);
        assert!(line(&[comparing]).unwrap().ends_with("recent answers: 7 of 500"));
        assert_eq!(line(&[Heartbeat::for_worker(Role::Recognizer, "host-1".into(), None, 0)]), None);
    }
}

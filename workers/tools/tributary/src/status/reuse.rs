//! Reused answers of a site, in one line. Pure.

use schemas::{CameraReuse, Heartbeat, ReuseReport};

use crate::format;

/// Most cameras that are named.
const MAX_NAMED: usize = 5;

/// The site's line on reused answers; `None` if no camera's answers are reused.
pub(super) fn line(workers: &[Heartbeat]) -> Option<String> {
    let reports: Vec<&ReuseReport> = workers.iter().filter_map(|beat| beat.decision.as_ref()?.reuse.as_ref()).collect();
    if reports.is_empty() {
        return None;
    }
    let sum = |count: fn(&ReuseReport) -> u64| reports.iter().map(|report| count(report)).fold(0, u64::saturating_add);
    let (reused, checked, wrong) =
        (sum(|report| report.reused), sum(|report| report.checked), sum(|report| report.wrong));
    let checks = match checked {
        0 => "none checked yet".to_owned(),
        _ => {
            format!("{wrong} of {checked} checked would be wrong ({})", format::percent(wrong as f64 / checked as f64))
        }
    };
    let tightened: Vec<String> = reports
        .iter()
        .flat_map(|report| &report.cameras)
        .filter(|camera| camera.is_tightened)
        .map(|camera| format!("; {}", tightened(camera)))
        .take(MAX_NAMED)
        .collect();
    Some(format!("{} reused; {checks}{}", format::count(reused, "answer"), tightened.concat()))
}

fn tightened(camera: &CameraReuse) -> String {
    match camera.max_difference {
        0.0 => format!("{}: no longer reused, too often wrong", camera.camera),
        levels => format!("{}: tightened to {levels} levels", camera.camera),
    }
}

#[cfg(test)]
mod tests {
    use schemas::{DecisionReport, Role};

    use super::*;

    fn beat(reuse: Option<ReuseReport>) -> Heartbeat {
        let decision: DecisionReport = serde_json::from_value(serde_json::json!({
            "policy": "paper", "state": "local", "why": "", "queue_s": 0.0, "local": 5, "redirected": 0,
            "taken_back": 0, "held": 0, "verified": 0, "kept": 0,
        }))
        .unwrap();
        let decision = Some(DecisionReport { reuse, ..decision });
        Heartbeat { decision, ..Heartbeat::for_worker(Role::Recognizer, "host-1".into(), None, 0) }
    }

    fn camera(name: &str, max_difference: f32) -> CameraReuse {
        let (camera, is_tightened) = (name.parse().unwrap(), max_difference < 4.0);
        CameraReuse { camera, reused: 5, checked: 1, wrong: 1, max_difference, is_tightened }
    }

    #[test]
    fn one_line_sums_the_sites_recognizers_and_names_tightened_cameras() {
        assert_eq!(line(&[beat(None)]), None);
        let none = ReuseReport::default();
        assert_eq!(line(&[beat(Some(none.clone()))]).unwrap(), "0 answers reused; none checked yet");
        let cameras = vec![camera("yard", 0.0), camera("door", 0.5), camera("gate", 4.0)];
        let some = ReuseReport { reused: 120, checked: 8, wrong: 2, cameras };
        let text =
            line(&[beat(Some(none)), beat(Some(some.clone())), beat(Some(ReuseReport { cameras: vec![], ..some }))]);
        assert_eq!(
            text.unwrap(),
            "240 answers reused; 4 of 16 checked would be wrong (25.0 %); yard: no longer reused, too often wrong; \
             door: tightened to 0.5 levels"
        );
    }
}

//! What a recognizer decides by, as text: load, energy, and what verdicts gain. Pure.

use schemas::DecisionReport;

use crate::format;

/// One line each for load, and for energy with the cloud's gain.
pub(crate) fn signals(report: &DecisionReport) -> [String; 2] {
    let percent = |ratio: f64| format!("{:.0} %", ratio * 100.0);
    let mut load = Vec::new();
    load.extend(report.cpu_ratio.map(|ratio| format!("processor {} busy", percent(ratio))));
    load.extend(report.contention_ratio.map(|ratio| format!("an image takes {ratio:.1} times its time on a free one")));
    load.extend(report.memory_ratio.map(|ratio| format!("memory {} used", percent(ratio))));
    load.extend(report.stall_ratio.map(|ratio| format!("stalled {} of the time", percent(ratio))));
    let load = if load.is_empty() { "not reported by this system".into() } else { load.join(", ") };
    let mut energy = Vec::new();
    energy.extend(report.inference_j.map(|joules| format!("{joules:.1} J recognizing here")));
    energy.extend(report.uplink_j.map(|joules| format!("{joules:.1} J sending up")));
    let energy = if energy.is_empty() { "not reported by this version".into() } else { energy.join(", ") };
    let gain = report.gain.unwrap_or_default();
    let changed = |points: Option<f64>, answers: &str| {
        points.map(|points| format!("{} of {answers} answers", format::percent(points / 100.0)))
    };
    let changes: Vec<String> = changed(gain.doubtful_points, "doubtful")
        .into_iter()
        .chain(changed(gain.confident_points, "confident"))
        .collect();
    let verdicts = match &changes[..] {
        [] => "too few verdicts yet to know what they gain".into(),
        changes => format!("verdicts change {}", changes.join(" and ")),
    };
    [format!("load: {load}"), format!("energy: {energy}; {verdicts}")]
}

#[cfg(test)]
mod tests {
    use schemas::decision_trace::CloudGain;

    use super::*;

    #[test]
    fn every_signal_is_shown_and_none_that_is_absent() {
        let report: DecisionReport = serde_json::from_value(serde_json::json!({
            "policy": "paper", "state": "local", "why": "", "queue_s": 0.0, "local": 5, "redirected": 0,
            "taken_back": 0, "held": 0, "verified": 0, "kept": 0,
        }))
        .unwrap();
        let [load, energy] = signals(&report);
        assert!(load.contains("not reported") && energy.contains("too few verdicts"), "{load}; {energy}");
        let report = DecisionReport {
            cpu_ratio: Some(0.97),
            memory_ratio: Some(0.5),
            stall_ratio: Some(0.03),
            contention_ratio: Some(1.84),
            gain: Some(CloudGain { doubtful_points: Some(20.0), confident_points: None }),
            inference_j: Some(12.34),
            uplink_j: Some(0.5),
            ..report
        };
        assert_eq!(
            signals(&report),
            [
                "load: processor 97 % busy, an image takes 1.8 times its time on a free one, memory 50 % used, stalled 3 % of the time",
                "energy: 12.3 J recognizing here, 0.5 J sending up; verdicts change 20.0 % of doubtful answers",
            ]
        );
    }
}

//! Results of the loop as table, chart and JSON.

use std::collections::BTreeSet;
use std::path::Path;

use crate::chart::{Chart, ChartLine};
use crate::report::BenchMachine;
use schemas::ReleaseStage;
use serde_json::json;

use super::label_accuracy::LabelAccuracy;
use super::model_standing::deciding_finding;
use super::round::{LoopRound, LoopTurn};
use tributary::format;

/// Results of all turns.
pub(super) struct LoopResult {
    /// Name of the data set.
    pub name: String,
    /// All turns; the last only measures.
    pub turns: Vec<LoopTurn>,
    /// Labels that the start model has never seen.
    pub unseen: BTreeSet<String>,
    /// Accuracy of the cloud's model on the test set.
    pub cloud: LabelAccuracy,
    /// Number of acknowledged images; each has a final answer.
    pub images: usize,
    /// Duration, seconds.
    pub duration_s: f64,
    /// Where the canaries' settings differ from the defaults, as text.
    pub wider_margins: String,
}

impl LoopResult {
    /// Table with one row per turn.
    pub(super) fn table(&self) -> String {
        let head = [
            "round",
            "serving",
            "sent up",
            "sites alone",
            "with cloud",
            "test",
            "unseen",
            "updates",
            "release",
            "canary",
            "seconds",
        ];
        let is_shown = |column: &usize| head[*column] != "unseen" || !self.unseen.is_empty();
        let columns: Vec<usize> = (0..head.len()).filter(is_shown).collect();
        let rows = self.turns.iter().map(|turn| self.row(turn));
        let rows: Vec<Vec<String>> =
            rows.map(|row| columns.iter().map(|column| row[*column].clone()).collect()).collect();
        format::table(&columns.iter().map(|column| head[*column]).collect::<Vec<_>>(), &rows)
    }

    fn row(&self, turn: &LoopTurn) -> Vec<String> {
        let release = turn.round.as_ref().and_then(|round| round.release.as_ref());
        let short = |release: &schemas::ReleaseId| release.short().to_owned();
        vec![
            if turn.round.is_some() { turn.number.to_string() } else { "end".into() },
            short(&turn.release),
            format::percent(turn.up_ratio()),
            format::percent(turn.site_accuracy.ratio()),
            format::percent(turn.final_accuracy.ratio()),
            format::percent(turn.test_accuracy.ratio()),
            turn.test_accuracy.percent_of(&self.unseen),
            release.map_or_else(String::new, |release| release.updates.to_string()),
            release.map_or_else(String::new, |release| short(&release.id)),
            turn.round.as_ref().map_or_else(String::new, canary_cell),
            format!("{:.0}", turn.duration_s),
        ]
    }

    /// Chart of accuracy and the share sent up, round by round.
    pub(super) fn chart(&self) -> Chart {
        let line = |name: &str, value: &dyn Fn(&LoopTurn) -> f64| ChartLine {
            name: name.into(),
            points: self.turns.iter().map(|turn| (f64::from(turn.number - 1), value(turn) * 100.0)).collect(),
        };
        Chart {
            title: "Infer, learn, release, infer: round by round".into(),
            x_label: "completed rounds".into(),
            y_label: "%".into(),
            lines: vec![
                line("accuracy of the sites' model, test images", &|turn| turn.test_accuracy.ratio()),
                line("accuracy of final answers, new images", &|turn| turn.final_accuracy.ratio()),
                line("share sent up, new images", &LoopTurn::up_ratio),
            ],
            marks: Vec::new(),
        }
    }

    /// The results as JSON.
    pub(super) fn json(&self) -> serde_json::Value {
        json!({
            "demo": "loop",
            "pictures": self.name,
            "unseen_at_start": self.unseen,
            "images_acknowledged": self.images,
            "took_s": self.duration_s,
            "margins_wider_than_default": self.wider_margins,
            "accuracy_cloud_test_ratio": self.cloud.ratio(),
            "turns": self.turns.iter().map(|turn| self.turn_json(turn)).collect::<Vec<_>>(),
            "machine": BenchMachine::here(Path::new(".")),
        })
    }

    /// Accuracy on unseen classes; `None` if all were seen.
    fn unseen_ratio(&self, accuracy: &LabelAccuracy) -> Option<f64> {
        (!self.unseen.is_empty()).then(|| accuracy.ratio_of(&self.unseen))
    }

    fn turn_json(&self, turn: &LoopTurn) -> serde_json::Value {
        let ratio = |count: usize| count as f64 / turn.images.max(1) as f64;
        let round = turn.round.as_ref().map(|round| {
            let release = round.release.as_ref().map(|release| {
                json!({
                    "release": release.id,
                    "updates": release.updates,
                    "accuracy_test_ratio": release.test_accuracy.ratio(),
                    "accuracy_test_unseen_ratio": self.unseen_ratio(&release.test_accuracy),
                    "decision": release.decision,
                })
            });
            json!({ "sealed": release, "why_not": round.reason })
        });
        json!({
            "round": turn.number,
            "release": turn.release,
            "images": turn.images,
            "sent_up_ratio": turn.up_ratio(),
            "in_doubt_ratio": ratio(turn.doubtful),
            "sampled_ratio": ratio(turn.sampled),
            "accuracy_sites_ratio": turn.site_accuracy.ratio(),
            "accuracy_final_ratio": turn.final_accuracy.ratio(),
            "accuracy_test_ratio": turn.test_accuracy.ratio(),
            "accuracy_test_unseen_ratio": self.unseen_ratio(&turn.test_accuracy),
            "made": round,
            "took_s": turn.duration_s,
        })
    }
}

/// Table cell: the decision about a release, and the finding that decided.
fn canary_cell(round: &LoopRound) -> String {
    let decision = round.release.as_ref().and_then(|release| release.decision.as_ref());
    match decision {
        None => "none".into(),
        Some(decision) => {
            if decision.why.starts_with("undecided") {
                return "withdrawn (undecided)".into();
            }
            let finding = deciding_finding(decision)
                .map(|finding| format!(" ({} {:+.3} ± {:.3})", finding.measure, finding.better, finding.error));
            let stage = if decision.stage == ReleaseStage::Stable { "stable" } else { "withdrawn" };
            // Without findings there was no canary: the public set decided.
            format!("{stage}{}", finding.unwrap_or_else(|| " (public set)".into()))
        }
    }
}

//! Results of the loop, as table, chart and JSON.

use std::collections::BTreeSet;
use std::path::Path;

use crate::chart::{Chart, ChartLine};
use crate::report::BenchMachine;
use schemas::ReleaseStage;
use serde_json::json;

use super::label_accuracy::Right;
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
    pub cloud: Right,
    /// Acknowledged images, each with its final answer.
    pub images: usize,
    /// Duration, seconds.
    pub took_s: f64,
    /// How the canaries' settings differ from the defaults.
    pub widened: String,
}

impl LoopResult {
    /// One row per turn.
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
        let shown = |column: &usize| head[*column] != "unseen" || !self.unseen.is_empty();
        let columns: Vec<usize> = (0..head.len()).filter(shown).collect();
        let rows = self.turns.iter().map(|turn| self.row(turn));
        let rows: Vec<Vec<String>> =
            rows.map(|row| columns.iter().map(|column| row[*column].clone()).collect()).collect();
        format::table(&columns.iter().map(|column| head[*column]).collect::<Vec<_>>(), &rows)
    }

    fn row(&self, turn: &LoopTurn) -> Vec<String> {
        let sealed = turn.made.as_ref().and_then(|made| made.sealed.as_ref());
        let short = |release: &schemas::ReleaseId| release.short().to_owned();
        vec![
            if turn.made.is_some() { turn.number.to_string() } else { "end".into() },
            short(&turn.release),
            format::percent(turn.up_ratio()),
            format::percent(turn.site.ratio()),
            format::percent(turn.together.ratio()),
            format::percent(turn.test.ratio()),
            turn.test.percent_of(&self.unseen),
            sealed.map_or_else(String::new, |sealed| sealed.updates.to_string()),
            sealed.map_or_else(String::new, |sealed| short(&sealed.release)),
            turn.made.as_ref().map_or_else(String::new, canary),
            format!("{:.0}", turn.took_s),
        ]
    }

    /// Share sent up and accuracy, round by round.
    pub(super) fn chart(&self) -> Chart {
        let line = |name: &str, of: &dyn Fn(&LoopTurn) -> f64| ChartLine {
            name: name.into(),
            points: self.turns.iter().map(|turn| (f64::from(turn.number - 1), of(turn) * 100.0)).collect(),
        };
        Chart {
            title: "Infer, learn, release, infer: round by round".into(),
            x_label: "completed rounds".into(),
            y_label: "%".into(),
            lines: vec![
                line("accuracy of the sites' model, test images", &|turn| turn.test.ratio()),
                line("accuracy of final answers, new images", &|turn| turn.together.ratio()),
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
            "took_s": self.took_s,
            "margins_wider_than_default": self.widened,
            "accuracy_cloud_test_ratio": self.cloud.ratio(),
            "turns": self.turns.iter().map(|turn| self.turn_json(turn)).collect::<Vec<_>>(),
            "machine": BenchMachine::here(Path::new(".")),
        })
    }

    /// Accuracy on unseen classes; `None` if all were seen.
    fn of_unseen(&self, right: &Right) -> Option<f64> {
        (!self.unseen.is_empty()).then(|| right.ratio_of(&self.unseen))
    }

    fn turn_json(&self, turn: &LoopTurn) -> serde_json::Value {
        let share = |count: usize| count as f64 / turn.images.max(1) as f64;
        let made = turn.made.as_ref().map(|made| {
            let sealed = made.sealed.as_ref().map(|sealed| {
                json!({
                    "release": sealed.release,
                    "updates": sealed.updates,
                    "accuracy_test_ratio": sealed.test.ratio(),
                    "accuracy_test_unseen_ratio": self.of_unseen(&sealed.test),
                    "decision": sealed.decision,
                })
            });
            json!({ "sealed": sealed, "why_not": made.why_not })
        });
        json!({
            "round": turn.number,
            "release": turn.release,
            "images": turn.images,
            "sent_up_ratio": turn.up_ratio(),
            "in_doubt_ratio": share(turn.in_doubt),
            "sampled_ratio": share(turn.sampled),
            "accuracy_sites_ratio": turn.site.ratio(),
            "accuracy_final_ratio": turn.together.ratio(),
            "accuracy_test_ratio": turn.test.ratio(),
            "accuracy_test_unseen_ratio": self.of_unseen(&turn.test),
            "made": made,
            "took_s": turn.took_s,
        })
    }
}

/// The decision about a release, and the measure behind it.
fn canary(made: &LoopRound) -> String {
    let decision = made.sealed.as_ref().and_then(|sealed| sealed.decision.as_ref());
    match decision {
        None => "none".into(),
        Some(decision) => {
            if decision.why.starts_with("undecided") {
                return "withdrawn (undecided)".into();
            }
            let number = deciding_finding(decision)
                .map(|finding| format!(" ({} {:+.3} ± {:.3})", finding.measure, finding.better, finding.error));
            let stage = if decision.stage == ReleaseStage::Stable { "stable" } else { "withdrawn" };
            // Without measures there was no canary.
            format!("{stage}{}", number.unwrap_or_else(|| " (public set)".into()))
        }
    }
}

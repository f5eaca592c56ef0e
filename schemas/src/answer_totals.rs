//! What became of a site's images, counted over restarts of its workers. Version history: 1, first.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::answer::{Answer, Reason, Route};
use crate::object_match::predictions_agree;

/// Counts of a site's final answers, kept by its janitor in the site's ledger.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AnswerTotals {
    /// Sequence in the stream ANSWERS up to which they are counted.
    pub counted_to: u64,
    /// Time of the first counted answer, milliseconds since the epoch.
    pub since_ms: u64,
    /// Final answers by route and reason.
    pub answers: BTreeMap<Route, BTreeMap<Reason, u64>>,
    /// Verdicts on images that the site had a prediction for.
    pub verdicts: u64,
    /// Verdicts that agree with the site's prediction: the same label, or for a detector the same objects.
    pub agreed: u64,
    /// Answers after the publisher's deadline.
    pub late: u64,
    /// Energy of the answers that state theirs, microjoules.
    pub energy_uj: u64,
}

impl AnswerTotals {
    /// Adds a final answer.
    pub fn add_answer(&mut self, answer: &Answer) {
        if self.since_ms == 0 {
            self.since_ms = answer.answered_at_ms;
        }
        *self.answers.entry(answer.route).or_default().entry(answer.reason).or_default() += 1;
        if let (Route::Verified, Some(edge), Some(verdict)) = (answer.route, &answer.edge, answer.prediction()) {
            self.verdicts += 1;
            self.agreed += u64::from(predictions_agree(edge, &verdict));
        }
        self.late += u64::from(answer.late_ms.is_some());
        // An answer is from the network: the conversion makes 0 of what is no energy.
        let energy_uj = answer.energy_mj.map_or(0, |energy_mj| (energy_mj * 1000.0) as u64);
        self.energy_uj = self.energy_uj.saturating_add(energy_uj);
    }

    /// Number of counted answers.
    pub fn count(&self) -> u64 {
        self.answers.values().flat_map(BTreeMap::values).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{AnswerStage, Prediction};
    use crate::id::{ReleaseId, TaskId};
    use crate::task::{StorageStamp, Task};

    fn prediction(label: &str) -> Prediction {
        Prediction {
            label: label.into(),
            confidence: 0.5,
            top: Vec::new(),
            labels: None,
            objects: None,
            release: ReleaseId::from_sha256([1; 32]),
            temperature: None,
            novelty: None,
        }
    }

    fn answer(route: Route, reason: Reason) -> Answer {
        let (site, camera) = ("reef".parse().unwrap(), "cam1".parse().unwrap());
        let stamp = StorageStamp { site, camera, sequence: 1, stored_at_ns: 0 };
        let task = Task::from_id(&stamp, TaskId::from_name("a"));
        Answer::for_task(&task, AnswerStage::Final, route, reason, 7)
    }

    #[test]
    fn answers_are_counted_by_route_and_reason_and_verdicts_by_agreement() {
        let mut totals = AnswerTotals::default();
        totals.add_answer(&answer(Route::Edge, Reason::Confident));
        totals.add_answer(&answer(Route::Edge, Reason::Confident));
        for verdict in ["coat", "shirt"] {
            let mut answer = answer(Route::Verified, Reason::LowConfidence).with_prediction(prediction(verdict));
            answer.edge = Some(prediction("coat"));
            answer.energy_mj = Some(1500.0);
            totals.add_answer(&answer);
        }
        let mut offloaded = answer(Route::Redirected, Reason::Offloaded).with_prediction(prediction("coat"));
        offloaded.energy_mj = Some(f32::NAN);
        offloaded.late_ms = Some(3);
        totals.add_answer(&offloaded);
        assert_eq!((totals.verdicts, totals.agreed, totals.energy_uj, totals.since_ms), (2, 1, 3_000_000, 7));
        assert_eq!(totals.answers[&Route::Edge][&Reason::Confident], 2);
        assert_eq!((totals.count(), totals.late), (5, 1));
        let text = serde_json::to_string(&totals).unwrap();
        assert_eq!(serde_json::from_str::<AnswerTotals>(&text).unwrap(), totals);
    }
}

//! What the final answer to a task is, whoever carries it: the site's own answer, the cloud's verdict on it, or a
//! tombstone. Pure; `runtime::outcome` stores what is composed here.

use crate::answer::{Answer, AnswerStage, Reason, Route};
use crate::fault::FaultNote;
use crate::task::Task;
use crate::verdict::Verdict;
use crate::verify::VerifyRequest;

impl Answer {
    /// The outcome of an image that is given up; a dead letter says the same.
    pub fn tombstone(task: &Task, fault: FaultNote, now_ms: u64) -> Self {
        let answer = Self::for_task(task, AnswerStage::Final, Route::Dead, Reason::GivenUp, now_ms);
        Self { fault: Some(fault), ..answer }
    }

    /// Whether it is the tombstone of the image with this sequence in the stream IMAGES.
    pub fn is_tombstone_of(&self, image_sequence: u64) -> bool {
        self.route == Route::Dead && self.image_sequence == image_sequence
    }

    /// By how much this answer is late when it is given to the server now, milliseconds; `None` if it is in time.
    pub fn lateness_ms(&self, now_ms: u64) -> Option<u64> {
        now_ms.checked_sub(self.due_at_ms?).filter(|late_ms| *late_ms > 0)
    }

    /// This provisional answer as the final one, because no verdict came before its deadline.
    pub fn expire(self, now_ms: u64) -> Self {
        Self { route: Route::Expired, reason: Reason::DeadlinePassed, ..self.finish(now_ms) }
    }

    /// This provisional answer as the final one, because it could not be verified.
    fn stand_unverified(self, fault: Option<FaultNote>, now_ms: u64) -> Self {
        Self { route: Route::Expired, reason: Reason::VerifierRefused, fault, ..self.finish(now_ms) }
    }

    fn finish(mut self, now_ms: u64) -> Self {
        self.timings.verify_us = now_ms.saturating_sub(self.answered_at_ms).saturating_mul(1000);
        self.stage = AnswerStage::Final;
        self.answered_at_ms = now_ms;
        self
    }
}

impl Verdict {
    /// The final answer that follows from the verdict; `None` for an offloaded task that could not be judged, which goes
    /// back to the recognizer that holds its image.
    pub fn into_final_answer(self, now_ms: u64) -> Option<Answer> {
        let edge = self.provisional.prediction();
        let Some(prediction) = self.opinion else {
            return edge.map(|_| self.provisional.stand_unverified(self.fault, now_ms));
        };
        let route = if edge.is_some() { Route::Verified } else { Route::Redirected };
        let answer = self.provisional.finish(now_ms).with_prediction(prediction);
        Some(Answer { route, edge, ..answer })
    }
}

impl VerifyRequest {
    /// The final answer of a task whose request can never be sent up; `None` for an offloaded task, which its recognizer
    /// holds.
    pub fn refuse(self, fault: FaultNote, now_ms: u64) -> Option<Answer> {
        self.provisional.prediction()?;
        Some(self.provisional.stand_unverified(Some(fault), now_ms))
    }

    /// The final answer of a task whose request was not sent up before its deadline; `None` as for
    /// [`VerifyRequest::refuse`].
    pub fn expire(self, now_ms: u64) -> Option<Answer> {
        self.provisional.prediction()?;
        Some(self.provisional.expire(now_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Prediction, Timings};
    use crate::id::{ReleaseId, TaskId};
    use crate::task::StorageStamp;
    use crate::verify::{Payload, VerifyReason};

    fn task() -> Task {
        let (site, camera) = ("reef".parse().unwrap(), "cam1".parse().unwrap());
        Task::from_id(&StorageStamp { site, camera, sequence: 4, stored_at_ns: 1_000_000_000 }, TaskId::from_name("a"))
    }

    fn prediction(label: &str) -> Prediction {
        Prediction {
            label: label.into(),
            confidence: 0.6,
            top: Vec::new(),
            labels: None,
            objects: None,
            release: ReleaseId::from_sha256([1; 32]),
            temperature: Some(2.0),
            novelty: Some(0.5),
        }
    }

    /// A doubtful answer of the site, or an offloaded task without one.
    fn provisional(label: Option<&str>) -> Answer {
        let answer = Answer::for_task(&task(), AnswerStage::Provisional, Route::Edge, Reason::LowMargin, 2_000);
        match label {
            Some(label) => answer.with_prediction(prediction(label)),
            None => Answer { route: Route::Redirected, reason: Reason::Overload, ..answer },
        }
    }

    fn verdict(edge: Option<&str>, cloud: Option<&str>) -> Verdict {
        let fault = cloud.is_none().then(fault);
        let opinion = cloud.map(prediction);
        let provisional = provisional(edge);
        Verdict { opinion, fault, judged_at_ms: 0, timings: Timings::default(), provisional, ticket: None }
    }

    fn request(edge: Option<&str>) -> VerifyRequest {
        let (reason, payload) = (VerifyReason::Doubtful, Payload::Image(Default::default()));
        VerifyRequest { reason, payload, provisional: provisional(edge), hardness: None, ticket: None }
    }

    fn fault() -> FaultNote {
        FaultNote::new("image_corrupt", "it is torn", "publish it again")
    }

    /// What every final answer has in common, and what tells it from others.
    fn told(answer: &Answer) -> (Route, Reason, Option<&str>, Option<&str>) {
        assert_eq!((answer.stage, answer.task, answer.image_sequence), (AnswerStage::Final, task().id, 4));
        let edge = answer.edge.as_ref().map(|edge| edge.label.as_str());
        (answer.route, answer.reason, answer.label.as_deref(), edge)
    }

    #[test]
    fn a_verdict_replaces_the_sites_answer_and_keeps_it_beside() {
        let answer = verdict(Some("fish"), Some("kelp")).into_final_answer(5_000).unwrap();
        assert_eq!(told(&answer), (Route::Verified, Reason::LowMargin, Some("kelp"), Some("fish")));
        assert_eq!((answer.answered_at_ms, answer.timings.verify_us), (5_000, 3_000_000));
        assert_eq!(answer.edge, Some(prediction("fish")));
    }

    #[test]
    fn the_verdict_on_an_offloaded_task_is_its_only_answer() {
        let answer = verdict(None, Some("kelp")).into_final_answer(5_000).unwrap();
        assert_eq!(told(&answer), (Route::Redirected, Reason::Overload, Some("kelp"), None));
    }

    #[test]
    fn the_sites_answer_stands_where_the_cloud_cannot_judge() {
        let answer = verdict(Some("fish"), None).into_final_answer(5_000).unwrap();
        assert_eq!(told(&answer), (Route::Expired, Reason::VerifierRefused, Some("fish"), None));
        assert_eq!(answer.fault, Some(fault()));
    }

    #[test]
    fn the_sites_answer_stands_where_its_request_is_refused_or_late() {
        let refused = request(Some("fish")).refuse(fault(), 5_000).unwrap();
        assert_eq!(told(&refused), (Route::Expired, Reason::VerifierRefused, Some("fish"), None));
        assert_eq!(refused.fault, Some(fault()));
        let late = request(Some("fish")).expire(5_000).unwrap();
        assert_eq!(told(&late), (Route::Expired, Reason::DeadlinePassed, Some("fish"), None));
        assert_eq!(late, provisional(Some("fish")).expire(5_000));
        assert_eq!((late.fault, late.timings.verify_us), (None, 3_000_000));
    }

    #[test]
    fn an_offloaded_task_without_a_verdict_stays_with_its_recognizer() {
        assert_eq!(verdict(None, None).into_final_answer(5_000), None);
        assert_eq!(request(None).refuse(fault(), 5_000), None);
        assert_eq!(request(None).expire(5_000), None);
    }

    #[test]
    fn whoever_finishes_an_answer_keeps_the_publishers_deadline_and_not_how_long_the_site_waited() {
        let task = Task { deadline_at_ms: Some(4_000), ..task() };
        let doubtful = Answer {
            // The site waits for the verdict until a little earlier.
            deadline_at_ms: Some(3_900),
            ..Answer::for_task(&task, AnswerStage::Provisional, Route::Edge, Reason::LowMargin, 2_000)
        };
        let expired = doubtful.clone().expire(3_950);
        let verified =
            Verdict { provisional: doubtful.with_prediction(prediction("fish")), ..verdict(None, Some("kelp")) };
        let verified = verified.into_final_answer(4_010).unwrap();
        let given_up = Answer::tombstone(&task, fault(), 9_000);
        let late_ms = |answer: &Answer| answer.lateness_ms(answer.answered_at_ms);
        assert_eq!([&expired, &verified, &given_up].map(late_ms), [None, Some(10), Some(5_000)]);
        assert_eq!(expired.lateness_ms(4_000), None, "at the deadline is in time");
        assert_eq!(provisional(Some("fish")).lateness_ms(u64::MAX), None, "the publisher set none");
    }

    #[test]
    fn a_tombstone_names_its_image_and_its_fault() {
        let tombstone = Answer::tombstone(&task(), fault(), 5_000);
        assert_eq!(told(&tombstone), (Route::Dead, Reason::GivenUp, None, None));
        assert_eq!(tombstone.fault, Some(fault()));
        assert!(tombstone.is_tombstone_of(4) && !tombstone.is_tombstone_of(5));
        assert!(!provisional(Some("fish")).is_tombstone_of(4));
    }
}

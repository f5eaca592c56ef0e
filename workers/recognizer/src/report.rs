//! What is published about a task: one final answer, or a provisional one and a request for a verdict.
//! Ids are derived from the task's, so that a redelivery repeats itself (invariant 2).

use bytes::Bytes;
use runtime::ticket::TicketKey;
use runtime::{Fault, OutgoingMessages};
use schemas::answer::Timings;
use schemas::task::{HEADER_BLOB, HEADER_DEADLINE_AT, HEADER_IMAGE, HEADER_PRIORITY, HEADER_TASK, HEADER_TO};
use schemas::{
    Answer, AnswerStage, DecisionTrace, FaultNote, Hardness, Payload, Prediction, Reason, Route, Task, VerifyReason,
    VerifyRequest, encode,
};
use streams::Publication;
use streams::subject::{self, OutboxKind};
use vision::ImageEnvelope;

use decisions::escalation::Escalation;
use decisions::gate::TestedScores;
use decisions::policy::EnergySettings;
use decisions::verify::{PayloadKind, VerifySettings};

/// What the edge found out about a task.
#[derive(Debug, Clone, PartialEq)]
pub struct EdgeResult {
    /// What the model says.
    pub opinion: Prediction,
    /// What the gate says about it.
    pub reason: Reason,
    /// What the model gives before its last layer, if it does.
    pub features: Option<Vec<f32>>,
    /// What the gate tested.
    pub tested: TestedScores,
    /// How long the steps took.
    pub timings: Timings,
    /// What stood around the picture.
    pub envelope: ImageEnvelope,
}

/// What a picture's envelope says, where no header says it.
fn add_envelope(answer: &mut Answer, envelope: ImageEnvelope) {
    answer.notes.extend(envelope.note);
    answer.captured_at_ms = answer.captured_at_ms.or(envelope.captured_at_ms);
}

/// What goes into every report.
pub struct AnswerReporter<'a> {
    /// What becomes of doubtful answers.
    pub verify: &'a VerifySettings,
    /// What recognizing and sending cost.
    pub energy: &'a EnergySettings,
    /// What was decided about the task, and by what.
    pub decided: Option<&'a DecisionTrace>,
    /// What the site knows its own requests by.
    pub tickets: &'a TicketKey,
    /// Now, milliseconds since the epoch.
    pub now_ms: u64,
}

impl AnswerReporter<'_> {
    /// What is to be published about a task that was recognized here. `bytes`: the encoded image, which goes
    /// up if it must.
    pub fn outgoing(
        &self,
        task: &Task,
        bytes: &Bytes,
        found: EdgeResult,
        fate: Escalation,
    ) -> Result<OutgoingMessages, Fault> {
        match fate {
            Escalation::Stands(reason) => {
                Ok(OutgoingMessages::single(self.final_answer(task, Route::Edge, reason, found)?))
            }
            Escalation::Expired => {
                Ok(OutgoingMessages::single(self.final_answer(task, Route::Expired, Reason::DeadlinePassed, found)?))
            }
            Escalation::Waits => {
                let promise = self.promise(task, &self.provisional(task, &found, found.reason, 0))?;
                Ok(OutgoingMessages::single(promise))
            }
            // The baseline gives its request to the outbox by itself, and says nothing before the verdict.
            Escalation::Blocks => {
                Ok(OutgoingMessages::single(self.final_answer(task, Route::Expired, Reason::DeadlinePassed, found)?))
            }
            Escalation::Goes(why) => self.goes(task, bytes, found, why),
        }
    }

    fn goes(
        &self,
        task: &Task,
        bytes: &Bytes,
        found: EdgeResult,
        why: VerifyReason,
    ) -> Result<OutgoingMessages, Fault> {
        let reason = if why == VerifyReason::Sampled { Reason::Sampled } else { found.reason };
        let payload = self.payload(task, bytes, found.features.as_deref());
        let hardness = (why == VerifyReason::Doubtful).then(|| self.hardness(&payload, &found)).flatten();
        let provisional = self.provisional(task, &found, reason, size(&payload));
        let ticket = Some(self.tickets.sign(&provisional));
        let request = VerifyRequest { reason: why, payload, provisional, hardness, ticket };
        Ok(OutgoingMessages {
            publications: vec![
                self.request(task, &request, deadline_ms(self.verify, task))?,
                self.promise(task, &request.provisional)?,
            ],
            when_full: vec![self.final_answer(task, Route::Expired, Reason::OutboxFull, found)?],
            ..OutgoingMessages::default()
        })
    }

    /// The request for a verdict on a task that was not recognized here, or that waits for it.
    pub fn offloaded(&self, task: &Task, bytes: &Bytes, until_ms: u64) -> Result<Publication, Fault> {
        let payload = self.payload(task, bytes, None);
        let mut about =
            Answer::for_task(task, AnswerStage::Provisional, Route::Redirected, Reason::Overload, self.now_ms);
        about.deadline_at_ms = Some(until_ms);
        about.decided = self.decided();
        about.energy_mj = Some(self.energy_mj(&Timings::default(), size(&payload)));
        let ticket = Some(self.tickets.sign(&about));
        let request =
            VerifyRequest { reason: VerifyReason::Overload, payload, provisional: about, hardness: None, ticket };
        self.request(task, &request, until_ms)
    }

    /// The request of the baseline, which publishes no provisional answer.
    pub fn verdict_request(
        &self,
        task: &Task,
        bytes: &Bytes,
        found: &EdgeResult,
        until_ms: u64,
    ) -> Result<Publication, Fault> {
        let payload = self.payload(task, bytes, found.features.as_deref());
        let mut provisional = self.provisional(task, found, found.reason, size(&payload));
        provisional.deadline_at_ms = Some(until_ms);
        let hardness = self.hardness(&payload, found);
        let ticket = Some(self.tickets.sign(&provisional));
        let request = VerifyRequest { reason: VerifyReason::Doubtful, payload, provisional, hardness, ticket };
        self.request(task, &request, until_ms)
    }

    fn payload(&self, task: &Task, bytes: &Bytes, features: Option<&[f32]>) -> Payload {
        match (self.verify.payload, features, &task.blob) {
            (PayloadKind::Features | PayloadKind::Never, features, _) => {
                Payload::Features(features.unwrap_or_default().to_vec())
            }
            (PayloadKind::Image, _, Some(blob)) => Payload::Blob(blob.clone()),
            (PayloadKind::Image, _, None) => Payload::Image(bytes.to_vec()),
        }
    }

    fn provisional(&self, task: &Task, found: &EdgeResult, reason: Reason, sent_bytes: u64) -> Answer {
        let mut answer = Answer::for_task(task, AnswerStage::Provisional, Route::Edge, reason, self.now_ms);
        answer.deadline_at_ms = Some(deadline_ms(self.verify, task));
        answer.decided = self.decided();
        answer.timings = found.timings;
        add_envelope(&mut answer, found.envelope.clone());
        answer.energy_mj = Some(self.energy_mj(&found.timings, sent_bytes));
        answer.with_prediction(found.opinion.clone())
    }

    fn request(&self, task: &Task, request: &VerifyRequest, until_ms: u64) -> Result<Publication, Fault> {
        let slot = subject::outbox(&task.site, OutboxKind::Verify);
        let to = subject::verify(request.reason, &task.site, &task.camera);
        let id = self.id(task, if request.reason == VerifyReason::Overload { "redirect" } else { "verify" });
        let publication = Publication::with_id(slot, encode(request)?, id)
            .header(HEADER_TO, to)
            .header(HEADER_DEADLINE_AT, until_ms.to_string())
            .header(HEADER_PRIORITY, task.priority.to_string());
        Ok(match &request.payload {
            Payload::Blob(blob) => publication.header(HEADER_BLOB, blob.to_string()),
            Payload::Image(_) | Payload::Features(_) => publication,
        })
    }

    fn promise(&self, task: &Task, provisional: &Answer) -> Result<Publication, Fault> {
        let slot = subject::provisional(&task.site, &task.camera);
        let promise = Publication::with_id(slot, encode(provisional)?, self.id(task, "provisional"));
        Ok(promise.header(HEADER_TASK, task.id.to_string()).header(HEADER_IMAGE, task.image_sequence.to_string()))
    }

    /// What makes a hard case of the request; features that are sent anyway are not sent twice.
    fn hardness(&self, payload: &Payload, found: &EdgeResult) -> Option<Hardness> {
        let features = match payload {
            Payload::Features(_) => None,
            Payload::Image(_) | Payload::Blob(_) => found.features.clone(),
        };
        self.verify.hard_cases.then_some(Hardness { entropy_ratio: found.tested.entropy_ratio, features })
    }

    fn final_answer(&self, task: &Task, route: Route, reason: Reason, found: EdgeResult) -> Result<Publication, Fault> {
        let mut answer = Answer::for_task(task, AnswerStage::Final, route, reason, self.now_ms);
        answer.decided = self.decided();
        answer.timings = found.timings;
        add_envelope(&mut answer, found.envelope);
        answer.energy_mj = Some(self.energy_mj(&found.timings, 0));
        let answer = answer.with_prediction(found.opinion);
        outcome(task, &answer)
    }

    fn decided(&self) -> Option<Box<DecisionTrace>> {
        self.decided.cloned().map(Box::new)
    }

    /// What a task took here, millijoules: processor time and bytes on the link.
    fn energy_mj(&self, timings: &Timings, sent_bytes: u64) -> f32 {
        let batch = f64::from(timings.batch_size.max(1));
        let busy_s = (timings.decode_us as f64 + timings.infer_us as f64 / batch) / 1e6;
        let joules = busy_s * self.energy.watts_per_core + sent_bytes as f64 / 1e6 * self.energy.joules_per_mb;
        (joules * 1000.0) as f32
    }

    /// The image's sequence is part of the ids: what the janitor redoes after a crash is sent anew.
    fn id(&self, task: &Task, what: &str) -> String {
        task.id.child(&format!("{what}-{}", task.image_sequence)).to_string()
    }
}

/// When a provisional answer becomes final, milliseconds since the epoch.
pub fn deadline_ms(verify: &VerifySettings, task: &Task) -> u64 {
    let own = task.published_at_ms.saturating_add(u64::from(verify.deadline_s) * 1000);
    task.deadline_at_ms.map_or(own, |deadline| deadline.min(own))
}

/// Bytes that go up.
fn size(payload: &Payload) -> u64 {
    match payload {
        Payload::Image(bytes) => bytes.len() as u64,
        Payload::Blob(blob) => blob.size_bytes,
        Payload::Features(features) => 4 * features.len() as u64,
    }
}

/// The outcome of a task that is given up; it takes the slot of the final answer.
pub fn write_tombstone(task: &Task, fault: FaultNote, now_ms: u64) -> Result<Publication, Fault> {
    let mut answer = Answer::for_task(task, AnswerStage::Final, Route::Dead, Reason::GivenUp, now_ms);
    answer.fault = Some(fault);
    outcome(task, &answer)
}

/// The publication of a final answer: the first in its slot, or nothing.
fn outcome(task: &Task, answer: &Answer) -> Result<Publication, Fault> {
    let publication =
        Publication::first_on_subject(subject::outcome(&task.site, &task.camera, task.id), encode(answer)?);
    Ok(publication.header(HEADER_IMAGE, task.image_sequence.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::task::StorageStamp;
    use schemas::{ReleaseId, TaskId, decode};

    fn task() -> Task {
        let stored = StorageStamp {
            site: "reef".parse().unwrap(),
            camera: "cam1".parse().unwrap(),
            sequence: 4,
            stored_at_ns: 1_000_000_000,
        };
        Task::from_id(&stored, TaskId::from_name("a"))
    }

    fn found(reason: Reason) -> EdgeResult {
        let release = ReleaseId::from_sha256([1; 32]);
        let opinion = Prediction {
            label: "fish".into(),
            confidence: 0.6,
            top: Vec::new(),
            labels: None,
            release,
            temperature: None,
            novelty: None,
        };
        let tested = TestedScores { best: 0.6, second: 0.3, entropy_ratio: 0.4, novelty: None };
        let timings = Timings { decode_us: 1000, infer_us: 4000, batch_size: 2, ..Timings::default() };
        EdgeResult {
            opinion,
            reason,
            features: Some(vec![0.5; 8]),
            tested,
            timings,
            envelope: ImageEnvelope::default(),
        }
    }

    fn published(verify: &VerifySettings, reason: Reason, fate: Escalation, now_ms: u64) -> OutgoingMessages {
        let reporter = AnswerReporter {
            verify,
            energy: &EnergySettings::default(),
            decided: None,
            tickets: &TicketKey::of("secret"),
            now_ms,
        };
        reporter.outgoing(&task(), &Bytes::from_static(b"jpeg"), found(reason), fate).unwrap()
    }

    const DOUBTFUL: Escalation = Escalation::Goes(VerifyReason::Doubtful);

    fn only_answer(outgoing: &OutgoingMessages) -> Answer {
        assert_eq!(outgoing.publications.len(), 1);
        assert!(outgoing.publications[0].first_only, "a final answer is the first in its slot or nothing");
        decode(&outgoing.publications[0].payload).unwrap()
    }

    #[test]
    fn a_confident_answer_is_final_and_says_what_it_took() {
        let stands = Escalation::Stands(Reason::Confident);
        let answer = only_answer(&published(&VerifySettings::default(), Reason::Confident, stands, 2_000));
        assert_eq!(
            (answer.stage, answer.route, answer.label.as_deref()),
            (AnswerStage::Final, Route::Edge, Some("fish"))
        );
        // 1 ms of decoding and half of a batch of 4 ms, at 8 W.
        assert!((answer.energy_mj.unwrap() - 24.0).abs() < 1e-3, "{:?}", answer.energy_mj);
    }

    #[test]
    fn a_doubtful_answer_goes_to_verify_and_says_that_it_is_provisional() {
        let out = published(&VerifySettings::default(), Reason::LowConfidence, DOUBTFUL, 2_000);
        assert_eq!(out.publications[0].subject, "outbox.reef.verify");
        let header =
            |name| out.publications[0].headers.iter().find(|(key, _)| key == name).map(|(_, value)| &value[..]);
        assert_eq!(header(HEADER_TO), Some("verify.doubtful.reef.cam1"));
        let request: VerifyRequest = decode(&out.publications[0].payload).unwrap();
        assert_eq!(request.payload, Payload::Image(b"jpeg".to_vec()));
        let provisional: Answer = decode(&out.publications[1].payload).unwrap();
        assert_eq!((provisional.stage, provisional.reason), (AnswerStage::Provisional, Reason::LowConfidence));
        assert_eq!(provisional.deadline_at_ms, Some(1_000 + 24 * 3600 * 1000));
        let case = request.hard_case().unwrap();
        assert_eq!((case.reason, case.features.map(|features| features.len())), (Reason::LowConfidence, Some(8)));
    }

    #[test]
    fn only_the_image_setting_lets_an_image_into_a_request() {
        for payload in [PayloadKind::Features, PayloadKind::Never] {
            let verify = VerifySettings { payload, ..VerifySettings::default() };
            let out = published(&verify, Reason::LowConfidence, DOUBTFUL, 2_000);
            let request: VerifyRequest = decode(&out.publications[0].payload).unwrap();
            assert_eq!(request.payload, Payload::Features(vec![0.5; 8]), "{payload:?}");
        }
    }

    #[test]
    fn what_must_stay_is_provisional_without_a_request() {
        let out = published(&VerifySettings::default(), Reason::LowConfidence, Escalation::Waits, 2_000);
        assert_eq!(out.publications.len(), 1);
        assert_eq!(out.publications[0].subject, "answer.provisional.reef.cam1");
    }

    #[test]
    fn a_second_delivery_repeats_the_ids_of_the_first() {
        let ids = |now_ms| {
            let out = published(&VerifySettings::default(), Reason::LowMargin, DOUBTFUL, now_ms);
            out.publications.into_iter().map(|publication| publication.headers).collect::<Vec<_>>()
        };
        assert_eq!(ids(2_000), ids(9_000));
    }

    #[test]
    fn a_doubtful_answer_past_its_deadline_is_final_and_says_so() {
        let answer = only_answer(&published(&VerifySettings::default(), Reason::LowMargin, Escalation::Expired, 2_000));
        assert_eq!((answer.route, answer.reason), (Route::Expired, Reason::DeadlinePassed));
    }
}

//! Makes the messages about a task: one final answer, or a provisional one and a request for a verdict.
//! Ids are derived from the task's, so that a redelivery repeats them (invariant 2).

use bytes::Bytes;
use runtime::ticket::TicketKey;
use runtime::{Fault, OutgoingMessages};
use schemas::answer::Timings;
use schemas::task::{HEADER_BLOB, HEADER_DEADLINE_AT, HEADER_IMAGE, HEADER_PRIORITY, HEADER_TASK, HEADER_TO};
use schemas::{
    Answer, AnswerStage, DecisionTrace, Hardness, Payload, Prediction, Reason, Route, Task, VerifyReason,
    VerifyRequest, encode,
};
use streams::Publication;
use streams::subject::{self, OutboxKind};
use vision::ImageEnvelope;

use offload::escalation::Escalation;
use offload::gate::TestedScores;
use offload::policy::EnergySettings;
use offload::verify::{PayloadKind, VerifySettings};

use crate::reuse::ReusedAnswer;

/// Share of the time that a publisher allows which is kept for making a provisional answer final, and the most that is,
/// milliseconds: the server's timer, a look-up and a publication, on a busy machine. Guesses.
const EXPIRY_RATIO: f64 = 0.25;
const MAX_EXPIRY_MS: u64 = 100;

/// Result of recognizing a task at the site.
#[derive(Debug, Clone, PartialEq)]
pub struct EdgeResult {
    /// Prediction of the model.
    pub prediction: Prediction,
    /// Result of the gate.
    pub reason: Reason,
    /// Input of the model's last layer, if the model outputs it.
    pub features: Option<Vec<f32>>,
    /// Scores that the gate tested.
    pub tested: TestedScores,
    /// Duration of the steps.
    pub timings: Timings,
    /// Metadata around the picture.
    pub envelope: ImageEnvelope,
}

/// The state of what a camera shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownState {
    /// The label that names it.
    pub state: String,
    /// Capture time of its first picture, milliseconds since the epoch.
    pub since_ms: u64,
}

/// Adds what a picture's metadata says and no header does.
fn add_envelope(answer: &mut Answer, envelope: ImageEnvelope) {
    answer.notes.extend(envelope.note);
    answer.captured_at_ms = answer.captured_at_ms.or(envelope.captured_at_ms);
}

/// What every report needs besides the task.
pub struct AnswerReporter<'a> {
    /// Settings of verification.
    pub verify: &'a VerifySettings,
    /// Energy of recognizing and sending.
    pub energy: &'a EnergySettings,
    /// Trace of the decision about the task.
    pub decided: Option<&'a DecisionTrace>,
    /// State of what the camera shows; absent without states.
    pub state: Option<ShownState>,
    /// Key by which the site recognizes its own requests.
    pub tickets: &'a TicketKey,
    /// Current time, milliseconds since the epoch.
    pub now_ms: u64,
}

impl AnswerReporter<'_> {
    /// The messages about a task that was recognized here. `bytes`: the encoded image, to be sent
    /// up if needed.
    pub fn outgoing(
        &self,
        task: &Task,
        bytes: &Bytes,
        result: EdgeResult,
        escalation: Escalation,
    ) -> Result<OutgoingMessages, Fault> {
        match escalation {
            Escalation::Stands(reason) => {
                Ok(OutgoingMessages::answer(self.final_answer(task, Route::Edge, reason, &result)))
            }
            Escalation::Expired => {
                let (route, reason) = (Route::Expired, Reason::DeadlinePassed);
                Ok(OutgoingMessages::answer(self.final_answer(task, route, reason, &result)))
            }
            Escalation::Waits => {
                let provisional =
                    self.provisional_publication(task, &self.provisional(task, &result, result.reason, 0))?;
                Ok(OutgoingMessages::single(provisional))
            }
            Escalation::Goes(why) => self.verification(task, bytes, result, why),
        }
    }

    fn verification(
        &self,
        task: &Task,
        bytes: &Bytes,
        result: EdgeResult,
        why: VerifyReason,
    ) -> Result<OutgoingMessages, Fault> {
        let reason = if why == VerifyReason::Sampled { Reason::Sampled } else { result.reason };
        let payload = self.payload(task, bytes, result.features.as_deref());
        let hardness = (why == VerifyReason::Doubtful).then(|| self.hardness(&payload, &result)).flatten();
        let provisional = self.provisional(task, &result, reason, size(&payload));
        let ticket = Some(self.tickets.sign(&provisional));
        let request = VerifyRequest { reason: why, payload, provisional, hardness, ticket };
        Ok(OutgoingMessages {
            publications: vec![
                self.request(task, &request, deadline_ms(self.verify, task))?,
                self.provisional_publication(task, &request.provisional)?,
            ],
            when_full: Some(self.final_answer(task, Route::Expired, Reason::OutboxFull, &result)),
            ..OutgoingMessages::default()
        })
    }

    /// The request for a verdict on a task that is offloaded.
    pub fn offloaded(&self, task: &Task, bytes: &Bytes, reason: Reason, until_ms: u64) -> Result<Publication, Fault> {
        let payload = self.payload(task, bytes, None);
        let mut answer = Answer::for_task(task, AnswerStage::Provisional, Route::Redirected, reason, self.now_ms);
        answer.deadline_at_ms = Some(until_ms);
        answer.decided = self.decided();
        self.add_state(&mut answer);
        answer.energy_mj = Some(self.energy_mj(&Timings::default(), size(&payload)));
        let ticket = Some(self.tickets.sign(&answer));
        let request =
            VerifyRequest { reason: VerifyReason::Overload, payload, provisional: answer, hardness: None, ticket };
        self.request(task, &request, until_ms)
    }

    /// The final answer of an image that gets that of an earlier one.
    pub(crate) fn reused(&self, task: &Task, reused: ReusedAnswer, queue_us: u64) -> Answer {
        let answer = Answer::for_task(task, AnswerStage::Final, Route::Edge, Reason::Confident, self.now_ms);
        let mut answer = answer.with_prediction(reused.prediction);
        answer.reused = Some(reused.task);
        answer.timings = Timings { queue_us, ..Timings::default() };
        answer.energy_mj = Some(0.0);
        self.add_state(&mut answer);
        answer
    }

    fn add_state(&self, answer: &mut Answer) {
        let state = self.state.clone();
        (answer.state, answer.since_ms) = state.map(|ShownState { state, since_ms }| (state, since_ms)).unzip();
    }

    fn payload(&self, task: &Task, bytes: &Bytes, features: Option<&[f32]>) -> Payload {
        match (self.verify.payload, features, &task.blob) {
            (PayloadKind::Features | PayloadKind::Never, features, _) => {
                Payload::Features(features.unwrap_or_default().to_vec())
            }
            (PayloadKind::Image, _, Some(blob)) => Payload::Blob(blob.clone()),
            (PayloadKind::Image, _, None) => Payload::Image(bytes.clone()),
        }
    }

    fn provisional(&self, task: &Task, result: &EdgeResult, reason: Reason, sent_bytes: u64) -> Answer {
        let answer = Answer::for_task(task, AnswerStage::Provisional, Route::Edge, reason, self.now_ms);
        let deadline_at_ms = Some(deadline_ms(self.verify, task));
        Answer { deadline_at_ms, ..self.with_result(answer, result, sent_bytes) }
    }

    fn final_answer(&self, task: &Task, route: Route, reason: Reason, result: &EdgeResult) -> Answer {
        self.with_result(Answer::for_task(task, AnswerStage::Final, route, reason, self.now_ms), result, 0)
    }

    /// The answer with what the site's model says, and what that took.
    fn with_result(&self, mut answer: Answer, result: &EdgeResult, sent_bytes: u64) -> Answer {
        answer.decided = self.decided();
        answer.timings = result.timings;
        add_envelope(&mut answer, result.envelope.clone());
        self.add_state(&mut answer);
        answer.energy_mj = Some(self.energy_mj(&result.timings, sent_bytes));
        answer.with_prediction(result.prediction.clone())
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

    fn provisional_publication(&self, task: &Task, provisional: &Answer) -> Result<Publication, Fault> {
        let slot = subject::provisional(&task.site, &task.camera);
        let publication = Publication::with_id(slot, encode(provisional)?, self.id(task, "provisional"));
        Ok(publication.header(HEADER_TASK, task.id.to_string()).header(HEADER_IMAGE, task.image_sequence.to_string()))
    }

    /// What makes a hard case of the request; features that are sent anyway are not repeated.
    fn hardness(&self, payload: &Payload, result: &EdgeResult) -> Option<Hardness> {
        let features = match payload {
            Payload::Features(_) => None,
            Payload::Image(_) | Payload::Blob(_) => result.features.clone(),
        };
        self.verify.hard_cases.then_some(Hardness { entropy_ratio: result.tested.entropy_ratio, features })
    }

    fn decided(&self) -> Option<Box<DecisionTrace>> {
        self.decided.cloned().map(Box::new)
    }

    /// Energy of a task here, millijoules: processor time and bytes on the link.
    fn energy_mj(&self, timings: &Timings, sent_bytes: u64) -> f32 {
        ((inference_j(self.energy, timings) + uplink_j(self.energy, sent_bytes)) * 1000.0) as f32
    }

    /// An id that includes the image's sequence, so that messages of a requeued image are sent again.
    fn id(&self, task: &Task, what: &str) -> String {
        task.id.child(&format!("{what}-{}", task.image_sequence)).to_string()
    }
}

/// Energy of recognizing an image here, joules.
pub(crate) fn inference_j(energy: &EnergySettings, timings: &Timings) -> f64 {
    let batch = f64::from(timings.batch_size.max(1));
    (timings.decode_us as f64 + timings.infer_us as f64 / batch) / 1e6 * energy.watts_per_core
}

/// Energy of sending bytes up, joules.
pub(crate) fn uplink_j(energy: &EnergySettings, bytes: u64) -> f64 {
    bytes as f64 / 1e6 * energy.joules_per_mb
}

/// When a provisional answer becomes final, milliseconds since the epoch: a little before the publisher's deadline, so
/// that it is stored by then.
pub fn deadline_ms(verify: &VerifySettings, task: &Task) -> u64 {
    let own = task.published_at_ms.saturating_add(u64::from(verify.deadline_s) * 1000);
    let before = |deadline: u64| {
        let all_ms = deadline.saturating_sub(task.published_at_ms);
        deadline - MAX_EXPIRY_MS.min((all_ms as f64 * EXPIRY_RATIO) as u64)
    };
    task.deadline_at_ms.map_or(own, |deadline| before(deadline).min(own))
}

/// Bytes of a payload.
fn size(payload: &Payload) -> u64 {
    match payload {
        Payload::Image(bytes) => bytes.len() as u64,
        Payload::Blob(blob) => blob.size_bytes,
        Payload::Features(features) => 4 * features.len() as u64,
    }
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

    fn edge_result(reason: Reason) -> EdgeResult {
        let release = ReleaseId::from_sha256([1; 32]);
        let prediction = Prediction {
            label: "fish".into(),
            confidence: 0.6,
            top: Vec::new(),
            labels: None,
            objects: None,
            release,
            temperature: None,
            novelty: None,
        };
        let tested = TestedScores { best: 0.6, second: 0.3, entropy_ratio: 0.4, novelty: None };
        let timings = Timings { decode_us: 1000, infer_us: 4000, batch_size: 2, ..Timings::default() };
        EdgeResult {
            prediction,
            reason,
            features: Some(vec![0.5; 8]),
            tested,
            timings,
            envelope: ImageEnvelope::default(),
        }
    }

    fn published(verify: &VerifySettings, reason: Reason, escalation: Escalation, now_ms: u64) -> OutgoingMessages {
        let reporter = AnswerReporter {
            verify,
            energy: &EnergySettings::default(),
            decided: None,
            state: Some(ShownState { state: "swimming".into(), since_ms: 900 }),
            tickets: &TicketKey::of("secret"),
            now_ms,
        };
        reporter.outgoing(&task(), &Bytes::from_static(b"jpeg"), edge_result(reason), escalation).unwrap()
    }

    const DOUBTFUL: Escalation = Escalation::Goes(VerifyReason::Doubtful);

    fn only_answer(outgoing: OutgoingMessages) -> Answer {
        assert!(outgoing.publications.is_empty(), "{outgoing:?}");
        outgoing.final_answer.unwrap()
    }

    #[test]
    fn a_confident_answer_is_final_and_states_its_energy() {
        let stands = Escalation::Stands(Reason::Confident);
        let answer = only_answer(published(&VerifySettings::default(), Reason::Confident, stands, 2_000));
        assert_eq!(
            (answer.stage, answer.route, answer.label.as_deref()),
            (AnswerStage::Final, Route::Edge, Some("fish"))
        );
        // 1 ms of decoding and half of a batch of 4 ms, at 8 W.
        assert!((answer.energy_mj.unwrap() - 24.0).abs() < 1e-3, "{:?}", answer.energy_mj);
        assert_eq!((answer.state.as_deref(), answer.since_ms), (Some("swimming"), Some(900)));
    }

    #[test]
    fn a_reused_answer_names_its_task_and_costs_nothing() {
        let reporter = AnswerReporter {
            verify: &VerifySettings::default(),
            energy: &EnergySettings::default(),
            decided: None,
            state: None,
            tickets: &TicketKey::of("secret"),
            now_ms: 2_000,
        };
        let of =
            ReusedAnswer { task: TaskId::from_name("before"), prediction: edge_result(Reason::Confident).prediction };
        let answer = reporter.reused(&task(), of.clone(), 70);
        assert_eq!((answer.stage, answer.route, answer.reason), (AnswerStage::Final, Route::Edge, Reason::Confident));
        assert_eq!((answer.task, answer.reused, answer.prediction()), (task().id, Some(of.task), Some(of.prediction)));
        assert_eq!((answer.timings, answer.energy_mj), (Timings { queue_us: 70, ..Timings::default() }, Some(0.0)));
        assert_eq!((answer.state, answer.since_ms), (None, None));
    }

    #[test]
    fn a_doubtful_answer_is_sent_up_and_marked_provisional() {
        let out = published(&VerifySettings::default(), Reason::LowConfidence, DOUBTFUL, 2_000);
        assert_eq!(out.publications[0].subject, "outbox.reef.verify");
        let header =
            |name| out.publications[0].headers.iter().find(|(key, _)| key == name).map(|(_, value)| &value[..]);
        assert_eq!(header(HEADER_TO), Some("verify.doubtful.reef.cam1"));
        let request: VerifyRequest = decode(&out.publications[0].payload).unwrap();
        assert_eq!(request.payload, Payload::Image(Bytes::from_static(b"jpeg")));
        let provisional: Answer = decode(&out.publications[1].payload).unwrap();
        assert_eq!((provisional.stage, provisional.reason), (AnswerStage::Provisional, Reason::LowConfidence));
        assert_eq!(provisional.deadline_at_ms, Some(1_000 + 24 * 3600 * 1000));
        let case = request.hard_case().unwrap();
        assert_eq!((case.reason, case.features.map(|features| features.len())), (Reason::LowConfidence, Some(8)));
    }

    #[test]
    fn a_provisional_answer_becomes_final_before_the_publishers_deadline() {
        let until = |left_ms| deadline_ms(&VerifySettings::default(), &task().with_deadline(Some(left_ms))) - 1_000;
        assert_eq!(["4000", "400", "100", "0"].map(until), [3_900, 300, 75, 0]);
        let far = task().with_deadline(Some("18446744073709551615"));
        assert_eq!(deadline_ms(&VerifySettings::default(), &far), 1_000 + 24 * 3600 * 1000);
    }

    #[test]
    fn an_image_is_requested_only_with_the_setting_image() {
        for payload in [PayloadKind::Features, PayloadKind::Never] {
            let verify = VerifySettings { payload, ..VerifySettings::default() };
            let out = published(&verify, Reason::LowConfidence, DOUBTFUL, 2_000);
            let request: VerifyRequest = decode(&out.publications[0].payload).unwrap();
            assert_eq!(request.payload, Payload::Features(vec![0.5; 8]), "{payload:?}");
        }
    }

    #[test]
    fn if_nothing_may_leave_the_answer_is_provisional_without_a_request() {
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
    fn a_doubtful_answer_past_its_deadline_is_final_as_expired() {
        let answer = only_answer(published(&VerifySettings::default(), Reason::LowMargin, Escalation::Expired, 2_000));
        assert_eq!((answer.route, answer.reason), (Route::Expired, Reason::DeadlinePassed));
    }
}

//! Turns the cloud's verdicts into final answers at the site.

use runtime::drift::{DriftSample, DriftWatch};
use runtime::handler::DeadLetterContext;
use runtime::ticket::TicketKey;
use runtime::{Fault, Handler, MessageCredit, OutgoingMessages, clock, metrics, traces};
use schemas::task::HEADER_IMAGE;
use schemas::{Answer, AnswerStage, FaultNote, Reason, Role, Route, SiteName, Verdict, decode, encode};
use streams::reader::StoredMessage;
use streams::{Delivery, Publication, subject, topology};

/// Carries verdicts of the cloud to the site.
pub struct VerdictCarrier {
    /// Site it works for.
    pub site: SiteName,
    /// Key by which the site recognizes its own requests.
    pub tickets: TicketKey,
    /// How often the cloud agrees with confident answers that were sampled.
    pub agreement: DriftWatch,
}

impl VerdictCarrier {
    /// Counts a verdict on a confident answer. Verdicts on doubtful answers say more about the doubt than about drift.
    fn compare(&self, verdict: &Verdict) {
        if verdict.provisional.reason != Reason::Sampled {
            return;
        }
        let (Some(edge), Some(prediction)) = (verdict.provisional.prediction(), &verdict.opinion) else { return };
        if !self.agreement.follows(&edge.release) {
            self.agreement.follow_release(&edge.release);
        }
        let agreed = if prediction.label == edge.label { 1.0 } else { 0.0 };
        self.agreement.add(&edge.release, DriftSample { agreement: Some(agreed), ..DriftSample::default() });
    }
}

impl Handler for VerdictCarrier {
    const ROLE: Role = Role::Courier;
    const STREAM: &'static str = topology::VERDICTS;
    const SPAN: Option<&'static str> = Some("carry verdict");

    async fn handle(&self, delivery: &Delivery, _credit: &MessageCredit) -> Result<OutgoingMessages, Fault> {
        let verdict: Verdict = decode(delivery.payload())?;
        if verdict.provisional.site != self.site {
            let reason = format!("a verdict for site {} arrived at site {}", verdict.provisional.site, self.site);
            return Err(Fault::reject("verdict_misdirected", reason, "give each site a name of its own"));
        }
        if !verdict.ticket.as_deref().is_some_and(|ticket| self.tickets.verify(&verdict.provisional, ticket)) {
            let reason = format!("the verdict on task {} has no valid ticket of this site", verdict.provisional.task);
            let remedy = "this site did not request it: check who may publish verdicts in the cloud; if the site's store was recreated, it may answer an earlier request";
            return Err(Fault::reject("verdict_unasked", reason, remedy));
        }
        let span = traces::current();
        span.set_task(verdict.provisional.task, &verdict.provisional.site, &verdict.provisional.camera);
        self.compare(&verdict);
        // An offloaded task that could not be judged goes back to its recognizer, which holds the image.
        if verdict.opinion.is_none() && verdict.provisional.prediction().is_none() {
            return Ok(OutgoingMessages::default());
        }
        let answer = final_answer(verdict, clock::now_ms());
        span.set("tributary.route", &answer.route.as_str());
        span.set("tributary.reason", &answer.reason.as_str());
        Ok(OutgoingMessages::single(publication(&answer)?))
    }

    fn dead_letter(&self, message: &StoredMessage, _fault: &FaultNote) -> DeadLetterContext {
        let task = decode::<Verdict>(&message.payload).ok().map(|verdict| verdict.provisional.task);
        DeadLetterContext { site: self.site.clone(), task, publications: Vec::new() }
    }
}

/// The final answer that follows from a verdict. Pure.
pub fn final_answer(verdict: Verdict, now_ms: u64) -> Answer {
    let provisional = verdict.provisional;
    let edge = provisional.prediction();
    let mut answer = provisional;
    answer.timings.verify_us = now_ms.saturating_sub(answer.answered_at_ms).saturating_mul(1000);
    answer.stage = AnswerStage::Final;
    answer.answered_at_ms = now_ms;
    match verdict.opinion {
        Some(prediction) => {
            answer.route = if edge.is_some() { Route::Verified } else { Route::Redirected };
            answer.edge = edge;
            answer.with_prediction(prediction)
        }
        None => {
            answer.route = Route::Expired;
            answer.reason = Reason::VerifierRefused;
            answer.fault = verdict.fault;
            answer
        }
    }
}

/// The publication of a final answer, stored only if its slot is empty. Counts the answer.
pub fn publication(answer: &Answer) -> Result<Publication, Fault> {
    metrics::count_answer(&answer.site, answer.route, answer.reason);
    let slot = subject::outcome(&answer.site, &answer.camera, answer.task);
    Ok(Publication::first_on_subject(slot, encode(answer)?).header(HEADER_IMAGE, answer.image_sequence.to_string()))
}

//! Carries the cloud's verdicts to the site, where they become final answers.

use runtime::drift::{DriftSample, DriftWatch};
use runtime::handler::DeadLetterContext;
use runtime::ticket::TicketKey;
use runtime::{Fault, Handler, MessageCredit, OutgoingMessages, clock, traces};
use schemas::{FaultNote, Reason, Role, SiteName, Verdict, decode, predictions_agree};
use streams::reader::StoredMessage;
use streams::{Delivery, topology};

use crate::verdict_counter::VerdictCounter;

/// Carries verdicts of the cloud to the site.
pub(crate) struct VerdictCarrier {
    /// Site it works for.
    pub site: SiteName,
    /// Key by which the site recognizes its own requests.
    pub tickets: TicketKey,
    /// How often the cloud agrees with confident answers that were sampled.
    pub agreement: DriftWatch,
    /// How often it agrees with any answer.
    pub counter: VerdictCounter,
}

impl VerdictCarrier {
    /// Counts a verdict. For drift only one on a confident answer: those on doubtful answers say more about the doubt.
    fn compare(&self, verdict: &Verdict) {
        let (Some(edge), Some(prediction)) = (verdict.provisional.prediction(), &verdict.opinion) else { return };
        let is_agreed = predictions_agree(&edge, prediction);
        self.counter.add(&edge, verdict.provisional.reason, is_agreed);
        if verdict.provisional.reason != Reason::Sampled {
            return;
        }
        if !self.agreement.follows(&edge.release) {
            self.agreement.follow_release(&edge.release);
        }
        let agreement = Some(if is_agreed { 1.0 } else { 0.0 });
        self.agreement.add(&edge.release, DriftSample { agreement, ..DriftSample::default() });
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
        let final_answer = verdict.into_final_answer(clock::now_ms());
        Ok(OutgoingMessages { final_answer, ..OutgoingMessages::default() })
    }

    fn dead_letter(&self, message: &StoredMessage, _fault: &FaultNote) -> DeadLetterContext {
        let task = decode::<Verdict>(&message.payload).ok().map(|verdict| verdict.provisional.task);
        DeadLetterContext { site: self.site.clone(), task, publications: Vec::new() }
    }
}

//! A provisional answer promises a final one. Every promise is looked at until it is kept; at its
//! deadline the edge's answer becomes the final one (invariant 10).

use std::time::Duration;

use runtime::handler::DeadLetterContext;
use runtime::{Fault, Handler, MessageCredit, OutgoingMessages, clock};
use schemas::{Answer, AnswerStage, FaultNote, Reason, Role, Route, SiteName, decode};
use streams::reader::StoredMessage;
use streams::{Bus, Delivery, reader, subject, topology};

use crate::verdict_carrier::publication;

/// The first look comes when most verdicts are there already; a guess.
const FIRST_LOOK: Duration = Duration::from_secs(5);
const LONGEST_BETWEEN_LOOKS: Duration = Duration::from_secs(60);

/// Keeps promises.
pub struct DeadlineKeeper {
    /// The site.
    pub site: SiteName,
    /// Where its answers are.
    pub here: Bus,
}

impl Handler for DeadlineKeeper {
    const ROLE: Role = Role::Courier;
    const STREAM: &'static str = topology::ANSWERS;

    async fn handle(&self, delivery: &Delivery, _credit: &MessageCredit) -> Result<OutgoingMessages, Fault> {
        let provisional: Answer = decode(delivery.payload())?;
        // Nobody takes an outcome of another site here: it would be tried until its deadline and for ever after.
        if delivery.subject() != subject::provisional(&self.site, &provisional.camera) || provisional.site != self.site
        {
            let reason = format!(
                "a provisional answer on {} speaks of camera {} at site {}",
                delivery.subject(),
                provisional.camera,
                provisional.site
            );
            return Err(Fault::reject("answer_misdirected", reason, "only this site's recognizers publish there"));
        }
        let now_ms = clock::now_ms();
        let left_ms = provisional.deadline_at_ms.unwrap_or(0).saturating_sub(now_ms);
        let next = next_look(delivery.attempts, Duration::from_millis(left_ms));
        if delivery.attempts == 1 && left_ms > 0 {
            return Err(Fault::Wait { after: next });
        }
        let slot = subject::final_answer(&provisional.site, &provisional.camera, provisional.task);
        if reader::read_outcome(&self.here, &slot).await?.is_some() {
            return Ok(OutgoingMessages::default());
        }
        if left_ms > 0 {
            return Err(Fault::Wait { after: next });
        }
        Ok(OutgoingMessages::single(publication(&expired(provisional, now_ms))?))
    }

    fn dead_letter(&self, message: &StoredMessage, _fault: &FaultNote) -> DeadLetterContext {
        let task = decode::<Answer>(&message.payload).ok().map(|answer| answer.task);
        DeadLetterContext { site: self.site.clone(), task, publications: Vec::new() }
    }
}

/// When to look again: ever more rarely, but at the deadline. Pure.
fn next_look(attempts: u64, left: Duration) -> Duration {
    let grown = FIRST_LOOK.saturating_mul(u32::try_from(attempts).unwrap_or(u32::MAX));
    grown.min(LONGEST_BETWEEN_LOOKS).min(left.max(Duration::from_millis(1)))
}

/// The final answer of a task whose verdict did not come in time. Pure.
pub(crate) fn expired(provisional: Answer, now_ms: u64) -> Answer {
    let mut answer = provisional;
    answer.timings.verify_us = now_ms.saturating_sub(answer.answered_at_ms).saturating_mul(1000);
    answer.stage = AnswerStage::Final;
    answer.route = Route::Expired;
    answer.reason = Reason::DeadlinePassed;
    answer.answered_at_ms = now_ms;
    answer
}

/// The final answer of a task that could not be sent up. Pure.
pub(crate) fn refused(provisional: Answer, fault: FaultNote, now_ms: u64) -> Answer {
    let mut answer = expired(provisional, now_ms);
    answer.reason = Reason::VerifierRefused;
    answer.fault = Some(fault);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_promise_is_looked_at_later_than_its_deadline(attempts in 1u64.., left_ms in 1u64..10_000_000) {
            let left = Duration::from_millis(left_ms);
            let next = next_look(attempts, left);
            prop_assert!(next <= left);
            prop_assert!(next <= LONGEST_BETWEEN_LOOKS);
            prop_assert!(next > Duration::ZERO);
        }
    }
}

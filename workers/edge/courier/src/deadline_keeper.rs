//! Makes sure that every provisional answer is followed by a final one: at its deadline the site's own answer becomes
//! final (invariant 10).

use std::time::Duration;

use runtime::handler::DeadLetterContext;
use runtime::{Fault, Handler, MessageCredit, OutgoingMessages, clock};
use schemas::{Answer, FaultNote, Role, SiteName, decode};
use streams::reader::StoredMessage;
use streams::{Bus, Delivery, reader, subject, topology};

/// Delay of the first check, when most verdicts have arrived; a guess.
const FIRST_CHECK: Duration = Duration::from_secs(5);
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Keeps the deadlines of a site's provisional answers.
pub(crate) struct DeadlineKeeper {
    /// Site it works for.
    pub site: SiteName,
    /// Connection to the site's answers.
    pub here: Bus,
}

impl Handler for DeadlineKeeper {
    const ROLE: Role = Role::Courier;
    const STREAM: &'static str = topology::ANSWERS;

    async fn handle(&self, delivery: &Delivery, _credit: &MessageCredit) -> Result<OutgoingMessages, Fault> {
        let provisional: Answer = decode(delivery.payload())?;
        // No outcome of another site can be stored here, so the message would be retried for ever.
        if delivery.subject() != subject::provisional(&self.site, &provisional.camera) || provisional.site != self.site
        {
            let reason = format!(
                "a provisional answer on {} names camera {} at site {}",
                delivery.subject(),
                provisional.camera,
                provisional.site
            );
            return Err(Fault::reject("answer_misdirected", reason, "only this site's recognizers publish there"));
        }
        let now_ms = clock::now_ms();
        let left_ms = provisional.deadline_at_ms.unwrap_or(0).saturating_sub(now_ms);
        let next = next_check(delivery.attempts, Duration::from_millis(left_ms));
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
        Ok(OutgoingMessages::answer(provisional.expire(now_ms)))
    }

    fn dead_letter(&self, message: &StoredMessage, _fault: &FaultNote) -> DeadLetterContext {
        let task = decode::<Answer>(&message.payload).ok().map(|answer| answer.task);
        DeadLetterContext { site: self.site.clone(), task, publications: Vec::new() }
    }
}

/// Delay until the next check: longer each time, but not past the deadline. Pure.
fn next_check(attempts: u64, left: Duration) -> Duration {
    let grown = FIRST_CHECK.saturating_mul(u32::try_from(attempts).unwrap_or(u32::MAX));
    grown.min(MAX_CHECK_INTERVAL).min(left.max(Duration::from_millis(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_check_is_later_than_the_deadline(attempts in 1u64.., left_ms in 1u64..10_000_000) {
            let left = Duration::from_millis(left_ms);
            let next = next_check(attempts, left);
            prop_assert!(next <= left);
            prop_assert!(next <= MAX_CHECK_INTERVAL);
            prop_assert!(next > Duration::ZERO);
        }
    }
}

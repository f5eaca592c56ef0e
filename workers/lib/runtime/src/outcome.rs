//! Stores final answers. Only this module publishes to a task's slot, which keeps the first answer (invariant 2), so it
//! is where late answers are marked and counted, whoever gave them.

use std::borrow::Cow;
use std::sync::atomic::Ordering;

use schemas::task::HEADER_IMAGE;
use schemas::{Answer, encode};
use streams::{Publication, PublishOutcome, Publisher, reader, subject};

use crate::clock;
use crate::consumer::WorkerStats;
use crate::fault::{Fault, RETRY_DELAY};
use crate::metrics;
use crate::traces;

/// Number of tries to store an answer in a slot that was taken and then emptied.
const ATTEMPTS: u32 = 2;

/// What a task's slot holds after a try to store an answer.
#[derive(Debug)]
pub enum SlotContent {
    /// The given answer.
    ThisAnswer,
    /// Another answer, which came first.
    OtherAnswer(Box<Answer>),
}

/// Stores a final answer unless its slot is taken; says in it by how much it is late, and counts it in the metrics and
/// the worker's counters if it is stored.
///
/// # Errors
/// The answer could not be stored, or the slot could not be read.
pub async fn store_answer(publisher: &Publisher, answer: &Answer, stats: &WorkerStats) -> Result<SlotContent, Fault> {
    let span = traces::current();
    span.set_task_id(answer.task);
    for _ in 0..ATTEMPTS {
        let answer = with_lateness(answer, clock::now_ms());
        let publication = span.mark(publication(&answer)?);
        let is_stored = match publisher.publish(&publication).await? {
            PublishOutcome::Stored(_) | PublishOutcome::Duplicate(_) => true,
            PublishOutcome::Taken => {
                let slot = subject::final_answer(&answer.site, &answer.camera, answer.task);
                match reader::read_outcome(publisher.bus(), &slot).await? {
                    Some(outcome) => return Ok(SlotContent::OtherAnswer(Box::new(outcome))),
                    // The slot is empty again, as after a redrive removed a tombstone.
                    None => false,
                }
            }
        };
        if is_stored {
            metrics::count_answer(&answer.site, answer.route, answer.reason);
            if let Some(late_ms) = answer.late_ms {
                stats.late.fetch_add(1, Ordering::Relaxed);
                metrics::count_late_answer(&answer.site, answer.route);
                span.set_number("tributary.late_ms", late_ms);
            }
            span.set("tributary.route", &answer.route.as_str());
            span.set("tributary.reason", &answer.reason.as_str());
            return Ok(SlotContent::ThisAnswer);
        }
    }
    Err(Fault::Wait { after: RETRY_DELAY })
}

/// The answer as it is when it is given to the server now.
fn with_lateness(answer: &Answer, now_ms: u64) -> Cow<'_, Answer> {
    match answer.lateness_ms(now_ms) {
        None => Cow::Borrowed(answer),
        late_ms => Cow::Owned(Answer { late_ms, ..answer.clone() }),
    }
}

fn publication(answer: &Answer) -> Result<Publication, Fault> {
    let slot = subject::outcome(&answer.site, &answer.camera, answer.task);
    Ok(Publication::first_on_subject(slot, encode(answer)?).header(HEADER_IMAGE, answer.image_sequence.to_string()))
}

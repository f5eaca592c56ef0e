//! Stores final answers. Nothing else publishes to the slot of a task, which keeps the first answer (invariant 2).

use schemas::task::HEADER_IMAGE;
use schemas::{Answer, encode};
use streams::{Publication, PublishOutcome, Publisher, reader, subject};

use crate::fault::{Fault, RETRY_DELAY};
use crate::metrics;

/// How often an answer is offered to a slot that is taken and empty again.
const ATTEMPTS: u32 = 2;

/// What a task's slot holds after an answer was offered to it.
#[derive(Debug)]
pub enum SlotContent {
    /// That answer.
    ThisAnswer,
    /// Another one, which came first.
    OtherAnswer(Box<Answer>),
}

/// Stores a final answer unless its slot is taken, and counts it if it is stored.
///
/// # Errors
/// It could not be stored, or the slot could not be read.
pub async fn store_answer(publisher: &Publisher, answer: &Answer) -> Result<SlotContent, Fault> {
    let publication = publication(answer)?;
    for _ in 0..ATTEMPTS {
        let is_stored = match publisher.publish(&publication).await? {
            PublishOutcome::Stored(_) | PublishOutcome::Duplicate(_) => true,
            PublishOutcome::Taken => {
                let slot = subject::final_answer(&answer.site, &answer.camera, answer.task);
                match reader::read_outcome(publisher.bus(), &slot).await? {
                    Some(outcome) => return Ok(SlotContent::OtherAnswer(Box::new(outcome))),
                    // It is gone again, as a tombstone is after a redrive.
                    None => false,
                }
            }
        };
        if is_stored {
            metrics::count_answer(&answer.site, answer.route, answer.reason);
            return Ok(SlotContent::ThisAnswer);
        }
    }
    Err(Fault::Wait { after: RETRY_DELAY })
}

fn publication(answer: &Answer) -> Result<Publication, Fault> {
    let slot = subject::outcome(&answer.site, &answer.camera, answer.task);
    Ok(Publication::first_on_subject(slot, encode(answer)?).header(HEADER_IMAGE, answer.image_sequence.to_string()))
}

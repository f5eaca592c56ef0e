//! Stores final answers. Nothing else publishes to the slot of a task, which keeps the first answer (invariant 2).

use schemas::task::HEADER_IMAGE;
use schemas::{Answer, encode};
use streams::{Publication, PublishOutcome, Publisher, reader, subject};

use crate::fault::Fault;
use crate::metrics;

/// What a task's slot holds after an answer was offered to it.
#[derive(Debug)]
pub enum SlotContent {
    /// That answer.
    ThisAnswer,
    /// Another one, which came first.
    OtherAnswer(Box<Answer>),
    /// Nothing any more: an answer that came first was removed since, as a redrive does with a tombstone.
    Nothing,
}

/// Stores a final answer unless its slot is taken, and counts it if it is stored.
///
/// # Errors
/// It could not be stored, or the slot could not be read.
pub async fn store_answer(publisher: &Publisher, answer: &Answer) -> Result<SlotContent, Fault> {
    let content = match publisher.publish(&publication(answer)?).await? {
        PublishOutcome::Stored(_) | PublishOutcome::Duplicate(_) => SlotContent::ThisAnswer,
        PublishOutcome::Taken => {
            let slot = subject::final_answer(&answer.site, &answer.camera, answer.task);
            match reader::read_outcome(publisher.bus(), &slot).await? {
                // Stored by an attempt whose acknowledgement was lost.
                Some(outcome) if outcome == *answer => SlotContent::ThisAnswer,
                Some(outcome) => SlotContent::OtherAnswer(Box::new(outcome)),
                None => SlotContent::Nothing,
            }
        }
    };
    if matches!(content, SlotContent::ThisAnswer) {
        metrics::count_answer(&answer.site, answer.route, answer.reason);
    }
    Ok(content)
}

fn publication(answer: &Answer) -> Result<Publication, Fault> {
    let slot = subject::outcome(&answer.site, &answer.camera, answer.task);
    Ok(Publication::first_on_subject(slot, encode(answer)?).header(HEADER_IMAGE, answer.image_sequence.to_string()))
}

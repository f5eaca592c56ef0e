//! Redrives a dead letter on request: its message is published again, and the tombstone is removed
//! for a new outcome.

use runtime::Fault;
use schemas::{BlobRef, DeadLetter, Route, TaskId, decode};
use streams::reader::{self, StoredMessage, StreamRange};
use streams::{Bus, Publisher, subject, topology};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::audit::republication;

/// Every dead letter of a JetStream domain, oldest first, with its sequence in the stream.
pub async fn letters(bus: &Bus) -> Result<Vec<(u64, DeadLetter)>, Fault> {
    let level = reader::stream_level(bus, topology::DEAD).await?;
    let mut letters = Vec::new();
    if level.messages == 0 {
        return Ok(letters);
    }
    reader::read_range(bus, topology::DEAD, StreamRange::default(), level.last_sequence, |record: StoredMessage| {
        match decode::<DeadLetter>(&record.payload) {
            Ok(letter) => letters.push((record.sequence, letter)),
            Err(error) => tracing::warn!(sequence = record.sequence, %error, "dead letter unreadable"),
        }
    })
    .await?;
    Ok(letters)
}

/// Publishes a dead letter's message again and removes the dead letter. After an interruption at any point, it can be
/// repeated.
pub async fn redrive_letter(bus: &Bus, publisher: &Publisher, sequence: u64, letter: &DeadLetter) -> Result<(), Fault> {
    if !subject::may_be_redelivered(&letter.stream, &letter.site, &letter.subject) {
        let to: String = letter.subject.chars().take(100).collect();
        let reason = format!("a dead letter from {} may not be published again on {to:?}", letter.stream);
        return Err(Fault::reject(
            "letter_misaddressed",
            reason,
            "if it is what you want, publish its message by hand",
        ));
    }
    let task = letter.task.unwrap_or_else(|| TaskId::from_name(&format!("{}/{}", letter.subject, letter.sequence)));
    if let (true, Ok((site, camera))) = (letter.stream == topology::IMAGES, subject::read_image(&letter.subject)) {
        let slot = subject::final_answer(&site, &camera, task);
        if reader::read_outcome(bus, &slot).await?.is_some_and(|outcome| outcome.route == Route::Dead) {
            reader::purge_subject(bus, topology::ANSWERS, &slot).await?;
        }
    }
    let payload = full_payload(bus, letter).await?;
    let headers = letter.headers.iter().map(|(name, value)| (name.clone(), value.clone()));
    // The dead letter's own sequence is part of the id, so that a message that fails again can be redriven again.
    let publication = republication(letter.subject.clone(), payload, headers, task, sequence);
    publisher.publish(&publication).await?;
    Ok(reader::delete_message(bus, topology::DEAD, sequence).await?)
}

/// The whole payload of a dead letter's message; a large one is only in its original stream.
///
/// # Errors
/// The message is no longer there.
pub async fn full_payload(bus: &Bus, letter: &DeadLetter) -> Result<Bytes, Fault> {
    let Some(cut) = &letter.cut else { return Ok(letter.payload.clone().into()) };
    let record = reader::message_at(bus, &letter.stream, letter.sequence).await?;
    let is_whole = |payload: &Bytes| BlobRef::new(Sha256::digest(payload).into(), cut.size_bytes).sha256 == cut.sha256;
    record.map(|record| record.payload).filter(is_whole).ok_or_else(|| {
        let reason = format!(
            "the dead letter keeps only the beginning of a message of {} bytes, and message {} of {} no longer exists",
            cut.size_bytes, letter.sequence, letter.stream
        );
        Fault::reject("letter_cut", reason, "publish the image again")
    })
}

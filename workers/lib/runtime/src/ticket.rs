//! Tickets, so that a site accepts only verdicts it asked for: each request carries a ticket that only the site can
//! make, and the verdict returns it; one without a ticket, or with that of another task, is refused.

use ring::hmac;
use schemas::Answer;
use streams::fleet::Ledger;
use streams::{Bus, CarryError};

/// Key of the ledger note with the secret.
const NOTE: &str = "ticket-secret";

/// The key that tickets are made with: a secret of the site's workers. Cheap to clone.
#[derive(Clone)]
pub struct TicketKey(hmac::Key);

impl TicketKey {
    /// The key in the site's ledger; the first worker creates it.
    ///
    /// # Errors
    /// The ledger is unavailable, or the system provides no random numbers.
    pub async fn open(bus: &Bus) -> Result<Self, CarryError> {
        let ledger = Ledger::open(bus).await?;
        let fresh = streams::server::new_password().map_err(CarryError::no_random)?;
        ledger.update_note(NOTE, |secret| secret.map_or_else(|| fresh.clone(), str::to_owned)).await?;
        let secret = ledger.read(NOTE).await?.unwrap_or(fresh);
        Ok(Self::of(&secret))
    }

    /// The key of a secret.
    pub fn of(secret: &str) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()))
    }

    /// The ticket of a request about this answer: HMAC-SHA256 (RFC 2104) of task, site, camera and image, 32 bytes.
    pub fn sign(&self, about: &Answer) -> Vec<u8> {
        hmac::sign(&self.0, &signed_content(about)).as_ref().to_vec()
    }

    /// Whether a ticket belongs to a request about this answer; takes the same time for every invalid ticket.
    pub fn verify(&self, about: &Answer, ticket: &[u8]) -> bool {
        hmac::verify(&self.0, &signed_content(about), ticket).is_ok()
    }
}

/// What a ticket covers. Names contain no zero bytes.
fn signed_content(about: &Answer) -> Vec<u8> {
    format!("{}\0{}\0{}\0{}", about.task, about.site, about.camera, about.image_sequence).into_bytes()
}

#[cfg(test)]
mod tests {
    use schemas::{AnswerStage, Reason, Route, Task, TaskId};

    use super::*;

    #[test]
    fn a_ticket_is_valid_only_for_its_task_and_its_site() {
        let key = TicketKey::of("secret");
        let about = |task| {
            let stored = schemas::task::StorageStamp {
                site: "reef".parse().unwrap(),
                camera: "cam-1".parse().unwrap(),
                sequence: 7,
                stored_at_ns: 0,
            };
            Answer::for_task(
                &Task::from_id(&stored, task),
                AnswerStage::Provisional,
                Route::Edge,
                Reason::LowConfidence,
                0,
            )
        };
        let (asked, other) = (about(TaskId::new_random()), about(TaskId::new_random()));
        let ticket = key.sign(&asked);
        assert!(key.verify(&asked, &ticket));
        assert!(!key.verify(&other, &ticket) && !key.verify(&asked, &[]) && !key.verify(&asked, &ticket[..16]));
        assert!(!TicketKey::of("another").verify(&asked, &ticket));
    }
}

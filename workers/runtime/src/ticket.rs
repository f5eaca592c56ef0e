//! A site takes from the cloud what it asked for, and nothing else: each request carries a ticket that only the site can
//! make, the verdict brings it back, and what has none, or another task's, is not believed.

use ring::hmac;
use schemas::Answer;
use streams::fleet::Ledger;
use streams::{Bus, CarryError};

/// The site's note of the secret.
const NOTE: &str = "ticket-secret";

/// What tickets are made with: a secret of the site's workers. Cheap to clone.
#[derive(Clone)]
pub struct TicketKey(hmac::Key);

impl TicketKey {
    /// The secret that stands in the site's ledger; made by whoever comes first.
    ///
    /// # Errors
    /// That the ledger is away, or the system has no random numbers.
    pub async fn open(bus: &Bus) -> Result<Self, CarryError> {
        let ledger = Ledger::open(bus).await?;
        let fresh = streams::server::new_password().map_err(CarryError::no_random)?;
        ledger.update_note(NOTE, |secret| secret.map_or_else(|| fresh.clone(), str::to_owned)).await?;
        let secret = ledger.read(NOTE).await?.unwrap_or(fresh);
        Ok(Self::of(&secret))
    }

    /// Of a secret.
    pub fn of(secret: &str) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()))
    }

    /// The ticket of a request about this answer: HMAC-SHA256 (RFC 2104) of task, camera and image, 32 bytes.
    pub fn sign(&self, about: &Answer) -> Vec<u8> {
        hmac::sign(&self.0, &meant(about)).as_ref().to_vec()
    }

    /// Whether a ticket is that of a request about this answer; takes the same time whatever is wrong with it.
    pub fn verify(&self, about: &Answer, ticket: &[u8]) -> bool {
        hmac::verify(&self.0, &meant(about), ticket).is_ok()
    }
}

/// What a ticket is for. Names have no zero bytes.
fn meant(about: &Answer) -> Vec<u8> {
    format!("{}\0{}\0{}\0{}", about.task, about.site, about.camera, about.image_sequence).into_bytes()
}

#[cfg(test)]
mod tests {
    use schemas::{AnswerStage, Reason, Route, Task, TaskId};

    use super::*;

    #[test]
    fn a_ticket_is_good_for_its_own_task_and_from_its_own_site() {
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

//! From the cloud's word to a note at the site: what sites are asked to learn from ([`Rounds`]), and what they shall run
//! ([`Orders`]), each with the blobs it names, so that the site has them when the link is away. A blob that is here already
//! is not brought again: a package that was cut off goes on with the piece it stopped at.

use runtime::handler::DeadLetterContext;
use runtime::trust::TrustError;
use runtime::{Fault, Handler, MessageCredit, OutgoingMessages};
use schemas::limits::{MAX_WEIGHTS_BYTES, PIECE_BYTES};
use schemas::task::HEADER_BLOB;
use schemas::{BlobRef, FaultNote, Order, Role, Round, RoundEvent, SiteName, decode};
use streams::fleet::Ledger;
use streams::reader::StoredMessage;
use streams::{Blobs, Delivery, Publication, subject, topology};

use crate::trust_anchor::TrustAnchor;

/// Orders and rounds are numbered one after another; a site that was away for long finds one that is so much higher at
/// the most.
const MOST_AHEAD: u64 = 100_000;
/// How often the blobs that a note names are looked for, two seconds apart.
const TRIES: u64 = 15;

/// Carries notes.
#[derive(Clone)]
pub struct NoteCarrier {
    /// The site.
    pub site: SiteName,
    /// Whom it obeys.
    pub trusted: TrustAnchor,
    /// The site's own notes.
    pub ledger: Ledger,
    /// The site's own bucket.
    pub here: Blobs,
    /// What the cloud offers.
    pub cloud: Blobs,
}

impl NoteCarrier {
    /// Brings blobs, each of so many bytes at the most; one that is here is not brought again.
    async fn bring_all(&self, blobs: &[BlobRef], most_bytes: u64) -> Result<(), Fault> {
        for blob in blobs {
            self.cloud.copy_to(&self.here, blob, most_bytes).await?;
        }
        Ok(())
    }

    /// Writes what came under a key of the site's ledger, after the blobs it names are here. The key is the kind's and the
    /// model's: a message of the cloud does not choose any.
    async fn carry(
        &self,
        delivery: &Delivery,
        key: &str,
        blobs: &[BlobRef],
        most_bytes: u64,
    ) -> Result<OutgoingMessages, Fault> {
        // The cloud says whether it offers them; what runs here already need not come again.
        if delivery.header(HEADER_BLOB).is_some() {
            match self.bring_all(blobs, most_bytes).await {
                Ok(()) => {}
                // It is over, most likely: the site cannot take part, and others can. Or it is not offered again yet.
                Err(Fault::Reject(note)) if delivery.attempts < TRIES => {
                    return Err(Fault::retry(note.kind, note.reason));
                }
                Err(Fault::Reject(note)) => {
                    let (fault, reason) = (note.kind.as_str(), note.reason);
                    tracing::warn!(
                        role = ROLE.as_str(),
                        subject = delivery.subject(),
                        fault,
                        reason,
                        "a note without its blobs"
                    );
                    return Ok(OutgoingMessages::default());
                }
                Err(fault) => return Err(fault),
            }
        }
        // Written each time it comes: what is written is the same.
        let (subject, payload) = (subject::note_subject(key), delivery.payload().clone());
        Ok(OutgoingMessages::single(Publication { subject, payload, headers: Vec::new(), first_only: false }))
    }

    /// Whether a number may come after the one that is noted: the first may be any below the bound.
    fn check_number(noted: Option<u64>, number: u64) -> Result<(), Fault> {
        let noted = noted.unwrap_or(0);
        if number <= noted.saturating_add(MOST_AHEAD) {
            return Ok(());
        }
        let reason = format!("it has number {number}, and the one before it had {noted}: after it none would count");
        Err(Fault::reject("note_far_ahead", reason, "look for who published it in the cloud"))
    }

    /// A message that is not what its subject says.
    fn misdirected(delivery: &Delivery, wanted: &str) -> Fault {
        let reason = format!("it came on {}, and says what belongs on {wanted}", delivery.subject());
        Fault::reject("note_misdirected", reason, "look for who published it in the cloud")
    }

    fn burial(&self) -> DeadLetterContext {
        DeadLetterContext { site: self.site.clone(), task: None, publications: Vec::new() }
    }
}

const ROLE: Role = Role::Courier;

/// Rounds that are opened.
pub struct RoundNotes(pub NoteCarrier);

impl Handler for RoundNotes {
    const ROLE: Role = ROLE;
    const STREAM: &'static str = topology::UPDATES;

    async fn handle(&self, delivery: &Delivery, _credit: &MessageCredit) -> Result<OutgoingMessages, Fault> {
        let round: Round = decode(delivery.payload())?;
        self.0.trusted.check(&round)?;
        let Round { model, number, event, .. } = round;
        let wanted = subject::round(&model, number, &event.slot());
        match event {
            RoundEvent::Opened(terms) if wanted == delivery.subject() => {
                let noted = self.0.ledger.read_message::<Round>(&subject::round_note(&model)).await;
                NoteCarrier::check_number(noted.ok().flatten().map(|noted| noted.number), number)?;
                let blobs: Vec<BlobRef> = terms.weights.into_iter().collect();
                self.0.carry(delivery, &subject::round_note(&model), &blobs, MAX_WEIGHTS_BYTES).await
            }
            _ => Err(NoteCarrier::misdirected(delivery, &wanted)),
        }
    }

    fn dead_letter(&self, _message: &StoredMessage, _fault: &FaultNote) -> DeadLetterContext {
        self.0.burial()
    }
}

/// What the site shall run.
pub struct OrderNotes(pub NoteCarrier);

impl Handler for OrderNotes {
    const ROLE: Role = ROLE;
    const STREAM: &'static str = topology::ORDERS;

    async fn handle(&self, delivery: &Delivery, _credit: &MessageCredit) -> Result<OutgoingMessages, Fault> {
        let order: Order = decode(delivery.payload())?;
        self.0.trusted.check(&order)?;
        let Order { site, model, release, number, .. } = order;
        let wanted = subject::order(&site, &model);
        if site != self.0.site || wanted != delivery.subject() {
            return Err(NoteCarrier::misdirected(delivery, &wanted));
        }
        let noted = self.0.ledger.read_message::<Order>(&subject::order_note(&model)).await;
        let noted = noted.ok().flatten().map(|noted| noted.number);
        NoteCarrier::check_number(noted, number)?;
        // One that comes late, or again: what was ordered since holds.
        if noted.is_some_and(|noted| number < noted) {
            let older = TrustError::Older { found: number, known: noted.unwrap_or(0) };
            return Err(Fault::reject(
                older.name(),
                older,
                "nothing, where two releasers run; else look who published it",
            ));
        }
        self.0.carry(delivery, &subject::order_note(&model), &release.package, PIECE_BYTES as u64).await
    }

    fn dead_letter(&self, _message: &StoredMessage, _fault: &FaultNote) -> DeadLetterContext {
        self.0.burial()
    }
}

//! Turns messages of the cloud into notes at the site: rounds to take part in ([`RoundNotes`]) and orders
//! ([`OrderNotes`]), each with the blobs it names, so that the site has them when the link is down. Blobs that are here
//! already are not fetched again: an interrupted package continues at the piece where it stopped.

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

/// Orders and rounds are numbered consecutively; for a site that was away for long, the next number may be this much
/// higher at most.
const MAX_AHEAD: u64 = 100_000;
/// Attempts to fetch the blobs of a note, two seconds apart.
const TRIES: u64 = 15;

/// Carries notes of the cloud to the site.
#[derive(Clone)]
pub(crate) struct NoteCarrier {
    /// Site it works for.
    pub site: SiteName,
    /// The root that the site trusts.
    pub trusted: TrustAnchor,
    /// The site's ledger.
    pub ledger: Ledger,
    /// The site's bucket.
    pub here: Blobs,
    /// The cloud's bucket of packages and weights.
    pub cloud: Blobs,
}

impl NoteCarrier {
    /// Fetches blobs of at most `most_bytes` each, unless they are here already.
    async fn fetch_blobs(&self, blobs: &[BlobRef], most_bytes: u64) -> Result<(), Fault> {
        for blob in blobs {
            self.cloud.copy_to(&self.here, blob, most_bytes).await?;
        }
        Ok(())
    }

    /// Writes a message to the site's ledger, after the blobs it names were fetched. The key is made from its kind and
    /// model, so that a message of the cloud cannot choose another one.
    async fn carry(
        &self,
        delivery: &Delivery,
        key: &str,
        blobs: &[BlobRef],
        most_bytes: u64,
    ) -> Result<OutgoingMessages, Fault> {
        // The header says whether the cloud offers the blobs; a release that runs here already needs none.
        if delivery.header(HEADER_BLOB).is_some() {
            match self.fetch_blobs(blobs, most_bytes).await {
                Ok(()) => {}
                // Most likely the round is over, so the site cannot take part. Or the blobs are not offered again yet.
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
                        "blobs of a note missing; note skipped"
                    );
                    return Ok(OutgoingMessages::default());
                }
                Err(fault) => return Err(fault),
            }
        }
        // Written at each delivery; the content is the same.
        let (subject, payload) = (subject::note_subject(key), delivery.payload().clone());
        Ok(OutgoingMessages::single(Publication { subject, payload, headers: Vec::new(), first_only: false }))
    }

    /// Checks that a number may follow the noted one: it must not be implausibly high.
    fn check_number(noted: Option<u64>, number: u64) -> Result<(), Fault> {
        let noted = noted.unwrap_or(0);
        if number <= noted.saturating_add(MAX_AHEAD) {
            return Ok(());
        }
        let reason = format!(
            "it has number {number} although the previous one had {noted}; if accepted, no later one would count"
        );
        Err(Fault::reject("note_far_ahead", reason, "find out who published it in the cloud"))
    }

    /// The fault of a message whose contents do not match its subject.
    fn misdirected(delivery: &Delivery, wanted: &str) -> Fault {
        let reason = format!("it arrived on {}, but its contents belong on {wanted}", delivery.subject());
        Fault::reject("note_misdirected", reason, "find out who published it in the cloud")
    }

    fn context(&self) -> DeadLetterContext {
        DeadLetterContext { site: self.site.clone(), task: None, publications: Vec::new() }
    }
}

const ROLE: Role = Role::Courier;

/// Carries the openings of rounds.
pub(crate) struct RoundNotes(pub NoteCarrier);

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
        self.0.context()
    }
}

/// Carries the orders to the site.
pub(crate) struct OrderNotes(pub NoteCarrier);

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
        // An order that arrives late or again: the later one is in effect.
        if noted.is_some_and(|noted| number < noted) {
            let older = TrustError::Older { found: number, known: noted.unwrap_or(0) };
            return Err(Fault::reject(
                older.name(),
                older,
                "none needed if two releasers run; otherwise find out who published it",
            ));
        }
        self.0.carry(delivery, &subject::order_note(&model), &release.package, PIECE_BYTES as u64).await
    }

    fn dead_letter(&self, _message: &StoredMessage, _fault: &FaultNote) -> DeadLetterContext {
        self.0.context()
    }
}

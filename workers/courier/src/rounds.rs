//! From the cloud's rounds to a note at the site: what sites are asked to learn from, and the weights it starts with, so
//! that the site has them when the link is away.

use runtime::step::Burial;
use runtime::{Credit, Fault, Outgoing, Step};
use schemas::blob::BlobRefError;
use schemas::limits::MAX_WEIGHTS_BYTES;
use schemas::task::{HEADER_BLOB, HEADER_TO};
use schemas::{BlobRef, FaultNote, SiteName};
use streams::{Blobs, Delivery, Publication, subject, topology};

/// How often the weights that a round starts with are looked for, two seconds apart.
const BASE_TRIES: u64 = 15;

/// Carries rounds.
pub struct Rounds {
    /// The site.
    pub site: SiteName,
    /// The site's own bucket.
    pub here: Blobs,
    /// The cloud's.
    pub cloud: Blobs,
}

impl Rounds {
    /// Brings the weights that a round starts with.
    async fn bring(&self, blob: &str) -> Result<(), Fault> {
        let unreadable =
            |error| Fault::reject("round_unreadable", error, "run the same release of tributary on both sides");
        let blob: BlobRef = blob.parse().map_err(|error: BlobRefError| unreadable(error))?;
        let bytes = self.cloud.fetch(&blob, MAX_WEIGHTS_BYTES).await?;
        self.here.store(&bytes).await?;
        Ok(())
    }
}

impl Step for Rounds {
    const ROLE: &'static str = "courier";
    const STREAM: &'static str = topology::UPDATES;

    async fn handle(&self, delivery: &Delivery, _credit: &Credit) -> Result<Outgoing, Fault> {
        let to = delivery.header(HEADER_TO).unwrap_or_default();
        // Nothing but notes: a message of the cloud does not choose any subject of the site.
        if !subject::is_note(to) {
            tracing::warn!(role = Self::ROLE, subject = delivery.subject(), to, "a round for nobody, passed over");
            return Ok(Outgoing::default());
        }
        if let Some(blob) = delivery.header(HEADER_BLOB) {
            match self.bring(blob).await {
                Ok(()) => {}
                // A round that is over, most likely: the site cannot take part, and others can.
                // Or the aggregator has not offered its base again yet.
                Err(Fault::Reject(note)) if delivery.attempts < BASE_TRIES => {
                    return Err(Fault::retry(&note.name, note.reason));
                }
                Err(Fault::Reject(note)) => {
                    tracing::warn!(
                        role = Self::ROLE,
                        fault = note.name,
                        reason = note.reason,
                        "a round without its base"
                    );
                    return Ok(Outgoing::default());
                }
                Err(fault) => return Err(fault),
            }
        }
        // Written each time it comes: what is written is the same.
        let (subject, payload) = (to.to_owned(), delivery.payload().clone());
        Ok(Outgoing::one(Publication { subject, payload, headers: Vec::new(), first_only: false }))
    }

    fn bury(&self, _delivery: &Delivery, _fault: &FaultNote) -> Burial {
        Burial { site: self.site.clone(), task: None, publications: Vec::new() }
    }
}

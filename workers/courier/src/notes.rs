//! From the cloud's word to a note at the site: what sites are asked to learn from ([`Rounds`]), and what they shall run
//! ([`Orders`]), each with the blobs it names, so that the site has them when the link is away. A blob that is here already
//! is not brought again: a package that was cut off goes on with the piece it stopped at.

use runtime::step::Burial;
use runtime::{Credit, Fault, Outgoing, Step};
use schemas::blob::BlobRefError;
use schemas::limits::MAX_WEIGHTS_BYTES;
use schemas::task::{HEADER_BLOB, HEADER_TO};
use schemas::{BlobRef, FaultNote, SiteName};
use streams::read::Record;
use streams::{Blobs, Delivery, Publication, subject, topology};

/// How often the blobs that a note names are looked for, two seconds apart.
const TRIES: u64 = 15;

/// Carries notes.
#[derive(Clone)]
pub struct Notes {
    /// The site.
    pub site: SiteName,
    /// The site's own bucket.
    pub here: Blobs,
    /// The cloud's.
    pub cloud: Blobs,
}

impl Notes {
    async fn bring(&self, blob: &str) -> Result<(), Fault> {
        let unreadable =
            |error| Fault::reject("note_unreadable", error, "run the same release of tributary on both sides");
        let blob: BlobRef = blob.parse().map_err(|error: BlobRefError| unreadable(error))?;
        if self.here.has(&blob).await? {
            return Ok(());
        }
        let bytes = self.cloud.fetch(&blob, MAX_WEIGHTS_BYTES).await?;
        self.here.store(&bytes).await?;
        Ok(())
    }

    async fn bring_all(&self, blobs: &str) -> Result<(), Fault> {
        for blob in blobs.split(',') {
            self.bring(blob).await?;
        }
        Ok(())
    }

    async fn carry(&self, delivery: &Delivery) -> Result<Outgoing, Fault> {
        let to = delivery.header(HEADER_TO).unwrap_or_default();
        // Nothing but notes: a message of the cloud does not choose any subject of the site.
        if !subject::is_note(to) {
            tracing::warn!(role = ROLE, subject = delivery.subject(), to, "a note for nobody, passed over");
            return Ok(Outgoing::default());
        }
        if let Some(blobs) = delivery.header(HEADER_BLOB) {
            match self.bring_all(blobs).await {
                Ok(()) => {}
                // It is over, most likely: the site cannot take part, and others can. Or it is not offered again yet.
                Err(Fault::Reject(note)) if delivery.attempts < TRIES => {
                    return Err(Fault::retry(&note.name, note.reason));
                }
                Err(Fault::Reject(note)) => {
                    let (fault, reason) = (note.name, note.reason);
                    tracing::warn!(
                        role = ROLE,
                        subject = delivery.subject(),
                        fault,
                        reason,
                        "a note without its blobs"
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

    fn burial(&self) -> Burial {
        Burial { site: self.site.clone(), task: None, publications: Vec::new() }
    }
}

const ROLE: &str = "courier";

/// Rounds that are opened.
pub struct Rounds(pub Notes);

impl Step for Rounds {
    const ROLE: &'static str = ROLE;
    const STREAM: &'static str = topology::UPDATES;

    async fn handle(&self, delivery: &Delivery, _credit: &Credit) -> Result<Outgoing, Fault> {
        self.0.carry(delivery).await
    }

    fn bury(&self, _message: &Record, _fault: &FaultNote) -> Burial {
        self.0.burial()
    }
}

/// What the site shall run.
pub struct Orders(pub Notes);

impl Step for Orders {
    const ROLE: &'static str = ROLE;
    const STREAM: &'static str = topology::ORDERS;

    async fn handle(&self, delivery: &Delivery, _credit: &Credit) -> Result<Outgoing, Fault> {
        self.0.carry(delivery).await
    }

    fn bury(&self, _message: &Record, _fault: &FaultNote) -> Burial {
        self.0.burial()
    }
}

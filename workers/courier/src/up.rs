//! From the outbox to the cloud: a message leaves the site's stream only when the cloud's has it.

use runtime::step::Burial;
use runtime::{Fault, Outgoing, Step, clock};
use schemas::limits::MAX_IMAGE_BYTES;
use schemas::{FaultNote, Payload, SiteName, Verify, decode};
use streams::{Blobs, Bus, Delivery, Publication, subject, topology};

use crate::down::publication;
use crate::link::Link;
use crate::promise;

/// Carries what waits in the outbox.
pub struct Up {
    /// The site.
    pub site: SiteName,
    /// Where large images are.
    pub here: Blobs,
    /// The cloud, where they must be before their message.
    pub cloud: Bus,
    /// Whether it answers.
    pub link: Link,
}

impl Step for Up {
    const ROLE: &'static str = "courier";
    const STREAM: &'static str = topology::OUTBOX;

    async fn handle(&self, delivery: &Delivery) -> Result<Outgoing, Fault> {
        let request: Verify = decode(delivery.payload())?;
        let about = &request.provisional;
        let expired = |now_ms: u64| about.deadline_at_ms.is_some_and(|deadline_at_ms| deadline_at_ms <= now_ms);
        if !expired(clock::now_ms()) {
            self.link.up().await;
        }
        let now_ms = clock::now_ms();
        if expired(now_ms) {
            // Its promise says the same, unless it was dropped for room; the slot takes one of the two.
            return Ok(Outgoing::one(publication(&promise::expired(about.clone(), now_ms))?));
        }
        if let Payload::Blob(blob) = &request.payload {
            let bytes = self.here.fetch(blob, MAX_IMAGE_BYTES).await?;
            Blobs::open_in_cloud(&self.cloud).await?.store(&bytes).await?;
        }
        // The outbox's own sequence is part of the id: whatever is put there anew is sent anew. So is
        // the site: another's task of the same id is another task to the cloud.
        let id = about.task.child(&format!("up-{}-{}", about.site, delivery.sequence)).to_string();
        let subject = subject::verify(request.reason, &about.site, &about.camera);
        Ok(Outgoing::one(Publication::with_id(subject, delivery.payload().clone(), id)))
    }

    fn bury(&self, delivery: &Delivery, _fault: &FaultNote) -> Burial {
        let task = decode::<Verify>(delivery.payload()).ok().map(|request| request.provisional.task);
        Burial { site: self.site.clone(), task, publications: Vec::new() }
    }
}

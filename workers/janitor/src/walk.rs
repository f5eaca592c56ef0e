//! The janitor's round: look after the archive, and after every restart of the server audit it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use runtime::drive::Tally;
use runtime::{Fault, Shutdown, beat};
use schemas::SiteName;
use streams::fleet::Ledger;
use streams::{Bus, Publisher, read, topology};

use crate::audit::{self, Suspect};
use crate::purge::purge_before;
use crate::settings::JanitorSettings;

const ROLE: &str = "janitor";
const PATIENCE: Duration = Duration::from_secs(10);
/// The note that says which server process was audited last.
const AUDITED: &str = "audited";

/// Runs a site's janitor until it is told to stop.
pub async fn run(
    bus: Bus,
    site: SiteName,
    settings: &JanitorSettings,
    ack_wait: Duration,
    shutdown: Shutdown,
) -> Result<(), Fault> {
    let tally = Arc::new(Tally::default());
    let pulse = beat::Pulse::default();
    let life = beat::beat(bus.clone(), ROLE, Some(site.clone()), tally.clone(), shutdown.clone(), pulse, |_| {});
    let rounds = async {
        let publisher = Publisher::new(bus.clone(), PATIENCE);
        let mut janitor = Janitor { bus: &bus, site: &site, settings, ack_wait, publisher, audit: None, tally: &tally };
        loop {
            if let Err(error) = janitor.round().await {
                tracing::warn!(?error, "this round failed, the next one comes");
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(settings.every_s)) => {}
                () = shutdown.wanted() => break,
            }
        }
    };
    tracing::info!(role = ROLE, "started");
    tokio::join!(rounds, life);
    tracing::info!(role = ROLE, "stopped");
    Ok(())
}

struct Janitor<'a> {
    bus: &'a Bus,
    site: &'a SiteName,
    settings: &'a JanitorSettings,
    ack_wait: Duration,
    publisher: Publisher,
    audit: Option<Audit>,
    tally: &'a Tally,
}

/// An audit under way: of which server process, and what is still open.
struct Audit {
    server: String,
    suspects: Vec<Suspect>,
    look_again_at: tokio::time::Instant,
}

impl Janitor<'_> {
    async fn round(&mut self) -> Result<(), Fault> {
        self.audit().await?;
        let images = read::level(self.bus, topology::IMAGES).await?;
        let recognized = read::progress(self.bus, topology::IMAGES, topology::RECOGNIZER).await?;
        if let Some(before) = purge_before(&images, &recognized, self.settings) {
            let purged = read::purge_before(self.bus, topology::IMAGES, before).await?;
            tracing::info!(purged, before, "answered images made way");
            self.tally.finished.fetch_add(purged, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn audit(&mut self) -> Result<(), Fault> {
        let server = self.bus.server_id();
        let Some(audit) = self.audit.take_if(|audit| audit.server == server) else {
            let ledger = Ledger::open(self.bus).await?;
            if self.audit.is_some() || ledger.read(AUDITED).await?.as_deref() != Some(server.as_str()) {
                let suspects = audit::suspects(self.bus, self.site).await?;
                tracing::info!(suspects = suspects.len(), "the server is a new process: its archive is audited");
                let look_again_at = tokio::time::Instant::now() + audit::patience(self.ack_wait);
                self.audit = Some(Audit { server, suspects, look_again_at });
            }
            return Ok(());
        };
        if tokio::time::Instant::now() < audit.look_again_at {
            self.audit = Some(audit);
            return Ok(());
        }
        let (suspects, redone) = audit::redo(self.bus, &self.publisher, audit.suspects).await?;
        self.tally.finished.fetch_add(redone, Ordering::Relaxed);
        if suspects.is_empty() {
            Ledger::open(self.bus).await?.write(AUDITED, server).await?;
            tracing::info!(redone, "audit done");
        } else {
            self.audit = Some(Audit { suspects, ..audit });
        }
        Ok(())
    }
}

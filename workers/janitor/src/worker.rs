//! The janitor's round: hold outcomes against images, look after the archive, the disk and the buckets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runtime::consumer::WorkerStats;
use runtime::{Fault, Shutdown, clock, heartbeat};
use schemas::{FaultNote, OutcomeReport, Role, SiteName};
use streams::checkup::Checkup;
use streams::reader::{self, ConsumerProgress, StreamLevel};
use streams::{Bus, Publisher, blob_sweep, image_refusal, monitor, server, topology};
use tokio::time::Instant;

use crate::audit::{self, AuditOutcome, OutcomeAudit};
use crate::disk;
use crate::outcomes::outrun;
use crate::purge::purge_before;
use crate::refused;
use crate::settings::JanitorSettings;

const ROLE: Role = Role::Janitor;
const PATIENCE: Duration = Duration::from_secs(10);
/// An image that was acknowledged has its outcome already; it seems to have none for as long as its answer is
/// under way to the stream, or to us.
const PATIENCE_WITH_ANSWERS: Duration = Duration::from_secs(8);
/// Images looked at closely in one round.
const MOST_AT_ONCE: usize = 1000;
/// How often it is looked whether there is room on the disk.
const LOOK_AT_DISK_EVERY: Duration = Duration::from_secs(1);
/// How often it looks whether streams, consumers and the link are as they should be.
const CHECK_EVERY: Duration = Duration::from_secs(15);
/// How often it is looked for pieces of blobs that nobody finished, and how old they must be: an upload takes minutes.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
const UNFINISHED_AFTER: Duration = Duration::from_secs(3600);

/// Runs a site's janitor until it is told to stop.
/// `cloud`: the cloud over the leaf link and its JetStream domain, where it is another.
pub async fn run(
    bus: Bus,
    site: SiteName,
    settings: &JanitorSettings,
    cloud: Option<(Bus, String)>,
    shutdown: Shutdown,
) -> Result<(), Fault> {
    let tally = Arc::new(WorkerStats::default());
    let report = Mutex::new(OutcomeReport::default());
    let faults = Mutex::new(Vec::new());
    let pulse = heartbeat::HeartbeatPace::default();
    let life = heartbeat::send_heartbeats(
        bus.clone(),
        ROLE,
        Some(site.clone()),
        tally.clone(),
        shutdown.clone(),
        pulse,
        |beat| {
            beat.outcomes = Some(report.lock().unwrap_or_else(PoisonError::into_inner).clone());
            beat.faults.clone_from(&faults.lock().unwrap_or_else(PoisonError::into_inner));
        },
    );
    let publisher = Publisher::new(bus.clone(), PATIENCE);
    let mut janitor = Janitor {
        bus: &bus,
        site: &site,
        settings,
        publisher,
        audit: None,
        missing_since: BTreeMap::new(),
        tally: &tally,
        report: &report,
        swept_at: None,
    };
    let rounds = async {
        loop {
            if bus.is_gone().await {
                return Err(Fault::Stop(runtime::fault::client_gone()));
            }
            if let Err(error) = janitor.round().await {
                tracing::warn!(?error, "this round failed, the next one comes");
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(settings.every_s)) => {}
                () = shutdown.wait_for_request() => return Ok(()),
            }
        }
    };
    let rounds = async {
        let ended = rounds.await;
        // Whatever ended it, the rest ends with it.
        shutdown.request();
        ended
    };
    tracing::info!(role = ROLE.as_str(), "started");
    let checkup = Checkup {
        bus: &bus,
        cloud: cloud.as_ref().map(|(cloud, _)| cloud),
        cloud_domain: cloud.as_ref().map(|(_, domain)| domain.as_str()),
        site: &site,
        monitor: settings.monitor.as_deref(),
        store: settings.store.as_deref(),
    };
    let (disk, health) = (watch_disk(&bus, settings, &report, &shutdown), watch_health(&checkup, &faults, &shutdown));
    let refused = watch_refused(&bus, &site, &report, &shutdown);
    let (ended, (), (), (), ()) = tokio::join!(rounds, life, disk, health, refused);
    tracing::info!(role = ROLE.as_str(), "stopped");
    ended
}

struct Janitor<'a> {
    bus: &'a Bus,
    site: &'a SiteName,
    settings: &'a JanitorSettings,
    publisher: Publisher,
    audit: Option<OutcomeAudit>,
    /// Images that were acknowledged and seem to be without an outcome, and since when.
    missing_since: BTreeMap<u64, Instant>,
    tally: &'a WorkerStats,
    report: &'a Mutex<OutcomeReport>,
    swept_at: Option<Instant>,
}

impl Janitor<'_> {
    async fn round(&mut self) -> Result<(), Fault> {
        let mut audit = match self.audit.take().filter(|audit| audit.server == self.bus.server_id()) {
            Some(audit) => audit,
            None => OutcomeAudit::begin(self.bus).await?,
        };
        // Asked before the answers are read, which were stored before that.
        let mut recognized = self.recognized().await?;
        let audited = self.audit(&mut audit).await;
        // An image that was acknowledged and has no outcome is needed once more.
        let needed = audit.index.unnamed(recognized.delivered).next();
        recognized.floor = needed.map_or(recognized.floor, |needed| recognized.floor.min(needed - 1));
        self.audit = Some(audit);
        audited?;
        let images = reader::stream_level(self.bus, topology::IMAGES).await?;
        if let Some(before) = purge_before(&images, &recognized, self.settings) {
            let purged = reader::purge_before(self.bus, topology::IMAGES, before).await?;
            tracing::info!(purged, before, "answered images made way");
            self.tally.finished.fetch_add(purged, Ordering::Relaxed);
        }
        if let Some(address) = &self.settings.monitor {
            let too_large = monitor::fetch_oversized_connections(address).await;
            self.log_fault(|report| report.too_large = too_large);
        }
        if self.swept_at.is_none_or(|at| at.elapsed() >= SWEEP_EVERY) {
            self.swept_at = Some(Instant::now());
            let swept = blob_sweep::remove_unfinished_blobs(self.bus, topology::BLOBS, UNFINISHED_AFTER).await?;
            if swept > 0 {
                tracing::info!(swept, "pieces of blobs that nobody finished are removed");
            }
        }
        Ok(())
    }

    async fn recognized(&self) -> Result<ConsumerProgress, Fault> {
        Ok(reader::consumer_progress(self.bus, topology::IMAGES, &topology::recognizer_durable(self.site)).await?)
    }

    /// Finds images that were acknowledged and have no outcome, and has them recognized again.
    async fn audit(&mut self, audit: &mut OutcomeAudit) -> Result<(), Fault> {
        // What is acknowledged is asked first: its outcomes were stored before that, and are read after it.
        let recognized = self.recognized().await?;
        let kept =
            reader::consumer_progress(self.bus, topology::ANSWERS, &topology::promises_durable(self.site)).await?;
        audit.read_on(self.bus).await?;
        let unnamed: Vec<u64> = audit.index.unnamed(recognized.delivered).collect();
        let outrun = outrun(&unnamed, recognized.floor, recognized.unacked);
        let missing: BTreeSet<u64> = outrun.into_iter().chain(audit.index.promised_until(kept.floor)).collect();
        let now = Instant::now();
        self.missing_since.retain(|image, _| missing.contains(image));
        for image in missing {
            self.missing_since.entry(image).or_insert(now);
        }
        let due = self.missing_since.iter().filter(|(_, since)| now - **since >= PATIENCE_WITH_ANSWERS);
        let due: Vec<u64> = due.map(|(image, _)| *image).take(MOST_AT_ONCE).collect();
        for image in due {
            let turned = match audit::republish_image(self.bus, &self.publisher, self.site, image).await {
                Ok(turned) => turned,
                Err(error) => {
                    tracing::warn!(sequence = image, ?error, "an image without an outcome could not be redone");
                    // After the others, so that one that always fails does not hold them up.
                    self.missing_since.insert(image, now);
                    continue;
                }
            };
            audit.index.forget(image);
            self.tally.finished.fetch_add(u64::from(turned == AuditOutcome::Redone), Ordering::Relaxed);
            if let Some((_, redone)) = &mut audit.begun {
                *redone += u64::from(turned == AuditOutcome::Redone);
            }
            self.log_fault(|report| match turned {
                AuditOutcome::Redone => report.redone += 1,
                AuditOutcome::Duplicate => report.duplicates += 1,
                AuditOutcome::Gone => {}
            });
        }
        // Everything that was missing at the start has been looked at by now.
        if let Some((_, redone)) = audit.begun.take_if(|(at, _)| now - *at > 2 * PATIENCE_WITH_ANSWERS) {
            tracing::info!(redone, "audit done");
        }
        let images = reader::stream_level(self.bus, topology::IMAGES).await?;
        self.publish_refusals(audit, &images).await
    }

    /// Says how it stands.
    async fn publish_refusals(&self, audit: &OutcomeAudit, images: &StreamLevel) -> Result<(), Fault> {
        let last = images.last_sequence;
        let oldest_sequence = audit.index.oldest(last);
        let oldest = match oldest_sequence {
            Some(sequence) => reader::message_at(self.bus, topology::IMAGES, sequence).await?,
            None => None,
        };
        let oldest_at_ms = oldest.and_then(|record| u64::try_from(record.stored_at_ns / 1_000_000).ok());
        let removed = match images.gaps {
            0 => 0,
            _ => {
                let removed = reader::removed_images(self.bus).await?;
                removed.into_iter().filter(|sequence| (images.first_sequence..=last).contains(sequence)).count() as u64
            }
        };
        self.log_fault(|report| {
            report.open = audit.index.open(last);
            report.provisional = audit.index.provisional();
            report.oldest_sequence = oldest_sequence;
            report.oldest_at_ms = oldest_at_ms;
            report.seen_at_ms = Some(clock::now_ms());
            report.gaps = images.gaps.saturating_sub(removed);
        });
        Ok(())
    }

    fn log_fault(&self, change: impl FnOnce(&mut OutcomeReport)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Near the limit of the stream, finds images that were refused and whose publishers were not told.
async fn watch_refused(bus: &Bus, site: &SiteName, report: &Mutex<OutcomeReport>, shutdown: &Shutdown) {
    let publisher = Publisher::new(bus.clone(), PATIENCE);
    let watching = async {
        loop {
            if refused::is_near_now(bus, report).await
                && let Err(error) = refused::listen_for_refusals(bus, site, &publisher, report).await
            {
                tracing::debug!(?error, "what is refused is listened for again");
            }
            tokio::time::sleep(LOOK_AT_DISK_EVERY).await;
        }
    };
    tokio::select! {
        () = watching => {}
        () = shutdown.wait_for_request() => {}
    }
}

/// Looks for what is wrong, again and again; each fault is logged when it comes and when it goes.
async fn watch_health(checkup: &Checkup<'_>, faults: &Mutex<Vec<FaultNote>>, shutdown: &Shutdown) {
    let looking = async {
        loop {
            let now = checkup.find_faults().await;
            let before = std::mem::replace(&mut *faults.lock().unwrap_or_else(PoisonError::into_inner), now.clone());
            let known = |notes: &[FaultNote], note: &FaultNote| notes.iter().any(|other| other.kind == note.kind);
            for note in now.iter().filter(|note| !known(&before, note)) {
                tracing::warn!(
                    fault = note.kind.as_str(),
                    reason = note.reason,
                    remedy = note.remedy,
                    "something is wrong"
                );
            }
            for note in before.iter().filter(|note| !known(&now, note)) {
                tracing::info!(fault = note.kind.as_str(), "is right again");
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
    };
    tokio::select! {
        () = looking => {}
        () = shutdown.wait_for_request() => {}
    }
}

/// Refuses images while the disk has no room, where the disk can be seen.
async fn watch_disk(bus: &Bus, settings: &JanitorSettings, report: &Mutex<OutcomeReport>, shutdown: &Shutdown) {
    let say = |change: &dyn Fn(&mut OutcomeReport)| {
        change(&mut report.lock().unwrap_or_else(PoisonError::into_inner));
    };
    let look = async || {
        let refusing = image_refusal::refusal_reason(bus).await?;
        let free = settings.store.as_deref().and_then(|store| server::free_bytes(store).ok());
        let wanted = free.and_then(|free| disk::decide(free, settings.disk_reserve_mib, refusing.is_some()));
        match &wanted {
            Some(Some(reason)) => {
                image_refusal::refuse_images(bus, reason).await?;
                tracing::warn!(reason, "images are refused");
            }
            Some(None) => {
                image_refusal::accept_images(bus).await?;
                tracing::info!("images are taken again");
            }
            None => {}
        }
        let now = wanted.unwrap_or(refusing);
        say(&|report| {
            report.disk_free_bytes = free;
            report.refusing.clone_from(&now);
        });
        Ok::<_, streams::CarryError>(())
    };
    let looking = async {
        loop {
            if let Err(error) = look().await {
                tracing::debug!(%error, "whether images are to be refused is looked at again");
            }
            tokio::time::sleep(LOOK_AT_DISK_EVERY).await;
        }
    };
    tokio::select! {
        () = looking => {}
        () = shutdown.wait_for_request() => {}
    }
}

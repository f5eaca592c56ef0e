//! The janitor's passes: audits outcomes, and looks after the archive, the disk and the buckets.

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

use crate::answer_totals;
use crate::audit::{self, AuditOutcome, OutcomeAudit};
use crate::disk;
use crate::outcomes::acknowledged_without_answer;
use crate::purge::purge_before;
use crate::refused;
use crate::settings::JanitorSettings;

/// Event of the log when everything that had no outcome at the start of an audit was looked at.
pub const AUDIT_FINISHED: &str = "audit finished";

const ROLE: Role = Role::Janitor;
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an acknowledged image may seem to lack an outcome, while its answer is on the way to the stream or to
/// us.
const ANSWER_GRACE: Duration = Duration::from_secs(8);
/// Most images examined in one pass.
const MAX_PER_PASS: usize = 1000;
/// Interval of checking the free space on the disk.
const DISK_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of checking streams, consumers and the link.
const CHECKUP_INTERVAL: Duration = Duration::from_secs(15);
/// Interval of removing unfinished blobs, and their minimum age: an upload takes minutes.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);
const UNFINISHED_AFTER: Duration = Duration::from_secs(3600);

/// Runs a site's janitor until it is told to stop.
/// `cloud`: connection to the cloud over the leaf link and its JetStream domain, unless site and cloud share a server.
pub async fn run(
    bus: Bus,
    site: SiteName,
    settings: &JanitorSettings,
    cloud: Option<(Bus, String)>,
    shutdown: Shutdown,
) -> Result<(), Fault> {
    let stats = Arc::new(WorkerStats::default());
    let report = Mutex::new(OutcomeReport::default());
    let faults = Mutex::new(Vec::new());
    let pace = heartbeat::HeartbeatPace::default();
    let heartbeats = heartbeat::send_heartbeats(
        bus.clone(),
        ROLE,
        Some(site.clone()),
        stats.clone(),
        shutdown.clone(),
        pace,
        |beat| {
            beat.outcomes = Some(report.lock().unwrap_or_else(PoisonError::into_inner).clone());
            beat.faults.clone_from(&faults.lock().unwrap_or_else(PoisonError::into_inner));
        },
    );
    let publisher = Publisher::new(bus.clone(), PUBLISH_TIMEOUT);
    let mut janitor = Janitor {
        bus: &bus,
        site: &site,
        settings,
        publisher,
        audit: None,
        missing_since: BTreeMap::new(),
        stats: &stats,
        report: &report,
        swept_at: None,
    };
    let passes = async {
        loop {
            if bus.is_gone().await {
                return Err(Fault::Stop(runtime::fault::client_gone()));
            }
            if let Err(error) = janitor.run_pass().await {
                tracing::warn!(?error, "janitor pass failed; retrying next interval");
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(settings.every_s)) => {}
                () = shutdown.wait_for_request() => return Ok(()),
            }
        }
    };
    let passes = async {
        let ended = passes.await;
        // The other tasks end with it.
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
    let refusals = watch_refused(&bus, &site, &report, &shutdown);
    let (ended, (), (), (), ()) = tokio::join!(passes, heartbeats, disk, health, refusals);
    tracing::info!(role = ROLE.as_str(), "stopped");
    ended
}

struct Janitor<'a> {
    bus: &'a Bus,
    site: &'a SiteName,
    settings: &'a JanitorSettings,
    publisher: Publisher,
    audit: Option<OutcomeAudit>,
    /// Images that were acknowledged and seem to lack an outcome, with the time since when.
    missing_since: BTreeMap<u64, Instant>,
    stats: &'a WorkerStats,
    report: &'a Mutex<OutcomeReport>,
    swept_at: Option<Instant>,
}

impl Janitor<'_> {
    async fn run_pass(&mut self) -> Result<(), Fault> {
        let mut audit = match self.audit.take().filter(|audit| audit.server == self.bus.server_id()) {
            Some(audit) => audit,
            None => OutcomeAudit::begin(self.bus).await?,
        };
        // Queried before the answers are read, so that their outcomes are among those read.
        let mut recognized = self.recognized().await?;
        let audited = self.audit(&mut audit).await;
        // An image that was acknowledged without an outcome is needed again.
        let needed = audit.index.unnamed(recognized.delivered).next();
        recognized.floor = needed.map_or(recognized.floor, |needed| recognized.floor.min(needed - 1));
        self.audit = Some(audit);
        audited?;
        let totals = answer_totals::count_new_answers(self.bus, self.site).await?;
        self.update_report(|report| report.totals = Some(totals).filter(|totals| totals.counted_to > 0));
        let images = reader::stream_level(self.bus, topology::IMAGES).await?;
        if let Some(before) = purge_before(&images, &recognized, self.settings) {
            let purged = reader::purge_before(self.bus, topology::IMAGES, before).await?;
            tracing::info!(purged, before, "answered images purged");
            self.stats.finished.fetch_add(purged, Ordering::Relaxed);
        }
        if let Some(address) = &self.settings.monitor {
            let too_large = monitor::fetch_oversized_connections(address).await;
            self.update_report(|report| report.too_large = too_large);
        }
        if self.swept_at.is_none_or(|at| at.elapsed() >= SWEEP_INTERVAL) {
            self.swept_at = Some(Instant::now());
            let removed = blob_sweep::remove_unfinished_blobs(self.bus, topology::BLOBS, UNFINISHED_AFTER).await?;
            if removed > 0 {
                tracing::info!(removed, "unfinished blobs removed");
            }
        }
        Ok(())
    }

    async fn recognized(&self) -> Result<ConsumerProgress, Fault> {
        Ok(reader::consumer_progress(self.bus, topology::IMAGES, &topology::recognizer_durable(self.site)).await?)
    }

    /// Finds images that were acknowledged and have no outcome, and requeues them.
    async fn audit(&mut self, audit: &mut OutcomeAudit) -> Result<(), Fault> {
        // Acknowledgements are queried first: their outcomes were stored before that, and are read after it.
        let recognized = self.recognized().await?;
        let deadlines =
            reader::consumer_progress(self.bus, topology::ANSWERS, &topology::promises_durable(self.site)).await?;
        audit.read_new_answers(self.bus).await?;
        let unnamed: Vec<u64> = audit.index.unnamed(recognized.delivered).collect();
        let acknowledged = acknowledged_without_answer(&unnamed, recognized.floor, recognized.unacked);
        let missing: BTreeSet<u64> =
            acknowledged.into_iter().chain(audit.index.provisional_until(deadlines.floor)).collect();
        let now = Instant::now();
        self.missing_since.retain(|image, _| missing.contains(image));
        for image in missing {
            self.missing_since.entry(image).or_insert(now);
        }
        let due = self.missing_since.iter().filter(|(_, since)| now - **since >= ANSWER_GRACE);
        let due: Vec<u64> = due.map(|(image, _)| *image).take(MAX_PER_PASS).collect();
        for image in due {
            let outcome = match audit::republish_image(self.bus, &self.publisher, self.site, image).await {
                Ok(outcome) => outcome,
                Err(error) => {
                    tracing::warn!(sequence = image, ?error, "image requeue failed");
                    // It goes after the others, so that one that always fails does not block them.
                    self.missing_since.insert(image, now);
                    continue;
                }
            };
            audit.index.forget(image);
            self.stats.finished.fetch_add(u64::from(outcome == AuditOutcome::Requeued), Ordering::Relaxed);
            if let Some((_, requeued)) = &mut audit.begun {
                *requeued += u64::from(outcome == AuditOutcome::Requeued);
            }
            self.update_report(|report| match outcome {
                AuditOutcome::Requeued => report.redone += 1,
                AuditOutcome::Duplicate => report.duplicates += 1,
                AuditOutcome::Gone => {}
            });
        }
        // Everything that was missing at the start has been examined by now.
        if let Some((_, requeued)) = audit.begun.take_if(|(at, _)| now - *at > 2 * ANSWER_GRACE) {
            // There is one after every start: one that found nothing is no event.
            match requeued {
                0 => tracing::debug!(requeued, "{AUDIT_FINISHED}"),
                _ => tracing::info!(requeued, "{AUDIT_FINISHED}"),
            }
        }
        let images = reader::stream_level(self.bus, topology::IMAGES).await?;
        self.report_outcomes(audit, &images).await
    }

    /// Updates the report on outcomes.
    async fn report_outcomes(&self, audit: &OutcomeAudit, images: &StreamLevel) -> Result<(), Fault> {
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
        self.update_report(|report| {
            report.open = audit.index.open(last);
            report.provisional = audit.index.provisional();
            report.oldest_sequence = oldest_sequence;
            report.oldest_at_ms = oldest_at_ms;
            report.seen_at_ms = Some(clock::now_ms());
            report.gaps = images.gaps.saturating_sub(removed);
        });
        Ok(())
    }

    fn update_report(&self, change: impl FnOnce(&mut OutcomeReport)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Near the limit of the stream, finds refused images whose publishers were not told.
async fn watch_refused(bus: &Bus, site: &SiteName, report: &Mutex<OutcomeReport>, shutdown: &Shutdown) {
    let publisher = Publisher::new(bus.clone(), PUBLISH_TIMEOUT);
    let watching = async {
        loop {
            if refused::is_near_now(bus, report).await
                && let Err(error) = refused::listen_for_refusals(bus, site, &publisher, report).await
            {
                tracing::debug!(?error, "refusal listener restarted");
            }
            tokio::time::sleep(DISK_INTERVAL).await;
        }
    };
    tokio::select! {
        () = watching => {}
        () = shutdown.wait_for_request() => {}
    }
}

/// Checks for faults at regular intervals; logs each when it appears and when it is cleared.
async fn watch_health(checkup: &Checkup<'_>, faults: &Mutex<Vec<FaultNote>>, shutdown: &Shutdown) {
    let checking = async {
        loop {
            let now = checkup.find_faults().await;
            let before = std::mem::replace(&mut *faults.lock().unwrap_or_else(PoisonError::into_inner), now.clone());
            let known = |notes: &[FaultNote], note: &FaultNote| notes.iter().any(|other| other.kind == note.kind);
            for note in now.iter().filter(|note| !known(&before, note)) {
                tracing::warn!(
                    fault = note.kind.as_str(),
                    reason = note.reason,
                    remedy = note.remedy,
                    "fault detected"
                );
            }
            for note in before.iter().filter(|note| !known(&now, note)) {
                tracing::info!(fault = note.kind.as_str(), "fault cleared");
            }
            tokio::time::sleep(CHECKUP_INTERVAL).await;
        }
    };
    tokio::select! {
        () = checking => {}
        () = shutdown.wait_for_request() => {}
    }
}

/// Refuses images while the disk is nearly full, where the disk can be seen.
async fn watch_disk(bus: &Bus, settings: &JanitorSettings, report: &Mutex<OutcomeReport>, shutdown: &Shutdown) {
    let update_report = |change: &dyn Fn(&mut OutcomeReport)| {
        change(&mut report.lock().unwrap_or_else(PoisonError::into_inner));
    };
    let check = async || {
        let refusing = image_refusal::refusal_reason(bus).await?;
        let free = settings.store.as_deref().and_then(|store| server::free_bytes(store).ok());
        let wanted = free.and_then(|free| disk::decide(free, settings.disk_reserve_mib, refusing.is_some()));
        match &wanted {
            Some(Some(reason)) => {
                image_refusal::refuse_images(bus, reason).await?;
                tracing::warn!(reason, "images refused");
            }
            Some(None) => {
                image_refusal::accept_images(bus).await?;
                tracing::info!("images accepted again");
            }
            None => {}
        }
        let now = wanted.unwrap_or(refusing);
        update_report(&|report| {
            report.disk_free_bytes = free;
            report.refusing.clone_from(&now);
        });
        Ok::<_, streams::CarryError>(())
    };
    let checking = async {
        loop {
            if let Err(error) = check().await {
                tracing::debug!(%error, "disk check failed; retrying");
            }
            tokio::time::sleep(DISK_INTERVAL).await;
        }
    };
    tokio::select! {
        () = checking => {}
        () = shutdown.wait_for_request() => {}
    }
}

//! Reports to the releaser which release a worker runs and what became of it, at intervals.

use std::sync::Arc;
use std::time::Duration;

use os::process;
use runtime::{Shutdown, clock, heartbeat};
use schemas::task::HEADER_TO;
use schemas::{ModelName, SiteName, Swap, TaskId, encode};
use streams::backoff::Backoff;
use streams::subject::{self, OutboxKind};
use streams::{CarryError, Publication, Publisher};
use tokio::time::Instant;

use crate::release_counter::{ReleaseCounter, SlotCounts};
use crate::swap::ModelSwapper;

/// A worker with nothing new reports this often, to show that it is alive.
const SILENT_FOR: Duration = Duration::from_secs(120);

/// Delay before the first report is retried, because the link is not up yet when a worker starts.
const FIRST_AGAIN: Duration = Duration::from_secs(1);

/// Checks the settings of a worker's reports: the interval between them, and the length of what they count, seconds.
///
/// # Errors
/// One sentence that begins with the name of the invalid setting.
pub fn check_intervals(report_s: u32, count_s: u32) -> Result<(), String> {
    match [("report_s", report_s), ("count_s", count_s)].into_iter().find(|(_, seconds)| *seconds == 0) {
        Some((name, _)) => Err(format!("{name} is 0; it must be at least 1")),
        None => Ok(()),
    }
}

/// Reports for one worker.
pub struct SwapReporter {
    /// The worker's site; [`SiteName::cloud`] for verifiers.
    pub site: SiteName,
    /// Labels that the operator gave the site.
    pub site_labels: Vec<String>,
    /// What the worker runs.
    pub swapper: Arc<ModelSwapper>,
    /// Its counts.
    pub counter: ReleaseCounter,
    /// Publishes the reports.
    pub publisher: Publisher,
    /// Interval between reports.
    pub every: Duration,
}

impl SwapReporter {
    /// Reports until shutdown, and once more then. `there`: whether a report would arrive now; otherwise counts are
    /// reported later.
    pub async fn run(&self, there: impl Fn() -> bool, shutdown: Shutdown) {
        let mut changes = self.swapper.changes();
        let mut said_at: Option<Instant> = None;
        let mut changed = true;
        loop {
            let stopping = shutdown.is_requested();
            let anyway = changed || stopping || said_at.is_none_or(|at| at.elapsed() >= SILENT_FOR);
            if there() && self.publish_report(anyway, stopping).await {
                said_at = Some(Instant::now());
                changed = false;
            }
            if stopping {
                return;
            }
            // Reported at once, because the releaser does not know the worker before its first report.
            let pause =
                if said_at.is_none() { Backoff::steady(self.every.min(FIRST_AGAIN)).next_pause() } else { self.every };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                more = changes.changed() => {
                    // Steps of a swap are for `status`; only its result is reported.
                    let state = changes.borrow_and_update().clone();
                    changed |= more.is_ok() && state.step.is_none();
                    if more.is_err() || state.step.is_some() {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
                () = shutdown.wait_for_request() => {}
            }
        }
    }

    /// Reports new counts, and at least the running release if `anyway`; returns whether a report was published.
    /// `left`: the worker is stopping.
    async fn publish_report(&self, anyway: bool, left: bool) -> bool {
        let mut slots = self.counter.take_counts();
        if slots.is_empty() && anyway {
            slots.push(self.counter.current_counts(clock::now_ms()));
        }
        let mut published = false;
        for slot in slots {
            let publishing = async { self.publisher.publish(&publication(&self.swap(&slot, left))?).await };
            match publishing.await {
                Ok(_) => published = true,
                Err(error) => {
                    tracing::debug!(%error, "release counts report deferred");
                    self.counter.restore_counts(&slot);
                }
            }
        }
        published
    }

    fn swap(&self, counts: &SlotCounts, left: bool) -> Swap {
        let (model, state, machine) = (self.swapper.infer.model(), self.swapper.state(), self.swapper.machine());
        Swap {
            site: self.site.clone(),
            worker: heartbeat::worker_name(),
            model: ModelName::from_name(&self.swapper.root.description.name),
            release: model.release.clone(),
            since_ms: state.since_ms,
            order: state.order,
            refused: state.refused,
            runtime: machine.runtime,
            memory_free_mib: machine.memory_free_mib,
            memory_mib: process::resident_bytes().unwrap_or(0) >> 20,
            site_labels: self.site_labels.clone(),
            slot_ms: counts.slot_ms,
            slot_length_ms: self.counter.slot_length_ms(),
            said_at_ms: clock::now_ms(),
            counts: counts.counts.clone(),
            left,
            agreements: counts.agreements.clone(),
        }
    }
}

/// A report's publication: straight to the cloud's stream from the cloud, through the outbox from a site.
fn publication(swap: &Swap) -> Result<Publication, CarryError> {
    let to = subject::swap(&swap.site, &swap.worker, swap.slot_ms);
    let payload = encode(swap)?;
    if swap.site == SiteName::cloud() {
        return Ok(Publication { subject: to, payload: payload.into(), headers: Vec::new(), first_only: false });
    }
    let id = TaskId::from_name(&format!("{to}@{}", swap.said_at_ms)).to_string();
    Ok(Publication::with_id(subject::outbox(&swap.site, OutboxKind::Swap), payload, id).header(HEADER_TO, to))
}

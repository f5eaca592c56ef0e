//! Tells whoever releases models what a worker runs and what came of it, again and again.

use std::sync::Arc;
use std::time::Duration;

use runtime::{Shutdown, clock, heartbeat, process};
use schemas::task::HEADER_TO;
use schemas::{ModelName, SiteName, Swap, TaskId, encode};
use streams::subject::{self, OutboxKind};
use streams::{CarryError, Publication, Publisher};
use tokio::time::Instant;

use crate::release_counter::{ReleaseCounter, SlotCounts};
use crate::swap::ModelSwapper;

/// A worker that has nothing to tell says so this often, so that it is known to live.
const SILENT_FOR: Duration = Duration::from_secs(120);

/// The first report is tried again after this: the link is not up yet when a worker starts.
const FIRST_AGAIN: Duration = Duration::from_secs(1);

/// Who tells.
pub struct SwapReporter {
    /// The site; [`SiteName::cloud`] for verifiers.
    pub site: SiteName,
    /// What its operator calls the site.
    pub site_labels: Vec<String>,
    /// What runs.
    pub swapper: Arc<ModelSwapper>,
    /// What came of it.
    pub counter: ReleaseCounter,
    /// How it is told.
    pub publisher: Publisher,
    /// How often.
    pub every: Duration,
}

impl SwapReporter {
    /// Tells until told to stop, and once more then. `there`: whether it would arrive now; what cannot is told later.
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
            // Nobody knows it before it has said something once.
            let pause = if said_at.is_none() { self.every.min(FIRST_AGAIN) } else { self.every };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                more = changes.changed() => {
                    // Steps of a swap are for `status`; only where it leads to is told.
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

    /// Tells what is new, and at least what runs if `anyway`; whether something was told. `left`: for the last time.
    async fn publish_report(&self, anyway: bool, left: bool) -> bool {
        let mut news = self.counter.take_counts();
        if news.is_empty() && anyway {
            news.push(self.counter.current_counts(clock::now_ms()));
        }
        let mut told = false;
        for stretch in news {
            let told_now = async { self.publisher.publish(&publication(&self.swap(&stretch, left))?).await };
            match told_now.await {
                Ok(_) => told = true,
                Err(error) => {
                    tracing::debug!(%error, "what came of a release is told later");
                    self.counter.restore_counts(&stretch);
                }
            }
        }
        told
    }

    fn swap(&self, told: &SlotCounts, left: bool) -> Swap {
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
            slot_ms: told.slot_ms,
            slot_length_ms: self.counter.slot_length_ms(),
            said_at_ms: clock::now_ms(),
            counts: told.counts.clone(),
            left,
            agreements: told.agreements.clone(),
        }
    }
}

/// A report on its way: straight to the cloud's stream from the cloud, through the outbox from a site.
fn publication(swap: &Swap) -> Result<Publication, CarryError> {
    let to = subject::swap(&swap.site, &swap.worker, swap.slot_ms);
    let payload = encode(swap)?;
    if swap.site == SiteName::cloud() {
        return Ok(Publication { subject: to, payload: payload.into(), headers: Vec::new(), first_only: false });
    }
    let id = TaskId::from_name(&format!("{to}@{}", swap.said_at_ms)).to_string();
    Ok(Publication::with_id(subject::outbox(&swap.site, OutboxKind::Swap), payload, id).header(HEADER_TO, to))
}

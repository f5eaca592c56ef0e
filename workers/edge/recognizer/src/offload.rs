//! Offloads tasks to the cloud. The image stays unacknowledged and in memory until its answer arrives: if
//! the link goes down, the answer is late, a replica is idle and memory suffices, or its deadline is so near that it can
//! only just be kept here, the task is reclaimed and recognized here. The first answer fills the slot (invariant 2).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use offload::admit::finish_s;
use runtime::{Fault, MessageCredit, Shutdown, clock, traces};
use schemas::{Reason, Task};
use streams::tap::{TapMessage, watch_subject};
use streams::{Bus, CarryError, Publisher, reader, subject};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::admission::{Admission, CountGuard};
use crate::report::AnswerReporter;

/// Multiple of the predicted time after which a task is reclaimed; a guess.
const TIMEOUT_RATIO: f64 = 3.0;
const MIN_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout without a prediction.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval at which an overdue task checks for an idle replica.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Waits until the stream holds an outcome. A message on the slot is a hint to check, never the outcome itself: anybody
/// may publish there.
async fn wait_for_outcome(bus: &Bus, slot: &str, announcements: &mut (impl Stream<Item = TapMessage> + Unpin)) {
    loop {
        if announcements.next().await.is_none() {
            return std::future::pending().await;
        }
        match reader::read_outcome(bus, slot).await {
            Ok(Some(_)) => return,
            Ok(None) => tracing::debug!(slot, "answer announced but not stored"),
            Err(error) => tracing::debug!(slot, %error, "outcome lookup failed"),
        }
    }
}

/// Offloads tasks and waits for their answers.
pub(crate) struct Offloader {
    /// Connection to the site's own JetStream domain.
    pub bus: Bus,
    /// Publishes requests to the outbox.
    pub publisher: Publisher,
    /// Limit on the images of offloaded tasks, KiB.
    pub memory_kib: Arc<Semaphore>,
    /// Request to stop.
    pub shutdown: Shutdown,
}

/// What an offload goes by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OffloadTerms {
    /// The reason that the answer gives.
    pub reason: Reason,
    /// Time until the task is taken back for its deadline; absent without one.
    pub within: Option<Duration>,
}

/// How an offload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OffloadOutcome {
    /// Its answer was stored.
    Answered,
    /// It was reclaimed, to be recognized here.
    Reclaimed,
}

impl Offloader {
    /// Offloads a task and waits. Releases its credit, because it uses no
    /// replica meanwhile.
    pub(crate) async fn offload_task(
        &self,
        admission: &Admission,
        reporter: &AnswerReporter<'_>,
        task: &Task,
        bytes: &Bytes,
        terms: OffloadTerms,
        credit: &MessageCredit,
    ) -> Result<OffloadOutcome, Fault> {
        let size = task.blob.as_ref().map_or(bytes.len() as u64, |blob| blob.size_bytes);
        let Some(_memory) = self.reserve_memory(bytes.len()) else { return Ok(OffloadOutcome::Reclaimed) };
        let _away = CountGuard::new(&admission.away);
        let sent_at_s = admission.now_s();
        let policy = admission.signals.policy();
        let predicted = finish_s(&admission.network(), size).map(|s| Duration::from_secs_f64(s.clamp(0.0, 3600.0)));
        let waits_for_cloud = policy.name.ignores_cloud_estimate();
        let timeout = match (waits_for_cloud, predicted) {
            (true, _) => Duration::from_millis(policy.cloud_only_timeout_ms),
            (_, Some(predicted)) => predicted.mul_f64(TIMEOUT_RATIO).clamp(MIN_TIMEOUT, MAX_TIMEOUT),
            (_, None) => DEFAULT_TIMEOUT,
        };
        let is_due_first = terms.within.is_some_and(|within| within < timeout);
        let timeout = terms.within.map_or(timeout, |within| within.min(timeout));
        let until_ms = clock::now_ms().saturating_add(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        let slot = subject::final_answer(&task.site, &task.camera, task.id);
        let mut answers = Box::pin(watch_subject(&self.bus, &slot).await?);
        let request = traces::current().mark(reporter.offloaded(task, bytes, terms.reason, until_ms)?);
        match self.publisher.publish(&request).await {
            Ok(_) => {}
            Err(CarryError::Full { .. }) => return Ok(OffloadOutcome::Reclaimed),
            Err(error) => return Err(error.into()),
        }
        credit.release();
        let overdue_and_idle = async {
            tokio::time::sleep(predicted.unwrap_or_default()).await;
            while !admission.is_idle() || waits_for_cloud || admission.is_short_of_memory() {
                tokio::time::sleep(IDLE_CHECK_INTERVAL).await;
            }
        };
        let link_gone = async {
            match waits_for_cloud {
                true => std::future::pending().await,
                false => admission.signals.link_gone().await,
            }
        };
        let outcome = tokio::select! {
            () = wait_for_outcome(&self.bus, &slot, &mut answers) => OffloadOutcome::Answered,
            () = link_gone => OffloadOutcome::Reclaimed,
            () = overdue_and_idle => OffloadOutcome::Reclaimed,
            () = tokio::time::sleep(timeout) => {
                if is_due_first {
                    admission.record_near_deadline(sent_at_s);
                    return Ok(OffloadOutcome::Reclaimed);
                }
                OffloadOutcome::Reclaimed
            }
            // The image was not acknowledged, so it is delivered again.
            () = self.shutdown.wait_for_request() => return Err(Fault::Wait { after: Duration::from_millis(1) }),
        };
        admission.record_offload(outcome == OffloadOutcome::Answered);
        Ok(outcome)
    }

    fn reserve_memory(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(1024).max(1)).unwrap_or(u32::MAX);
        self.memory_kib.clone().try_acquire_many_owned(kib).ok()
    }
}

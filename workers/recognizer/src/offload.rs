//! Tasks in the cloud's hands. The image stays unacknowledged and in memory until its answer is there: if
//! the link goes, the answer is late, or a replica has nothing else to do, it is taken back and recognized
//! here. Whoever is first fills the slot (invariant 2).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use decisions::admit::finish_s;
use futures::{Stream, StreamExt};
use runtime::{Fault, MessageCredit, Shutdown, clock};
use schemas::Task;
use streams::tap::{TapMessage, watch_subject};
use streams::{Bus, CarryError, Publisher, reader, subject};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::admission::{Admission, CountGuard};
use crate::report::AnswerReporter;

/// An answer may take so many times what was predicted before the task is taken back; a guess.
const PATIENCE_RATIO: f64 = 3.0;
const SHORTEST_PATIENCE: Duration = Duration::from_secs(1);
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);
/// Without a prediction.
const UNKNOWN_PATIENCE: Duration = Duration::from_secs(5);
/// How often a task that is overdue looks whether a replica has nothing to do.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Waits until the stream holds an outcome. What is heard on the slot is a hint to look, never the outcome itself: anybody
/// may say something there.
async fn answered(bus: &Bus, slot: &str, heard: &mut (impl Stream<Item = TapMessage> + Unpin)) {
    loop {
        if heard.next().await.is_none() {
            return std::future::pending().await;
        }
        match reader::read_outcome(bus, slot).await {
            Ok(Some(_)) => return,
            Ok(None) => tracing::debug!(slot, "heard on the slot of an answer, and nothing is stored there"),
            Err(error) => tracing::debug!(slot, %error, "an outcome cannot be looked at"),
        }
    }
}

/// Sends tasks away and waits for their answers.
pub struct Offloader {
    /// The site's own domain.
    pub bus: Bus,
    /// Publishes requests.
    pub publisher: Publisher,
    /// KiB of images that may be away.
    pub room: Arc<Semaphore>,
    /// The wish to stop.
    pub shutdown: Shutdown,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffloadOutcome {
    /// Its answer is there.
    Answered,
    /// It is to be recognized here.
    TakenBack,
}

impl Offloader {
    /// Sends a task to the cloud and waits. Gives the credit back, for it does not work here meanwhile.
    pub async fn offload_task(
        &self,
        admission: &Admission,
        reporter: &AnswerReporter<'_>,
        task: &Task,
        bytes: &Bytes,
        credit: &MessageCredit,
    ) -> Result<OffloadOutcome, Fault> {
        let size = task.blob.as_ref().map_or(bytes.len() as u64, |blob| blob.size_bytes);
        let Some(_room) = self.room_for(bytes.len()) else { return Ok(OffloadOutcome::TakenBack) };
        let _away = CountGuard::new(&admission.away);
        let policy = admission.signals.policy();
        let predicted = finish_s(&admission.network(), size).map(|s| Duration::from_secs_f64(s.clamp(0.0, 3600.0)));
        let insists = policy.name.ignores_cloud_estimate();
        let patience = match (insists, predicted) {
            (true, _) => Duration::from_millis(policy.verdict_timeout_ms),
            (_, Some(predicted)) => predicted.mul_f64(PATIENCE_RATIO).clamp(SHORTEST_PATIENCE, LONGEST_PATIENCE),
            (_, None) => UNKNOWN_PATIENCE,
        };
        let until_ms = clock::now_ms().saturating_add(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX));
        let slot = subject::final_answer(&task.site, &task.camera, task.id);
        let mut answers = Box::pin(watch_subject(&self.bus, &slot).await?);
        match self.publisher.publish(&reporter.offloaded(task, bytes, until_ms)?).await {
            Ok(_) => {}
            Err(CarryError::Full { .. }) => return Ok(OffloadOutcome::TakenBack),
            Err(error) => return Err(error.into()),
        }
        credit.release();
        let late = async {
            tokio::time::sleep(predicted.unwrap_or_default()).await;
            while !admission.is_idle() || insists {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let link_gone = async {
            match insists {
                true => std::future::pending().await,
                false => admission.signals.link_gone().await,
            }
        };
        let back = tokio::select! {
            () = answered(&self.bus, &slot, &mut answers) => OffloadOutcome::Answered,
            () = link_gone => OffloadOutcome::TakenBack,
            () = late => OffloadOutcome::TakenBack,
            () = tokio::time::sleep(patience) => OffloadOutcome::TakenBack,
            // Nothing was acknowledged: it is delivered again.
            () = self.shutdown.wait_for_request() => return Err(Fault::Wait { after: Duration::from_millis(1) }),
        };
        admission.record_offload(back == OffloadOutcome::Answered);
        Ok(back)
    }

    /// Gives the baseline's request to the outbox and waits for the verdict; true if it came in time.
    pub async fn request_verdict(
        &self,
        reporter: &AnswerReporter<'_>,
        task: &Task,
        bytes: &Bytes,
        found: &crate::report::EdgeResult,
        patience: Duration,
    ) -> Result<bool, Fault> {
        let until_ms = clock::now_ms().saturating_add(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX));
        let slot = subject::final_answer(&task.site, &task.camera, task.id);
        let mut answers = Box::pin(watch_subject(&self.bus, &slot).await?);
        match self.publisher.publish(&reporter.verdict_request(task, bytes, found, until_ms)?).await {
            Ok(_) => {}
            Err(CarryError::Full { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = answered(&self.bus, &slot, &mut answers) => Ok(true),
            () = tokio::time::sleep(patience) => Ok(false),
            () = self.shutdown.wait_for_request() => Err(Fault::Wait { after: Duration::from_millis(1) }),
        }
    }

    fn room_for(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(1024).max(1)).unwrap_or(u32::MAX);
        self.room.clone().try_acquire_many_owned(kib).ok()
    }
}

//! An owner thread: takes the most urgent of what waits, up to the best batch, runs it through its own replica, and
//! switches replicas between two batches.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TryRecvError, select};
use os::thread_time::ThreadClock;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{InferenceError, InferenceResult, PixelInspector};
use crate::batch_cost::batch_within;
use crate::replica::{BatchImage, Replica};
use crate::urgency::{Urgency, UrgencyQueue};

/// Weight of the newest batch in the running cost; an estimate, about the last thirty count.
const COST_SHARE: f64 = 1.0 / 16.0;
/// The same for the contention at present: about the last eight count, so that it changes within them.
const RECENT_SHARE: f64 = 1.0 / 4.0;
/// Smallest share of a batch's time that counts as work.
const MIN_WORK_SHARE: f64 = 0.01;

/// An item in the mailbox.
pub(super) enum OwnerMail {
    /// One more picture waits.
    See,
    /// Ends the one replica that takes it.
    Stop,
}

pub(super) struct InferenceJob {
    pub bytes: Bytes,
    pub inspect: Option<PixelInspector>,
    pub asked: Instant,
    pub reply: oneshot::Sender<Result<InferenceResult, InferenceError>>,
    /// Space in the mailbox, released once a replica takes the job.
    pub permit: OwnedSemaphorePermit,
}

/// The pictures that wait, shared by the owners.
pub(super) struct WaitingJobs {
    queue: Mutex<UrgencyQueue<InferenceJob>>,
    started_at: Instant,
}

impl Default for WaitingJobs {
    fn default() -> Self {
        Self { queue: Mutex::default(), started_at: Instant::now() }
    }
}

impl std::fmt::Debug for WaitingJobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WaitingJobs").finish_non_exhaustive()
    }
}

impl WaitingJobs {
    pub(super) fn add(&self, urgency: Urgency, job: InferenceJob) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push(urgency, self.now_us(), job);
    }

    fn take_first(&self) -> Option<InferenceJob> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop(self.now_us())
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.started_at.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Instruction to an owner besides its work.
pub(super) enum OwnerOrder {
    /// Continue with another replica.
    Take(Box<ReplicaHandover>),
    /// End after the current batch.
    Leave,
}

/// A replica for an owner, and where to send the old one, so that no owner spends time on releasing memory.
pub(super) struct ReplicaHandover {
    pub replica: Replica,
    pub batch: usize,
    pub old: Sender<Replica>,
}

/// Running cost of one image, and how much of it is waiting for a processor.
#[derive(Debug)]
pub(super) struct ImageCost(Mutex<CostMeans>);

#[derive(Debug, Clone, Copy)]
struct CostMeans {
    /// Cost of one image, milliseconds.
    ms: f64,
    /// The same without waits for a processor.
    work_ms: f64,
    /// The latest batches alone; absent before one was measured, and where the kernel does not tell.
    recent: Option<RecentBatches>,
}

#[derive(Debug, Clone, Copy)]
struct RecentBatches {
    ms: f64,
    work_ms: f64,
    at: Instant,
}

impl ImageCost {
    pub(super) fn new(ms: f64) -> Self {
        Self(Mutex::new(CostMeans { ms, work_ms: ms, recent: None }))
    }

    pub(super) fn ms(&self) -> f64 {
        self.means().ms
    }

    /// A cost that was measured elsewhere, under the contention of the latest batches.
    pub(super) fn set(&self, ms: f64) {
        let mut means = self.means();
        let free_ratio = means.recent.map_or(1.0, |recent| recent.work_ms / recent.ms);
        (means.ms, means.work_ms) = (ms, ms * free_ratio);
    }

    pub(super) fn contention(&self) -> Option<ProcessorContention> {
        let CostMeans { ms, work_ms, recent } = *self.means();
        let recent = recent?;
        let ratio = |ms: f64, work_ms: f64| (ms / work_ms).max(1.0);
        Some(ProcessorContention {
            recent_ratio: ratio(recent.ms, recent.work_ms),
            mean_ratio: ratio(ms, work_ms),
            age: recent.at.elapsed(),
        })
    }

    /// Learns from a batch: `ms` for each image, of which `waited_ms` passed without a processor.
    fn learn(&self, ms: f64, waited_ms: Option<f64>) {
        let mut means = self.means();
        // The two clocks differ by microseconds, so a short batch could seem to be all waiting.
        let work_ms = (ms - waited_ms.unwrap_or(0.0)).clamp(ms * MIN_WORK_SHARE, ms);
        let mean = |before: f64, new: f64, share: f64| before * (1.0 - share) + new * share;
        means.ms = mean(means.ms, ms, COST_SHARE);
        means.work_ms = mean(means.work_ms, work_ms, COST_SHARE);
        if waited_ms.is_some() && ms > 0.0 {
            let before = means.recent.unwrap_or(RecentBatches { ms, work_ms, at: Instant::now() });
            means.recent = Some(RecentBatches {
                ms: mean(before.ms, ms, RECENT_SHARE),
                work_ms: mean(before.work_ms, work_ms, RECENT_SHARE),
                at: Instant::now(),
            });
        }
    }

    fn means(&self) -> MutexGuard<'_, CostMeans> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much longer images take because other work has the processors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessorContention {
    /// Time of the latest batches, divided by their time without waits for a processor; at least 1.
    pub recent_ratio: f64,
    /// The same of all that the running cost of an image is the mean of.
    pub mean_ratio: f64,
    /// Time since the last batch.
    pub age: Duration,
}

/// State of one owner thread.
pub(super) struct ReplicaOwner {
    pub replica: Replica,
    pub waiting: Receiver<OwnerMail>,
    pub jobs: Arc<WaitingJobs>,
    pub orders: Receiver<OwnerOrder>,
    pub batch: usize,
    /// Longest time from a picture's arrival to its result, milliseconds, which batches are kept small for.
    pub objective_ms: Option<u32>,
    pub cost: Arc<ImageCost>,
}

impl ReplicaOwner {
    pub(super) fn run_owner(mut self) {
        let mut jobs = Vec::with_capacity(self.batch);
        let clock = ThreadClock::open();
        let mut stopping = false;
        while !stopping {
            // Before any job, because the select takes either of two that are ready.
            match self.orders.try_recv() {
                Ok(OwnerOrder::Take(next)) => {
                    self.take(*next);
                    continue;
                }
                Ok(OwnerOrder::Leave) => return,
                Err(_) => {}
            }
            select! {
                recv(self.orders) -> orders => match orders {
                    Ok(OwnerOrder::Take(next)) => {
                        self.take(*next);
                        continue;
                    }
                    // The last handle is gone.
                    Ok(OwnerOrder::Leave) | Err(_) => return,
                },
                recv(self.waiting) -> mail => match mail {
                    Ok(OwnerMail::See) => jobs.extend(self.jobs.take_first()),
                    Ok(OwnerMail::Stop) | Err(_) => return,
                },
            }
            let largest = self.objective_ms.map_or(self.batch, |ms| batch_within(ms, self.batch, self.cost.ms()));
            while jobs.len() < largest && !stopping {
                match self.waiting.try_recv() {
                    Ok(OwnerMail::See) => jobs.extend(self.jobs.take_first()),
                    Ok(OwnerMail::Stop) | Err(TryRecvError::Disconnected) => stopping = true,
                    Err(TryRecvError::Empty) => break,
                }
            }
            self.answer(&mut jobs, clock.as_ref());
        }
    }

    fn take(&mut self, ReplicaHandover { replica, batch, old }: ReplicaHandover) {
        self.batch = batch;
        // Fails only if the sender has gone; the memory is then released here.
        let _ = old.send(std::mem::replace(&mut self.replica, replica));
    }

    fn answer(&mut self, jobs: &mut Vec<InferenceJob>, clock: Option<&ThreadClock>) {
        let waits_before = clock.and_then(ThreadClock::read);
        let taken = Instant::now();
        // The caller may have gone.
        jobs.retain(|job| !job.reply.is_closed());
        let mut waiting = Vec::with_capacity(jobs.len());
        let mut images = Vec::with_capacity(jobs.len());
        for InferenceJob { bytes, inspect, asked, reply, permit } in jobs.drain(..) {
            drop(permit);
            waiting.push((taken.saturating_duration_since(asked), reply));
            images.push((bytes, inspect));
        }
        if images.is_empty() {
            return;
        }
        let batch = images.iter_mut().map(|(bytes, inspect)| BatchImage { bytes, inspect: inspect.take() });
        let mut batch: Vec<BatchImage<'_>> = batch.collect();
        let outcomes = self.replica.predict_inspected(&mut batch);
        drop(batch);
        let waits_after = clock.and_then(ThreadClock::read);
        let waited = waits_after.zip(waits_before).map(|(after, before)| after.waited.saturating_sub(before.waited));
        let per_image_ms = |time: Duration| time.as_secs_f64() * 1e3 / images.len() as f64;
        self.cost.learn(per_image_ms(taken.elapsed()), waited.map(per_image_ms));
        for ((waited, reply), mut outcome) in waiting.into_iter().zip(outcomes) {
            if let Ok(seen) = &mut outcome {
                seen.timings.waited_us = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
            }
            // Fails only if the caller has gone.
            let _ = reply.send(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contention_is_known_within_a_few_batches_and_the_mean_says_how_much_of_it_it_holds() {
        let cost = ImageCost::new(10.0);
        assert_eq!(cost.contention(), None, "no batch was measured yet");
        for _ in 0..40 {
            cost.learn(10.0, Some(0.0));
        }
        let free = cost.contention().unwrap();
        assert!((free.recent_ratio - 1.0).abs() < 1e-9 && (free.mean_ratio - 1.0).abs() < 1e-9, "{free:?}");
        // Others take half of the processor: an image takes twice as long.
        for _ in 0..8 {
            cost.learn(20.0, Some(10.0));
        }
        let busy = cost.contention().unwrap();
        assert!(busy.recent_ratio > 1.8 && busy.mean_ratio < 1.5, "{busy:?}");
        // What the mean holds already is not counted again.
        let predicted_ms = cost.ms() * busy.recent_ratio / busy.mean_ratio;
        assert!((18.0..20.5).contains(&predicted_ms), "{predicted_ms} of {busy:?}");
        for _ in 0..100 {
            cost.learn(20.0, Some(10.0));
        }
        let long = cost.contention().unwrap();
        assert!((cost.ms() - 20.0).abs() < 0.1 && (long.recent_ratio - long.mean_ratio).abs() < 0.01, "{long:?}");
    }

    #[test]
    fn a_cost_measured_elsewhere_counts_as_measured_under_the_same_contention() {
        let cost = ImageCost::new(10.0);
        for _ in 0..40 {
            cost.learn(20.0, Some(10.0));
        }
        cost.set(50.0);
        let contention = cost.contention().unwrap();
        assert_eq!(cost.ms(), 50.0);
        assert!((contention.recent_ratio - contention.mean_ratio).abs() < 0.05, "{contention:?}");
    }

    #[test]
    fn without_the_kernels_times_the_cost_is_learned_all_the_same() {
        let cost = ImageCost::new(10.0);
        (0..100).for_each(|_| cost.learn(20.0, None));
        assert!((cost.ms() - 20.0).abs() < 0.1 && cost.contention().is_none());
    }
}

//! An owner thread: takes the most urgent of what waits, up to the best batch, runs it through its own replica, and
//! switches replicas between two batches.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TryRecvError, select};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{InferenceError, InferenceResult};
use crate::batch_cost::batch_within;
use crate::replica::Replica;
use crate::urgency::{Urgency, UrgencyQueue};

/// Weight of the newest batch in the running cost; an estimate, about the last thirty count.
const COST_SHARE: f64 = 1.0 / 16.0;

/// An item in the mailbox.
pub(super) enum OwnerMail {
    /// One more picture waits.
    See,
    /// Ends the one replica that takes it.
    Stop,
}

pub(super) struct InferenceJob {
    pub bytes: Bytes,
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

/// Running cost of one image in milliseconds, as bits.
#[derive(Debug)]
pub(super) struct ImageCost(AtomicU64);

impl ImageCost {
    pub(super) fn new(ms: f64) -> Self {
        Self(AtomicU64::new(ms.to_bits()))
    }

    pub(super) fn ms(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, ms: f64) {
        self.0.store(ms.to_bits(), Ordering::Relaxed);
    }

    /// Two replicas at once may lose one of two updates, which the mean tolerates.
    fn learn(&self, ms: f64) {
        self.set(self.ms() * (1.0 - COST_SHARE) + ms * COST_SHARE);
    }
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
            self.answer(&mut jobs);
        }
    }

    fn take(&mut self, ReplicaHandover { replica, batch, old }: ReplicaHandover) {
        self.batch = batch;
        // Fails only if the sender has gone; the memory is then released here.
        let _ = old.send(std::mem::replace(&mut self.replica, replica));
    }

    fn answer(&mut self, jobs: &mut Vec<InferenceJob>) {
        let taken = Instant::now();
        // The caller may have gone.
        jobs.retain(|job| !job.reply.is_closed());
        let mut waiting = Vec::with_capacity(jobs.len());
        let mut images = Vec::with_capacity(jobs.len());
        for InferenceJob { bytes, asked, reply, permit } in jobs.drain(..) {
            drop(permit);
            waiting.push((taken.saturating_duration_since(asked), reply));
            images.push(bytes);
        }
        if images.is_empty() {
            return;
        }
        let slices: Vec<&[u8]> = images.iter().map(AsRef::as_ref).collect();
        let outcomes = self.replica.predict_batch(&slices);
        self.cost.learn(taken.elapsed().as_secs_f64() * 1e3 / images.len() as f64);
        for ((waited, reply), mut outcome) in waiting.into_iter().zip(outcomes) {
            if let Ok(seen) = &mut outcome {
                seen.timings.waited_us = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
            }
            // Fails only if the caller has gone.
            let _ = reply.send(outcome);
        }
    }
}

//! An owner thread: takes what waits, up to the best batch, runs it through a replica of its own, and takes another one
//! between two batches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TryRecvError, select};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{InferenceError, InferenceResult};
use crate::replica::Replica;

/// Share of the newest batch in the running cost; a guess, about the last thirty count.
const COST_SHARE: f64 = 1.0 / 16.0;

/// What waits in the mailbox.
pub(super) enum OwnerMail {
    See(InferenceJob),
    /// Ends the one replica that takes it.
    Stop,
}

pub(super) struct InferenceJob {
    pub bytes: Bytes,
    pub asked: Instant,
    pub reply: oneshot::Sender<Result<InferenceResult, InferenceError>>,
    /// Room in the mailbox, free again once a replica takes the job.
    pub room: OwnedSemaphorePermit,
}

/// What an owner is told beside its work.
pub(super) enum OwnerOrder {
    /// To go on with another replica.
    Take(Box<ReplicaHandover>),
    /// To end after the batch in work.
    Leave,
}

/// A replica for an owner, and where its old one goes, so that no owner spends time on giving memory back.
pub(super) struct ReplicaHandover {
    pub replica: Replica,
    pub batch: usize,
    pub old: Sender<Replica>,
}

/// Running cost of one image in milliseconds, as bits.
#[derive(Debug)]
pub(super) struct ImageCost(AtomicU64);

impl ImageCost {
    pub fn new(ms: f64) -> Self {
        Self(AtomicU64::new(ms.to_bits()))
    }

    pub fn ms(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    pub fn set(&self, ms: f64) {
        self.0.store(ms.to_bits(), Ordering::Relaxed);
    }

    /// Two replicas at once may lose one of two updates: the mean does not mind.
    fn learn(&self, ms: f64) {
        self.set(self.ms() * (1.0 - COST_SHARE) + ms * COST_SHARE);
    }
}

/// One thread's work.
pub(super) struct ReplicaOwner {
    pub replica: Replica,
    pub waiting: Receiver<OwnerMail>,
    pub told: Receiver<OwnerOrder>,
    pub batch: usize,
    pub cost: Arc<ImageCost>,
}

impl ReplicaOwner {
    pub fn run_owner(mut self) {
        let mut jobs = Vec::with_capacity(self.batch);
        let mut stopping = false;
        while !stopping {
            // Before any job, for of two that are ready the select takes either.
            match self.told.try_recv() {
                Ok(OwnerOrder::Take(next)) => {
                    self.take(*next);
                    continue;
                }
                Ok(OwnerOrder::Leave) => return,
                Err(_) => {}
            }
            select! {
                recv(self.told) -> told => match told {
                    Ok(OwnerOrder::Take(next)) => {
                        self.take(*next);
                        continue;
                    }
                    // The last handle is gone.
                    Ok(OwnerOrder::Leave) | Err(_) => return,
                },
                recv(self.waiting) -> mail => match mail {
                    Ok(OwnerMail::See(job)) => jobs.push(job),
                    Ok(OwnerMail::Stop) | Err(_) => return,
                },
            }
            while jobs.len() < self.batch && !stopping {
                match self.waiting.try_recv() {
                    Ok(OwnerMail::See(job)) => jobs.push(job),
                    Ok(OwnerMail::Stop) | Err(TryRecvError::Disconnected) => stopping = true,
                    Err(TryRecvError::Empty) => break,
                }
            }
            self.answer(&mut jobs);
        }
    }

    fn take(&mut self, ReplicaHandover { replica, batch, old }: ReplicaHandover) {
        self.batch = batch;
        // Fails only if whoever handed it over has gone; then it is given back here.
        let _ = old.send(std::mem::replace(&mut self.replica, replica));
    }

    fn answer(&mut self, jobs: &mut Vec<InferenceJob>) {
        let taken = Instant::now();
        // Whoever asked may have gone.
        jobs.retain(|job| !job.reply.is_closed());
        let mut waiting = Vec::with_capacity(jobs.len());
        let mut images = Vec::with_capacity(jobs.len());
        for InferenceJob { bytes, asked, reply, room } in jobs.drain(..) {
            drop(room);
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
            // Fails only if whoever asked has gone.
            let _ = reply.send(outcome);
        }
    }
}

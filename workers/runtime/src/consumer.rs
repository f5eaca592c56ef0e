//! The loop every worker runs: pull, handle, publish, then acknowledge. The only caller of the
//! acknowledging verbs.
//!
//! Bounded by credits and by bytes: no more is held than the role asked for, so a full role leaves the
//! rest in the stream, for itself or for another replica (invariant 8).
//!
//! A message that no worker could take, however often it was delivered, is known from the server's notice:
//! it is read by its sequence and becomes a dead letter like any other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use schemas::{FaultNote, Route, encode};
use streams::reader::StoredMessage;
use streams::{Bus, CarryError, Delivery, Publication, PublishOutcome, Publisher, Puller, reader, subject};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

use crate::dead_letter;
use crate::fault::{self, Fault, RETRY_DELAY};
use crate::handler::{Handler, MessageCredit, OutgoingMessages};
use crate::metrics;
use crate::shutdown::Shutdown;

/// How long messages in hand may take to finish when the worker is told to stop.
const GRACE: Duration = Duration::from_secs(20);

/// Bytes of messages that a role holds at a time, KiB, beside what its puller has ahead.
const MOST_HELD_KIB: u32 = 64 * 1024;
/// How often it is looked for messages that reached nobody, and whether the connection is still there.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Where a role's messages come from and how many it holds.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// The durable consumer on it, shared by all replicas.
    pub durable: String,
    /// Messages held at a time, at least 1.
    pub credits: usize,
    /// Deliveries after which a message is given up; absent: never.
    pub tries: Option<u64>,
    /// The number of credits from now on, whenever it changes; absent: never.
    pub resized: Option<watch::Receiver<usize>>,
    /// The consumer's patience; progress is reported three times as often.
    pub ack_wait: Duration,
}

/// What a worker did so far; read by its sign of life.
#[derive(Debug, Default)]
pub struct WorkerStats {
    /// Messages acknowledged.
    pub finished: AtomicU64,
    /// Messages in hand.
    pub holding: AtomicU64,
}

/// Runs a role until it is told to stop, or must.
///
/// # Errors
/// The stop note of a step that cannot handle anything. A consumer that does not exist is waited for.
pub async fn consume<S: Handler>(
    step: Arc<S>,
    from: &Bus,
    publisher: Publisher,
    drive: ConsumerConfig,
    tally: Arc<WorkerStats>,
    shutdown: Shutdown,
) -> Result<(), Fault> {
    // Half the credits at a time: with what is in hand, no more than twice the credits is ever held.
    let mut puller = Puller::new(from, S::STREAM, &drive.durable, drive.credits.div_ceil(2));
    let credits = Arc::new(Semaphore::new(drive.credits.max(1)));
    let held_kib = Arc::new(Semaphore::new(MOST_HELD_KIB as usize));
    let mut room = CreditPool { credits: credits.clone(), given: drive.credits.max(1), resized: drive.resized };
    let tracker = TaskTracker::new();
    let (stop, mut stopped) = tokio::sync::mpsc::channel::<FaultNote>(1);
    let hand =
        Arc::new(InFlight { step, publisher, from: from.clone(), ack_wait: drive.ack_wait, tries: drive.tries, tally });
    metrics::register_queue(S::ROLE, from, S::STREAM, &drive.durable);
    tracing::info!(role = S::ROLE, stream = S::STREAM, credits = drive.credits, "started");
    let watch = tokio::spawn({
        let (hand, durable, stop) = (hand.clone(), drive.durable.clone(), stop.clone());
        async move { hand.watch(&durable, &stop).await }
    });
    let ended = loop {
        let credit = tokio::select! {
            credit = credits.clone().acquire_owned() => credit,
            () = room.changed() => continue,
            () = shutdown.wait_for_request() => break Ok(()),
        };
        let Ok(credit) = credit else { break Ok(()) };
        let delivery = tokio::select! {
            delivery = puller.next() => delivery,
            () = room.changed() => continue,
            () = shutdown.wait_for_request() => break Ok(()),
            Some(note) = stopped.recv() => break Err(Fault::Stop(note)),
        };
        // The largest message is far smaller than what may be held, so everything gets its turn.
        let kib = u32::try_from(delivery.payload().len() / 1024 + 1).unwrap_or(MOST_HELD_KIB).min(MOST_HELD_KIB);
        let Ok(kib) = held_kib.clone().acquire_many_owned(kib).await else { break Ok(()) };
        let (hand, stop) = (hand.clone(), stop.clone());
        tracker.spawn(async move {
            if let Some(note) = hand.handle_delivery(delivery, MessageCredit::new(credit, kib)).await {
                let _already_stopping = stop.try_send(note);
            }
        });
    };
    watch.abort();
    tracker.close();
    if tokio::time::timeout(GRACE, tracker.wait()).await.is_err() {
        tracing::warn!(role = S::ROLE, left = tracker.len(), "messages in hand are left for redelivery");
    }
    // Acknowledgements leave without an answer: the process must not end before they did.
    from.flush_published().await;
    tracing::info!(role = S::ROLE, "stopped");
    ended
}

/// How many messages may be held, which may change.
struct CreditPool {
    credits: Arc<Semaphore>,
    given: usize,
    resized: Option<watch::Receiver<usize>>,
}

impl CreditPool {
    /// Waits for another number, and keeps to it: credits in use are taken back as they come.
    async fn changed(&mut self) {
        let Some(resized) = &mut self.resized else { return std::future::pending().await };
        if resized.changed().await.is_err() {
            self.resized = None;
            return std::future::pending().await;
        }
        let wanted = (*resized.borrow_and_update()).max(1);
        match wanted.checked_sub(self.given) {
            Some(more) => self.credits.add_permits(more),
            None => {
                let (credits, fewer) = (self.credits.clone(), self.given - wanted);
                let fewer = u32::try_from(fewer).unwrap_or(u32::MAX);
                // Ends with the last of them, or with the worker.
                tokio::spawn(async move {
                    if let Ok(taken) = credits.acquire_many_owned(fewer).await {
                        taken.forget();
                    }
                });
            }
        }
        self.given = wanted;
    }
}

struct InFlight<S> {
    step: Arc<S>,
    publisher: Publisher,
    from: Bus,
    ack_wait: Duration,
    tries: Option<u64>,
    tally: Arc<WorkerStats>,
}

impl<S: Handler> InFlight<S> {
    /// Takes one message to its end; returns a note when the worker must stop.
    async fn handle_delivery(&self, delivery: Delivery, credit: MessageCredit) -> Option<FaultNote> {
        self.tally.holding.fetch_add(1, Ordering::Relaxed);
        let ended = self.to_the_end(&delivery, &credit).await;
        self.tally.holding.fetch_sub(1, Ordering::Relaxed);
        let fault = match ended {
            Ok(()) => {
                metrics::count_message(S::ROLE, "finished");
                self.tally.finished.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            Err(fault) => fault,
        };
        let (subject, attempts) = (delivery.subject(), delivery.attempts);
        let after = match fault {
            Fault::Stop(note) => {
                tracing::error!(
                    role = S::ROLE,
                    subject,
                    fault = note.name,
                    reason = note.reason,
                    remedy = note.remedy,
                    "must stop"
                );
                return Some(note);
            }
            Fault::Retry { after, note } => {
                tracing::warn!(
                    role = S::ROLE,
                    subject,
                    attempts,
                    fault = note.name,
                    reason = note.reason,
                    "tried again later"
                );
                after
            }
            Fault::Wait { after } => after,
            // What `work` could not bury comes again.
            Fault::Reject(_) => RETRY_DELAY,
        };
        metrics::count_message(S::ROLE, "retried");
        if let Err(error) = delivery.retry(after).await {
            tracing::debug!(%error, "it comes back by itself when its time is up");
        }
        None
    }

    async fn to_the_end(&self, delivery: &Delivery, credit: &MessageCredit) -> Result<(), Fault> {
        let mut work = std::pin::pin!(self.process_message(delivery, credit));
        loop {
            tokio::select! {
                ended = &mut work => break ended,
                () = tokio::time::sleep(self.ack_wait / 3) => {
                    if let Err(error) = delivery.progress().await {
                        tracing::debug!(%error, "progress not reported");
                    }
                }
            }
        }
    }

    async fn process_message(&self, delivery: &Delivery, credit: &MessageCredit) -> Result<(), Fault> {
        let outgoing = match self.handle(delivery, credit).await {
            Err(Fault::Reject(note)) => {
                self.give_up(&delivery.record(), delivery.attempts, note).await?;
                return Ok(delivery.ack().await?);
            }
            other => other?,
        };
        self.publish(outgoing).await?;
        Ok(delivery.ack().await?)
    }

    /// Looks after what the loop itself cannot see: messages that reached nobody, and a connection that is
    /// gone for good, with which a worker would live on and do nothing.
    async fn watch(&self, durable: &str, stop: &tokio::sync::mpsc::Sender<FaultNote>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if self.from.is_gone().await {
                let _already_stopping = stop.try_send(fault::client_gone());
                return;
            }
            // What another place's stream could not deliver is that place's to tidy up.
            if self.from.is_remote() {
                continue;
            }
            if let Err(fault) = self.bury_unread(durable).await {
                tracing::debug!(role = S::ROLE, ?fault, "messages that reached nobody are looked for again later");
            }
        }
    }

    /// Makes dead letters of messages that were delivered as often as the durable allows and never finished.
    async fn bury_unread(&self, durable: &str) -> Result<(), Fault> {
        while let Some(notice) = reader::next_exhausted(&self.from, S::STREAM, durable).await? {
            if notice.sequence > 0
                && let Some(record) = reader::message_at(&self.from, S::STREAM, notice.sequence).await?
            {
                let reason = format!(
                    "delivered {} times and never taken: no worker could read it, or each that did died at once",
                    notice.deliveries
                );
                let remedy = "look at its headers (`tributary dead-letters show`) and at what the workers logged; publish it again without what is odd";
                let note = FaultNote::new("client_unreadable", reason, remedy);
                self.give_up(&record, notice.deliveries, note).await?;
                // Nobody acknowledges it any more, and the durable would wait for that.
                reader::remove_answered(&self.from, S::STREAM, record.sequence).await?;
            }
            reader::delete_message(&self.from, streams::topology::ADVISORIES, notice.own_sequence).await?;
        }
        Ok(())
    }

    async fn handle(&self, delivery: &Delivery, credit: &MessageCredit) -> Result<OutgoingMessages, Fault> {
        if let Some(tries) = self.tries
            && delivery.attempts > tries
        {
            let reason = format!(
                "delivered {} times and never finished, so whoever took it died or gave it back",
                delivery.attempts
            );
            let remedy = "look for what the workers logged about it; then `tributary dead-letters redrive`";
            return Err(Fault::reject("tries_used_up", reason, remedy));
        }
        self.step.handle(delivery, credit).await
    }

    async fn publish(&self, outgoing: OutgoingMessages) -> Result<(), Fault> {
        for publication in &outgoing.publications {
            match self.publisher.publish(publication).await {
                Ok(_) => {}
                Err(error @ CarryError::Full { .. }) if !outgoing.when_full.is_empty() => {
                    tracing::warn!(%error, "taking the way out for a full stream");
                    for publication in &outgoing.when_full {
                        self.publisher.publish(publication).await?;
                    }
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        for publication in &outgoing.spare {
            match self.publisher.publish(publication).await {
                Ok(_) => {}
                Err(error @ CarryError::Full { .. }) => tracing::debug!(%error, "left out"),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Makes a dead letter of a message, unless its task has another outcome already.
    async fn give_up(&self, message: &StoredMessage, attempts: u64, note: FaultNote) -> Result<(), Fault> {
        let burial = self.step.dead_letter(message, &note);
        for publication in &burial.publications {
            let placed = self.publisher.publish(publication).await?;
            if placed == PublishOutcome::Taken && !self.is_dead(&publication.subject).await? {
                return Ok(());
            }
        }
        tracing::warn!(role = S::ROLE, subject = message.subject, fault = note.name, reason = note.reason, "given up");
        metrics::count_message(S::ROLE, "given_up");
        let letter =
            dead_letter::from_stored_message(S::ROLE, S::STREAM, &burial.site, burial.task, message, attempts, note);
        let slot = subject::dead(S::STREAM, &burial.site, letter.id);
        self.publisher.publish(&Publication::first_on_subject(slot, encode(&letter)?)).await?;
        Ok(())
    }

    /// Whether the outcome in a slot is the tombstone of the very message in hand.
    async fn is_dead(&self, subject: &str) -> Result<bool, Fault> {
        let outcome = reader::read_outcome(&self.from, &subject::slot_of(subject)).await?;
        Ok(outcome.is_some_and(|outcome| outcome.route == Route::Dead))
    }
}

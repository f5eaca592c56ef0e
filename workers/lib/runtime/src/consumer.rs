//! The loop of every worker: pull, handle, publish, then acknowledge. Nothing else acknowledges messages.
//!
//! Limited by credits and by bytes: it holds no more than the role asked for, so a busy worker leaves the
//! rest in the stream, for itself or for another replica (invariant 8).
//!
//! A message that no worker could read, however often it was delivered, is known from the server's notice:
//! it is read by its sequence and becomes a dead letter like any other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use schemas::{Answer, FaultNote, Route, encode};
use streams::backoff::Backoff;
use streams::reader::StoredMessage;
use streams::{Bus, CarryError, Delivery, Publication, PublishOutcome, Publisher, Puller, reader, subject};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

use crate::clock;
use crate::dead_letter;
use crate::fault::{self, Fault, RETRY_DELAY};
use crate::handler::{Handler, MessageCredit, OutgoingMessages};
use crate::metrics;
use crate::outcome::{self, SlotContent};
use crate::shutdown::Shutdown;
use crate::traces::{self, StageSpan};

/// How long in-flight messages may take to finish after the worker was told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Limit on the bytes of in-flight messages of a role, KiB, beside what its puller fetched ahead.
const MAX_HELD_KIB: u32 = 64 * 1024;
/// Interval of the checks for undelivered messages and for a lost connection.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Where a role's messages come from, and how many it holds.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// Durable consumer, shared by all workers of the role.
    pub durable: String,
    /// Most messages in flight, at least 1.
    pub credits: usize,
    /// Deliveries after which a message becomes a dead letter; absent: never.
    pub tries: Option<u64>,
    /// Receives a new number of credits whenever it changes; absent: it never changes.
    pub resized: Option<watch::Receiver<usize>>,
    /// Ack wait of the consumer; progress is reported three times as often.
    pub ack_wait: Duration,
}

/// Counters of a worker, shown in its heartbeat.
#[derive(Debug, Default)]
pub struct WorkerStats {
    /// Messages acknowledged.
    pub finished: AtomicU64,
    /// Messages in flight.
    pub holding: AtomicU64,
    /// Final answers stored after the publishers' deadlines.
    pub late: AtomicU64,
}

/// Runs a role until it is told to stop, or must.
///
/// # Errors
/// The note of a handler that cannot handle anything. A missing consumer is waited for, not an error.
pub async fn consume<S: Handler>(
    handler: Arc<S>,
    from: &Bus,
    publisher: Publisher,
    config: ConsumerConfig,
    stats: Arc<WorkerStats>,
    shutdown: Shutdown,
) -> Result<(), Fault> {
    // Half the credits at a time: with those in flight, at most twice the credits are held.
    let mut puller = Puller::new(from, S::STREAM, &config.durable, config.credits.div_ceil(2));
    let credits = Arc::new(Semaphore::new(config.credits.max(1)));
    let held_kib = Arc::new(Semaphore::new(MAX_HELD_KIB as usize));
    let mut pool = CreditPool { credits: credits.clone(), given: config.credits.max(1), resized: config.resized };
    let tracker = TaskTracker::new();
    let (stop, mut stopped) = tokio::sync::mpsc::channel::<FaultNote>(1);
    let in_flight = Arc::new(InFlight {
        handler,
        publisher,
        from: from.clone(),
        ack_wait: config.ack_wait,
        tries: config.tries,
        stats,
        durable: config.durable.clone(),
    });
    metrics::register_queue(S::ROLE, from, S::STREAM, &config.durable);
    tracing::info!(role = S::ROLE.as_str(), stream = S::STREAM, credits = config.credits, "started");
    let checks = tokio::spawn({
        let (in_flight, durable, stop) = (in_flight.clone(), config.durable.clone(), stop.clone());
        async move { in_flight.check_regularly(&durable, &stop).await }
    });
    let ended = loop {
        let credit = tokio::select! {
            biased;
            () = shutdown.wait_for_request() => break Ok(()),
            () = pool.changed() => continue,
            credit = credits.clone().acquire_owned() => credit,
        };
        let Ok(credit) = credit else { break Ok(()) };
        let delivery = tokio::select! {
            biased;
            () = shutdown.wait_for_request() => break Ok(()),
            Some(note) = stopped.recv() => break Err(Fault::Stop(note)),
            () = pool.changed() => continue,
            delivery = puller.next() => delivery,
        };
        // The largest message is far below the limit on held bytes, so every message gets its turn.
        let kib = u32::try_from(delivery.payload().len() / 1024 + 1).unwrap_or(MAX_HELD_KIB).min(MAX_HELD_KIB);
        let Ok(kib) = held_kib.clone().acquire_many_owned(kib).await else { break Ok(()) };
        let (in_flight, stop) = (in_flight.clone(), stop.clone());
        tracker.spawn(async move {
            if let Some(note) = in_flight.handle_delivery(delivery, MessageCredit::new(credit, kib)).await {
                let _already_stopping = stop.try_send(note);
            }
        });
    };
    checks.abort();
    tracker.close();
    if tokio::time::timeout(DRAIN_TIMEOUT, tracker.wait()).await.is_err() {
        tracing::warn!(role = S::ROLE.as_str(), left = tracker.len(), "in-flight messages left for redelivery");
    }
    // Acknowledgements are sent without waiting for a reply: the process must not end before they left.
    from.flush_published().await;
    tracing::info!(role = S::ROLE.as_str(), "stopped");
    ended
}

/// The number of messages that may be in flight, which may change.
struct CreditPool {
    credits: Arc<Semaphore>,
    given: usize,
    resized: Option<watch::Receiver<usize>>,
}

impl CreditPool {
    /// Waits for a new number and applies it: credits in use are removed as they are returned.
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
                // Ends when the last one was removed, or with the worker.
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
    handler: Arc<S>,
    publisher: Publisher,
    from: Bus,
    ack_wait: Duration,
    tries: Option<u64>,
    stats: Arc<WorkerStats>,
    durable: String,
}

impl<S: Handler> InFlight<S> {
    /// Handles one message to its end; returns a note if the worker must stop.
    async fn handle_delivery(&self, delivery: Delivery, credit: MessageCredit) -> Option<FaultNote> {
        self.stats.holding.fetch_add(1, Ordering::Relaxed);
        let span = self.begin_span(&delivery);
        let ended = self.finish(&delivery, &credit, &span).await;
        self.stats.holding.fetch_sub(1, Ordering::Relaxed);
        let fault = match ended {
            Ok(()) => {
                metrics::count_message(S::ROLE, "finished");
                self.stats.finished.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            Err(fault) => fault,
        };
        span.set("tributary.outcome", &"retried");
        let (subject, attempts) = (delivery.subject(), delivery.attempts);
        let after = match fault {
            Fault::Stop(note) => {
                span.fail(note.kind.as_str());
                tracing::error!(
                    role = S::ROLE.as_str(),
                    subject,
                    fault = note.kind.as_str(),
                    reason = note.reason,
                    remedy = note.remedy,
                    "worker must stop"
                );
                return Some(note);
            }
            Fault::Retry { after, note } => {
                span.fail(note.kind.as_str());
                tracing::warn!(
                    role = S::ROLE.as_str(),
                    subject,
                    attempts,
                    fault = note.kind.as_str(),
                    reason = note.reason,
                    "retry scheduled"
                );
                // What failed together does not come again together.
                Backoff::steady(after).next_pause()
            }
            Fault::Wait { after } => after,
            // Its dead letter could not be published, so it comes again.
            Fault::Reject(_) => Backoff::steady(RETRY_DELAY).next_pause(),
        };
        metrics::count_message(S::ROLE, "retried");
        if let Err(error) = delivery.retry(after).await {
            tracing::debug!(%error, "negative acknowledgement failed; redelivered after the ack wait");
        }
        None
    }

    /// The span of a message, if messages of this stream have one.
    fn begin_span(&self, delivery: &Delivery) -> StageSpan {
        let Some(name) = S::SPAN else { return StageSpan::default() };
        let span = StageSpan::begin(name, S::ROLE, |header| delivery.header(header));
        span.set("messaging.system", &"nats");
        span.set("messaging.operation.type", &"process");
        span.set("messaging.destination.name", &delivery.subject());
        span.set("messaging.consumer.group.name", &self.durable);
        span.set_number("tributary.attempts", delivery.attempts);
        let waited = clock::since_ns(delivery.stored_at_ns).as_millis();
        span.set_number("tributary.queue_ms", u64::try_from(waited).unwrap_or(u64::MAX));
        span
    }

    async fn finish(&self, delivery: &Delivery, credit: &MessageCredit, span: &StageSpan) -> Result<(), Fault> {
        let mut work = std::pin::pin!(span.scope(self.process_message(delivery, credit, span)));
        loop {
            tokio::select! {
                biased;
                ended = &mut work => break ended,
                () = tokio::time::sleep(self.ack_wait / 3) => {
                    if let Err(error) = delivery.progress().await {
                        tracing::debug!(%error, "in-progress acknowledgement failed");
                    }
                }
            }
        }
    }

    async fn process_message(
        &self,
        delivery: &Delivery,
        credit: &MessageCredit,
        span: &StageSpan,
    ) -> Result<(), Fault> {
        if delivery.attempts > 1 && self.was_given_up(delivery).await? {
            return Ok(delivery.ack().await?);
        }
        let outgoing = match self.handle(delivery, credit).await {
            Err(Fault::Reject(note)) => {
                span.fail(note.kind.as_str());
                span.set("tributary.outcome", &"given_up");
                self.give_up(&delivery.record(), delivery.attempts, note).await?;
                return Ok(delivery.ack().await?);
            }
            other => other?,
        };
        span.step("send", self.publish(outgoing.marked_by(span), delivery)).await?;
        span.set("tributary.outcome", &"finished");
        Ok(delivery.ack().await?)
    }

    /// Checks what the loop itself cannot see: messages that reached no worker, and a connection that has
    /// ended, with which a worker would keep running and do nothing.
    async fn check_regularly(&self, durable: &str, stop: &tokio::sync::mpsc::Sender<FaultNote>) {
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            if self.from.is_gone().await {
                let _already_stopping = stop.try_send(fault::client_gone());
                return;
            }
            // Undelivered messages of another place's stream are that place's to handle.
            if self.from.is_remote() {
                continue;
            }
            if let Err(fault) = self.dead_letter_undelivered(durable).await {
                tracing::debug!(role = S::ROLE.as_str(), ?fault, "undelivered message check failed");
            }
        }
    }

    /// Writes dead letters for messages that were delivered as often as the durable allows and never finished.
    async fn dead_letter_undelivered(&self, durable: &str) -> Result<(), Fault> {
        while let Some(notice) = reader::next_exhausted(&self.from, S::STREAM, durable).await? {
            if notice.sequence > 0
                && let Some(record) = reader::message_at(&self.from, S::STREAM, notice.sequence).await?
            {
                let reason = format!(
                    "delivered {} times without being handled: no worker could read it, or every one that did crashed at once",
                    notice.deliveries
                );
                let remedy = "check its headers (`tributary dead-letters show`) and the workers' logs; fix what is odd and publish it again";
                let note = FaultNote::new("client_unreadable", reason, remedy);
                self.give_up(&record, notice.deliveries, note).await?;
                // Nobody will acknowledge it, and the durable would wait for that.
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
                "delivered {} times and never finished: every worker that took it crashed or returned it",
                delivery.attempts
            );
            let remedy = "check the workers' logs for it, then run `tributary dead-letters redrive`";
            return Err(Fault::reject("tries_used_up", reason, remedy));
        }
        self.handler.handle(delivery, credit).await
    }

    async fn publish(&self, outgoing: OutgoingMessages, delivery: &Delivery) -> Result<(), Fault> {
        for publication in &outgoing.publications {
            match (self.publisher.publish(publication).await, &outgoing.when_full) {
                (Ok(_), _) => {}
                (Err(error @ CarryError::Full { .. }), Some(answer)) => {
                    tracing::warn!(%error, "stream full; using fallback");
                    return self.store_answer(answer, delivery).await;
                }
                (Err(error), _) => return Err(error.into()),
            }
        }
        if let Some(answer) = &outgoing.final_answer {
            self.store_answer(answer, delivery).await?;
        }
        for publication in &outgoing.spare {
            match self.publisher.publish(publication).await {
                Ok(_) => {}
                Err(error @ CarryError::Full { .. }) => tracing::debug!(%error, "optional message skipped"),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Stores a final answer, unless its task has another outcome already.
    async fn store_answer(&self, answer: &Answer, delivery: &Delivery) -> Result<(), Fault> {
        let record = delivery.record();
        match outcome::store_answer(&self.publisher, answer, &self.stats).await? {
            SlotContent::ThisAnswer => self.handler.answer_stored(answer),
            SlotContent::OtherAnswer(outcome) => {
                if self.handler.image_task(&record).is_some_and(|task| task.id == outcome.task) {
                    // Somebody gave it up meanwhile, and must not be left without a dead letter.
                    self.finish_giving_up(&record, delivery.attempts, *outcome).await?;
                }
            }
        }
        Ok(())
    }

    /// Whether an earlier delivery gave the message up. That stays so, whatever the handler would make of it now: the
    /// tombstone is stored before the dead letter, which may have found no room.
    async fn was_given_up(&self, delivery: &Delivery) -> Result<bool, Fault> {
        let record = delivery.record();
        let Some(task) = self.handler.image_task(&record) else { return Ok(false) };
        let slot = subject::final_answer(&task.site, &task.camera, task.id);
        match reader::read_outcome(self.publisher.bus(), &slot).await? {
            Some(outcome) => self.finish_giving_up(&record, delivery.attempts, outcome).await,
            None => Ok(false),
        }
    }

    /// Writes the dead letter that belongs to an outcome, unless it is there; false if the outcome is not the tombstone
    /// of this message.
    async fn finish_giving_up(&self, message: &StoredMessage, attempts: u64, outcome: Answer) -> Result<bool, Fault> {
        match outcome.fault.clone().filter(|_| outcome.is_tombstone_of(message.sequence)) {
            Some(fault) => self.write_dead_letter(message, attempts, fault).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// Gives a message up: its tombstone takes the slot of the outcome, and a dead letter says why. There is no dead letter
    /// if the task already has another outcome.
    async fn give_up(&self, message: &StoredMessage, attempts: u64, note: FaultNote) -> Result<(), Fault> {
        let tombstone =
            self.handler.image_task(message).map(|task| Answer::tombstone(&task, note.clone(), clock::now_ms()));
        if let Some(tombstone) = tombstone
            && let SlotContent::OtherAnswer(outcome) =
                outcome::store_answer(&self.publisher, &tombstone, &self.stats).await?
            && outcome.route != Route::Dead
        {
            return Ok(());
        }
        self.write_dead_letter(message, attempts, note).await
    }

    async fn write_dead_letter(&self, message: &StoredMessage, attempts: u64, note: FaultNote) -> Result<(), Fault> {
        let context = self.handler.dead_letter(message, &note);
        if let Some(task) = context.task {
            traces::current().set_task_id(task);
        }
        for publication in &context.publications {
            self.publisher.publish(publication).await?;
        }
        let (fault, reason) = (note.kind.clone(), note.reason.clone());
        let dead =
            dead_letter::from_stored_message(S::ROLE, S::STREAM, &context.site, context.task, message, attempts, note);
        let slot = subject::dead(S::STREAM, &context.site, dead.id);
        if self.publisher.publish(&Publication::first_on_subject(slot, encode(&dead)?)).await? != PublishOutcome::Taken
        {
            let (role, subject) = (S::ROLE.as_str(), &message.subject);
            tracing::warn!(role, subject, fault = fault.as_str(), reason, "message dead-lettered");
            metrics::count_message(S::ROLE, "given_up");
        }
        Ok(())
    }
}

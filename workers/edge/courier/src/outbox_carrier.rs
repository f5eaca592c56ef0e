//! Sends messages of the outbox to the cloud: a message leaves the site's stream only after the cloud stored it
//! (invariant 1). What goes next, and whether anything may, is decided by the pure modules [`outbox_index`],
//! [`budget`], [`breaker`] and [`link`]; this one does the work.
//!
//! [`outbox_index`]: crate::outbox_index
//! [`budget`]: crate::budget
//! [`breaker`]: crate::breaker
//! [`link`]: crate::link

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use runtime::consumer::WorkerStats;
use runtime::traces::StageSpan;
use runtime::{Fault, Shutdown, clock, dead_letter, outcome};
use schemas::limits::{MAX_IMAGE_BYTES, MAX_WEIGHTS_BYTES};
use schemas::task::{HEADER_BLOB, HEADER_DEADLINE_AT, HEADER_MESSAGE_ID, HEADER_PRIORITY, HEADER_TO};
use schemas::{BlobRef, FaultNote, HardCase, LinkReport, SiteName, TaskId, VerifyRequest, decode_shared, encode};
use streams::backoff::wait_about;
use streams::fleet::Ledger;
use streams::reader::{self, StoredMessage, StreamRange};
use streams::subject::OutboxKind;
use streams::{Blobs, Bus, CarryError, Publication, Publisher, subject, topology};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::breaker::Breaker;
use crate::budget::{Budget, BudgetUsage};
use crate::outbox_index::{OutboxEntry, OutboxIndex, UrgencyClass};
use crate::probe::LinkHandle;
use crate::settings::CourierSettings;
use crate::worker::ROLE;

/// How long the cloud may take to store a message that reached it, before that counts as a failure.
const CLOUD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long publishing at the site is retried.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// Most messages found in the stream that wait for the index.
const FOUND_AHEAD: usize = 1024;
/// Interval of comparing the index with the stream and saving the budget's usage.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(5);
/// Longest time between two checks of what may be sent.
const MAX_SLEEP: Duration = Duration::from_secs(1);
/// Key of the ledger note with the usage of the day's budget.
const USAGE_NOTE: &str = "uplink-used";

/// Sends what waits in the outbox.
pub(crate) struct OutboxCarrier {
    /// Site it works for.
    pub site: SiteName,
    /// Connection to the site's own JetStream domain.
    pub here: Bus,
    /// The site's bucket of large images and weights.
    pub blobs: Blobs,
    /// Connection to the cloud, which must hold the blobs before their message.
    pub cloud: Bus,
    /// The link to the cloud.
    pub link: LinkHandle,
    /// Settings of the courier.
    pub settings: CourierSettings,
    /// Counters for the heartbeat.
    pub stats: Arc<WorkerStats>,
    state: Mutex<CarrierState>,
}

struct CarrierState {
    outbox: OutboxIndex,
    budget: Budget,
    breaker: Breaker,
    /// Bytes in flight for which nobody waits.
    bulk_bytes: u64,
}

/// How an upload ended.
enum UploadOutcome {
    /// The cloud stored it, and the site's stream no longer holds it.
    Delivered,
    /// It had left the stream, expired, or can never be sent.
    Gone,
    /// The link went down; the state of the cloud is unknown.
    Interrupted,
    /// The cloud or a server failed.
    Failed(Fault),
}

impl OutboxCarrier {
    /// Reads the budget's usage from the ledger.
    pub(crate) async fn open(
        site: SiteName,
        here: Bus,
        blobs: Blobs,
        cloud: Bus,
        link: LinkHandle,
        settings: CourierSettings,
        stats: Arc<WorkerStats>,
    ) -> Result<Self, CarryError> {
        let note = Ledger::open(&here).await?.read(USAGE_NOTE).await?;
        let used = note.and_then(|note| serde_json::from_str::<BudgetUsage>(&note).ok());
        let budget = Budget::new(settings.budget.clone(), used);
        let state = CarrierState { outbox: OutboxIndex::default(), budget, breaker: Breaker::default(), bulk_bytes: 0 };
        Ok(Self { site, here, blobs, cloud, link, settings, stats, state: Mutex::new(state) })
    }

    /// The state of the link, including what waits for it.
    pub(crate) fn report(&self) -> LinkReport {
        self.with(|state| {
            let (waiting, waiting_bytes) = state.outbox.backlog();
            let budget_left_bytes = state.budget.left_bytes(clock::now_ms());
            LinkReport { waiting, waiting_bytes, budget_left_bytes, ..self.link.report() }
        })
    }

    /// Sends until told to stop. Uploads in flight then are sent again later, under the same ids.
    pub(crate) async fn run(self: Arc<Self>, shutdown: Shutdown) -> Result<(), Fault> {
        let (sender, mut found) = mpsc::channel(FOUND_AHEAD);
        let mut scanner = JoinSet::new();
        scanner.spawn(scan_outbox(self.here.clone(), sender));
        let mut uploads = JoinSet::new();
        let mut maintenance = tokio::time::interval(MAINTENANCE_INTERVAL);
        tracing::info!(role = ROLE.as_str(), stream = topology::OUTBOX, uploads = self.settings.uploads, "started");
        let mut was_up = false;
        loop {
            let up = self.link.report().up;
            if was_up && !up {
                self.with(|state| state.outbox.link_lost());
            }
            was_up = up;
            self.start_uploads(&mut uploads);
            let link_change = async { if up { self.link.down().await } else { self.link.up().await } };
            tokio::select! {
                biased;
                () = shutdown.wait_for_request() => break,
                _ = maintenance.tick() => self.maintain(&mut scanner, &found).await,
                () = link_change => {}
                Some(ended) = uploads.join_next(), if !uploads.is_empty() => self.record_end(ended),
                Some((sequence, entry)) = found.recv() => {
                    self.with(|state| state.outbox.add(sequence, entry, up));
                }
                () = tokio::time::sleep(self.wait_for_retry()) => {}
            }
        }
        self.save_usage().await;
        tracing::info!(role = ROLE.as_str(), stream = topology::OUTBOX, "stopped");
        Ok(())
    }

    /// Starts every upload that may start now.
    fn start_uploads(self: &Arc<Self>, uploads: &mut JoinSet<(u64, Option<OutboxEntry>, UploadOutcome)>) {
        let (now_ms, now_s) = (clock::now_ms(), self.link.now_s());
        for sequence in self.with(|state| state.outbox.expired(now_ms)) {
            let carrier = self.clone();
            uploads.spawn(async move {
                (sequence, None, carrier.expire(sequence).await.unwrap_or_else(UploadOutcome::Failed))
            });
        }
        // A cloud that finishes nothing needs no more: requests then go one by one, and leave
        // the processor and the link to others.
        let limit = if self.link.is_cloud_progressing() { self.settings.uploads } else { 1 };
        while self.link.report().up && uploads.len() < limit {
            let (in_flight, window) = (self.link.in_flight_bytes(), self.link.window_bytes());
            let next = self.with(|state| {
                let CarrierState { outbox, budget, breaker, bulk_bytes } = state;
                if !breaker.allows(now_s) {
                    return None;
                }
                let others = in_flight.saturating_sub(*bulk_bytes);
                let has_room =
                    |before: u64, entry: &OutboxEntry| before == 0 || before.saturating_add(entry.bytes) <= window;
                // Weights may be a hundred windows long: they are sent in pieces, and requests pass
                // between the pieces.
                let fits = |entry: &OutboxEntry| match entry.class {
                    UrgencyClass::Verdict => has_room(others, entry),
                    UrgencyClass::Bulk => *bulk_bytes == 0 || has_room(in_flight, entry),
                };
                let may = |entry: &OutboxEntry| fits(entry) && budget.allows(entry.bytes, now_ms, now_s);
                let next = outbox.next(self.settings.backlog_order, may)?;
                budget.spend(next.1.bytes, now_ms);
                breaker.begin();
                if next.1.class == UrgencyClass::Bulk {
                    *bulk_bytes += next.1.bytes;
                }
                Some(next)
            });
            let Some((sequence, entry)) = next else { return };
            // Recorded now, so that the next decision counts it as in flight.
            let upload = self.link.sent(entry.bytes);
            let carrier = self.clone();
            uploads.spawn(async move {
                let outcome = carrier.send(sequence, upload).await.unwrap_or_else(UploadOutcome::Failed);
                (sequence, Some(entry), outcome)
            });
        }
    }

    fn record_end(&self, ended: Result<(u64, Option<OutboxEntry>, UploadOutcome), tokio::task::JoinError>) {
        let Ok((sequence, entry, outcome)) = ended else { return };
        let now_s = self.link.now_s();
        let bulk = entry.filter(|entry| entry.class == UrgencyClass::Bulk).map_or(0, |entry| entry.bytes);
        self.with(|state| state.bulk_bytes = state.bulk_bytes.saturating_sub(bulk));
        self.with(|state| match outcome {
            UploadOutcome::Delivered => {
                state.outbox.remove_message(sequence);
                state.breaker.succeeded();
                self.stats.finished.fetch_add(1, Ordering::Relaxed);
            }
            UploadOutcome::Gone => {
                state.outbox.remove_message(sequence);
                state.breaker.unknown();
            }
            UploadOutcome::Interrupted => {
                state.outbox.requeue_message(sequence);
                state.breaker.unknown();
            }
            UploadOutcome::Failed(fault) => {
                state.outbox.retry_message(sequence);
                let open = state.breaker.failed(now_s);
                tracing::warn!(sequence, open, ?fault, "upload failed; retrying");
            }
        });
    }

    /// Sends one message, and deletes it once the cloud stored it.
    async fn send(&self, sequence: u64, upload: crate::probe::UploadGuard) -> Result<UploadOutcome, Fault> {
        let Some(record) = reader::message_at(&self.here, topology::OUTBOX, sequence).await? else {
            return Ok(UploadOutcome::Gone);
        };
        let Some(to) = record.header(HEADER_TO) else {
            return self.give_up(&record, unaddressed(&record.subject)).await;
        };
        let span = begin_span(&record, to);
        // The courier may publish more than whoever writes to the outbox.
        if !OutboxKind::read(&record.subject).is_ok_and(|kind| subject::is_uploadable(kind, &self.site, to)) {
            let note = misaddressed(&record.subject, to);
            span.fail(note.kind.as_str());
            return self.give_up(&record, note).await;
        }
        let sent = tokio::select! {
            biased;
            sent = self.upload_message(&record, to, &span) => sent,
            () = self.link.down() => {
                span.fail("link_down");
                return Ok(UploadOutcome::Interrupted);
            }
        };
        match sent {
            Ok(()) => upload.record_arrival(),
            Err(Fault::Reject(note)) => {
                span.fail(note.kind.as_str());
                return self.give_up(&record, note).await;
            }
            Err(other) => {
                span.fail("carry_failed");
                return Err(other);
            }
        }
        reader::delete_message(&self.here, topology::OUTBOX, sequence).await?;
        Ok(UploadOutcome::Delivered)
    }

    async fn upload_message(&self, record: &StoredMessage, to: &str, span: &StageSpan) -> Result<(), Fault> {
        if let Some(blob) = record.header(HEADER_BLOB) {
            let blob: BlobRef =
                blob.parse().map_err(|error| Fault::reject("header_unreadable", error, "report it as a bug"))?;
            let sent = Blobs::open_sent_by(&self.cloud, &self.site);
            self.blobs.copy_to(&sent, &blob, most_bytes(&record.subject)).await?;
        }
        // The id includes the outbox's sequence, so that a message put there again is sent again, and the
        // site, because another site's message with the same sequence is a different one.
        let derived_id = || {
            let name = format!("up/{}/{}/{}", self.site, record.sequence, record.stored_at_ns);
            TaskId::from_name(&name).to_string()
        };
        // A hard case keeps the id under which a verifier may have published it, an update the id of its weights.
        let has_own = matches!(OutboxKind::read(&record.subject), Ok(OutboxKind::HardCase | OutboxKind::Update));
        let own = record.header(HEADER_MESSAGE_ID).filter(|_| has_own);
        let id = own.map_or_else(derived_id, str::to_owned);
        let publication = span.mark(Publication::with_id(to.to_owned(), record.payload.clone(), id));
        Publisher::new(self.cloud.clone(), CLOUD_TIMEOUT).publish(&publication).await?;
        Ok(())
    }

    /// Handles an expired message: a task that waits for a verdict gets the site's own answer. A task that was
    /// offloaded belongs to its recognizer, which holds the image.
    async fn expire(&self, sequence: u64) -> Result<UploadOutcome, Fault> {
        let Some(record) = reader::message_at(&self.here, topology::OUTBOX, sequence).await? else {
            return Ok(UploadOutcome::Gone);
        };
        if let Ok(request) = decode_shared::<VerifyRequest>(&record.payload) {
            let case = request.hard_case();
            if let Some(answer) = request.expire(clock::now_ms()) {
                self.keep_hard_case(case).await?;
                // The deadline keeper does the same, unless the provisional answer was dropped for space; the slot
                // keeps the first.
                outcome::store_answer(&self.publisher(), &answer, &self.stats).await?;
            }
        }
        reader::delete_message(&self.here, topology::OUTBOX, sequence).await?;
        Ok(UploadOutcome::Gone)
    }

    /// Sends up the hard case of an expired or refused request, if there is space.
    async fn keep_hard_case(&self, case: Option<HardCase>) -> Result<(), Fault> {
        let Some(case) = case else { return Ok(()) };
        let slot = subject::outbox(&case.site, OutboxKind::HardCase);
        let publication = Publication::with_id(slot, encode(&case)?, case.message_id().to_string())
            .header(HEADER_TO, subject::hardcase(&case.site));
        match self.publisher().publish(&publication).await {
            Ok(_) | Err(CarryError::Full { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives up a message that can never be sent: writes a dead letter, and a final answer if a task waits for one.
    async fn give_up(&self, record: &StoredMessage, note: FaultNote) -> Result<UploadOutcome, Fault> {
        let request: Option<VerifyRequest> = decode_shared(&record.payload).ok();
        let task = request.as_ref().map(|request| request.provisional.task);
        self.keep_hard_case(request.as_ref().and_then(VerifyRequest::hard_case)).await?;
        if let Some(answer) = request.and_then(|request| request.refuse(note.clone(), clock::now_ms())) {
            outcome::store_answer(&self.publisher(), &answer, &self.stats).await?;
        }
        tracing::warn!(
            role = ROLE.as_str(),
            subject = record.subject,
            fault = note.kind.as_str(),
            reason = note.reason,
            "message dead-lettered"
        );
        let dead = dead_letter::from_stored_message(ROLE, topology::OUTBOX, &self.site, task, record, 1, note);
        let slot = subject::dead(topology::OUTBOX, &self.site, dead.id);
        self.publisher().publish(&Publication::first_on_subject(slot, encode(&dead)?)).await?;
        reader::delete_message(&self.here, topology::OUTBOX, record.sequence).await?;
        Ok(UploadOutcome::Gone)
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(self.here.clone(), PUBLISH_TIMEOUT)
    }

    /// How long to sleep until something may start by itself.
    fn wait_for_retry(&self) -> Duration {
        let (now_ms, now_s) = (clock::now_ms(), self.link.now_s());
        self.with(|state| {
            let deadline = state.outbox.next_deadline_ms().map(|at_ms| at_ms.saturating_sub(now_ms).max(1));
            let deadline_s = deadline.map_or(f64::INFINITY, |ms| ms as f64 / 1000.0);
            let wait_s = state.breaker.wait_s(now_s).max(state.budget.wait_s());
            let sleep_s = if wait_s > 0.0 { wait_s.min(deadline_s) } else { deadline_s };
            Duration::from_secs_f64(sleep_s.clamp(0.001, MAX_SLEEP.as_secs_f64()))
        })
    }

    /// Saves the budget's usage, and checks the stream for messages unknown to the index: after a
    /// crash of the server, sequences may be used twice.
    async fn maintain(&self, scanner: &mut JoinSet<()>, found: &mpsc::Receiver<(u64, OutboxEntry)>) {
        self.save_usage().await;
        let Ok(level) = reader::stream_level(&self.here, topology::OUTBOX).await else { return };
        let (known, first_known) =
            self.with(|state| (state.outbox.backlog().0, state.outbox.contains(level.first_sequence)));
        // Equal counts are not enough: one message may be unknown while a known one is gone.
        if (level.messages > known || level.messages > 0 && !first_known) && found.is_empty() {
            let mut missed = Vec::new();
            let all = StreamRange { headers_only: true, ..StreamRange::default() };
            let scanned = reader::read_range(&self.here, topology::OUTBOX, all, level.last_sequence, |record| {
                missed.push((record.sequence, entry(&record)));
            });
            if let Err(error) = scanned.await {
                tracing::warn!(%error, messages = level.messages, known, "outbox scan failed; retrying");
            }
            let up = self.link.report().up;
            self.with(|state| missed.into_iter().for_each(|(sequence, entry)| state.outbox.add(sequence, entry, up)));
        }
        while scanner.try_join_next().is_some() {}
    }

    async fn save_usage(&self) {
        if self.settings.budget.max_bytes_per_day.is_none() {
            return;
        }
        let used = self.with(|state| state.budget.used());
        let saved = async {
            let note = serde_json::to_string(&used).unwrap_or_default();
            Ledger::open(&self.here).await?.write(USAGE_NOTE, note).await
        };
        if let Err(error) = saved.await {
            tracing::debug!(%error, "budget usage not saved");
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut CarrierState) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Follows the outbox and reports its messages to the index, without payloads.
async fn scan_outbox(here: Bus, sender: mpsc::Sender<(u64, OutboxEntry)>) {
    const RETRY_DELAY: Duration = Duration::from_secs(1);
    let mut next = 1;
    loop {
        let range = StreamRange { headers_only: true, from_sequence: Some(next), ..StreamRange::default() };
        match reader::follow_range(&here, topology::OUTBOX, range).await {
            Ok(records) => {
                let mut records = std::pin::pin!(records);
                while let Some(Ok(record)) = records.next().await {
                    next = record.sequence + 1;
                    if sender.send((record.sequence, entry(&record))).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "outbox unreadable; retrying (check its stream with `tributary setup`)")
            }
        }
        wait_about(RETRY_DELAY).await;
    }
}

/// The index entry of a message. Pure.
fn entry(record: &StoredMessage) -> OutboxEntry {
    let number = |name: &str| record.header(name).and_then(|text| text.parse::<u64>().ok());
    let class = match OutboxKind::read(&record.subject) {
        Ok(OutboxKind::HardCase | OutboxKind::Update | OutboxKind::Swap) => UrgencyClass::Bulk,
        // An unreadable message is given up soon.
        Ok(OutboxKind::Verify) | Err(_) => UrgencyClass::Verdict,
    };
    let priority = number(HEADER_PRIORITY).and_then(|priority| u8::try_from(priority).ok()).unwrap_or(5).min(9);
    let blob = record.header(HEADER_BLOB).and_then(|blob| blob.parse::<BlobRef>().ok());
    let bytes =
        record.payload_bytes().saturating_add(blob.map_or(0, |blob| blob.size_bytes.min(most_bytes(&record.subject))));
    OutboxEntry { class, priority, bytes, deadline_at_ms: number(HEADER_DEADLINE_AT) }
}

/// Largest blob that a message may refer to: weights are larger than images. Pure.
fn most_bytes(subject: &str) -> u64 {
    match OutboxKind::read(subject) {
        Ok(OutboxKind::Update) => MAX_WEIGHTS_BYTES,
        Ok(OutboxKind::Verify | OutboxKind::HardCase | OutboxKind::Swap) | Err(_) => MAX_IMAGE_BYTES,
    }
}

/// The span of a request for a verdict; what else waits in the outbox belongs to no image's trace.
fn begin_span(record: &StoredMessage, to: &str) -> StageSpan {
    if !matches!(OutboxKind::read(&record.subject), Ok(OutboxKind::Verify)) {
        return StageSpan::default();
    }
    let span = StageSpan::begin("carry", ROLE, |name| record.header(name));
    span.set("messaging.system", &"nats");
    span.set("messaging.operation.type", &"send");
    span.set("messaging.destination.name", &to);
    let waited = clock::since_ns(record.stored_at_ns).as_millis();
    span.set_number("tributary.queue_ms", u64::try_from(waited).unwrap_or(u64::MAX));
    span.set_number("messaging.message.body.size", record.payload.len() as u64);
    // Only the payload names the task, and reading it copies the image.
    if span.is_sent()
        && let Ok(VerifyRequest { provisional, .. }) = decode_shared(&record.payload)
    {
        span.set_task(provisional.task, &provisional.site, &provisional.camera);
    }
    span
}

fn misaddressed(subject: &str, to: &str) -> FaultNote {
    let shown: String = to.chars().take(100).collect();
    let reason =
        format!("message on {subject} is addressed to {shown:?}, which is not a subject for its kind and site");
    FaultNote::new("outbox_misaddressed", reason, "only tributary's own workers publish to outbox.>")
}

fn unaddressed(subject: &str) -> FaultNote {
    let reason = format!("message on {subject} has no destination (header {HEADER_TO})");
    FaultNote::new("outbox_unaddressed", reason, "only tributary's own workers publish to outbox.>")
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::outbox_index::BacklogOrder;

    /// Whoever writes to the outbox chooses the headers, even those named like the server's.
    #[test]
    fn damaged_outbox_entries_are_counted() {
        let blob = BlobRef::new([7; 32], 700).to_string();
        let values = ["1048576", "9", "1790000000000", &blob, "18446744073709551615"];
        bend::bend_all("entries of the outbox", &bend::texts(values), bend::turns() / 2, |bytes| {
            let value = String::from_utf8_lossy(bytes).into_owned();
            let names = ["Nats-Msg-Size", HEADER_PRIORITY, HEADER_DEADLINE_AT, HEADER_BLOB];
            let record = |subject: &str, headers: Vec<(String, String)>| StoredMessage {
                subject: subject.into(),
                sequence: 1,
                stored_at_ns: 0,
                headers,
                payload: Vec::new().into(),
            };
            let mut outbox = OutboxIndex::default();
            let mut add = |headers: Vec<(String, String)>, sequence: u64| {
                outbox.add(sequence, entry(&record("outbox.reef.update", headers)), true);
            };
            // The value in each header alone, and in all of them.
            for (sequence, name) in (1..).zip(names) {
                add(vec![(name.to_owned(), value.clone())], sequence);
                add(vec![("Nats-Msg-Size".into(), value.clone()), (HEADER_BLOB.into(), blob.clone())], sequence + 10);
            }
            add(names.map(|name| (name.to_owned(), value.clone())).into(), 20);
            let _waiting = outbox.backlog();
            while let Some((sequence, _)) = outbox.next(BacklogOrder::NewestFirst, |_| true) {
                outbox.remove_message(sequence);
            }
            assert_eq!(outbox.backlog().0, 0);
            9
        });
    }
}

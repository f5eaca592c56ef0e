//! From the outbox to the cloud: a message leaves the site's stream only when the cloud's has it
//! (invariant 1). What goes next, and whether anything may, is decided by the pure rooms [`outbox`],
//! [`budget`], [`breaker`] and [`link`]; this one does it.
//!
//! [`outbox`]: crate::outbox
//! [`budget`]: crate::budget
//! [`breaker`]: crate::breaker
//! [`link`]: crate::link

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use runtime::consumer::WorkerStats;
use runtime::{Fault, Shutdown, clock, dead_letter};
use schemas::limits::{MAX_IMAGE_BYTES, MAX_WEIGHTS_BYTES};
use schemas::task::{HEADER_BLOB, HEADER_DEADLINE_AT, HEADER_MESSAGE_ID, HEADER_PRIORITY, HEADER_TO};
use schemas::{BlobRef, FaultNote, LinkReport, SiteName, TaskId, VerifyRequest, decode, encode};
use streams::fleet::Ledger;
use streams::reader::{self, StoredMessage, StreamRange};
use streams::subject::OutboxKind;
use streams::{Blobs, Bus, CarryError, Publication, Publisher, subject, topology};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::breaker::Breaker;
use crate::budget::{Budget, BudgetUsage};
use crate::deadline_keeper;
use crate::outbox_index::{OutboxEntry, OutboxIndex, UrgencyClass};
use crate::probe::LinkHandle;
use crate::settings::CourierSettings;
use crate::worker::ROLE;

/// How long the cloud may take to store what reached it, before it counts as failing.
const CLOUD_PATIENCE: Duration = Duration::from_secs(5);
/// How long a publication at the site is retried.
const PATIENCE: Duration = Duration::from_secs(10);
/// Found messages that wait to be put into the index.
const FOUND_AHEAD: usize = 1024;
/// How often the index is held against the stream, and what was used of the budget is written down.
const ROUND: Duration = Duration::from_secs(5);
/// Between two looks at what may go, at the most.
const LONGEST_NAP: Duration = Duration::from_secs(1);
/// The note of what was used of the day's budget.
const USED: &str = "uplink-used";

/// Carries what waits in the outbox.
pub struct OutboxCarrier {
    /// The site.
    pub site: SiteName,
    /// Its own domain.
    pub here: Bus,
    /// Where large images are.
    pub blobs: Blobs,
    /// The cloud, where they must be before their message.
    pub cloud: Bus,
    /// The way there.
    pub link: LinkHandle,
    /// What an operator chose.
    pub settings: CourierSettings,
    /// What was done.
    pub tally: Arc<WorkerStats>,
    state: Mutex<CarrierState>,
}

struct CarrierState {
    outbox: OutboxIndex,
    budget: Budget,
    breaker: Breaker,
    /// Bytes under way that nobody waits for.
    bulk_bytes: u64,
}

/// How an upload ended.
enum UploadOutcome {
    /// The cloud has it, and the site's stream has it no more.
    Through,
    /// It was not in the stream any more, or its time was up, or it could never be sent.
    Gone,
    /// The link went away; nothing is known of the cloud.
    Interrupted,
    /// The cloud or a server failed.
    Failed(Fault),
}

impl OutboxCarrier {
    /// Looks up what was used of the budget.
    pub async fn open(
        site: SiteName,
        here: Bus,
        blobs: Blobs,
        cloud: Bus,
        link: LinkHandle,
        settings: CourierSettings,
        tally: Arc<WorkerStats>,
    ) -> Result<Self, CarryError> {
        let note = Ledger::open(&here).await?.read(USED).await?;
        let used = note.and_then(|note| serde_json::from_str::<BudgetUsage>(&note).ok());
        let budget = Budget::new(settings.budget.clone(), used);
        let state = CarrierState { outbox: OutboxIndex::default(), budget, breaker: Breaker::default(), bulk_bytes: 0 };
        Ok(Self { site, here, blobs, cloud, link, settings, tally, state: Mutex::new(state) })
    }

    /// The link with what waits for it.
    pub fn report(&self) -> LinkReport {
        self.with(|state| {
            let (waiting, waiting_bytes) = state.outbox.backlog();
            let budget_left_bytes = state.budget.left_bytes(clock::now_ms());
            LinkReport { waiting, waiting_bytes, budget_left_bytes, ..self.link.report() }
        })
    }

    /// Carries until told to stop. What is under way then is sent again, under the same ids.
    pub async fn run(self: Arc<Self>, shutdown: Shutdown) -> Result<(), Fault> {
        let (tell, mut found) = mpsc::channel(FOUND_AHEAD);
        let mut finder = JoinSet::new();
        finder.spawn(find(self.here.clone(), tell));
        let mut uploads = JoinSet::new();
        let mut rounds = tokio::time::interval(ROUND);
        tracing::info!(role = ROLE.as_str(), stream = topology::OUTBOX, uploads = self.settings.uploads, "started");
        let mut was_up = false;
        loop {
            let up = self.link.report().up;
            if was_up && !up {
                self.with(|state| state.outbox.link_lost());
            }
            was_up = up;
            self.begin(&mut uploads);
            let link_turns = async { if up { self.link.down().await } else { self.link.up().await } };
            tokio::select! {
                Some((sequence, entry)) = found.recv() => {
                    self.with(|state| state.outbox.add(sequence, entry, up));
                }
                Some(ended) = uploads.join_next(), if !uploads.is_empty() => self.ended(ended),
                () = link_turns => {}
                _ = rounds.tick() => self.round(&mut finder, &found).await,
                () = tokio::time::sleep(self.wait_for_retry()) => {}
                () = shutdown.wait_for_request() => break,
            }
        }
        self.write_down().await;
        tracing::info!(role = ROLE.as_str(), stream = topology::OUTBOX, "stopped");
        Ok(())
    }

    /// Begins whatever may begin now.
    fn begin(self: &Arc<Self>, uploads: &mut JoinSet<(u64, Option<OutboxEntry>, UploadOutcome)>) {
        let (now_ms, now_s) = (clock::now_ms(), self.link.now_s());
        for sequence in self.with(|state| state.outbox.expired(now_ms)) {
            let up = self.clone();
            uploads.spawn(
                async move { (sequence, None, up.expire(sequence).await.unwrap_or_else(UploadOutcome::Failed)) },
            );
        }
        // A cloud that finishes nothing is in no hurry for more: what must go to it goes one by one, and leaves
        // the processor and the link to others.
        let most = if self.link.is_cloud_progressing() { self.settings.uploads } else { 1 };
        while self.link.report().up && uploads.len() < most {
            let (in_flight, window) = (self.link.in_flight_bytes(), self.link.window_bytes());
            let next = self.with(|state| {
                let CarrierState { outbox, budget, breaker, bulk_bytes } = state;
                if !breaker.allows(now_s) {
                    return None;
                }
                let others = in_flight.saturating_sub(*bulk_bytes);
                let room =
                    |before: u64, entry: &OutboxEntry| before == 0 || before.saturating_add(entry.bytes) <= window;
                // Weights may be a hundred windows long: they go in pieces, and whoever waits for a verdict
                // passes between those.
                let fits = |entry: &OutboxEntry| match entry.class {
                    UrgencyClass::Verdict => room(others, entry),
                    UrgencyClass::Bulk => *bulk_bytes == 0 || room(in_flight, entry),
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
            // Counted from now on, so that the next one sees it under way.
            let upload = self.link.sent(entry.bytes);
            let up = self.clone();
            uploads.spawn(async move {
                let sent = up.send(sequence, upload).await.unwrap_or_else(UploadOutcome::Failed);
                (sequence, Some(entry), sent)
            });
        }
    }

    fn ended(&self, ended: Result<(u64, Option<OutboxEntry>, UploadOutcome), tokio::task::JoinError>) {
        let Ok((sequence, entry, sent)) = ended else { return };
        let now_s = self.link.now_s();
        let bulk = entry.filter(|entry| entry.class == UrgencyClass::Bulk).map_or(0, |entry| entry.bytes);
        self.with(|state| state.bulk_bytes = state.bulk_bytes.saturating_sub(bulk));
        self.with(|state| match sent {
            UploadOutcome::Through => {
                state.outbox.remove_message(sequence);
                state.breaker.succeeded();
                self.tally.finished.fetch_add(1, Ordering::Relaxed);
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
                tracing::warn!(sequence, open, ?fault, "an upload failed, it is tried again");
            }
        });
    }

    /// Sends one message, and deletes it once the cloud has it.
    async fn send(&self, sequence: u64, upload: crate::probe::UploadGuard) -> Result<UploadOutcome, Fault> {
        let Some(record) = reader::message_at(&self.here, topology::OUTBOX, sequence).await? else {
            return Ok(UploadOutcome::Gone);
        };
        let Some(to) = record.header(HEADER_TO) else {
            return self.give_up(&record, unaddressed(&record.subject)).await;
        };
        // The courier's rights are greater than those of whoever may write to the outbox.
        if !OutboxKind::read(&record.subject).is_ok_and(|errand| subject::is_uploadable(errand, &self.site, to)) {
            return self.give_up(&record, misaddressed(&record.subject, to)).await;
        }
        let carried = tokio::select! {
            carried = self.upload_message(&record, to) => carried,
            () = self.link.down() => return Ok(UploadOutcome::Interrupted),
        };
        match carried {
            Ok(()) => upload.record_arrival(),
            Err(Fault::Reject(note)) => return self.give_up(&record, note).await,
            Err(other) => return Err(other),
        }
        reader::delete_message(&self.here, topology::OUTBOX, sequence).await?;
        Ok(UploadOutcome::Through)
    }

    async fn upload_message(&self, record: &StoredMessage, to: &str) -> Result<(), Fault> {
        if let Some(blob) = record.header(HEADER_BLOB) {
            let blob: BlobRef = blob.parse().map_err(|error| Fault::reject("header_unreadable", error, "report it"))?;
            let sent = Blobs::open_sent_by(&self.cloud, &self.site);
            self.blobs.copy_to(&sent, &blob, most_bytes(&record.subject)).await?;
        }
        // The outbox's own sequence is part of the id: whatever is put there anew is sent anew. So is the
        // site: another's message of the same sequence is another message to the cloud.
        let anew = || {
            let here = format!("up/{}/{}/{}", self.site, record.sequence, record.stored_at_ns);
            TaskId::from_name(&here).to_string()
        };
        // A hard case has the id under which a verifier may have published it already, an update that of its weights.
        let has_own = matches!(OutboxKind::read(&record.subject), Ok(OutboxKind::HardCase | OutboxKind::Update));
        let own = record.header(HEADER_MESSAGE_ID).filter(|_| has_own);
        let id = own.map_or_else(anew, str::to_owned);
        let publication = Publication::with_id(to.to_owned(), record.payload.clone(), id);
        Publisher::new(self.cloud.clone(), CLOUD_PATIENCE).publish(&publication).await?;
        Ok(())
    }

    /// A message whose time was up: who waits for a verdict gets the edge's answer. A task that was
    /// redirected is its recognizer's, which holds the image.
    async fn expire(&self, sequence: u64) -> Result<UploadOutcome, Fault> {
        let Some(record) = reader::message_at(&self.here, topology::OUTBOX, sequence).await? else {
            return Ok(UploadOutcome::Gone);
        };
        if let Ok(request) = decode::<VerifyRequest>(&record.payload)
            && request.provisional.prediction().is_some()
        {
            self.keep_hard_case(&request).await?;
            // Its promise says the same, unless it was dropped for room; the slot takes one of the two.
            let answer = deadline_keeper::expired(request.provisional, clock::now_ms());
            self.publisher().publish(&crate::verdict_carrier::publication(&answer)?).await?;
        }
        reader::delete_message(&self.here, topology::OUTBOX, sequence).await?;
        Ok(UploadOutcome::Gone)
    }

    /// What was found hard goes up although nobody waits for a verdict on it any more, if there is room.
    async fn keep_hard_case(&self, request: &VerifyRequest) -> Result<(), Fault> {
        let Some(case) = request.hard_case() else { return Ok(()) };
        let slot = subject::outbox(&case.site, OutboxKind::HardCase);
        let publication = Publication::with_id(slot, encode(&case)?, case.message_id().to_string())
            .header(HEADER_TO, subject::hardcase(&case.site));
        match self.publisher().publish(&publication).await {
            Ok(_) | Err(CarryError::Full { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A message that can never be sent: a dead letter, and the edge's answer for whoever waits.
    async fn give_up(&self, record: &StoredMessage, note: FaultNote) -> Result<UploadOutcome, Fault> {
        let request: Option<VerifyRequest> = decode(&record.payload).ok();
        let task = request.as_ref().map(|request| request.provisional.task);
        if let Some(request) = &request {
            self.keep_hard_case(request).await?;
        }
        if let Some(answer) = request.map(|request| request.provisional).filter(|edge| edge.prediction().is_some()) {
            let answer = deadline_keeper::refused(answer, note.clone(), clock::now_ms());
            self.publisher().publish(&crate::verdict_carrier::publication(&answer)?).await?;
        }
        tracing::warn!(
            role = ROLE.as_str(),
            subject = record.subject,
            fault = note.kind.as_str(),
            reason = note.reason,
            "given up"
        );
        let letter = dead_letter::from_stored_message(ROLE, topology::OUTBOX, &self.site, task, record, 1, note);
        let slot = subject::dead(topology::OUTBOX, &self.site, letter.id);
        self.publisher().publish(&Publication::first_on_subject(slot, encode(&letter)?)).await?;
        reader::delete_message(&self.here, topology::OUTBOX, record.sequence).await?;
        Ok(UploadOutcome::Gone)
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(self.here.clone(), PATIENCE)
    }

    /// How long nothing can begin by itself.
    fn wait_for_retry(&self) -> Duration {
        let (now_ms, now_s) = (clock::now_ms(), self.link.now_s());
        self.with(|state| {
            let deadline = state.outbox.next_deadline_ms().map(|at_ms| at_ms.saturating_sub(now_ms).max(1));
            let deadline_s = deadline.map_or(f64::INFINITY, |ms| ms as f64 / 1000.0);
            let wait_s = state.breaker.wait_s(now_s).max(state.budget.wait_s());
            let nap_s = if wait_s > 0.0 { wait_s.min(deadline_s) } else { deadline_s };
            Duration::from_secs_f64(nap_s.clamp(0.001, LONGEST_NAP.as_secs_f64()))
        })
    }

    /// Writes down what was used, and looks whether the stream holds what the index does not know: after a
    /// crash of the server sequences may come twice.
    async fn round(&self, finder: &mut JoinSet<()>, found: &mpsc::Receiver<(u64, OutboxEntry)>) {
        self.write_down().await;
        let Ok(level) = reader::stream_level(&self.here, topology::OUTBOX).await else { return };
        let (known, first_known) =
            self.with(|state| (state.outbox.backlog().0, state.outbox.contains(level.first_sequence)));
        // Counts alone agree also when one is unknown and another is known that is gone.
        if (level.messages > known || level.messages > 0 && !first_known) && found.is_empty() {
            let mut missed = Vec::new();
            let all = StreamRange { headers_only: true, ..StreamRange::default() };
            let looked = reader::read_range(&self.here, topology::OUTBOX, all, level.last_sequence, |record| {
                missed.push((record.sequence, entry(&record)));
            });
            if let Err(error) = looked.await {
                tracing::warn!(%error, messages = level.messages, known, "the outbox is not read through, it is tried again");
            }
            let up = self.link.report().up;
            self.with(|state| missed.into_iter().for_each(|(sequence, entry)| state.outbox.add(sequence, entry, up)));
        }
        while finder.try_join_next().is_some() {}
    }

    async fn write_down(&self) {
        if self.settings.budget.max_bytes_per_day.is_none() {
            return;
        }
        let used = self.with(|state| state.budget.used());
        let written = async {
            let note = serde_json::to_string(&used).unwrap_or_default();
            Ledger::open(&self.here).await?.write(USED, note).await
        };
        if let Err(error) = written.await {
            tracing::debug!(%error, "what was used of the budget is not written down");
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut CarrierState) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Follows the stream and tells what is in it, without payloads.
async fn find(here: Bus, tell: mpsc::Sender<(u64, OutboxEntry)>) {
    const AGAIN: Duration = Duration::from_secs(1);
    let mut next = 1;
    loop {
        let look = StreamRange { headers_only: true, from_sequence: Some(next), ..StreamRange::default() };
        match reader::follow_range(&here, topology::OUTBOX, look).await {
            Ok(records) => {
                let mut records = std::pin::pin!(records);
                while let Some(Ok(record)) = records.next().await {
                    next = record.sequence + 1;
                    if tell.send((record.sequence, entry(&record))).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the outbox cannot be read, trying again; `tributary setup` says whether its stream is as it should be")
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// What the index keeps of a message. Pure.
fn entry(record: &StoredMessage) -> OutboxEntry {
    let number = |name: &str| record.header(name).and_then(|text| text.parse::<u64>().ok());
    let class = match OutboxKind::read(&record.subject) {
        Ok(OutboxKind::HardCase | OutboxKind::Update | OutboxKind::Swap) => UrgencyClass::Bulk,
        // What cannot be read is given up soon.
        Ok(OutboxKind::Verify) | Err(_) => UrgencyClass::Verdict,
    };
    let priority = number(HEADER_PRIORITY).and_then(|priority| u8::try_from(priority).ok()).unwrap_or(5).min(9);
    let blob = record.header(HEADER_BLOB).and_then(|blob| blob.parse::<BlobRef>().ok());
    let bytes =
        record.payload_bytes().saturating_add(blob.map_or(0, |blob| blob.size_bytes.min(most_bytes(&record.subject))));
    OutboxEntry { class, priority, bytes, deadline_at_ms: number(HEADER_DEADLINE_AT) }
}

/// The largest blob that goes with a message: weights are larger than images. Pure.
fn most_bytes(subject: &str) -> u64 {
    match OutboxKind::read(subject) {
        Ok(OutboxKind::Update) => MAX_WEIGHTS_BYTES,
        Ok(OutboxKind::Verify | OutboxKind::HardCase | OutboxKind::Swap) | Err(_) => MAX_IMAGE_BYTES,
    }
}

fn misaddressed(subject: &str, to: &str) -> FaultNote {
    let shown: String = to.chars().take(100).collect();
    let reason = format!("message on {subject} is to go to {shown:?}, where nothing of its kind and its site goes");
    FaultNote::new("outbox_misaddressed", reason, "only tributary's own workers publish to outbox.>")
}

fn unaddressed(subject: &str) -> FaultNote {
    let reason = format!("message on {subject} does not say where it is to go (header {HEADER_TO})");
    FaultNote::new("outbox_unaddressed", reason, "only tributary's own workers publish to outbox.>")
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::outbox_index::BacklogOrder;

    /// Whoever writes to the outbox chooses the headers, those of the server too.
    #[test]
    fn entries_of_the_outbox_that_were_bent_are_counted() {
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
            // Each header with this value alone, and all of them with it.
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

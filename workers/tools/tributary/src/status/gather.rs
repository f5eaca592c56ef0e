//! Gathers a site's state from the servers and the workers' heartbeats.

use std::time::Duration;

use runtime::clock;
use schemas::{FaultNote, Heartbeat, LinkReport, OutcomeReport, Role, SiteName};
use serde::Serialize;
use streams::fleet;
use streams::reader::{self, ConsumerProgress, StreamLevel};
use streams::server::{self, Durability};
use streams::{Bus, CarryError, topology};

use crate::settings::Settings;
use crate::site_target::SiteTarget;

/// How long to wait for the cloud.
const CLOUD_TIMEOUT: Duration = Duration::from_secs(2);

/// The state of a site.
#[derive(Debug, Clone, Serialize)]
pub(super) struct SiteStatus {
    /// When it was gathered, milliseconds since the epoch.
    pub at_ms: u64,
    /// Its name.
    pub site: SiteName,
    /// Its server.
    pub server: ServerStatus,
    /// The stream of images, and those waiting for the recognizers.
    pub images: QueueStatus,
    /// The stream of answers.
    pub answers: StreamLevel,
    /// Provisional answers without a final one; an upper bound.
    pub provisional: u64,
    /// Final answers stored after their publishers' deadlines, counted by the running workers since they started.
    pub late_answers: u64,
    /// The outbox: what waits for the link.
    pub outbox: QueueStatus,
    /// Age of the oldest message in the outbox, milliseconds; absent when it is empty.
    pub outbox_oldest_ms: Option<u64>,
    /// Whether the cloud answers the courier; absent without a courier.
    pub link_up: Option<bool>,
    /// Round trip to the cloud measured by the courier, milliseconds; absent while the link is down.
    pub link_rtt_ms: Option<f64>,
    /// The link as the courier measures it; absent without a courier.
    pub link: Option<LinkReport>,
    /// Stored images and their outcomes as counted by the janitor; absent without one.
    pub outcomes: Option<OutcomeReport>,
    /// When the oldest image not acknowledged by a recognizer was stored, milliseconds since the epoch; absent without
    /// one.
    pub oldest_unanswered_at_ms: Option<u64>,
    /// This machine's clock minus the server's, milliseconds; absent if the server does not tell.
    pub clock_ahead_ms: Option<i64>,
    /// Faults of streams, consumers, link and workers, each a sentence with what to do.
    pub faults: Vec<String>,
    /// Dead letters of the site, and of the cloud if both share a server.
    pub dead_letters: u64,
    /// Whether heartbeats could be read.
    pub workers_known: bool,
    /// Heartbeats of the site's running workers.
    pub workers: Vec<Heartbeat>,
    /// The cloud.
    pub cloud: CloudStatus,
}

/// A server.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ServerStatus {
    /// Its address.
    pub url: String,
    /// Its version.
    pub version: String,
    /// When a stored message is on disk; absent for a server not started by `tributary up` here.
    pub durability: Option<Durability>,
}

/// A stream with a role that works it off.
#[derive(Debug, Clone, Serialize)]
pub(super) struct QueueStatus {
    /// Messages and bytes.
    #[serde(flatten)]
    pub level: StreamLevel,
    /// Unfinished messages.
    pub waiting: u64,
    /// Unfinished messages that a worker holds.
    pub held: u64,
    /// Seconds of work for the running workers; absent without any.
    pub queued_s: Option<f64>,
}

/// The cloud, as seen from the site.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(super) enum CloudStatus {
    /// It answers.
    Here {
        /// Whether it shares the site's server.
        shared: bool,
        /// The stream of requests for the verifiers.
        verify: QueueStatus,
        /// Verdicts waiting for the site's courier.
        verdicts_waiting: u64,
        /// Its dead letters; absent where it shares the site's.
        dead_letters: Option<u64>,
        /// Heartbeats of its running workers; empty where it shares the site's server.
        workers: Vec<Heartbeat>,
    },
    /// No answer in time.
    Silent,
    /// It answers, but its streams do not exist.
    NotSetUp,
}

/// Asks the servers of site and cloud, concurrently.
pub(super) async fn gather_status(site: &SiteTarget, settings: &Settings) -> Result<SiteStatus, CarryError> {
    let bus = &site.bus;
    let (recognizer, promiser) = (topology::recognizer_durable(&site.name), topology::promises_durable(&site.name));
    let (images, recognized, answers, promises, outbox, dead, workers, cloud, clock_ahead_ms) = tokio::join!(
        reader::stream_level(bus, topology::IMAGES),
        reader::consumer_progress(bus, topology::IMAGES, &recognizer),
        reader::stream_level(bus, topology::ANSWERS),
        reader::consumer_progress(bus, topology::ANSWERS, &promiser),
        reader::stream_level(bus, topology::OUTBOX),
        reader::stream_level(bus, topology::DEAD),
        alive(bus),
        cloud(site),
        clock::align_clock(bus),
    );
    let mut faults = Vec::new();
    // What cannot be read is reported as a fault and left empty; the rest is still of use.
    let mut status_faults = StatusFaults { faults: &mut faults };
    let images = status_faults.or_report(images, nothing());
    let recognized = status_faults.or_report(recognized, ConsumerProgress::default());
    let answers = status_faults.or_report(answers, nothing());
    let promises = status_faults.or_report(promises, ConsumerProgress::default());
    let outbox = status_faults.or_report(outbox, nothing());
    let dead = status_faults.or_report(dead, nothing());
    let workers = match workers {
        Ok(workers) => Some(workers),
        Err(error) => {
            let why = runtime::fault::error_chain(&error);
            status_faults.faults.push(format!(
                "Heartbeats cannot be read ({why}), so the state of the workers is unknown: `tributary setup` creates what is missing."
            ));
            None
        }
    };
    let known = workers.is_some();
    let workers = workers.unwrap_or_default();
    let cloud = status_faults.or_report(cloud, CloudStatus::Silent);
    let seen = site.find_faults(settings).await;
    faults.extend(seen.iter().map(sentence));
    // Faults that only the worker itself can see.
    let others = workers.iter().filter(|beat| beat.role != Role::Janitor).flat_map(|beat| &beat.faults);
    faults.extend(others.map(sentence));
    let now_ms = clock::now_ms();
    let courier = workers.iter().find(|beat| beat.role == Role::Courier);
    Ok(SiteStatus {
        at_ms: now_ms,
        site: site.name.clone(),
        server: ServerStatus {
            url: streams::connect::without_credentials(&site.nats.url),
            version: bus.server_version(),
            durability: site.store(settings).and_then(|store| server::durability(&store)),
        },
        oldest_unanswered_at_ms: oldest_unanswered(bus, &images, &recognized).await,
        // A janitor that was killed is among the workers for some seconds.
        outcomes: workers
            .iter()
            .max_by_key(|beat| (beat.outcomes.is_some(), beat.sent_at_ms))
            .and_then(|beat| beat.outcomes.clone()),
        clock_ahead_ms: clock_ahead_ms.ok(),
        faults,
        workers_known: known,
        images: queue(images, recognized, &workers, Role::Recognizer),
        answers,
        provisional: (promises.pending + promises.unacked).min(under_way(&outbox, &cloud)),
        late_answers: workers.iter().map(|beat| beat.late).sum(),
        outbox_oldest_ms: oldest_ms(bus, &outbox, now_ms).await.unwrap_or_default(),
        outbox: QueueStatus { level: outbox, waiting: outbox.messages, held: 0, queued_s: None },
        link_up: courier.map(|courier| courier.link_rtt_ms.is_some()),
        link_rtt_ms: courier.and_then(|courier| courier.link_rtt_ms),
        link: courier.and_then(|courier| courier.link),
        dead_letters: dead.messages,
        workers,
        cloud,
    })
}

/// Collects what could not be read, as faults.
struct StatusFaults<'a> {
    faults: &'a mut Vec<String>,
}

impl StatusFaults<'_> {
    fn or_report<T>(&mut self, read: Result<T, CarryError>, nothing: T) -> T {
        read.unwrap_or_else(|error| {
            self.faults.push(format!("{}.", runtime::fault::error_chain(&error)));
            nothing
        })
    }
}

fn nothing() -> StreamLevel {
    StreamLevel { messages: 0, bytes: 0, max_bytes: 0, first_sequence: 0, last_sequence: 0, gaps: 0 }
}

fn sentence(fault: &FaultNote) -> String {
    let mut letters = fault.reason.chars();
    let reason: String = letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect();
    format!("{reason}: {}.", fault.remedy)
}

/// When the first image that recognizers have not acknowledged was stored.
async fn oldest_unanswered(bus: &Bus, images: &StreamLevel, recognized: &ConsumerProgress) -> Option<u64> {
    let sequence = (recognized.floor + 1).max(images.first_sequence);
    if images.messages == 0 || sequence > images.last_sequence {
        return None;
    }
    let record = reader::message_at(bus, topology::IMAGES, sequence).await.ok()??;
    u64::try_from(record.stored_at_ns / 1_000_000).ok()
}

async fn alive(bus: &Bus) -> Result<Vec<Heartbeat>, CarryError> {
    fleet::live_workers(bus).await
}

async fn oldest_ms(bus: &Bus, outbox: &StreamLevel, now_ms: u64) -> Result<Option<u64>, CarryError> {
    if outbox.messages == 0 {
        return Ok(None);
    }
    let oldest = reader::message_at(bus, topology::OUTBOX, outbox.first_sequence).await?;
    let stored_at_ms = oldest.and_then(|record| u64::try_from(record.stored_at_ns / 1_000_000).ok());
    Ok(stored_at_ms.map(|stored_at_ms| now_ms.saturating_sub(stored_at_ms)))
}

async fn cloud(site: &SiteTarget) -> Result<CloudStatus, CarryError> {
    let shared = site.nats.cloud_domain.is_none();
    let durable = topology::verdicts_durable(&site.name);
    // Over its link a site sees consumers, but not the levels of streams.
    let whole = async |stream: &str| match site.is_cloud_whole {
        true => reader::stream_level(&site.cloud, stream).await.map(Some),
        false => Ok(None),
    };
    let asked = async {
        let (level, judged, dead, workers, verdicts) = tokio::join!(
            whole(topology::VERIFY),
            reader::consumer_progress(&site.cloud, topology::VERIFY, topology::VERIFIER),
            whole(topology::DEAD),
            alive(&site.cloud),
            reader::consumer_progress(&site.cloud, topology::VERDICTS, &durable),
        );
        let (mut workers, verdicts) = (workers?, verdicts?);
        let verdicts_waiting = verdicts.pending + verdicts.unacked;
        let verify = queue(level?.unwrap_or_default(), judged?, &workers, Role::Verifier);
        let dead_letters = dead?.map(|dead| dead.messages).filter(|_| !shared);
        if shared {
            workers.clear();
        }
        Ok(CloudStatus::Here { shared, verify, verdicts_waiting, dead_letters, workers })
    };
    match tokio::time::timeout(CLOUD_TIMEOUT, asked).await {
        Err(_) => Ok(CloudStatus::Silent),
        Ok(Err(CarryError::Missing { .. })) => Ok(CloudStatus::NotSetUp),
        // The site's own server refuses an unreachable domain at once.
        Ok(Err(CarryError::Broker { .. })) if !shared => Ok(CloudStatus::Silent),
        Ok(other) => other,
    }
}

/// Upper bound of the doubtful tasks between the outbox and their final answer: the courier notices an answered task
/// only after a while. Pure.
fn under_way(outbox: &StreamLevel, cloud: &CloudStatus) -> u64 {
    match cloud {
        CloudStatus::Here { verify, verdicts_waiting, .. } => outbox.messages + verify.waiting + verdicts_waiting,
        CloudStatus::Silent | CloudStatus::NotSetUp => u64::MAX,
    }
}

fn queue(level: StreamLevel, progress: ConsumerProgress, workers: &[Heartbeat], role: Role) -> QueueStatus {
    let waiting = progress.pending + progress.unacked;
    QueueStatus { level, waiting, held: progress.unacked, queued_s: queued_s(waiting, workers, role) }
}

/// Seconds until the workers of a role have worked off this many images; absent without any. Pure.
fn queued_s(waiting: u64, workers: &[Heartbeat], role: Role) -> Option<f64> {
    let rates = workers.iter().filter(|beat| beat.role == role).filter_map(|beat| {
        let cost_ms = beat.cost_ms.filter(|cost_ms| *cost_ms > 0.0)?;
        Some(f64::from(beat.replicas) * 1000.0 / cost_ms)
    });
    let images_per_s: f64 = rates.sum();
    (images_per_s > 0.0).then(|| waiting as f64 / images_per_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(role: Role, replicas: u32, cost_ms: Option<f64>) -> Heartbeat {
        Heartbeat { replicas, cost_ms, ..Heartbeat::for_worker(role, "host-1".into(), None, 0) }
    }

    #[test]
    fn queued_work_is_shared_by_all_replicas_of_its_role() {
        let workers = [
            beat(Role::Recognizer, 2, Some(10.0)),
            beat(Role::Recognizer, 1, Some(5.0)),
            beat(Role::Verifier, 9, Some(1.0)),
        ];
        assert_eq!(queued_s(800, &workers, Role::Recognizer), Some(2.0));
        assert_eq!(queued_s(0, &workers, Role::Recognizer), Some(0.0));
    }

    #[test]
    fn without_workers_the_seconds_of_work_are_unknown() {
        assert_eq!(queued_s(800, &[], Role::Recognizer), None);
        assert_eq!(queued_s(800, &[beat(Role::Recognizer, 0, Some(1.0))], Role::Recognizer), None);
        assert_eq!(queued_s(800, &[beat(Role::Recognizer, 1, None)], Role::Recognizer), None);
    }
}

//! Baseline policies: a recognizer of the bench, built from the product's parts, so that the product itself contains no
//! baseline code.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use futures::StreamExt;
use offload::escalation::Escalation;
use offload::gate::{Gate, TestedScores};
use offload::hash_fraction;
use offload::policy::EnergySettings;
use offload::verify::VerifySettings;
use recognizer::report::{AnswerReporter, EdgeResult};
use runtime::consumer::WorkerStats;
use runtime::handler::DeadLetterContext;
use runtime::heartbeat::{HeartbeatPace, send_heartbeats};
use runtime::ticket::TicketKey;
use runtime::{
    ConsumerConfig, Fault, Handler, MessageCredit, OutgoingMessages, Shutdown, clock, consume, retry_until_found,
};
use schemas::answer::Timings;
use schemas::task::StorageStamp;
use schemas::{FaultNote, Reason, Role, SiteName, Task, VerifyReason};
use streams::reader::{self, StoredMessage};
use streams::tap::watch_subject;
use streams::{Bus, Delivery, Publisher, subject, topology};
use tokio::sync::Semaphore;
use tributary::settings::Settings;
use vision::InferencePool;

use crate::policy::BASELINE_TIMEOUT;

const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// Images processed concurrently.
const CREDITS: usize = 16;

/// A policy that exists only for comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BaselineRule {
    /// The common approach: upload each doubtful image synchronously, regardless of load and link. A replica is blocked
    /// while it waits for a verdict.
    HardExample,
    /// Verify a random share of the images.
    Random,
    /// Verify what the site gets wrong; needs true labels.
    Oracle,
}

/// Run a recognizer with a baseline policy.
#[derive(clap::Args)]
pub(crate) struct BaselineArgs {
    #[arg(long, value_enum)]
    rule: BaselineRule,
    /// Folder of the model.
    #[arg(long)]
    model: PathBuf,
    /// For `random`: share of images to verify, 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    share: f64,
}

struct BaselineRecognizer {
    site: SiteName,
    rule: BaselineRule,
    share: f64,
    infer: InferencePool,
    gate: Gate,
    verify: VerifySettings,
    energy: EnergySettings,
    tickets: TicketKey,
    bus: Bus,
    publisher: Publisher,
    shutdown: Shutdown,
    /// One permit per replica, held while an upload is pending.
    upload_slots: Semaphore,
}

impl BaselineRecognizer {
    async fn answer_task(&self, task: &Task, delivery: &Delivery) -> Result<OutgoingMessages, Fault> {
        let _permit = match self.rule {
            BaselineRule::HardExample => self.upload_slots.acquire().await.ok(),
            BaselineRule::Random | BaselineRule::Oracle => None,
        };
        let bytes = delivery.payload();
        let result = self.recognize(delivery).await?;
        let (reason, doubtful) = (result.reason, result.reason != Reason::Confident);
        let stands = Escalation::Stands(if doubtful { Reason::NotVerified } else { reason });
        let escalation = match self.rule {
            BaselineRule::HardExample if doubtful => return self.wait_for_verdict(task, delivery, result).await,
            BaselineRule::Random if hash_fraction(task.id, "random") < self.share => {
                Escalation::Goes(VerifyReason::Doubtful)
            }
            BaselineRule::Oracle if task.truth.as_ref().is_some_and(|truth| *truth != result.prediction.label) => {
                Escalation::Goes(VerifyReason::Doubtful)
            }
            BaselineRule::HardExample | BaselineRule::Random | BaselineRule::Oracle => stands,
        };
        self.reporter().outgoing(task, bytes, result, escalation)
    }

    /// Decodes, infers and applies the gate.
    async fn recognize(&self, delivery: &Delivery) -> Result<EdgeResult, Fault> {
        let inference = self.infer.predict(delivery.payload().clone()).await;
        let inference = inference.map_err(|error| Fault::Reject(error.fault_note()))?;
        let ratios = vision::probabilities(&inference.model, &inference.logits, self.gate.temperature);
        let no_class = || Fault::reject("model_without_classes", "the model returned no scores", "use another model");
        let prediction = vision::prediction(&inference.model, &ratios).ok_or_else(no_class)?;
        let tested = TestedScores::of_model(&ratios, &inference.model.thresholds);
        let timings = Timings {
            decode_us: inference.timings.decode_us,
            infer_us: inference.timings.infer_us,
            batch_size: u32::try_from(inference.timings.batch_size).unwrap_or(u32::MAX),
            ..Timings::default()
        };
        let reason = self.gate.decide(&tested, &prediction.label);
        Ok(EdgeResult { prediction, reason, features: None, tested, timings, envelope: inference.envelope })
    }

    /// Publishes the request and waits for its verdict; after the timeout, the site's own answer stands.
    async fn wait_for_verdict(
        &self,
        task: &Task,
        delivery: &Delivery,
        result: EdgeResult,
    ) -> Result<OutgoingMessages, Fault> {
        let timeout_ms = u64::try_from(BASELINE_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
        let request_task = Task { deadline_at_ms: Some(clock::now_ms().saturating_add(timeout_ms)), ..task.clone() };
        let (reporter, bytes) = (self.reporter(), delivery.payload());
        let slot = subject::final_answer(&task.site, &task.camera, task.id);
        let mut announcements = Box::pin(watch_subject(&self.bus, &slot).await?);
        let goes = Escalation::Goes(VerifyReason::Doubtful);
        // The baseline publishes only the request, not the provisional answer.
        let request = reporter.outgoing(&request_task, bytes, result.clone(), goes)?.publications.into_iter().next();
        if let Some(request) = request {
            self.publisher.publish(&request).await?;
        }
        let verdict = async {
            while announcements.next().await.is_some() {
                if let Ok(Some(_)) = reader::read_outcome(&self.bus, &slot).await {
                    return;
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            () = verdict => Ok(OutgoingMessages::default()),
            () = tokio::time::sleep(BASELINE_TIMEOUT) => reporter.outgoing(task, bytes, result, Escalation::Expired),
            () = self.shutdown.wait_for_request() => Err(Fault::Wait { after: Duration::from_millis(1) }),
        }
    }

    fn reporter(&self) -> AnswerReporter<'_> {
        AnswerReporter {
            verify: &self.verify,
            energy: &self.energy,
            decided: None,
            state: None,
            tickets: &self.tickets,
            now_ms: clock::now_ms(),
        }
    }

    fn storage_stamp(&self, message_subject: &str, sequence: u64, stored_at_ns: i128) -> Option<StorageStamp> {
        let (_, camera) = subject::read_image(message_subject).ok()?;
        Some(StorageStamp { site: self.site.clone(), camera, sequence, stored_at_ns })
    }
}

impl Handler for BaselineRecognizer {
    const ROLE: Role = Role::Recognizer;
    const STREAM: &'static str = topology::IMAGES;

    async fn handle(&self, delivery: &Delivery, _credit: &MessageCredit) -> Result<OutgoingMessages, Fault> {
        let refuse = |reason: String| Fault::reject("header_unreadable", reason, "publish images as the bench does");
        let stored = self.storage_stamp(delivery.subject(), delivery.sequence, delivery.stored_at_ns);
        let stored = stored.ok_or_else(|| refuse(format!("{:?} is not an image subject", delivery.subject())))?;
        let task = Task::from_headers(&stored, |name| delivery.header(name), delivery.payload());
        self.answer_task(&task.map_err(|error| refuse(runtime::fault::error_chain(&error)))?, delivery).await
    }

    fn image_task(&self, message: &StoredMessage) -> Option<Task> {
        let stored = self.storage_stamp(&message.subject, message.sequence, message.stored_at_ns)?;
        let id = Task::id_of(&stored, &|name| message.header(name), &message.payload).ok()?;
        Some(Task::from_id(&stored, id))
    }

    fn dead_letter(&self, message: &StoredMessage, _fault: &FaultNote) -> DeadLetterContext {
        let task = self.image_task(message).map(|task| task.id);
        DeadLetterContext { site: self.site.clone(), task, publications: Vec::new() }
    }
}

/// Runs the baseline recognizer until shutdown.
pub(crate) async fn command(settings: &Settings, args: &BaselineArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let chosen = &settings.recognizer;
    let library = settings.onnxruntime.clone();
    let started =
        tributary::roles::start(library, args.model.clone(), chosen.infer.clone(), chosen.work.clone()).await?;
    let bus = Bus::connect_when_ready(&settings.nats, Role::Recognizer.as_str()).await?;
    clock::align_at_start(&bus).await;
    let Some(tickets) = retry_until_found(&shutdown, || TicketKey::open(&bus)).await else { return Ok(()) };
    let infer = started.infer;
    let publisher = Publisher::new(bus.clone(), PUBLISH_TIMEOUT);
    let recognizer = Arc::new(BaselineRecognizer {
        site: settings.site.clone(),
        rule: args.rule,
        share: args.share,
        gate: Gate::new(&chosen.gate, &infer.model().description.gate),
        verify: chosen.verify.clone(),
        energy: chosen.policy.energy.clone(),
        tickets,
        bus: bus.clone(),
        publisher: publisher.clone(),
        shutdown: shutdown.clone(),
        upload_slots: Semaphore::new(infer.replicas()),
        infer,
    });
    let stats = Arc::new(WorkerStats::default());
    let from = ConsumerConfig {
        durable: topology::recognizer_durable(&settings.site),
        credits: CREDITS,
        resized: None,
        tries: Some(chosen.tries),
        ack_wait: tributary::roles::ack_wait(settings),
    };
    let pace = HeartbeatPace { every: Duration::from_millis(500), ..HeartbeatPace::default() };
    let site = Some(settings.site.clone());
    let heartbeats =
        send_heartbeats(bus.clone(), Role::Recognizer, site, stats.clone(), shutdown.clone(), pace, |_beat| {});
    let work = async {
        let ended = consume(recognizer, &bus, publisher, from, stats.clone(), shutdown.clone()).await;
        shutdown.request();
        ended
    };
    let (ended, ()) = tokio::join!(work, heartbeats);
    tributary::roles::role_result(Role::Recognizer, ended)
}

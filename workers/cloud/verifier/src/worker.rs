//! The path of one request: fetch → decode → batch → infer → judge → report.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use runtime::handler::DeadLetterContext;
use runtime::{Fault, Handler, MessageCredit, OutgoingMessages, Shutdown, clock, metrics, retry_until_found, traces};
use schemas::answer::Timings;
use schemas::limits::MAX_IMAGE_BYTES;
use schemas::{
    FaultNote, Payload, Prediction, Role, SiteName, TaskId, Verdict, VerifyReason, VerifyRequest, decode_shared,
    encode, predictions_agree,
};
use serving::model_server::{ModelHandler, ModelServer, ServingOptions, inference_fault};
use serving::release_counter::ReleaseCounter;
use serving::serving_model::ServingModel;
use streams::reader::{self, StoredMessage};
use streams::{Blobs, Bus, Delivery, Publication, subject, topology};
use tokio::time::Instant;
use vision::{Head, InferenceError, InferencePool};

use crate::judge::{make_verdict, refuse_request};
use crate::settings::VerifierSettings;

/// Interval of heartbeats, short because sites decide by the length of our queue and the speed at which it is processed.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);
/// Interval of removing requests that reappeared after they were acknowledged.
const CLEAR_INTERVAL: Duration = Duration::from_secs(30);
/// Requests held per slot of a batch: one in the model, one waiting for it.
const CREDITS_PER_SLOT: usize = 2;

/// A verifier in the cloud.
pub struct Verifier {
    /// Connection to the cloud's server, for the sites' buckets of large images.
    bus: Bus,
    infer: InferencePool,
    head: Option<Head>,
    /// Temperature from the settings; absent: the release's own.
    temperature: Option<f32>,
    /// Counts the results of our releases, and how often verdicts agree with the sites' answers.
    counter: ReleaseCounter,
}

impl Verifier {
    async fn verdict(&self, request: VerifyRequest) -> Result<Verdict, Fault> {
        match &request.payload {
            Payload::Image(bytes) => {
                let bytes = bytes.clone();
                self.recognize_image(request, bytes, 0).await
            }
            Payload::Blob(blob) => {
                let asked_at = Instant::now();
                let sent = Blobs::open_sent_by(&self.bus, &request.provisional.site);
                let bytes = sent.fetch_blob(blob, MAX_IMAGE_BYTES).await?;
                self.recognize_image(request, bytes, clock::micros(asked_at.elapsed())).await
            }
            Payload::Features(features) => {
                let verdict = self.judge_features(features).await?;
                Ok(make_verdict(request, verdict.0, verdict.1, clock::now_ms()))
            }
        }
    }

    /// Judges an image with the whole model.
    async fn recognize_image(&self, request: VerifyRequest, bytes: Bytes, fetch_us: u64) -> Result<Verdict, Fault> {
        let seen = self.infer.predict(bytes).await.map_err(|error| {
            if !error.is_the_images_fault() && !matches!(error, InferenceError::Stopped) {
                self.counter.count_failure(&self.infer.model().release, clock::now_ms());
            }
            inference_fault(error)
        })?;
        let model = &seen.model;
        let span = traces::current();
        span.set("tributary.model", &model.description.name);
        span.set("tributary.release", &model.release);
        let temperature = self.temperature.or(model.description.gate.temperature).unwrap_or(1.0);
        let prediction = vision::predict(&seen, temperature).ok_or_else(no_scores)?;
        self.counter.count_image(&model.release, false, prediction.confidence, seen.timings.cost_ms(), clock::now_ms());
        let timings = Timings {
            fetch_us,
            wait_us: seen.timings.waited_us,
            decode_us: seen.timings.decode_us,
            infer_us: seen.timings.infer_us,
            batch_size: u32::try_from(seen.timings.batch_size).unwrap_or(u32::MAX),
            ..Timings::default()
        };
        metrics::observe_timings(Self::ROLE, &timings);
        Ok(make_verdict(request, prediction, timings, clock::now_ms()))
    }

    /// Judges features with the head.
    async fn judge_features(&self, features: &[f32]) -> Result<(Prediction, Timings), Fault> {
        let head = self.head.clone().ok_or_else(|| {
            let remedy = "name the head for the site's model with verifier.head, or let the site send images";
            Fault::reject("head_missing", "the request contains features, but this verifier has no head", remedy)
        })?;
        let (features, asked_at) = (features.to_vec(), Instant::now());
        let judged = tokio::task::spawn_blocking(move || {
            let logits = head.scores(&features)?;
            let temperature = head.model().description.gate.temperature.unwrap_or(1.0);
            Ok(vision::prediction(head.model(), &vision::probabilities(head.model(), &logits, temperature)))
        });
        let judged = judged.await.map_err(|error| Fault::retry("head_broke", error))?;
        let prediction = judged.map_err(unfit)?.ok_or_else(no_scores)?;
        Ok((prediction, Timings { infer_us: clock::micros(asked_at.elapsed()), batch_size: 1, ..Timings::default() }))
    }
}

fn no_scores() -> Fault {
    Fault::retry("model_without_classes", "the model returned no scores")
}

/// Features that the head cannot take come from another model than the head's.
fn unfit(error: InferenceError) -> Fault {
    Fault::reject("features_unfit", error, "use the head that was made for the site's model (verifier.head)")
}

/// The publication of a verdict, under an id that a redelivery repeats. `sequence`: of the request in its stream.
pub fn report(verdict: &Verdict, sequence: u64) -> Result<Publication, Fault> {
    let answer = &verdict.provisional;
    let id = answer.task.child(&format!("verdict-{sequence}")).to_string();
    Ok(Publication::with_id(subject::verdict(&answer.site, &answer.camera), encode(verdict)?, id))
}

/// Refuses a request that names another site, camera or reason than its subject: only the right to publish there
/// proves the sender.
fn check_sender(request: &VerifyRequest, subject: &str) -> Result<(), Fault> {
    let answer = &request.provisional;
    let wanted = subject::verify(request.reason, &answer.site, &answer.camera);
    if subject == wanted {
        return Ok(());
    }
    let reason = format!("it arrived on {subject}, but its contents belong on {wanted}");
    Err(Fault::reject("verify_misdirected", reason, "give each site a name of its own; find out who published it"))
}

/// The hard case of a request, published once however often the request is delivered.
pub fn hard_case_publication(request: &VerifyRequest) -> Result<Option<Publication>, Fault> {
    let Some(case) = request.hard_case() else { return Ok(None) };
    let publication =
        Publication::with_id(subject::hardcase(&case.site), encode(&case)?, case.message_id().to_string());
    Ok(Some(publication))
}

impl Handler for Verifier {
    const ROLE: Role = Role::Verifier;
    const STREAM: &'static str = topology::VERIFY;
    const SPAN: Option<&'static str> = Some("verify");

    async fn handle(&self, delivery: &Delivery, _credit: &MessageCredit) -> Result<OutgoingMessages, Fault> {
        let request: VerifyRequest = decode_shared(delivery.payload())?;
        check_sender(&request, delivery.subject())?;
        let span = traces::current();
        span.set_task(request.provisional.task, &request.provisional.site, &request.provisional.camera);
        span.set("tributary.verify_reason", &request.reason.as_str());
        let spare = hard_case_publication(&request)?.into_iter().collect();
        let sure = match request.reason {
            VerifyReason::Sampled => Some(true),
            VerifyReason::Doubtful => Some(false),
            _ => None,
        };
        let verdict = self.verdict(request).await?;
        span.add_timings(&verdict.timings);
        if let (Some(sure), Some(prediction), Some(edge)) = (sure, &verdict.opinion, verdict.provisional.prediction()) {
            let agreed = predictions_agree(&edge, prediction);
            self.counter.count_verdict(&verdict.provisional.site, &edge.release, sure, agreed, clock::now_ms());
        }
        Ok(OutgoingMessages {
            publications: vec![report(&verdict, delivery.sequence)?],
            spare,
            ..OutgoingMessages::default()
        })
    }

    fn dead_letter(&self, message: &StoredMessage, fault: &FaultNote) -> DeadLetterContext {
        // A request that names another site is not reported to that site.
        let request: Option<VerifyRequest> =
            decode_shared(&message.payload).ok().filter(|request| check_sender(request, &message.subject).is_ok());
        let task: Option<TaskId> = request.as_ref().map(|request| request.provisional.task);
        let hard_case = request.as_ref().and_then(|request| hard_case_publication(request).ok().flatten());
        let refused = request.map(|request| refuse_request(request, fault.clone(), clock::now_ms()));
        let verdict = refused.iter().filter_map(|verdict| report(verdict, message.sequence).ok());
        let publications = verdict.chain(hard_case).collect();
        DeadLetterContext { site: site_of(&message.subject), task, publications }
    }
}

/// The site in the subject of a request; `unknown` if there is none, so that its dead letter
/// has a subject even then.
fn site_of(subject: &str) -> SiteName {
    let site = subject.split('.').nth(2).and_then(|site| site.parse().ok());
    site.unwrap_or_else(SiteName::unknown)
}

impl ModelHandler for Verifier {}

/// Runs a verifier until it is told to stop. The model is loaded and warm already.
pub async fn run(
    bus: Bus,
    started: ServingModel,
    head: Option<Head>,
    settings: &VerifierSettings,
    ack_wait: Duration,
    shutdown: Shutdown,
) -> Result<(), Fault> {
    let Some(blobs) = retry_until_found(&shutdown, || Blobs::open_in_cloud(&bus)).await else { return Ok(()) };
    let options = ServingOptions {
        site: None,
        site_labels: Vec::new(),
        durable: topology::VERIFIER.into(),
        credits_per_slot: CREDITS_PER_SLOT,
        heartbeat_interval: HEARTBEAT_INTERVAL,
        scale: settings.scale.clone(),
        report_s: settings.report_s,
        count_s: settings.count_s,
        tries: settings.tries,
        ack_wait,
    };
    let server = ModelServer::new(bus.clone(), started, blobs, options);
    let verifier = Verifier {
        bus: bus.clone(),
        infer: server.infer.clone(),
        head,
        temperature: settings.temperature,
        counter: server.counter.clone(),
    };
    let serving = server.serve(Arc::new(verifier), shutdown.clone());
    let (ended, ()) = tokio::join!(serving, clear_acknowledged(&bus, &shutdown));
    ended
}

/// A server that was killed may restore requests that it had removed when they were acknowledged: it saved the
/// consumer's position, but not the removal. They are delivered to nobody, and would stay for ever.
async fn clear_acknowledged(bus: &Bus, shutdown: &Shutdown) {
    let clear = async || {
        let all = reader::consumer_progress(bus, topology::VERIFY, topology::VERIFIER).await?;
        let level = reader::stream_level(bus, topology::VERIFY).await?;
        if level.messages == 0 || level.first_sequence > all.floor {
            return Ok(0);
        }
        reader::purge_before(bus, topology::VERIFY, all.floor + 1).await
    };
    let clearing = async {
        loop {
            match clear().await {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "answered requests removed"),
                Err(error) => tracing::debug!(%error, "redelivered request check failed; retrying"),
            }
            tokio::time::sleep(CLEAR_INTERVAL).await;
        }
    };
    tokio::select! {
        () = clearing => {}
        () = shutdown.wait_for_request() => {}
    }
}

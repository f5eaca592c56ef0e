//! One request's walk: fetch → decode → batch → infer → judge → report.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use runtime::drive::Tally;
use runtime::step::Burial;
use runtime::{Drive, Fault, Outgoing, Shutdown, Step, beat, clock, drive, look_up};
use schemas::answer::Timings;
use schemas::limits::MAX_IMAGE_BYTES;
use schemas::{FaultNote, Payload, SiteName, TaskId, Verdict, Verify, decode, encode};
use streams::{Blobs, Bus, Delivery, Publication, Publisher, subject, topology};
use tokio::time::Instant;
use vision::{Infer, InferError, softmax};

use crate::judge::{judge, refuse};
use crate::settings::VerifierSettings;

/// How long a publication is retried before its request is handed back.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests held for each place in a batch: one in the model, one waiting for it.
const CREDITS_PER_SLOT: usize = 2;

/// A verifier in the cloud.
pub struct Verifier {
    blobs: Blobs,
    infer: Infer,
    temperature: f32,
}

impl Verifier {
    async fn verdict(&self, request: Verify) -> Result<Verdict, Fault> {
        let asked_at = Instant::now();
        let bytes = self.fetch(&request).await?;
        let fetch_us = u64::try_from(asked_at.elapsed().as_micros()).unwrap_or(u64::MAX);
        let seen = self.infer.scores(bytes).await.map_err(fault)?;
        let ratios = softmax(&seen.logits, self.temperature);
        let opinion = vision::opinion(self.infer.model(), &ratios)
            .ok_or_else(|| Fault::retry("model_without_classes", "the model gave no scores"))?;
        let timings = Timings {
            fetch_us,
            wait_us: seen.timings.waited_us,
            decode_us: seen.timings.decode_us,
            infer_us: seen.timings.infer_us,
            batch_size: u32::try_from(seen.timings.batch_size).unwrap_or(u32::MAX),
            ..Timings::default()
        };
        Ok(judge(request, opinion, timings, clock::now_ms()))
    }

    async fn fetch(&self, request: &Verify) -> Result<Bytes, Fault> {
        Ok(match &request.payload {
            Payload::Image(bytes) => Bytes::copy_from_slice(bytes),
            Payload::Blob(blob) => self.blobs.fetch(blob, MAX_IMAGE_BYTES).await?,
        })
    }
}

/// The one message a request leads to, under an id that a redelivery repeats.
fn report(verdict: &Verdict, sequence: u64) -> Result<Publication, Fault> {
    let about = &verdict.provisional;
    let id = about.task.child(&format!("verdict-{sequence}")).to_string();
    Ok(Publication::with_id(subject::verdict(&about.site, &about.camera), encode(verdict)?, id))
}

impl Step for Verifier {
    const ROLE: &'static str = "verifier";
    const STREAM: &'static str = topology::VERIFY;

    async fn handle(&self, delivery: &Delivery) -> Result<Outgoing, Fault> {
        let request: Verify = decode(delivery.payload())?;
        let verdict = self.verdict(request).await?;
        Ok(Outgoing::one(report(&verdict, delivery.sequence)?))
    }

    fn bury(&self, delivery: &Delivery, fault: &FaultNote) -> Burial {
        let request: Option<Verify> = decode(delivery.payload()).ok();
        let task: Option<TaskId> = request.as_ref().map(|request| request.provisional.task);
        let refused = request.map(|request| refuse(request, fault.clone(), clock::now_ms()));
        let publications = refused.iter().filter_map(|verdict| report(verdict, delivery.sequence).ok()).collect();
        Burial { site: site_of(delivery.subject()), task, publications }
    }
}

/// The site in the subject of a request; `unknown` when there is none, so that even then the letter
/// has a place.
fn site_of(subject: &str) -> SiteName {
    let site = subject.split('.').nth(2).and_then(|site| site.parse().ok());
    site.unwrap_or_else(SiteName::unknown)
}

fn fault(error: InferError) -> Fault {
    match error.note() {
        note if error.is_the_images_fault() => Fault::Reject(note),
        note => Fault::Retry { after: runtime::fault::RETRY_DELAY, note },
    }
}

/// Runs a verifier until it is told to stop. The model is loaded and warm already.
pub async fn run(
    bus: Bus,
    infer: Infer,
    settings: &VerifierSettings,
    ack_wait: Duration,
    shutdown: Shutdown,
) -> Result<(), Fault> {
    let Some(blobs) = look_up(&shutdown, || Blobs::open_in_cloud(&bus)).await else { return Ok(()) };
    let temperature = settings.temperature.or(infer.model().description.gate.temperature).unwrap_or(1.0);
    let step = Arc::new(Verifier { blobs, infer: infer.clone(), temperature });
    let tally = Arc::new(Tally::default());
    let from = Drive {
        durable: topology::VERIFIER.into(),
        credits: infer.replicas() * infer.batch() * CREDITS_PER_SLOT,
        tries: Some(settings.tries),
        ack_wait,
    };
    let publisher = Publisher::new(bus.clone(), PATIENCE);
    let life = beat::beat(bus.clone(), Verifier::ROLE, None, tally.clone(), shutdown.clone(), |beat| {
        beat.replicas = u32::try_from(infer.replicas()).unwrap_or(u32::MAX);
        beat.cost_ms = Some(infer.cost_ms());
        beat.model = Some(infer.model().description.name.clone());
        beat.release = Some(infer.model().release.clone());
    });
    let (ended, ()) = tokio::join!(drive(step, &bus, publisher, from, tally, shutdown.clone()), life);
    ended
}

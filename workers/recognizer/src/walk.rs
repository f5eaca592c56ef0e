//! One image's walk: admit → fetch → decode → batch → infer → gate → report.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use runtime::drive::Tally;
use runtime::step::Burial;
use runtime::{Drive, Fault, Outgoing, Shutdown, Step, beat, clock, drive, look_up};
use schemas::answer::Timings;
use schemas::limits::MAX_IMAGE_BYTES;
use schemas::task::Stored;
use schemas::{FaultNote, SiteName, Task, TaskId};
use streams::{Blobs, Bus, Delivery, Publisher, subject, topology};
use tokio::time::Instant;
use vision::{Infer, InferError, softmax};

use crate::admit::admit;
use crate::gate::Gate;
use crate::report::{self, Found};
use crate::settings::{RecognizerSettings, VerifySettings};

/// How long a publication is retried before its image is handed back.
const PATIENCE: Duration = Duration::from_secs(10);

/// The recognizer of a site.
pub struct Recognizer {
    site: SiteName,
    blobs: Blobs,
    infer: Infer,
    gate: Gate,
    verify: VerifySettings,
}

impl Recognizer {
    async fn answer(&self, task: &Task, delivery: &Delivery) -> Result<Outgoing, Fault> {
        let queue_us = micros(clock::since_ns(delivery.stored_at_ns));
        admit(task, delivery.payload().len()).map_err(|refusal| Fault::Reject(refusal.into()))?;
        let (bytes, fetch_us) = self.fetch(task, delivery).await?;
        let seen = self.infer.scores(bytes.clone()).await.map_err(fault)?;
        let ratios = softmax(&seen.logits, self.gate.temperature);
        let opinion = vision::opinion(self.infer.model(), &ratios).ok_or_else(no_class)?;
        let reason = self.gate.decide(&ratios, &opinion.label);
        let timings = Timings {
            queue_us,
            fetch_us,
            wait_us: seen.timings.waited_us,
            decode_us: seen.timings.decode_us,
            infer_us: seen.timings.infer_us,
            verify_us: 0,
            batch_size: u32::try_from(seen.timings.batch_size).unwrap_or(u32::MAX),
        };
        report::outgoing(task, &bytes, Found { opinion, reason, timings }, &self.verify, clock::now_ms())
    }

    /// The image's bytes, and how long it took to get them in microseconds.
    async fn fetch(&self, task: &Task, delivery: &Delivery) -> Result<(Bytes, u64), Fault> {
        let Some(blob) = &task.blob else { return Ok((delivery.payload().clone(), 0)) };
        let asked_at = Instant::now();
        let bytes = self.blobs.fetch(blob, MAX_IMAGE_BYTES).await?;
        Ok((bytes, micros(asked_at.elapsed())))
    }

    fn stored(&self, delivery: &Delivery) -> Result<Stored, Fault> {
        let (site, camera) = subject::read_image(delivery.subject())?;
        Ok(Stored { site, camera, sequence: delivery.sequence, stored_at_ns: delivery.stored_at_ns })
    }
}

impl Step for Recognizer {
    const ROLE: &'static str = "recognizer";
    const STREAM: &'static str = topology::IMAGES;

    async fn handle(&self, delivery: &Delivery) -> Result<Outgoing, Fault> {
        let stored = self.stored(delivery)?;
        let task = Task::read(&stored, |name| delivery.header(name)).map_err(|error| {
            let reason = runtime::fault::chain(&error);
            Fault::reject("header_unreadable", reason, "correct the header, or leave it away: every header is optional")
        })?;
        self.answer(&task, delivery).await
    }

    fn bury(&self, delivery: &Delivery, fault: &FaultNote) -> Burial {
        let task = self.stored(delivery).ok().map(|stored| {
            let id = Task::id_of(&stored, &|name| delivery.header(name)).unwrap_or_else(|_| {
                TaskId::from_sequence(&stored.site, &stored.camera, stored.sequence, stored.stored_at_ns)
            });
            Task::bare(&stored, id)
        });
        let tombstone = task.as_ref().and_then(|task| report::tombstone(task, fault.clone(), clock::now_ms()).ok());
        Burial {
            site: self.site.clone(),
            task: task.map(|task| task.id),
            publications: tombstone.into_iter().collect(),
        }
    }
}

/// Runs a site's recognizer until it is told to stop. The model is loaded and warm already.
pub async fn run(
    bus: Bus,
    site: SiteName,
    infer: Infer,
    settings: &RecognizerSettings,
    ack_wait: Duration,
    shutdown: Shutdown,
) -> Result<(), Fault> {
    let gate = Gate::new(&settings.gate, &infer.model().description.gate);
    let Some(blobs) = look_up(&shutdown, || Blobs::open(&bus)).await else { return Ok(()) };
    let verify = settings.verify.clone();
    let step = Arc::new(Recognizer { site: site.clone(), blobs, infer: infer.clone(), gate, verify });
    let tally = Arc::new(Tally::default());
    let from = Drive {
        durable: topology::RECOGNIZER.into(),
        credits: infer.replicas() * infer.batch() * CREDITS_PER_SLOT,
        tries: Some(settings.tries),
        ack_wait,
    };
    let publisher = Publisher::new(bus.clone(), PATIENCE);
    let life = beat::beat(bus.clone(), Recognizer::ROLE, Some(site), tally.clone(), shutdown.clone(), |beat| {
        beat.replicas = u32::try_from(infer.replicas()).unwrap_or(u32::MAX);
        beat.cost_ms = Some(infer.cost_ms());
        beat.model = Some(infer.model().description.name.clone());
        beat.release = Some(infer.model().release.clone());
    });
    let (ended, ()) = tokio::join!(drive(step, &bus, publisher, from, tally, shutdown.clone()), life);
    ended
}

/// Images held for each place in a batch: one in the model, one waiting for it, and two whose
/// answers are on their way to the stream.
const CREDITS_PER_SLOT: usize = 4;

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn fault(error: InferError) -> Fault {
    match error.note() {
        note if error.is_the_images_fault() => Fault::Reject(note),
        note => Fault::Retry { after: runtime::fault::RETRY_DELAY, note },
    }
}

fn no_class() -> Fault {
    Fault::retry("model_without_classes", "the model gave no scores")
}

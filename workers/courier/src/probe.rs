//! Keeps the link's [`Meter`] up to date, asks how busy the verifiers are, and tells both to whoever waits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runtime::Shutdown;
use schemas::{CloudReport, LinkReport, Role};
use streams::fleet;
use streams::{Bus, reader, topology};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::link::{ActiveUpload, LinkMeter, LinkSettings};
use crate::verifier_progress::VerifierProgress;

/// How often the verifiers' signs of life are read.
const FLEET_EVERY: Duration = Duration::from_secs(2);

/// The link as every errand of the courier sees it; cheap to clone.
#[derive(Clone)]
pub struct LinkHandle {
    meter: Arc<Mutex<LinkMeter>>,
    begun_at: Instant,
    stillness: Arc<Mutex<VerifierProgress>>,
    state: watch::Sender<LinkReport>,
    /// Told whenever the link comes, goes, or changes its availability.
    pub changed: Arc<Notify>,
}

impl LinkHandle {
    /// A link that was not heard of yet.
    pub fn new(settings: LinkSettings) -> Self {
        let meter = LinkMeter::new(settings);
        let (state, _) = watch::channel(meter.report());
        let meter = Arc::new(Mutex::new(meter));
        Self { state, meter, stillness: Arc::default(), begun_at: Instant::now(), changed: Arc::default() }
    }

    /// What is known of it.
    pub fn report(&self) -> LinkReport {
        *self.state.borrow()
    }

    /// Waits until the cloud answers.
    pub async fn up(&self) {
        self.wait_for(|report| report.up).await;
    }

    /// Waits until it does not answer any more.
    pub async fn down(&self) {
        self.wait_for(|report| !report.up).await;
    }

    async fn wait_for(&self, wanted: impl FnMut(&LinkReport) -> bool) {
        // Fails only when the sender is gone, and we hold it.
        let _ = self.state.subscribe().wait_for(wanted).await;
    }

    /// Seconds on the clock of the meter and of the budget.
    pub fn now_s(&self) -> f64 {
        self.begun_at.elapsed().as_secs_f64()
    }

    /// An upload begins; it is lost unless [`Upload::arrived`] is called.
    pub fn sent(&self, bytes: u64) -> UploadGuard {
        let now_s = self.now_s();
        UploadGuard { sending: Some(self.with(|meter| meter.record_upload(bytes, now_s))), link: self.clone() }
    }

    /// Bytes that may be under way at a time: as many as the link takes in a quarter of a second, so that
    /// questions are not stuck behind them; before a rate is known, few.
    pub fn window_bytes(&self) -> u64 {
        const QUEUE_S: f64 = 0.25;
        const LEAST_BYTES: u64 = 256 * 1024;
        const MOST_BYTES: f64 = 32e6;
        let rate = self.report().rate_max_bytes_per_s.unwrap_or(0.0);
        ((rate * QUEUE_S).min(MOST_BYTES) as u64).max(LEAST_BYTES)
    }

    /// Whether the verifiers finish something, or have nothing to finish.
    pub fn is_cloud_progressing(&self) -> bool {
        self.stillness().is_progressing()
    }

    fn stillness(&self) -> std::sync::MutexGuard<'_, VerifierProgress> {
        self.stillness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes under way.
    pub fn in_flight_bytes(&self) -> u64 {
        self.with(|meter| meter.in_flight_bytes())
    }

    fn with<T>(&self, act: impl FnOnce(&mut LinkMeter) -> T) -> T {
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        let done = act(&mut meter);
        let cloud = self.state.borrow().cloud;
        let report = LinkReport { cloud: cloud.filter(|_| meter.is_up()), ..meter.report() };
        drop(meter);
        let before = self.state.send_replace(report);
        if (before.up, before.available) != (report.up, report.available) {
            self.changed.notify_one();
        }
        done
    }

    fn heard_of(&self, cloud: Option<CloudReport>) {
        self.state.send_modify(|report| report.cloud = cloud.filter(|_| report.up));
    }

    /// Asks the cloud for signs of life until told to stop.
    pub async fn probe_link(&self, cloud: Bus, settings: &LinkSettings, shutdown: Shutdown) {
        let every = Duration::from_millis(settings.probe_every_ms);
        let verifiers = watch::Sender::new((0, 0.0));
        let questions = async {
            loop {
                let known = *verifiers.borrow();
                self.ask(&cloud, known).await;
                tokio::time::sleep(every).await;
            }
        };
        let fleet = async {
            loop {
                verifiers.send_replace(alive(&cloud).await);
                tokio::time::sleep(FLEET_EVERY).await;
            }
        };
        tokio::select! {
            () = questions => {}
            () = fleet => {}
            () = shutdown.wait_for_request() => {}
        }
    }

    /// One question: it measures the round trip, and its answer says how much waits for the verifiers.
    async fn ask(&self, cloud: &Bus, (replicas, cost_ms): (u32, f64)) {
        let was_up = self.report().up;
        let asked_at = Instant::now();
        let question = reader::consumer_progress(cloud, topology::VERIFY, topology::VERIFIER);
        let mut question = std::pin::pin!(question);
        // Patience may grow while the answer is awaited, as uploads come on their way.
        let answer = loop {
            let patience = Duration::from_secs_f64(self.with(|meter| meter.timeout_s()));
            let left = patience.saturating_sub(asked_at.elapsed());
            match tokio::time::timeout(left, &mut question).await {
                Ok(answer) => break Some(answer),
                Err(_) if Duration::from_secs_f64(self.with(|meter| meter.timeout_s())) > patience => {}
                Err(_) => break None,
            }
        };
        let now_s = self.now_s();
        match answer {
            Some(Ok(progress)) => {
                self.with(|meter| meter.record_answer(asked_at.elapsed().as_secs_f64(), now_s));
                let waiting = progress.pending + progress.unacked;
                let still_s = self.stillness().record_progress(progress.finished(), waiting, now_s);
                self.heard_of((replicas > 0).then_some(CloudReport { waiting, replicas, cost_ms, still_s }));
            }
            // A domain that is away is refused by the site's own server at once.
            Some(Err(_)) | None => self.with(|meter| meter.record_silence(now_s)),
        }
        match (was_up, self.report().up) {
            (false, true) => tracing::info!(round_trip_ms = asked_at.elapsed().as_millis(), "the cloud answers"),
            (true, false) => tracing::warn!("the cloud does not answer; what waits stays in the outbox"),
            _ => {}
        }
    }
}

/// Replicas of all verifiers that gave a sign of life, and what an image costs one of them, milliseconds.
async fn alive(cloud: &Bus) -> (u32, f64) {
    let beats = tokio::time::timeout(FLEET_EVERY, async { fleet::live_workers(cloud).await }).await;
    let Ok(Ok(beats)) = beats else { return (0, 0.0) };
    let verifiers = beats.iter().filter(|beat| beat.role == Role::Verifier && beat.cost_ms.is_some());
    let (replicas, cost) = verifiers.fold((0, 0.0), |(replicas, cost), beat| {
        (replicas + beat.replicas, cost + f64::from(beat.replicas) * beat.cost_ms.unwrap_or(0.0))
    });
    (replicas, cost / f64::from(replicas.max(1)))
}

/// An upload that is under way; given up when dropped.
pub struct UploadGuard {
    sending: Option<ActiveUpload>,
    link: LinkHandle,
}

impl UploadGuard {
    /// The cloud has it.
    pub fn record_arrival(mut self) {
        let now_s = self.link.now_s();
        if let Some(sending) = self.sending.take() {
            self.link.with(|meter| meter.record_arrival(sending, now_s));
        }
    }
}

impl Drop for UploadGuard {
    fn drop(&mut self) {
        if let Some(sending) = self.sending.take() {
            self.link.with(|meter| meter.record_loss(sending));
        }
    }
}

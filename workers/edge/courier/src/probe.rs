//! Keeps the [`LinkMeter`] up to date, asks for the load of the verifiers, and reports both.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runtime::Shutdown;
use schemas::{CloudReport, LinkReport, Role, SiteName};
use streams::fleet;
use streams::{Bus, reader, topology};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::link::{ActiveUpload, LinkMeter, LinkSettings};
use crate::verifier_progress::VerifierProgress;

/// Interval of reading the verifiers' heartbeats.
const FLEET_INTERVAL: Duration = Duration::from_secs(2);
/// Shortest wait for a probe's response.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// The link as all tasks of the courier see it; cheap to clone.
#[derive(Clone)]
pub struct LinkHandle {
    meter: Arc<Mutex<LinkMeter>>,
    begun_at: Instant,
    stillness: Arc<Mutex<VerifierProgress>>,
    state: watch::Sender<LinkReport>,
    /// Notified whenever the link goes up or down, or changes its availability.
    pub changed: Arc<Notify>,
}

impl LinkHandle {
    /// A handle for a link without any measurement yet.
    pub fn new(settings: LinkSettings) -> Self {
        let meter = LinkMeter::new(settings);
        let (state, _) = watch::channel(meter.report());
        let meter = Arc::new(Mutex::new(meter));
        Self { state, meter, stillness: Arc::default(), begun_at: Instant::now(), changed: Arc::default() }
    }

    /// The state of the link.
    pub fn report(&self) -> LinkReport {
        *self.state.borrow()
    }

    /// Waits until the link is up.
    pub async fn up(&self) {
        self.wait_for(|report| report.up).await;
    }

    /// Waits until the link is down.
    pub async fn down(&self) {
        self.wait_for(|report| !report.up).await;
    }

    async fn wait_for(&self, wanted: impl FnMut(&LinkReport) -> bool) {
        // Fails only when the sender is dropped, and we hold it.
        let _ = self.state.subscribe().wait_for(wanted).await;
    }

    /// Seconds on the clock of the meter and of the budget.
    pub fn now_s(&self) -> f64 {
        self.begun_at.elapsed().as_secs_f64()
    }

    /// Records that an upload started; it counts as lost unless [`UploadGuard::record_arrival`] is called.
    pub fn sent(&self, bytes: u64) -> UploadGuard {
        let now_s = self.now_s();
        UploadGuard { upload: Some(self.with(|meter| meter.record_upload(bytes, now_s))), link: self.clone() }
    }

    /// Limit on the bytes in flight: what the link carries in a quarter of a second, so that probes are not
    /// stuck behind them; small until a rate is known.
    pub fn window_bytes(&self) -> u64 {
        const QUEUE_S: f64 = 0.25;
        const MIN_BYTES: u64 = 256 * 1024;
        const MAX_BYTES: f64 = 32e6;
        let rate = self.report().rate_max_bytes_per_s.unwrap_or(0.0);
        ((rate * QUEUE_S).min(MAX_BYTES) as u64).max(MIN_BYTES)
    }

    /// Whether the verifiers make progress, or have nothing to do.
    pub fn is_cloud_progressing(&self) -> bool {
        self.stillness().is_progressing()
    }

    fn stillness(&self) -> std::sync::MutexGuard<'_, VerifierProgress> {
        self.stillness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes in flight.
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

    fn set_cloud(&self, cloud: Option<CloudReport>) {
        self.state.send_modify(|report| report.cloud = cloud.filter(|_| report.up));
    }

    /// Probes the cloud until told to stop. `here`: the site's own server, asked at the same time, so that what our own
    /// machine adds is not taken for the link's.
    pub async fn probe_link(
        &self,
        here: &Bus,
        cloud: &Bus,
        site: &SiteName,
        settings: &LinkSettings,
        shutdown: Shutdown,
    ) {
        let every = Duration::from_millis(settings.probe_every_ms);
        let verifiers = watch::Sender::new((0, 0.0));
        let own_durable = topology::promises_durable(site);
        let probes = async {
            loop {
                let known = *verifiers.borrow();
                self.probe_once(here, &own_durable, cloud, known).await;
                tokio::time::sleep(every).await;
            }
        };
        let fleet = async {
            loop {
                verifiers.send_replace(verifier_capacity(cloud).await);
                tokio::time::sleep(FLEET_INTERVAL).await;
            }
        };
        tokio::select! {
            biased;
            () = shutdown.wait_for_request() => {}
            () = probes => {}
            () = fleet => {}
        }
    }

    /// Sends one probe: it measures the round trip, and the response says how many requests wait for the verifiers.
    async fn probe_once(&self, here: &Bus, own_durable: &str, cloud: &Bus, (replicas, cost_ms): (u32, f64)) {
        let was_up = self.report().up;
        let asked_at = Instant::now();
        let waited_s = || asked_at.elapsed().as_secs_f64();
        let mut probe = std::pin::pin!(reader::consumer_progress(cloud, topology::VERIFY, topology::VERIFIER));
        // Twice, because what goes to the cloud and back passes the own server twice. A refusal is a response as well.
        let mut own = std::pin::pin!(async {
            for _ in 0..2 {
                let _ = reader::consumer_progress(here, topology::ANSWERS, own_durable).await;
            }
        });
        let mut own_s = None;
        // The timeout may grow while we wait, as uploads start and while the own server is silent.
        let answer = loop {
            let own_waited_s = own_s.unwrap_or_else(waited_s);
            let timeout_s = self.with(|meter| meter.probe_timeout_s(meter.own_delay_after(own_waited_s)));
            let left_s = timeout_s - waited_s();
            if left_s <= 0.0 {
                break None;
            }
            // No shorter than a timer's tick: the rest of a float is no time in which anything could happen.
            let left = Duration::from_secs_f64(left_s).max(MIN_WAIT);
            tokio::select! {
                biased;
                () = &mut own, if own_s.is_none() => own_s = Some(waited_s()),
                answer = &mut probe => break Some(answer),
                () = tokio::time::sleep(left) => {}
            }
        };
        let (now_s, round_trip_s) = (self.now_s(), waited_s());
        let own_delay_s =
            self.with(|meter| meter.record_own_answer(own_s.unwrap_or(round_trip_s), own_s.is_some(), now_s));
        match answer {
            Some(Ok(progress)) => {
                self.with(|meter| meter.record_answer(round_trip_s, own_delay_s, now_s));
                let waiting = progress.pending + progress.unacked;
                let still_s = self.stillness().record_progress(progress.finished(), waiting, now_s);
                self.set_cloud((replicas > 0).then_some(CloudReport { waiting, replicas, cost_ms, still_s }));
            }
            // The site's own server refuses at once if the cloud's domain is down.
            Some(Err(_)) | None => self.with(|meter| meter.record_silence(now_s)),
        }
        match (was_up, self.report().up) {
            (false, true) => tracing::info!(round_trip_ms = round_trip_s * 1000.0, "link up"),
            (true, false) => tracing::warn!("link down; messages wait in the outbox"),
            _ => {}
        }
    }
}

/// Replicas of all live verifiers, and the mean cost of an image on one of them, milliseconds.
async fn verifier_capacity(cloud: &Bus) -> (u32, f64) {
    let beats = tokio::time::timeout(FLEET_INTERVAL, async { fleet::live_workers(cloud).await }).await;
    let Ok(Ok(beats)) = beats else { return (0, 0.0) };
    let verifiers = beats.iter().filter(|beat| beat.role == Role::Verifier && beat.cost_ms.is_some());
    let (replicas, cost) = verifiers.fold((0, 0.0), |(replicas, cost), beat| {
        (replicas + beat.replicas, cost + f64::from(beat.replicas) * beat.cost_ms.unwrap_or(0.0))
    });
    (replicas, cost / f64::from(replicas.max(1)))
}

/// An upload in flight; recorded as lost when dropped.
pub struct UploadGuard {
    upload: Option<ActiveUpload>,
    link: LinkHandle,
}

impl UploadGuard {
    /// Records that the cloud stored it.
    pub fn record_arrival(mut self) {
        let now_s = self.link.now_s();
        if let Some(upload) = self.upload.take() {
            self.link.with(|meter| meter.record_arrival(upload, now_s));
        }
    }
}

impl Drop for UploadGuard {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take() {
            self.link.with(|meter| meter.record_loss(upload));
        }
    }
}

//! A simulated verifier, for measuring a cloud that is faster than this machine: it answers with precomputed predictions
//! of the cloud's model after a fixed service time. Everything around it (streams, messages, heartbeats) is real.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use runtime::consumer::WorkerStats;
use runtime::handler::DeadLetterContext;
use runtime::{ConsumerConfig, Fault, Handler, MessageCredit, OutgoingMessages, Shutdown, clock, consume, heartbeat};
use schemas::answer::Timings;
use schemas::{FaultNote, Payload, Prediction, Role, SiteName, VerifyRequest, decode};
use streams::reader::StoredMessage;
use streams::{Bus, Delivery, Publisher, topology};
use tokio::sync::{Semaphore, watch};
use verifier::judge::make_verdict;

const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
const ACK_WAIT: Duration = Duration::from_secs(30);

/// Speed of the fake cloud.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct FakeCloudPace {
    /// Service time of one image on one replica, milliseconds.
    pub service_ms: f64,
    /// Images processed concurrently.
    pub replicas: u32,
}

/// The cloud model's prediction for each image, by its bytes.
pub(crate) type CloudPredictions = HashMap<Bytes, Prediction>;

/// A verifier with fixed speed and precomputed predictions.
pub(crate) struct FakeCloud {
    pace: FakeCloudPace,
    predictions: Arc<CloudPredictions>,
    unknown: Prediction,
    slots: Semaphore,
    stalled: watch::Receiver<bool>,
}

impl Handler for FakeCloud {
    const ROLE: Role = Role::Verifier;
    const STREAM: &'static str = topology::VERIFY;

    async fn handle(&self, delivery: &Delivery, _credit: &MessageCredit) -> Result<OutgoingMessages, Fault> {
        let request: VerifyRequest = decode(delivery.payload())?;
        // Fails only after the measurement.
        let _ = self.stalled.clone().wait_for(|stalled| !stalled).await;
        let _permit = self.slots.acquire().await;
        tokio::time::sleep(Duration::from_secs_f64(self.pace.service_ms / 1000.0)).await;
        let known = match &request.payload {
            Payload::Image(bytes) => self.predictions.get(&bytes[..]),
            Payload::Blob(_) | Payload::Features(_) => None,
        };
        let prediction = known.unwrap_or(&self.unknown).clone();
        let spare = verifier::hard_case_publication(&request)?.into_iter().collect();
        let verdict = make_verdict(request, prediction, Timings::default(), clock::now_ms());
        let publications = vec![verifier::report(&verdict, delivery.sequence)?];
        Ok(OutgoingMessages { publications, spare, ..OutgoingMessages::default() })
    }

    fn dead_letter(&self, _message: &StoredMessage, _fault: &FaultNote) -> DeadLetterContext {
        DeadLetterContext { site: SiteName::unknown(), task: None, publications: Vec::new() }
    }
}

/// Runs a fake cloud until shutdown. `unknown`: its prediction for images without a precomputed one.
pub(crate) async fn run(
    cloud: Bus,
    pace: FakeCloudPace,
    predictions: Arc<CloudPredictions>,
    unknown: Prediction,
    stalled: watch::Receiver<bool>,
    shutdown: Shutdown,
) {
    let replicas = pace.replicas.max(1) as usize;
    let verifier = Arc::new(FakeCloud { pace, predictions, unknown, slots: Semaphore::new(replicas), stalled });
    let durable = topology::VERIFIER.into();
    let from = ConsumerConfig { durable, credits: 2 * replicas, resized: None, tries: None, ack_wait: ACK_WAIT };
    let stats = Arc::new(WorkerStats::default());
    let publisher = Publisher::new(cloud.clone(), PUBLISH_TIMEOUT);
    let heartbeat_pace =
        heartbeat::HeartbeatPace { every: Duration::from_secs(1), ..heartbeat::HeartbeatPace::default() };
    let heartbeats = heartbeat::send_heartbeats(
        cloud.clone(),
        FakeCloud::ROLE,
        None,
        stats.clone(),
        shutdown.clone(),
        heartbeat_pace,
        |beat| {
            (beat.replicas, beat.cost_ms) = (pace.replicas, Some(pace.service_ms));
        },
    );
    let (ended, ()) = tokio::join!(consume(verifier, &cloud, publisher, from, stats, shutdown), heartbeats);
    tracing::debug!(?ended, "fake cloud stopped");
}

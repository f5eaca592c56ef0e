//! A verifier with a pace of its own, for measuring a cloud that is faster than this machine: it says what the
//! cloud's model said beforehand, after the time that a faster machine would take. Everything around it
//! (streams, messages, signs of life) is real.

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

const PATIENCE: Duration = Duration::from_secs(10);
const ACK_WAIT: Duration = Duration::from_secs(30);

/// How fast it is.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct FakeCloudPace {
    /// One image on one replica, milliseconds.
    pub service_ms: f64,
    /// Images at a time.
    pub replicas: u32,
}

/// What the cloud's model says about each image.
pub(crate) type CloudPredictions = HashMap<Bytes, Prediction>;

/// See the module.
pub(crate) struct FakeCloud {
    pace: FakeCloudPace,
    opinions: Arc<CloudPredictions>,
    unknown: Prediction,
    busy: Semaphore,
    stalled: watch::Receiver<bool>,
}

impl Handler for FakeCloud {
    const ROLE: Role = Role::Verifier;
    const STREAM: &'static str = topology::VERIFY;

    async fn handle(&self, delivery: &Delivery, _credit: &MessageCredit) -> Result<OutgoingMessages, Fault> {
        let request: VerifyRequest = decode(delivery.payload())?;
        // Fails only when the measurement is over.
        let _ = self.stalled.clone().wait_for(|stalled| !stalled).await;
        let _turn = self.busy.acquire().await;
        tokio::time::sleep(Duration::from_secs_f64(self.pace.service_ms / 1000.0)).await;
        let known = match &request.payload {
            Payload::Image(bytes) => self.opinions.get(&bytes[..]),
            Payload::Blob(_) | Payload::Features(_) => None,
        };
        let opinion = known.unwrap_or(&self.unknown).clone();
        let spare = verifier::hard_case_publication(&request)?.into_iter().collect();
        let verdict = make_verdict(request, opinion, Timings::default(), clock::now_ms());
        let publications = vec![verifier::report(&verdict, delivery.sequence)?];
        Ok(OutgoingMessages { publications, spare, ..OutgoingMessages::default() })
    }

    fn dead_letter(&self, _message: &StoredMessage, _fault: &FaultNote) -> DeadLetterContext {
        DeadLetterContext { site: SiteName::unknown(), task: None, publications: Vec::new() }
    }
}

/// Runs one until told to stop. `unknown`: what it says about an image it knows nothing of.
pub(crate) async fn run(
    cloud: Bus,
    pace: FakeCloudPace,
    opinions: Arc<CloudPredictions>,
    unknown: Prediction,
    stalled: watch::Receiver<bool>,
    shutdown: Shutdown,
) {
    let replicas = pace.replicas.max(1) as usize;
    let step = Arc::new(FakeCloud { pace, opinions, unknown, busy: Semaphore::new(replicas), stalled });
    let durable = topology::VERIFIER.into();
    let from = ConsumerConfig { durable, credits: 2 * replicas, resized: None, tries: None, ack_wait: ACK_WAIT };
    let tally = Arc::new(WorkerStats::default());
    let publisher = Publisher::new(cloud.clone(), PATIENCE);
    let pulse = heartbeat::HeartbeatPace { every: Duration::from_secs(1), ..heartbeat::HeartbeatPace::default() };
    let life = heartbeat::send_heartbeats(
        cloud.clone(),
        FakeCloud::ROLE,
        None,
        tally.clone(),
        shutdown.clone(),
        pulse,
        |beat| {
            (beat.replicas, beat.cost_ms) = (pace.replicas, Some(pace.service_ms));
        },
    );
    let (ended, ()) = tokio::join!(consume(step, &cloud, publisher, from, tally, shutdown), life);
    tracing::debug!(?ended, "fake cloud stopped");
}

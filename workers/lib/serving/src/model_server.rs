//! Everything that a worker does to serve a model besides handling its messages: it follows orders and swaps, counts and
//! reports what came of releases, scales its replicas and with them its credits, and sends heartbeats. Recognizer and
//! verifier differ in their handlers alone.

use std::sync::Arc;
use std::time::Duration;

use runtime::consumer::WorkerStats;
use runtime::heartbeat::{self, HeartbeatPace};
use runtime::{ConsumerConfig, Fault, Handler, Shutdown, consume};
use schemas::{Heartbeat, ModelName, Order, SiteName};
use streams::{Blobs, Bus, Publisher};
use tokio::sync::watch;
use vision::{InferenceError, InferencePool, Model};

use crate::order_watch;
use crate::release_counter::ReleaseCounter;
use crate::report::SwapReporter;
use crate::scale::{ScaleSettings, Scaler};
use crate::serving_model::ServingModel;
use crate::swap::ModelSwapper;

/// How long a publication is retried before its message is returned.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);

/// A handler that answers messages with a model, which may be swapped and run in more or fewer replicas.
pub trait ModelHandler: Handler {
    /// Prepares for a release that is about to serve.
    fn prepare_release(&self, _model: &Model) {}

    /// Takes note of a new number of replicas.
    fn resize(&self, _replicas: usize) {}

    /// Fills in the fields of a heartbeat that only this role knows.
    fn fill_heartbeat(&self, _beat: &mut Heartbeat) {}

    /// Whether a report on releases would arrive now; otherwise they wait.
    fn is_reachable(&self) -> bool {
        true
    }
}

/// What a role and its settings say about serving a model.
#[derive(Debug, Clone)]
pub struct ServingOptions {
    /// Site of the worker; absent: it works in the cloud.
    pub site: Option<SiteName>,
    /// Labels that the operator gave the site.
    pub site_labels: Vec<String>,
    /// Durable consumer of its messages.
    pub durable: String,
    /// Messages held per slot of a batch.
    pub credits_per_slot: usize,
    /// Longest interval between heartbeats.
    pub heartbeat_interval: Duration,
    /// Number of replicas, if it follows the queue.
    pub scale: ScaleSettings,
    /// Interval of reports on the running release, seconds.
    pub report_s: u32,
    /// Length of the intervals over which reports count, seconds.
    pub count_s: u32,
    /// Deliveries after which a message is given up.
    pub tries: u64,
    /// Ack wait of the durable.
    pub ack_wait: Duration,
}

/// A model that serves, before its worker takes messages.
pub struct ModelServer {
    bus: Bus,
    options: ServingOptions,
    swapper: Arc<ModelSwapper>,
    model: ModelName,
    ordered: watch::Sender<Option<Order>>,
    /// Runs the serving model.
    pub infer: InferencePool,
    /// Counts the results of each release.
    pub counter: ReleaseCounter,
    /// Publishes what came of messages.
    pub publisher: Publisher,
    /// The current order; if there is one, a releaser compares releases.
    pub orders: watch::Receiver<Option<Order>>,
}

impl ModelServer {
    /// For a model that is loaded and warm. `blobs`: the bucket that packages of releases are fetched from.
    pub fn new(bus: Bus, started: ServingModel, blobs: Blobs, options: ServingOptions) -> Self {
        let (ordered, orders) = watch::channel(None);
        Self {
            infer: started.infer.clone(),
            model: ModelName::from_name(&started.root.description.name),
            counter: ReleaseCounter::new(options.count_s),
            publisher: Publisher::new(bus.clone(), PUBLISH_TIMEOUT),
            swapper: Arc::new(ModelSwapper::new(started, blobs)),
            bus,
            options,
            ordered,
            orders,
        }
    }

    /// Serves until told to stop; requests the stop of everything else when the handler's loop ends.
    ///
    /// # Errors
    /// The note of a handler that cannot handle anything.
    pub async fn serve<H: ModelHandler>(self, handler: Arc<H>, shutdown: Shutdown) -> Result<(), Fault> {
        let Self { bus, options, swapper, model, ordered, infer, counter, publisher, orders } = self;
        let credits = |replicas: usize| replicas * infer.batch() * options.credits_per_slot;
        handler.prepare_release(&infer.model());
        let stats = Arc::new(WorkerStats::default());
        let scaler = Scaler::new(H::ROLE, infer.clone(), options.scale.clone());
        let (credit_sender, resized) = watch::channel(0);
        let resize = |replicas| {
            handler.resize(replicas);
            credit_sender.send_replace(credits(replicas));
        };
        let queue = (H::STREAM, options.durable.as_str());
        let scaling = scaler.run(&bus, queue, &stats, &resize, &shutdown);
        let from = ConsumerConfig {
            durable: options.durable.clone(),
            credits: credits(infer.replicas()),
            resized: Some(resized),
            tries: Some(options.tries),
            ack_wait: options.ack_wait,
        };
        let pace = HeartbeatPace { every: options.heartbeat_interval, ..HeartbeatPace::default() };
        let fill = |beat: &mut Heartbeat| {
            beat.replicas = u32::try_from(infer.replicas()).unwrap_or(u32::MAX);
            beat.cost_ms = Some(infer.cost_ms());
            beat.scale = scaler.reason();
            swapper.fill_heartbeat(beat);
            handler.fill_heartbeat(beat);
        };
        let (site, stop) = (options.site.clone(), shutdown.clone());
        let heartbeats = heartbeat::send_heartbeats(bus.clone(), H::ROLE, site, stats.clone(), stop, pace, fill);
        let reporter = SwapReporter {
            site: options.site.clone().unwrap_or_else(SiteName::cloud),
            site_labels: options.site_labels.clone(),
            swapper: swapper.clone(),
            counter,
            publisher: publisher.clone(),
            every: Duration::from_secs(options.report_s.into()),
        };
        let reporting = reporter.run(|| handler.is_reachable(), shutdown.clone());
        let (site, ready) = (options.site.as_ref(), |model: &Model| handler.prepare_release(model));
        let following = order_watch::watch_orders(&swapper, &bus, site, &model, ordered, orders, ready, &shutdown);
        let work = async {
            let ended = consume(handler.clone(), &bus, publisher.clone(), from, stats.clone(), shutdown.clone()).await;
            // The other tasks end with it.
            shutdown.request();
            ended
        };
        let (ended, (), (), (), ()) = tokio::join!(work, heartbeats, reporting, following, scaling);
        ended
    }
}

/// The fault of an image without a prediction: the image is rejected, or tried again if it is not at fault.
pub fn inference_fault(error: InferenceError) -> Fault {
    match error.fault_note() {
        note if error.is_the_images_fault() => Fault::Reject(note),
        note => Fault::Retry { after: runtime::fault::RETRY_DELAY, note },
    }
}

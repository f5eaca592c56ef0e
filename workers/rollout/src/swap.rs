//! A swap: an order comes → fetch → unpack → try → load → compare → hand over. The model that serves goes on serving until
//! the last step, and whatever fails before that leaves it serving, with a reason that is told.

pub mod flow;

use std::sync::Arc;

use runtime::{clock, process};
use schemas::{FaultNote, Heartbeat, Order, RefusedRelease, ReleaseId};
use streams::Blobs;
use tokio::sync::watch;
use vision::{InferenceError, InferencePool, Model, StandbyModel};

use self::flow::ReleaseHost;
use crate::compatibility::{MachineProfile, incompatibility};
use crate::package::{self, PackageError};
use crate::release_cache::ReleaseCache;
use crate::serving_model::ServingModel;
use crate::trial::{PROBE, ReleaseProbe, TrialResult, TrialRunner, compare, pictures};

/// Failures that may pass: the package is on its way, or memory is short just now.
pub const PASSING: [&str; 5] =
    ["package_missing", "package_unreachable", "package_unwritable", "memory_short", "trial_impossible"];

/// A worker whose model follows orders.
pub struct ModelSwapper {
    /// The model it was set up with.
    pub root: Arc<Model>,
    /// What runs the model.
    pub infer: InferencePool,
    /// Where packages come from.
    pub blobs: Blobs,
    /// How a release is tried.
    pub trial: TrialRunner,
    /// Where releases lie.
    pub home: ReleaseCache,
    state: watch::Sender<SwapState>,
}

/// What a worker runs, and what became of orders.
#[derive(Debug, Clone, PartialEq)]
pub struct SwapState {
    /// Since when it runs what it runs, milliseconds since the epoch.
    pub since_ms: u64,
    /// Number of the order it followed or refused last, 0 for none.
    pub order: u64,
    /// The step of the swap it is at, if it is at one.
    pub step: Option<String>,
    /// What it does not run, and why, the latest last.
    pub refused: Vec<RefusedRelease>,
}

impl ModelSwapper {
    /// Of a worker that serves already.
    pub fn new(started: ServingModel, blobs: Blobs) -> Self {
        let ServingModel { root, infer, home, trial, refused } = started;
        let state = SwapState { since_ms: clock::now_ms(), order: 0, step: None, refused };
        Self { root: Arc::new(root), infer, blobs, trial, home, state: watch::Sender::new(state) }
    }

    /// What it runs, and what became of orders.
    pub fn state(&self) -> SwapState {
        self.state.borrow().clone()
    }

    /// Hears of every change of that.
    pub fn changes(&self) -> watch::Receiver<SwapState> {
        self.state.subscribe()
    }

    /// Follows orders for as long as it is polled, the latest of them. `ready`: is told of a model before it serves.
    pub async fn follow(&self, orders: watch::Receiver<Option<Order>>, ready: impl Fn(&Model)) {
        flow::follow_orders(&ServingHost { swapper: self, ready }, &self.state, orders).await;
    }

    pub(crate) fn log_write_failure(&self, written: std::io::Result<()>) {
        flow::log_write_failure(written);
    }

    /// The release's folder, from what is here already or from its package.
    async fn fetch(&self, order: &Order, step: &(dyn Fn(&str) + Sync)) -> Result<Arc<Model>, FaultNote> {
        let release = order.release.release.clone();
        if self.root.release == release {
            return Ok(self.root.clone());
        }
        let folder = self.home.folder_of(&release);
        let here = {
            let folder = folder.clone();
            tokio::task::spawn_blocking(move || Model::load(&folder).ok()).await.ok().flatten()
        };
        if let Some(model) = here.filter(|model| model.release == release) {
            return self.check_compatible(model);
        }
        if let Some(fault) = incompatibility(&order.release.needs, &self.machine()) {
            return Err(fault);
        }
        step("fetching");
        let file = self.home.package_of(&release);
        package::assemble(&self.blobs, &order.release.package, &file).await.map_err(unfetched)?;
        step("unpacking");
        let unpacking = {
            let file = file.clone();
            move || package::unpack(&file, &release, &folder).map_err(unfetched)
        };
        let model = spawn_blocking(unpacking).await?;
        if let Err(error) = tokio::fs::remove_file(&file).await {
            tracing::debug!(%error, "the package is left where it is");
        }
        self.check_compatible(model)
    }

    /// A release gives what is asked of the model that the worker was set up with.
    fn check_compatible(&self, model: Model) -> Result<Arc<Model>, FaultNote> {
        let gives = |model: &Model| model.description.output.features.is_some();
        if gives(&self.root) && !gives(&model) {
            let reason = "it gives no features, and the model this worker was set up with does";
            return Err(FaultNote::new(
                "features_missing",
                reason,
                "name its features output in model.toml (output.features)",
            ));
        }
        Ok(Arc::new(model))
    }

    /// What a sign of life says of it.
    pub fn restore_missing(&self, beat: &mut Heartbeat) {
        let (model, state) = (self.infer.model(), self.state());
        beat.model = Some(self.root.description.name.clone());
        beat.release = Some(model.release.clone());
        beat.release_since_ms = Some(state.since_ms);
        let refused = state.refused.last().map(|refused| {
            format!("does not run {}: {} ({})", refused.release.short(), refused.fault.reason, refused.fault.name)
        });
        beat.swap = state.step.or(refused);
    }

    /// What this machine has for a release.
    pub fn machine(&self) -> MachineProfile {
        MachineProfile {
            runtime: self.infer.onnx().version().to_owned(),
            memory_free_mib: process::available_bytes().map(|bytes| bytes >> 20),
            replicas: self.infer.replicas() as u64,
        }
    }
}

/// A worker's models, and who is told of one before it serves.
struct ServingHost<'a, F> {
    swapper: &'a ModelSwapper,
    ready: F,
}

/// What a trial gave, and what the release gave where it was packaged.
struct PassedTrial {
    tried: TrialResult,
    probe: Option<ReleaseProbe>,
}

impl<F: Fn(&Model)> ReleaseHost for ServingHost<'_, F> {
    type Model = Arc<Model>;
    type Trial = PassedTrial;
    type Standby = StandbyModel;

    fn serving(&self) -> ReleaseId {
        self.swapper.infer.model().release.clone()
    }

    async fn fetch(&self, order: &Order, step: &(dyn Fn(&str) + Sync)) -> Result<Arc<Model>, FaultNote> {
        self.swapper.fetch(order, step).await
    }

    async fn run_trial(&self, model: &Arc<Model>) -> Result<PassedTrial, FaultNote> {
        let (infer, is_root) = (&self.swapper.infer, model.release == self.swapper.root.release);
        let known = alike(&infer.model(), model).then(|| (infer.batch(), infer.cost_ms()));
        let tried = self.swapper.trial.run_beside_work(&model.folder, infer.settings(), known, is_root).await?;
        let probe = if is_root { None } else { Some(probe(model).await?) };
        if let Some(probe) = &probe {
            compare(&tried.logits, probe)?;
        }
        Ok(PassedTrial { tried, probe })
    }

    async fn load(&self, model: &Arc<Model>, trial: PassedTrial) -> Result<StandbyModel, FaultNote> {
        let (infer, beside) = (self.swapper.infer.clone(), model.clone());
        let PassedTrial { tried, probe } = trial;
        let loading = move || {
            let mut standby = infer.preload(&beside, Some((tried.batch, tried.cost_ms))).map_err(note)?;
            if let Some(probe) = &probe {
                let pictures = pictures();
                let pictures: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
                let seen = standby.predict_batch(&pictures).into_iter().map(|seen| Ok(seen.map_err(note)?.logits));
                compare(&seen.collect::<Result<Vec<_>, _>>()?, probe)?;
            }
            Ok(standby)
        };
        spawn_blocking(loading).await
    }

    fn announce(&self, model: &Arc<Model>) {
        (self.ready)(model);
    }

    fn record_serving(&self, release: &ReleaseId) -> std::io::Result<()> {
        self.swapper.home.serving_release(release, *release == self.swapper.root.release)
    }

    fn record_stable(&self) -> std::io::Result<()> {
        self.swapper.home.mark_stable()
    }

    async fn hand_over(&self, standby: StandbyModel) -> Result<(), FaultNote> {
        let infer = self.swapper.infer.clone();
        let handing = move || {
            let handed = infer.swap(standby).map_err(note);
            process::trim_memory();
            handed
        };
        spawn_blocking(handing).await
    }

    fn remove_old(&self) -> std::io::Result<()> {
        self.swapper.home.remove_old()
    }

    fn trim_memory(&self) {
        tokio::task::spawn_blocking(process::trim_memory);
    }
}

const REPORT: &str = "report it with the version of tributary";

/// Whether two releases differ in nothing but their weights, as far as their size and description say: then one costs what
/// the other does.
fn alike(one: &Model, other: &Model) -> bool {
    let size = |model: &Model| model.size_bytes().ok();
    one.description == other.description && one.labels == other.labels && size(one) == size(other)
}

fn note(error: InferenceError) -> FaultNote {
    error.fault_note()
}

fn unfetched(error: PackageError) -> FaultNote {
    FaultNote::new(
        error.name(),
        runtime::fault::error_chain(&error),
        "nothing: it is fetched again; or import the release again",
    )
}

/// What a release saw where it was packaged.
async fn probe(model: &Model) -> Result<ReleaseProbe, FaultNote> {
    let path = model.folder.join(PROBE);
    let missing = |why: String| {
        let reason = format!("{} says nothing of what the release should see: {why}", path.display());
        FaultNote::new("probe_missing", reason, "import the release again with this version of tributary")
    };
    let text = tokio::fs::read(&path).await.map_err(|error| missing(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| missing(error.to_string()))
}

/// Work that blocks, on another thread.
async fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FaultNote> + Send + 'static,
) -> Result<T, FaultNote> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(FaultNote::new("swap_broke", error.to_string(), REPORT)))
}

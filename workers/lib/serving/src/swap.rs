//! Swaps the serving model: order → fetch → unpack → try → load → compare → swap. The old model serves until the last
//! step, and keeps serving if an earlier step fails; the reason is reported.

pub mod flow;

use std::sync::Arc;

use os::process;
use runtime::clock;
use schemas::{FaultNote, Heartbeat, Order, RefusedRelease, ReleaseId};
use streams::Blobs;
use tokio::sync::watch;
use vision::{InferenceError, InferencePool, Model, StandbyModel};

use releases::compatibility::{MachineProfile, incompatibility};
use releases::package::{self, PackageError};
use releases::trial::{PROBE, ReleaseProbe, TrialResult, TrialRunner, compare, pictures};

use self::flow::ReleaseHost;
use crate::release_cache::ReleaseCache;
use crate::serving_model::ServingModel;

/// A worker's model, which follows orders.
pub struct ModelSwapper {
    /// The baseline model.
    pub root: Arc<Model>,
    /// Runs the serving model.
    pub infer: InferencePool,
    /// Bucket the packages are fetched from.
    pub blobs: Blobs,
    /// How a release is tried.
    pub trial: TrialRunner,
    /// Where releases are kept.
    pub home: ReleaseCache,
    state: watch::Sender<SwapState>,
}

/// What a worker runs, and what became of its orders.
#[derive(Debug, Clone, PartialEq)]
pub struct SwapState {
    /// Since when it has run its release, milliseconds since the epoch.
    pub since_ms: u64,
    /// Number of the last order it followed or refused; 0 for none.
    pub order: u64,
    /// Current step of a swap; absent between swaps.
    pub step: Option<String>,
    /// Releases it refused and why, latest last.
    pub refused: Vec<RefusedRelease>,
}

impl ModelSwapper {
    /// For a worker that already serves.
    pub fn new(started: ServingModel, blobs: Blobs) -> Self {
        let ServingModel { root, infer, home, trial, refused } = started;
        let state = SwapState { since_ms: clock::now_ms(), order: 0, step: None, refused };
        Self { root: Arc::new(root), infer, blobs, trial, home, state: watch::Sender::new(state) }
    }

    /// What it runs, and what became of its orders.
    pub fn state(&self) -> SwapState {
        self.state.borrow().clone()
    }

    /// Watches that state for changes.
    pub fn changes(&self) -> watch::Receiver<SwapState> {
        self.state.subscribe()
    }

    /// Follows the latest order for as long as it is polled. `ready` is called with a model before it serves.
    pub async fn follow(&self, orders: watch::Receiver<Option<Order>>, ready: impl Fn(&Model)) {
        flow::follow_orders(&ServingHost { swapper: self, ready }, &self.state, orders).await;
    }

    pub(crate) fn log_write_failure(&self, written: std::io::Result<()>) {
        flow::log_write_failure(written);
    }

    /// The release's folder, from the cache or from its package.
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
        package::assemble(&self.blobs, &order.release.package, &file).await.map_err(package_fault)?;
        step("unpacking");
        let unpacking = {
            let file = file.clone();
            move || package::unpack(&file, &release, &folder).map_err(package_fault)
        };
        let model = spawn_blocking(unpacking).await?;
        if let Err(error) = tokio::fs::remove_file(&file).await {
            tracing::debug!(%error, "package not removed");
        }
        self.check_compatible(model)
    }

    /// Checks that a release gives every output that the baseline gives.
    fn check_compatible(&self, model: Model) -> Result<Arc<Model>, FaultNote> {
        let gives = |model: &Model| model.description.output.features.is_some();
        if gives(&self.root) && !gives(&model) {
            let reason = "it has no features output, but the baseline model of this worker has one";
            return Err(FaultNote::new(
                "features_missing",
                reason,
                "name its features output in model.toml (output.features)",
            ));
        }
        Ok(Arc::new(model))
    }

    /// Fills in the fields about the model.
    pub fn fill_heartbeat(&self, beat: &mut Heartbeat) {
        let (model, state) = (self.infer.model(), self.state());
        beat.model = Some(self.root.description.name.clone());
        beat.release = Some(model.release.clone());
        beat.release_since_ms = Some(state.since_ms);
        match (state.step, state.refused.last()) {
            (None, Some(refused)) => beat.set_release_refusal(refused),
            (step, _) => beat.swap = step,
        }
    }

    /// What this machine offers a release.
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
        let known = cost_the_same(&infer.model(), model).then(|| (infer.batch(), infer.cost_ms()));
        let tried = self.swapper.trial.run_beside_work(&model.folder, infer.settings(), known, is_root).await?;
        let probe = if is_root { None } else { Some(read_probe(model).await?) };
        if let Some(probe) = &probe {
            compare(&tried.logits, probe)?;
        }
        Ok(PassedTrial { tried, probe })
    }

    async fn load(&self, model: &Arc<Model>, trial: PassedTrial) -> Result<StandbyModel, FaultNote> {
        let (infer, beside) = (self.swapper.infer.clone(), model.clone());
        let PassedTrial { tried, probe } = trial;
        let loading = move || {
            let mut standby = infer.preload(&beside, Some((tried.batch, tried.cost_ms))).map_err(fault_note)?;
            if let Some(probe) = &probe {
                let pictures = pictures();
                let pictures: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
                let seen =
                    standby.predict_batch(&pictures).into_iter().map(|seen| Ok(seen.map_err(fault_note)?.logits));
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
            let handed = infer.swap(standby).map_err(fault_note);
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

/// Whether two releases differ only in their weights, judging by size and description; then they cost the same.
fn cost_the_same(one: &Model, other: &Model) -> bool {
    let size = |model: &Model| model.size_bytes().ok();
    one.description == other.description && one.labels == other.labels && size(one) == size(other)
}

fn fault_note(error: InferenceError) -> FaultNote {
    error.fault_note()
}

fn package_fault(error: PackageError) -> FaultNote {
    FaultNote::new(
        error.kind(),
        runtime::fault::error_chain(&error),
        "none needed, it is fetched again; if it stays missing, import the release again",
    )
}

/// The reference outputs of a release, from where it was packaged.
async fn read_probe(model: &Model) -> Result<ReleaseProbe, FaultNote> {
    let path = model.folder.join(PROBE);
    let missing = |why: String| {
        let reason = format!("{} has no reference outputs of the release: {why}", path.display());
        FaultNote::new("probe_missing", reason, "import the release again with this version of tributary")
    };
    let text = tokio::fs::read(&path).await.map_err(|error| missing(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| missing(error.to_string()))
}

/// Runs blocking work on another thread.
async fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FaultNote> + Send + 'static,
) -> Result<T, FaultNote> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(FaultNote::new("swap_broke", error.to_string(), REPORT)))
}

//! Swaps the serving model: order → fetch → unpack → try → load → compare → swap. The old model serves until the last
//! step, and keeps serving if an earlier step fails; the reason is reported.

use std::sync::Arc;
use std::time::Duration;

use os::process;
use runtime::clock;
use schemas::{FaultKind, FaultNote, Heartbeat, Order, RefusedRelease, ReleaseId};
use streams::Blobs;
use tokio::sync::watch;
use tokio::time::Instant;
use vision::{InferenceError, InferencePool, Model};

use crate::release_cache::ReleaseCache;
use crate::serving_model::ServingModel;
use releases::compatibility::{MachineProfile, incompatibility};
use releases::package::{self, PackageError};
use releases::trial::{PROBE, ReleaseProbe, TrialRunner, compare, pictures};

/// Delay before retrying after a temporary failure.
const RETRY_DELAY: Duration = Duration::from_secs(15);
/// Delay after a swap before memory is returned to the system once more, when the work in flight during the swap is
/// done.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// A process that has run a release for this long did not die of it.
const TRUSTED_AFTER: Duration = Duration::from_secs(600);
/// Most refusals reported.
const MAX_REFUSED: usize = 8;

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
    pub async fn follow(&self, mut orders: watch::Receiver<Option<Order>>, ready: impl Fn(&Model)) {
        let mut trusted_at = Some(Instant::now() + TRUSTED_AFTER);
        let (mut settled_at, mut again) = (None, None);
        let mut due = true;
        loop {
            let order = orders.borrow_and_update().clone();
            // An older order may arrive late when two releasers are running.
            let order = order.filter(|order| due && order.number >= self.state.borrow().order);
            if let Some(order) = &order {
                again = None;
                match self.apply(order, &ready).await {
                    Ok(true) => {
                        trusted_at = Some(Instant::now() + TRUSTED_AFTER);
                        settled_at = Some(Instant::now() + SETTLED_AFTER);
                    }
                    Ok(false) => {}
                    Err(fault) => {
                        let release = order.release.release.short();
                        tracing::warn!(release, fault = fault.kind.as_str(), reason = fault.reason, "release refused");
                        again = fault.is_passing().then(|| Instant::now() + RETRY_DELAY);
                        self.refuse(order, fault);
                    }
                }
                self.state.send_modify(|state| (state.step, state.order) = (None, order.number));
            }
            let wake = [again, trusted_at, settled_at].into_iter().flatten().min();
            let changed = tokio::select! {
                changed = orders.changed() => match changed {
                    Ok(()) => true,
                    Err(_) => return std::future::pending().await,
                },
                () = at(wake) => false,
            };
            let is_over = |at: Option<Instant>| at.is_some_and(|at| at <= Instant::now());
            due = changed || is_over(again);
            if is_over(settled_at) {
                settled_at = None;
                tokio::task::spawn_blocking(process::trim_memory);
            }
            if is_over(trusted_at) {
                trusted_at = None;
                self.log_write_failure(self.home.mark_stable());
            }
        }
    }

    pub(crate) fn log_write_failure(&self, written: std::io::Result<()>) {
        if let Err(error) = written {
            tracing::warn!(%error, "serving release not saved");
        }
    }

    fn refuse(&self, order: &Order, fault: FaultNote) {
        self.state.send_modify(|state| {
            let release = order.release.release.clone();
            state.refused.retain(|refused| refused.release != release);
            state.refused.push(RefusedRelease { release, fault });
            let surplus = state.refused.len().saturating_sub(MAX_REFUSED);
            state.refused.drain(..surplus);
        });
    }

    fn step(&self, step: &str, release: &ReleaseId) {
        tracing::info!(release = release.short(), step, "swap");
        self.state.send_modify(|state| state.step = Some(format!("{step} {}", release.short())));
    }

    /// Applies an order; true if another model serves now.
    async fn apply(&self, order: &Order, ready: &impl Fn(&Model)) -> Result<bool, FaultNote> {
        let wanted = &order.release.release;
        let forget = |state: &mut SwapState| state.refused.retain(|refused| refused.release != *wanted);
        if self.infer.model().release == *wanted {
            self.state.send_modify(forget);
            return Ok(false);
        }
        let died_of_it = |refused: &&RefusedRelease| {
            refused.release == *wanted
                && refused.fault.kind == FaultKind::ReleaseCrashed
                && self.state.borrow().order == 0
        };
        // After a crash, the release is tried again only when it is ordered again.
        if let Some(refused) = self.state().refused.iter().find(died_of_it) {
            return Err(refused.fault.clone());
        }
        let root = self.root.release == *wanted;
        let model = if root { self.root.clone() } else { self.fetch(order).await? };
        self.step("trying", wanted);
        let known = alike(&self.infer.model(), &model).then(|| (self.infer.batch(), self.infer.cost_ms()));
        let tried = self.trial.run_beside_work(&model.folder, self.infer.settings(), known, root).await?;
        let probe = if root { None } else { Some(probe(&model).await?) };
        if let Some(probe) = &probe {
            compare(&tried.logits, probe)?;
        }
        self.step("loading", wanted);
        let (infer, beside) = (self.infer.clone(), model.clone());
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
        let standby = spawn_blocking(loading).await?;
        self.step("swapping", wanted);
        ready(&model);
        let before = self.infer.model().release.clone();
        self.log_write_failure(self.home.serving_release(wanted, root));
        let infer = self.infer.clone();
        let handing = move || {
            let handed = infer.swap(standby).map_err(note);
            process::trim_memory();
            handed
        };
        if let Err(fault) = spawn_blocking(handing).await {
            self.log_write_failure(self.home.serving_release(&before, before == self.root.release));
            return Err(fault);
        }
        self.state.send_modify(|state| {
            forget(state);
            state.since_ms = clock::now_ms();
        });
        if let Err(error) = self.home.remove_old() {
            tracing::warn!(%error, "release cache cleanup failed");
        }
        Ok(true)
    }

    /// The release's folder, from the cache or from its package.
    async fn fetch(&self, order: &Order) -> Result<Arc<Model>, FaultNote> {
        let release = order.release.release.clone();
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
        self.step("fetching", &release);
        let file = self.home.package_of(&release);
        package::assemble(&self.blobs, &order.release.package, &file).await.map_err(unfetched)?;
        self.step("unpacking", &release);
        let unpacking = {
            let file = file.clone();
            move || package::unpack(&file, &release, &folder).map_err(unfetched)
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

    /// Fills in the heartbeat's fields about the model.
    pub fn restore_missing(&self, beat: &mut Heartbeat) {
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

const REPORT: &str = "report it with the version of tributary";

/// Whether two releases differ only in their weights, judging by size and description; then they cost the same.
fn alike(one: &Model, other: &Model) -> bool {
    let size = |model: &Model| model.size_bytes().ok();
    one.description == other.description && one.labels == other.labels && size(one) == size(other)
}

async fn at(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

fn note(error: InferenceError) -> FaultNote {
    error.fault_note()
}

fn unfetched(error: PackageError) -> FaultNote {
    FaultNote::new(
        error.kind(),
        runtime::fault::error_chain(&error),
        "none needed, it is fetched again; if it stays missing, import the release again",
    )
}

/// The reference outputs of a release, from where it was packaged.
async fn probe(model: &Model) -> Result<ReleaseProbe, FaultNote> {
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

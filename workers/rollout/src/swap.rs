//! A swap: an order comes → fetch → unpack → try → load → compare → hand over. The model that serves goes on serving until
//! the last step, and whatever fails before that leaves it serving, with a reason that is told.

use std::sync::Arc;
use std::time::Duration;

use runtime::{clock, process};
use schemas::{FaultKind, FaultNote, Heartbeat, Order, RefusedRelease, ReleaseId};
use streams::Blobs;
use tokio::sync::watch;
use tokio::time::Instant;
use vision::{InferenceError, InferencePool, Model};

use crate::compatibility::{MachineProfile, incompatibility};
use crate::package::{self, PackageError};
use crate::release_cache::ReleaseCache;
use crate::serving_model::ServingModel;
use crate::trial::{PROBE, ReleaseProbe, TrialRunner, compare, pictures};

/// After a failure that may pass.
const AGAIN: Duration = Duration::from_secs(15);
/// So long after a swap, memory is given back once more: what was in work during it is through.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// A process that has run a release for so long is not held to have died of it.
const TRUSTED_AFTER: Duration = Duration::from_secs(600);
/// So many refusals are told.
const MOST_REFUSED: usize = 8;

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
    pub async fn follow(&self, mut orders: watch::Receiver<Option<Order>>, ready: impl Fn(&Model)) {
        let mut trusted_at = Some(Instant::now() + TRUSTED_AFTER);
        let (mut settled_at, mut again) = (None, None);
        let mut due = true;
        loop {
            let order = orders.borrow_and_update().clone();
            // An older one may come late, from who decides beside another.
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
                        tracing::warn!(
                            release,
                            fault = fault.kind.as_str(),
                            reason = fault.reason,
                            "a release is not run"
                        );
                        again = fault.is_passing().then(|| Instant::now() + AGAIN);
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
            tracing::warn!(%error, "what serves could not be written down: the worker would start with another release");
        }
    }

    fn refuse(&self, order: &Order, fault: FaultNote) {
        self.state.send_modify(|state| {
            let release = order.release.release.clone();
            state.refused.retain(|refused| refused.release != release);
            state.refused.push(RefusedRelease { release, fault });
            let surplus = state.refused.len().saturating_sub(MOST_REFUSED);
            state.refused.drain(..surplus);
        });
    }

    fn step(&self, step: &str, release: &ReleaseId) {
        tracing::info!(release = release.short(), step, "swap");
        self.state.send_modify(|state| state.step = Some(format!("{step} {}", release.short())));
    }

    /// Whether another model serves now.
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
        // What the process died of is tried again only when somebody orders it again.
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
        self.step("handing over", wanted);
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
            tracing::warn!(%error, "old releases could not be removed");
        }
        Ok(true)
    }

    /// The release's folder, from what is here already or from its package.
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
        match (state.step, state.refused.last()) {
            (None, Some(refused)) => beat.set_release_refusal(refused),
            (step, _) => beat.swap = step,
        }
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

const REPORT: &str = "report it with the version of tributary";

/// Whether two releases differ in nothing but their weights, as far as their size and description say: then one costs what
/// the other does.
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

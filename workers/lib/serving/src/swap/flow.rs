//! The steps of a release swap and their timing, without models: those belong to the [`ReleaseHost`], so that every
//! step runs in simulated time too.

use std::time::Duration;

use runtime::clock;
use schemas::{FaultKind, FaultNote, Order, RefusedRelease, ReleaseId};
use streams::backoff::Backoff;
use tokio::sync::watch;
use tokio::time::Instant;

use super::SwapState;

/// Mean delay before an order is tried again after a temporary failure.
const RETRY_DELAY: Duration = Duration::from_secs(15);
/// Delay after a swap before memory is returned to the system once more, when the work in flight during the swap is
/// done.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// A process that has run a release for this long did not die of it.
const TRUSTED_AFTER: Duration = Duration::from_secs(600);
/// Most refusals reported.
const MAX_REFUSED: usize = 8;

/// What a worker does with releases. One release serves at any time, and a failure before [`Self::hand_over`] leaves it
/// serving.
pub trait ReleaseHost {
    /// A release on this machine.
    type Model;
    /// The result of a trial.
    type Trial;
    /// A loaded release that does not serve yet.
    type Standby;

    /// The release that serves.
    fn serving(&self) -> ReleaseId;

    /// Fetches a release unless it is on this machine. `step` is called before anything slow.
    fn fetch(
        &self,
        order: &Order,
        step: &(dyn Fn(&str) + Sync),
    ) -> impl Future<Output = Result<Self::Model, FaultNote>>;

    /// Tries a release while the current one serves.
    fn run_trial(&self, model: &Self::Model) -> impl Future<Output = Result<Self::Trial, FaultNote>>;

    /// Loads a release while the current one serves.
    fn load(&self, model: &Self::Model, trial: Self::Trial) -> impl Future<Output = Result<Self::Standby, FaultNote>>;

    /// Tells the rest of the worker about a release before it serves.
    fn announce(&self, model: &Self::Model);

    /// Records the release that the worker starts with from now on.
    fn record_serving(&self, release: &ReleaseId) -> std::io::Result<()>;

    /// Records that the serving release has run long enough to be trusted.
    fn record_stable(&self) -> std::io::Result<()>;

    /// Puts a loaded release in place of the serving one.
    fn hand_over(&self, standby: Self::Standby) -> impl Future<Output = Result<(), FaultNote>>;

    /// Removes releases that are no longer needed.
    fn remove_old(&self) -> std::io::Result<()>;

    /// Returns unused memory to the system.
    fn trim_memory(&self);
}

/// Follows the latest order for as long as it is polled.
pub async fn follow_orders<H: ReleaseHost>(
    host: &H,
    state: &watch::Sender<SwapState>,
    mut orders: watch::Receiver<Option<Order>>,
) {
    let mut trusted_at = Some(Instant::now() + TRUSTED_AFTER);
    let (mut settled_at, mut again) = (None, None);
    let is_over = |at: Option<Instant>| at.is_some_and(|at| at <= Instant::now());
    let (mut newest, mut is_changed): (Option<Order>, bool) = (None, true);
    loop {
        let mut is_due = is_over(again);
        if is_changed {
            // An older order may arrive late when two releasers run: the newest one holds and is tried again.
            let heard = orders.borrow_and_update().clone();
            let heard = heard.filter(|order| order.number >= state.borrow().order);
            is_due |= heard.is_some();
            newest = heard.or(newest);
        }
        if let Some(order) = newest.as_ref().filter(|_| is_due) {
            again = None;
            match apply_order(host, state, order).await {
                Ok(true) => {
                    trusted_at = Some(Instant::now() + TRUSTED_AFTER);
                    settled_at = Some(Instant::now() + SETTLED_AFTER);
                }
                Ok(false) => {}
                Err(fault) => {
                    let release = order.release.release.short();
                    tracing::warn!(release, fault = fault.kind.as_str(), reason = fault.reason, "release refused");
                    again = fault.is_passing().then(|| Instant::now() + Backoff::steady(RETRY_DELAY).next_pause());
                    refuse(state, order, fault);
                }
            }
            state.send_modify(|state| (state.step, state.order) = (None, order.number));
        }
        let wake = [again, trusted_at, settled_at].into_iter().flatten().min();
        is_changed = tokio::select! {
            biased;
            changed = orders.changed() => match changed {
                Ok(()) => true,
                Err(_) => return std::future::pending().await,
            },
            () = wait_until(wake) => false,
        };
        if is_over(settled_at) {
            settled_at = None;
            host.trim_memory();
        }
        if is_over(trusted_at) {
            trusted_at = None;
            log_write_failure(host.record_stable());
        }
    }
}

/// Applies an order; true if another release serves now.
async fn apply_order<H: ReleaseHost>(
    host: &H,
    state: &watch::Sender<SwapState>,
    order: &Order,
) -> Result<bool, FaultNote> {
    let wanted = &order.release.release;
    let forget = |state: &mut SwapState| state.refused.retain(|refused| refused.release != *wanted);
    if host.serving() == *wanted {
        state.send_modify(forget);
        return Ok(false);
    }
    let died_of_it =
        |refused: &&RefusedRelease| refused.release == *wanted && refused.fault.kind == FaultKind::ReleaseCrashed;
    // After a crash, the release is tried again only when it is ordered again.
    let died = {
        let state = state.borrow();
        state.refused.iter().find(died_of_it).filter(|_| state.order == 0).map(|refused| refused.fault.clone())
    };
    if let Some(fault) = died {
        return Err(fault);
    }
    let step = |step: &str| {
        tracing::info!(release = wanted.short(), step, "swap");
        state.send_modify(|state| state.step = Some(format!("{step} {}", wanted.short())));
    };
    let model = host.fetch(order, &step).await?;
    step("trying");
    let trial = host.run_trial(&model).await?;
    step("loading");
    let standby = host.load(&model, trial).await?;
    step("swapping");
    host.announce(&model);
    let before = host.serving();
    log_write_failure(host.record_serving(wanted));
    if let Err(fault) = host.hand_over(standby).await {
        log_write_failure(host.record_serving(&before));
        return Err(fault);
    }
    state.send_modify(|state| {
        forget(state);
        state.since_ms = clock::now_ms();
    });
    if let Err(error) = host.remove_old() {
        tracing::warn!(%error, "release cache cleanup failed");
    }
    Ok(true)
}

fn refuse(state: &watch::Sender<SwapState>, order: &Order, fault: FaultNote) {
    state.send_modify(|state| {
        let release = order.release.release.clone();
        state.refused.retain(|refused| refused.release != release);
        state.refused.push(RefusedRelease { release, fault });
        let surplus = state.refused.len().saturating_sub(MAX_REFUSED);
        state.refused.drain(..surplus);
    });
}

pub(super) fn log_write_failure(written: std::io::Result<()>) {
    if let Err(error) = written {
        tracing::warn!(%error, "serving release not saved");
    }
}

async fn wait_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

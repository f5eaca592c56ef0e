//! Keeps a role of `up` running. A role that ends, by an error or a panic, is started again after a pause that grows
//! with every failure, and its heartbeat says so meanwhile; the other roles go on.
//!
//! One thing still ends `up`: a mistake in the settings that a role finds when it is first started. Whoever started
//! `up` is still there to correct it.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use anyhow::anyhow;
use futures::FutureExt;
use futures::future::BoxFuture;
use runtime::{Fault, Shutdown, clock, heartbeat, metrics};
use schemas::{Heartbeat, Role, RoleFailure, SiteName};
use streams::backoff::Backoff;
use streams::fleet::HeartbeatBucket;
use streams::{Bus, CarryError, NatsSettings};
use tokio::time::Instant;

use crate::stdout;

/// Pauses before a role is started again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// A role that ran for this long has recovered: its next failure counts as the first.
const RECOVERED_AFTER: Duration = Duration::from_secs(60);
/// A mistake in the settings that a role finds within this time of its first start ends `up`.
const START_TIME: Duration = Duration::from_secs(10);
/// A third of the time after which a heartbeat expires.
const REPORT_INTERVAL: Duration = Duration::from_secs(4);

/// Starts a role, which runs until it fails or is told to stop.
pub(super) type RoleStart = Box<dyn FnMut(RoleLogin, Shutdown) -> RoleRun + Send>;

/// One run of a role.
pub(super) type RoleRun = BoxFuture<'static, anyhow::Result<()>>;

/// How a role logs in.
#[derive(Clone)]
pub(super) struct RoleLogin {
    /// The role.
    pub role: Role,
    /// Its server, and its own user there.
    pub nats: NatsSettings,
}

impl RoleLogin {
    /// A connection with the rights of the role.
    pub(super) async fn connect(&self) -> Result<Bus, CarryError> {
        Bus::connect(&self.nats, self.role.as_str()).await
    }
}

/// A role that is started again whenever it fails.
pub(super) struct SupervisedRole {
    /// Its login.
    pub login: RoleLogin,
    /// Its site; `None` in the cloud.
    pub site: Option<SiteName>,
    /// Starts it; called again after every failure.
    pub start: RoleStart,
}

impl SupervisedRole {
    /// Runs the role until shutdown.
    ///
    /// # Errors
    /// A mistake in the settings that the role found at its first start.
    pub(super) async fn keep_running(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let Self { login, site, mut start } = self;
        let role = login.role;
        let run = |stop| start(login.clone(), stop);
        let report = |failure| report_failure(login.clone(), site.clone(), failure).boxed();
        keep_running(role, run, report, shutdown).await
    }
}

/// Runs a role until shutdown, again and again. `report` says that it fails for as long as it is polled.
async fn keep_running(
    role: Role,
    mut run: impl FnMut(Shutdown) -> RoleRun,
    report: impl Fn(RoleFailure) -> BoxFuture<'static, ()>,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let mut backoff = Backoff::new(FIRST_PAUSE, MAX_PAUSE);
    let mut is_first = true;
    loop {
        let begun_at = Instant::now();
        // Some roles request the stop of what belongs to them when they fail; that must not stop the others.
        let stop = shutdown.child();
        let ended = AssertUnwindSafe(run(stop.clone())).catch_unwind().await;
        stop.request();
        let error = match ended {
            ended if shutdown.is_requested() => return ended.unwrap_or_else(|panic| Err(panic_error(role, &*panic))),
            Ok(Ok(())) => anyhow!("{role} ended without being told to"),
            Ok(Err(error)) => error,
            Err(panic) => panic_error(role, &*panic),
        };
        let lasted = begun_at.elapsed();
        if is_first && lasted < START_TIME && is_mistake_in_settings(&error) {
            return Err(error);
        }
        is_first = false;
        if lasted > RECOVERED_AFTER {
            backoff.reset();
        }
        let pause = backoff.next_pause();
        let failure = RoleFailure {
            why: stdout::with_causes(&error, ": "),
            failures: backoff.failures(),
            next_try_at_ms: clock::now_ms().saturating_add(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)),
        };
        tracing::warn!(
            role = role.as_str(),
            why = failure.why,
            failures = failure.failures,
            retry_in_s = pause.as_secs_f64(),
            "role failed; it is started again"
        );
        tokio::select! {
            () = report(failure) => {}
            () = tokio::time::sleep(pause) => {}
            () = shutdown.wait_for_request() => return Ok(()),
        }
    }
}

/// Whether a person must correct a setting, or a file that a setting names.
fn is_mistake_in_settings(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<Fault>() {
        Some(Fault::Stop(note)) => *note != runtime::fault::client_gone(),
        _ => false,
    }
}

fn panic_error(role: Role, panic: &(dyn Any + Send)) -> anyhow::Error {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    anyhow!("{role} broke ({}): please report this", text.unwrap_or("a panic without a text"))
}

/// Sends the heartbeat of a role that fails in its place, until dropped. The role's own takes its place when it runs.
async fn report_failure(login: RoleLogin, site: Option<SiteName>, failure: RoleFailure) {
    let (role, mut open) = (login.role, None);
    // Else it would count as one that hangs.
    metrics::remove_role(role, site.as_ref());
    metrics::count_role_failure(role, site.as_ref());
    loop {
        let mut beat = Heartbeat::for_worker(role, heartbeat::worker_name(), site.clone(), clock::now_ms());
        beat.failing = Some(failure.clone());
        let sent = async {
            let bucket = match open.take() {
                Some(bucket) => bucket,
                None => HeartbeatBucket::open(&login.connect().await?).await?,
            };
            bucket.publish_heartbeat(&beat).await?;
            Ok::<_, CarryError>(bucket)
        };
        match sent.await {
            Ok(bucket) => open = Some(bucket),
            Err(error) => tracing::debug!(role = role.as_str(), %error, "failure not reported"),
        }
        tokio::time::sleep(REPORT_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};

    use schemas::FaultNote;

    use super::*;

    fn mistake() -> anyhow::Error {
        anyhow::Error::from(Fault::Stop(FaultNote::new("key_unusable", "no such file", "create it")))
            .context("trainer stopped")
    }

    /// What a supervised role is like: how often it was started, what was reported of it, and how it ended.
    struct Observed {
        starts: u32,
        reports: Vec<RoleFailure>,
        ended: anyhow::Result<()>,
    }

    /// Runs a role that behaves like `run` at each start, which is counted from 1, until it runs at start `calm`.
    async fn observe(calm: u32, run: fn(u32) -> anyhow::Result<()>) -> Observed {
        let shutdown = Shutdown::default();
        let (starts, reports) = (Arc::new(AtomicU32::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (all, counted, told) = (shutdown.clone(), starts.clone(), reports.clone());
        let once = move |stop: Shutdown| {
            let (all, start) = (all.clone(), counted.fetch_add(1, Ordering::Relaxed) + 1);
            async move {
                if start == calm {
                    all.request();
                    stop.wait_for_request().await;
                    return Ok(());
                }
                // As roles do with what belongs to them.
                stop.request();
                run(start)
            }
            .boxed()
        };
        let report = move |failure| {
            told.lock().unwrap().push(failure);
            std::future::pending().boxed()
        };
        let ended = keep_running(Role::Trainer, once, report, shutdown).await;
        let reports = reports.lock().unwrap().clone();
        Observed { starts: starts.load(Ordering::Relaxed), reports, ended }
    }

    #[tokio::test(start_paused = true)]
    async fn a_role_that_fails_panics_or_just_ends_is_started_again_after_a_growing_pause() {
        let begun_at = Instant::now();
        let seen = observe(5, |start| match start {
            1 => Err(anyhow!("no such folder").context("model ./heavy")),
            2 => panic!("index out of range"),
            3 => Ok(()),
            // At the first start it would end `up`.
            _ => Err(mistake()),
        })
        .await;
        assert!(seen.ended.is_ok() && seen.starts == 5, "{:?} after {} starts", seen.ended, seen.starts);
        let whys: Vec<&str> = seen.reports.iter().map(|failure| failure.why.as_str()).collect();
        for (why, part) in whys.iter().zip(["no such folder", "index out of range", "without being told", "create it"])
        {
            assert!(why.contains(part), "{part:?} is not in {why:?}");
        }
        assert_eq!(seen.reports.iter().map(|failure| failure.failures).collect::<Vec<_>>(), [1, 2, 3, 4]);
        // 1, 2, 4 and 8 s, each between half of it and all of it.
        let waited_s = begun_at.elapsed().as_secs_f64();
        assert!((7.5..15.5).contains(&waited_s), "{waited_s} s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_mistake_in_the_settings_ends_a_role_at_its_first_start_only() {
        let seen = observe(9, |_| Err(mistake())).await;
        assert!(seen.starts == 1 && seen.reports.is_empty(), "{} starts, {:?}", seen.starts, seen.reports);
        assert!(format!("{:#}", seen.ended.unwrap_err()).contains("create it"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_ended_is_no_mistake_in_the_settings() {
        let seen = observe(2, |_| Err(Fault::Stop(runtime::fault::client_gone()).into())).await;
        assert!(seen.ended.is_ok() && seen.reports.len() == 1, "{:?}", seen.reports);
    }
}

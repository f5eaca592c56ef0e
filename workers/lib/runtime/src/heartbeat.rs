//! Heartbeats: what a worker reports about itself every few seconds.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use schemas::{Heartbeat, Role, SiteName};
use streams::{Bus, fleet::HeartbeatBucket};
use tokio::sync::Notify;

use crate::clock;
use crate::consumer::WorkerStats;
use crate::metrics;
use crate::shutdown::Shutdown;

/// Interval of synchronizing with the server's clock; steady clocks drift by less than a millisecond meanwhile.
const ALIGN_INTERVAL: Duration = Duration::from_secs(5);

/// How long a worker that stops waits for its heartbeat to be removed.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// When heartbeats are sent.
#[derive(Debug, Clone)]
pub struct HeartbeatPace {
    /// Longest interval between two heartbeats.
    pub every: Duration,
    /// Notified to send the next one at once.
    pub changed: Arc<Notify>,
}

impl Default for HeartbeatPace {
    /// A third of the time after which a heartbeat expires.
    fn default() -> Self {
        Self { every: Duration::from_secs(4), changed: Arc::default() }
    }
}

/// A role's part of its heartbeats; clones share it.
#[derive(Debug, Clone, Default)]
pub struct WorkerReport<R> {
    report: Arc<Mutex<R>>,
    changed: Arc<Notify>,
}

impl<R: Clone> WorkerReport<R> {
    /// A copy of the current report.
    pub fn current_beat(&self) -> R {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the report; the next heartbeat is sent at once.
    pub fn update_report(&self, change: impl FnOnce(&mut R)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    /// A pace that sends a heartbeat at every change of this report.
    pub fn pace(&self) -> HeartbeatPace {
        HeartbeatPace { changed: self.changed.clone(), ..HeartbeatPace::default() }
    }
}

/// Sends heartbeats until the worker is told to stop. `more` fills in what only the role knows.
pub async fn send_heartbeats(
    bus: Bus,
    role: Role,
    site: Option<SiteName>,
    stats: Arc<WorkerStats>,
    shutdown: Shutdown,
    pace: HeartbeatPace,
    more: impl Fn(&mut Heartbeat) + Send,
) {
    let worker = worker_name();
    let mut align_at = tokio::time::Instant::now();
    let (mut ahead_ms, mut bucket) = (None, None);
    loop {
        let mut beat = Heartbeat::for_worker(role, worker.clone(), site.clone(), clock::now_ms());
        beat.finished = stats.finished.load(Ordering::Relaxed);
        beat.holding = stats.holding.load(Ordering::Relaxed);
        beat.late = stats.late.load(Ordering::Relaxed);
        beat.clock_ahead_ms = ahead_ms;
        more(&mut beat);
        metrics::record_heartbeat(role, &beat);
        let sent = async {
            let open = match bucket.take() {
                Some(open) => open,
                None => HeartbeatBucket::open(&bus).await?,
            };
            open.publish_heartbeat(&beat).await.map(|()| open)
        };
        match sent.await {
            Ok(open) => bucket = Some(open),
            // Looked up again with the next one: the bucket may be another by then.
            Err(error) => tracing::debug!(role = role.as_str(), %error, "heartbeat not sent"),
        }
        // After the heartbeat: whoever waits for this worker to appear need not wait for it.
        if tokio::time::Instant::now() >= align_at {
            align_at = tokio::time::Instant::now() + ALIGN_INTERVAL;
            match clock::align_clock(&bus).await {
                Ok(ms) => ahead_ms = Some(ms),
                Err(error) => tracing::debug!(role = role.as_str(), %error, "server time unavailable"),
            }
        }
        tokio::select! {
            biased;
            () = shutdown.wait_for_request() => {
                metrics::remove_role(role, site.as_ref());
                // Otherwise `status` shows it until the heartbeat expires, beside the worker that takes its place.
                if let Some(open) = bucket {
                    let removed = tokio::time::timeout(LEAVE_TIMEOUT, open.remove_heartbeat(role, &worker)).await;
                    tracing::debug!(role = role.as_str(), is_removed = matches!(removed, Ok(Ok(()))), "heartbeat removed");
                }
                return;
            }
            () = pace.changed.notified() => {}
            () = tokio::time::sleep(pace.every) => {}
        }
    }
}

/// Name of this process: the machine's name and the process id.
pub fn worker_name() -> String {
    format!("{}-{}", host(), std::process::id())
}

/// The machine's name, as far as a key can hold it.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::env::var("HOSTNAME"));
    key_of(name.unwrap_or_default().trim())
}

/// The end of a long name, which is what distinguishes pods.
fn key_of(name: &str) -> String {
    const MAX_CHARS: usize = 40;
    let legal: Vec<char> = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    let name: String = legal.iter().skip(legal.len().saturating_sub(MAX_CHARS)).collect();
    if name.is_empty() { "host".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_one_deployment_have_different_names() {
        let [one, other] = ["7d9c5b6f4d-x2x9k", "7d9c5b6f4d-abcde"]
            .map(|end| key_of(&format!("a-very-long-name-of-a-deployment-of-verifiers-{end}")));
        assert_ne!(one, other);
        assert!(one.ends_with("7d9c5b6f4d-x2x9k") && one.len() <= 40);
        assert_eq!(key_of("büro.local"), "brolocal");
        assert_eq!(key_of(""), "host");
    }
}

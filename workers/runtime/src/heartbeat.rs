//! Signs of life: what a worker says about itself every few seconds.

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

/// How often the server is asked what time it is; steady clocks of machines drift by less than a millisecond meanwhile.
const ALIGN_EVERY: Duration = Duration::from_secs(5);

/// How often a sign of life is sent.
#[derive(Debug, Clone)]
pub struct HeartbeatPace {
    /// At least so often.
    pub every: Duration,
    /// And whenever this says that something changed.
    pub changed: Arc<Notify>,
}

impl Default for HeartbeatPace {
    /// A third of what the fleet remembers.
    fn default() -> Self {
        Self { every: Duration::from_secs(4), changed: Arc::default() }
    }
}

/// What a worker does and did, for its signs of life; clones share it.
#[derive(Debug, Clone, Default)]
pub struct WorkerReport<R> {
    report: Arc<Mutex<R>>,
    changed: Arc<Notify>,
}

impl<R: Clone> WorkerReport<R> {
    /// As it stands.
    pub fn current_beat(&self) -> R {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes it; the next sign of life is sent at once.
    pub fn update_report(&self, change: impl FnOnce(&mut R)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    /// The pulse that hears of changes.
    pub fn pace(&self) -> HeartbeatPace {
        HeartbeatPace { changed: self.changed.clone(), ..HeartbeatPace::default() }
    }
}

/// Says that a worker lives until it is told to stop. `more` fills in what only the role knows.
pub async fn send_heartbeats(
    bus: Bus,
    role: Role,
    site: Option<SiteName>,
    tally: Arc<WorkerStats>,
    shutdown: Shutdown,
    pulse: HeartbeatPace,
    more: impl Fn(&mut Heartbeat) + Send,
) {
    let worker = worker_name();
    let mut align_at = tokio::time::Instant::now();
    let mut ahead_ms = None;
    loop {
        let mut beat = Heartbeat::for_worker(role, worker.clone(), site.clone(), clock::now_ms());
        beat.finished = tally.finished.load(Ordering::Relaxed);
        beat.holding = tally.holding.load(Ordering::Relaxed);
        beat.clock_ahead_ms = ahead_ms;
        more(&mut beat);
        metrics::record_heartbeat(role, &beat);
        let sent = async { HeartbeatBucket::open(&bus).await?.publish_heartbeat(&beat).await };
        if let Err(error) = sent.await {
            tracing::debug!(role = role.as_str(), %error, "no sign of life could be sent");
        }
        // After the heartbeat: whoever asks whether this worker is there need not wait for it.
        if tokio::time::Instant::now() >= align_at {
            align_at = tokio::time::Instant::now() + ALIGN_EVERY;
            match clock::align_clock(&bus).await {
                Ok(ms) => ahead_ms = Some(ms),
                Err(error) => tracing::debug!(role = role.as_str(), %error, "the server does not say what time it is"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pulse.every) => {}
            () = pulse.changed.notified() => {}
            () = shutdown.wait_for_request() => {
                metrics::remove_role(role, site.as_ref());
                return;
            }
        }
    }
}

/// What this process is called: the machine's name and the process's number.
pub fn worker_name() -> String {
    format!("{}-{}", host(), std::process::id())
}

/// The machine's name, as far as it fits a key.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::env::var("HOSTNAME"));
    key_of(name.unwrap_or_default().trim())
}

/// The end of a long name, for that is what tells pods apart.
fn key_of(name: &str) -> String {
    const MOST: usize = 40;
    let legal: Vec<char> = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    let name: String = legal.iter().skip(legal.len().saturating_sub(MOST)).collect();
    if name.is_empty() { "host".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_one_deployment_are_told_apart_by_the_end_of_their_names() {
        let [one, other] = ["7d9c5b6f4d-x2x9k", "7d9c5b6f4d-abcde"]
            .map(|end| key_of(&format!("a-very-long-name-of-a-deployment-of-verifiers-{end}")));
        assert_ne!(one, other);
        assert!(one.ends_with("7d9c5b6f4d-x2x9k") && one.len() <= 40);
        assert_eq!(key_of("büro.local"), "brolocal");
        assert_eq!(key_of(""), "host");
    }
}

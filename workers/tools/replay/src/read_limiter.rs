//! Limits how fast a replay reads while the site's recognizers work.

use std::time::Duration;

use runtime::clock;
use schemas::SiteName;
use streams::{Bus, CarryError, reader, topology};
use tokio::time::Instant;

/// Interval of checking whether recognizers work.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// How long the limit stays after live work, because images come in bursts.
const BUSY_AFTER: Duration = Duration::from_secs(2);

/// Limits how fast a replay reads.
pub struct ReadLimiter {
    bus: Bus,
    site: SiteName,
    beside_bytes_per_s: f64,
    most_bytes_per_s: Option<f64>,
    looked_at: Option<Instant>,
    finished: u64,
    live_until: Option<Instant>,
    free_at: Instant,
}

impl ReadLimiter {
    /// `beside_mib_per_s`: limit while recognizers work; `most_mib_per_s`: limit at any time.
    pub fn new(bus: &Bus, site: &SiteName, beside_mib_per_s: f64, most_mib_per_s: Option<f64>) -> Self {
        let bytes = |mib: f64| mib * 1024.0 * 1024.0;
        Self {
            bus: bus.clone(),
            site: site.clone(),
            beside_bytes_per_s: bytes(beside_mib_per_s),
            most_bytes_per_s: most_mib_per_s.map(bytes),
            looked_at: None,
            finished: 0,
            live_until: None,
            free_at: Instant::now(),
        }
    }

    /// Waits until this many more bytes may be read.
    ///
    /// # Errors
    /// The broker failed.
    pub async fn wait(&mut self, bytes: usize) -> Result<(), CarryError> {
        let now = Instant::now();
        if self.looked_at.is_none_or(|at| now - at >= CHECK_INTERVAL) {
            self.check_load(now).await?;
        }
        let beside = self.live_until.filter(|until| *until > now).map(|_| self.beside_bytes_per_s);
        let rate = [beside, self.most_bytes_per_s].into_iter().flatten().fold(f64::INFINITY, f64::min);
        if rate.is_finite() {
            tokio::time::sleep_until(self.free_at).await;
            self.free_at = self.free_at.max(now) + Duration::from_secs_f64(bytes as f64 / rate);
        }
        Ok(())
    }

    /// Checks whether recognizers finished something since the last check, or something waits for them. The first check
    /// uses the server's clock, so that a replay that starts beside live work does not start with a burst.
    async fn check_load(&mut self, now: Instant) -> Result<(), CarryError> {
        let first = self.looked_at.replace(now).is_none();
        let wary_ms = BUSY_AFTER.as_millis() as u64;
        let progress =
            match reader::consumer_progress(&self.bus, topology::IMAGES, &topology::recognizer_durable(&self.site))
                .await
            {
                // A server without recognizers.
                Err(CarryError::Missing { .. }) => return Ok(()),
                progress => progress?,
            };
        let finished = progress.finished();
        let moved = match first {
            true => progress.active_at_ms.is_some_and(|at_ms| clock::now_ms().saturating_sub(at_ms) < wary_ms),
            false => finished != self.finished,
        };
        self.finished = finished;
        if moved || progress.unacked > 0 {
            self.live_until = Some(now + BUSY_AFTER);
        }
        Ok(())
    }
}

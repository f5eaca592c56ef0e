//! Wall time according to the worker's server, read only for timestamps; everything else waits on tokio's clock.
//!
//! Deadlines start when the server stored an image, by its clock. A machine whose clock is wrong, or corrected while a
//! worker runs, would end them too early or too late; so the server is asked for its time ([`align_clock`]), and
//! from then on time advances with the machine's steady clock. Before that, and in commands, the machine's own clock
//! counts.

use std::sync::{PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use streams::{Bus, CarryError, reader};
use tokio::time::Instant;

/// The server's time at an instant of the steady clock.
static ALIGNED: RwLock<Option<ClockAlignment>> = RwLock::new(None);

#[derive(Debug, Clone, Copy)]
struct ClockAlignment {
    at: Instant,
    server_ns: i128,
}

/// A duration in whole microseconds, as timings in messages are.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Asks the server for its time and uses it from now on. Returns how far the machine's own clock is ahead of the
/// server's, milliseconds; negative if it is behind.
///
/// # Errors
/// Any error of the broker; the clock then stays as it was.
pub async fn align_clock(bus: &Bus) -> Result<i64, CarryError> {
    let (server_ns, took) = reader::server_time(bus).await?;
    // Assume that the server replied halfway through the request.
    let server_ns = server_ns.saturating_add(i128::try_from(took.as_nanos() / 2).unwrap_or(0));
    let own_ns = i128::try_from(since_epoch().as_nanos()).unwrap_or(i128::MAX);
    set(ClockAlignment { at: Instant::now(), server_ns }, took);
    Ok(i64::try_from((own_ns - server_ns) / 1_000_000).unwrap_or(i64::MAX))
}

/// Asks the server for its time before anything is stamped; if that fails, the machine's own clock counts until a
/// heartbeat asks again.
pub async fn align_at_start(bus: &Bus) {
    if let Err(error) = align_clock(bus).await {
        tracing::debug!(%error, "server time unavailable");
    }
}

/// Ignores corrections smaller than the duration of the request, which is the uncertainty.
fn set(new: ClockAlignment, uncertain: Duration) {
    let mut aligned = ALIGNED.write().unwrap_or_else(PoisonError::into_inner);
    let off = aligned.map(|old| old.now_ns(new.at).abs_diff(new.server_ns));
    if off.is_none_or(|off_ns| off_ns > uncertain.as_nanos()) {
        *aligned = Some(new);
    }
}

impl ClockAlignment {
    fn now_ns(&self, now: Instant) -> i128 {
        let since = i128::try_from(now.saturating_duration_since(self.at).as_nanos()).unwrap_or(0);
        self.server_ns.saturating_add(since)
    }
}

/// Milliseconds since the epoch; 0 on a machine whose clock is before it.
pub fn now_ms() -> u64 {
    u64::try_from(now_ns() / 1_000_000).unwrap_or(0)
}

/// Time since an instant given in nanoseconds since the epoch; zero if it is in the future, as it may be by the
/// clock of another machine.
pub fn since_ns(then_ns: i128) -> Duration {
    Duration::from_nanos(u64::try_from(now_ns().saturating_sub(then_ns)).unwrap_or(0))
}

/// Nanoseconds since the epoch.
pub(crate) fn now_ns() -> i128 {
    #[cfg(feature = "simulation")]
    if let Some(now_ns) = streams::memory::simulated_now_ns() {
        return now_ns;
    }
    match *ALIGNED.read().unwrap_or_else(PoisonError::into_inner) {
        Some(aligned) => aligned.now_ns(Instant::now()),
        None => i128::try_from(since_epoch().as_nanos()).unwrap_or(i128::MAX),
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_advances_from_the_servers_time_by_the_steady_clock() {
        let at = Instant::now();
        let aligned = ClockAlignment { at, server_ns: 5_000_000_000 };
        assert_eq!(aligned.now_ns(at + Duration::from_secs(2)), 7_000_000_000);
        assert_eq!(aligned.now_ns(at), 5_000_000_000);
    }
}

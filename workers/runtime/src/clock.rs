//! Wall time, read only where something is stamped; everything else waits on tokio's clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since the epoch; 0 on a machine whose clock stands before it.
pub fn now_ms() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

/// Time since a moment given in nanoseconds since the epoch; zero if it lies ahead, as it may by the
/// clock of another machine.
pub fn since_ns(then_ns: i128) -> Duration {
    let now_ns = i128::try_from(since_epoch().as_nanos()).unwrap_or(i128::MAX);
    Duration::from_nanos(u64::try_from(now_ns.saturating_sub(then_ns)).unwrap_or(0))
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

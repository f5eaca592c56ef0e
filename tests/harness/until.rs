//! Waits for a condition, with a timeout.

use std::time::Duration;

use tokio::time::Instant;

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Calls `check` until it returns a value. An error counts as "not yet", because servers come and go in these tests.
///
/// # Errors
/// After `timeout`, with `what` was waited for and the last error of `check`.
pub async fn until<T>(
    what: &str,
    timeout: Duration,
    mut check: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let give_up_at = Instant::now() + timeout;
    let mut last = None;
    loop {
        match tokio::time::timeout_at(give_up_at, check()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => last = Some(error),
            Err(_) => {}
        }
        if Instant::now() >= give_up_at {
            let last = last.map(|error| format!("; the last check failed: {error:#}")).unwrap_or_default();
            anyhow::bail!("{what}: not within {timeout:?}{last}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

//! Retries lookups of what `setup` creates: workers may start before it, and before the server.

use std::time::Duration;

use streams::CarryError;
use streams::backoff::Backoff;

use crate::shutdown::Shutdown;

/// Pauses between two lookups.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// The result of `open` once it succeeds; `None` if told to stop before that. Each failure is logged with
/// its remedy.
pub async fn retry_until_found<T, F>(shutdown: &Shutdown, open: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = Result<T, CarryError>>,
{
    let mut backoff = Backoff::new(FIRST_PAUSE, MAX_PAUSE);
    loop {
        match open().await {
            Ok(value) => return Some(value),
            Err(error) => tracing::warn!(%error, "lookup failed; retrying"),
        }
        tokio::select! {
            biased;
            () = shutdown.wait_for_request() => return None,
            () = backoff.pause() => {}
        }
    }
}

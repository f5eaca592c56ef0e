//! Retries lookups of what `setup` creates: workers may start before it, and before the server.

use std::time::Duration;

use streams::CarryError;

use crate::shutdown::Shutdown;

const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// The result of `open` once it succeeds; `None` if told to stop before that. Each failure is logged with
/// its remedy.
pub async fn retry_until_found<T, F>(shutdown: &Shutdown, open: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = Result<T, CarryError>>,
{
    loop {
        match open().await {
            Ok(value) => return Some(value),
            Err(error) => tracing::warn!(%error, "lookup failed; retrying"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_INTERVAL) => {}
            () = shutdown.wait_for_request() => return None,
        }
    }
}

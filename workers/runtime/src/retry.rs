//! Looking up what `setup` creates: workers may be started before it, and before the server.

use std::time::Duration;

use streams::CarryError;

use crate::shutdown::Shutdown;

const EVERY: Duration = Duration::from_secs(2);

/// What `open` finds, as soon as it does; `None` when told to stop before that. The log says what is
/// missing and what to do about it.
pub async fn retry_until_found<T, F>(shutdown: &Shutdown, open: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = Result<T, CarryError>>,
{
    loop {
        match open().await {
            Ok(found) => return Some(found),
            Err(error) => tracing::warn!(%error, "waiting for it"),
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shutdown.wait_for_request() => return None,
        }
    }
}

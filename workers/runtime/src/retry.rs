//! Looking up what `setup` creates: workers may be started before it, and before the server.

use std::time::Duration;

use streams::CarryError;
use streams::backoff::Backoff;

use crate::shutdown::Shutdown;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What `open` finds, as soon as it does; `None` when told to stop before that. The log says what is
/// missing and what to do about it.
pub async fn retry_until_found<T, F>(shutdown: &Shutdown, open: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = Result<T, CarryError>>,
{
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        match open().await {
            Ok(found) => return Some(found),
            Err(error) => tracing::warn!(%error, "waiting for it"),
        }
        tokio::select! {
            biased;
            () = shutdown.wait_for_request() => return None,
            () = backoff.pause() => {}
        }
    }
}

//! Waiting for a condition with a deadline.

use std::time::Duration;

use tokio::time::Instant;

const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// Looks until there is something. A look that fails counts as "not yet": servers come and go here.
///
/// # Errors
/// When the patience is used up: what was waited for, and the last failure.
pub async fn until<T>(
    what: &str,
    patience: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let give_up_at = Instant::now() + patience;
    let mut last = None;
    loop {
        match tokio::time::timeout_at(give_up_at, look()).await {
            Ok(Ok(Some(found))) => return Ok(found),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => last = Some(error),
            Err(_) => {}
        }
        if Instant::now() >= give_up_at {
            let last = last.map(|error| format!("; the last look failed: {error:#}")).unwrap_or_default();
            anyhow::bail!("{what}: not within {patience:?}{last}");
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

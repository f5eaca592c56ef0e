//! A request to stop, seen by every part of the process.

use tokio_util::sync::CancellationToken;

/// A request to stop; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// A request that an interrupt or a termination signal makes; a second signal ends the process
    /// at once.
    pub fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let shutdown = Self::default();
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let request = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            tracing::info!("stopping; draining in-flight messages");
            request.request();
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            tracing::warn!("forced stop; in-flight messages will be redelivered");
            exit_now();
        });
        Ok(shutdown)
    }

    /// Requests the stop.
    pub fn request(&self) {
        self.0.cancel();
    }

    /// Waits for the request.
    pub async fn wait_for_request(&self) {
        self.0.cancelled().await;
    }

    /// A request for a part of this: requested with it, and without it.
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }

    /// Whether the stop was requested.
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// Exits without cleaning up, after a second signal. A nats-server of ours ends with us.
#[allow(clippy::disallowed_methods)]
fn exit_now() {
    std::process::exit(130);
}

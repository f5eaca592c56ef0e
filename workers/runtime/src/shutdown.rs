//! One wish to stop, heard by every part of the process.

use tokio_util::sync::CancellationToken;

/// A wish to stop; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// A wish that an interrupt or a termination signal makes known; a second one ends the process
    /// at once.
    pub fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let shutdown = Self::default();
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let wish = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            tracing::info!("stopping; what is in hand is finished first");
            wish.request();
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            tracing::warn!("stopped the hard way; what was in hand is delivered again");
            end();
        });
        Ok(shutdown)
    }

    /// Makes the wish known.
    pub fn request(&self) {
        self.0.cancel();
    }

    /// Waits for it.
    pub async fn wait_for_request(&self) {
        self.0.cancelled().await;
    }

    /// Whether it is known already.
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// Ends the process without cleaning up, for whoever asked twice. A nats-server of ours dies with us.
#[allow(clippy::disallowed_methods)]
fn end() {
    std::process::exit(130);
}

//! Whether the cloud answers, and how fast.

use std::time::Duration;

use runtime::Shutdown;
use streams::{Bus, read};
use tokio::sync::watch;

use crate::settings::CourierSettings;

/// The state of the link, kept up to date; cheap to clone.
#[derive(Debug, Clone)]
pub struct Link(watch::Receiver<Option<Duration>>);

impl Link {
    /// The latest round trip to the cloud; `None` while it does not answer.
    pub fn round_trip(&self) -> Option<Duration> {
        *self.0.borrow()
    }

    /// Waits until the cloud answers.
    pub async fn up(&self) {
        let mut state = self.0.clone();
        // Fails only when the prober has stopped, and then so does whoever waits here.
        if state.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The link, and the prober that keeps it up to date until told to stop.
pub fn probe(cloud: Bus, settings: &CourierSettings, shutdown: Shutdown) -> (Link, impl Future<Output = ()> + use<>) {
    let (state, link) = watch::channel(None);
    let every = Duration::from_millis(settings.probe_every_ms);
    let patience = Duration::from_millis(settings.probe_patience_ms);
    let prober = async move {
        loop {
            let round_trip = read::round_trip(&cloud, patience).await.ok();
            let before = state.send_replace(round_trip);
            match (before, round_trip) {
                (None, Some(round_trip)) => tracing::info!(round_trip_ms = round_trip.as_millis(), "the cloud answers"),
                (Some(_), None) => tracing::warn!("the cloud does not answer; what waits stays in the outbox"),
                _ => {}
            }
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = shutdown.wanted() => return,
            }
        }
    };
    (Link(link), prober)
}

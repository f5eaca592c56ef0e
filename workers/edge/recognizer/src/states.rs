//! The states of what cameras show: reads what is stored, lets [`tracker`] decide, and publishes changes. The site's
//! recognizers read each other's changes; the state of the newer image wins, so that no clock decides.

mod settings;
pub(crate) mod tracker;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use runtime::Shutdown;
use schemas::{CameraName, RegionState, SiteName, Task, decode, encode};
use streams::backoff::wait_about;
use streams::publish::append_message;
use streams::tap::watch_subject;
use streams::{Bus, CarryError, reader, subject, topology};
use tokio::sync::Notify;

pub use self::settings::StateSettings;
use self::tracker::{KnownState, SeenLabel, StateTracker};
use crate::camera_map::CameraMap;
use crate::report::ShownState;

const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The states of a site's cameras, as far as this recognizer knows.
pub(crate) struct RegionStates {
    site: SiteName,
    settings: StateSettings,
    bus: Bus,
    cameras: Mutex<CameraMap<CameraStates>>,
    /// Notified when a state is to be published.
    changed: Notify,
}

#[derive(Debug, Clone, Default)]
struct CameraStates {
    tracker: StateTracker,
    /// A change that is not stored yet.
    unpublished: Option<KnownState>,
}

impl RegionStates {
    /// Of which nothing is known yet.
    pub(crate) fn new(site: SiteName, bus: Bus, settings: StateSettings) -> Self {
        Self { site, settings, bus, cameras: Mutex::default(), changed: Notify::new() }
    }

    /// Reads the stored state of a task's camera, unless it is known or the task has no states. Without the stream nothing
    /// is known, and answers go on without states.
    pub(crate) async fn load(&self, task: &Task) {
        if task.states.is_empty() || self.with_known(&task.camera, |_| ()).is_some() {
            return;
        }
        match self.read_stored(&task.camera).await {
            Ok((_, stored)) => self.with(|cameras| {
                // Another image of the camera may have been faster.
                cameras.get_or_insert(&task.camera, || CameraStates {
                    tracker: StateTracker::from_stored(stored.map(KnownState::from)),
                    unpublished: None,
                });
            }),
            Err(error) => tracing::debug!(camera = task.camera.as_str(), %error, "state of a camera not read"),
        }
    }

    /// The state of a task's camera after a sure answer with this label. `taken_at_ms`: when the picture was taken, where
    /// its publisher did not say. A replayed image and a tile say nothing of what the camera shows now, nor does a
    /// picture with faults.
    pub(crate) fn observe(&self, task: &Task, label: &str, taken_at_ms: Option<u64>) -> Option<ShownState> {
        if task.replayed.is_some() || task.tile.is_some() || !task.has_healthy_picture() {
            return self.current(task);
        }
        let taken_at_ms = task.captured_at_ms.or(taken_at_ms).unwrap_or(task.published_at_ms);
        let seen = SeenLabel { label, image_sequence: task.image_sequence, taken_at_ms };
        self.with_known(&task.camera, |camera| {
            if camera.tracker.observe(seen, &task.states, self.settings.changes_after) {
                camera.unpublished = camera.tracker.current(&task.states).cloned();
                self.changed.notify_one();
            }
        });
        self.current(task)
    }

    /// The state of a task's camera; `None` without states, and before one is known.
    pub(crate) fn current(&self, task: &Task) -> Option<ShownState> {
        let shown = |known: &KnownState| ShownState { state: known.state.clone(), since_ms: known.since_ms };
        self.with_known(&task.camera, |camera| camera.tracker.current(&task.states).map(shown))?
    }

    /// Publishes changes and reads those of other recognizers until told to stop.
    pub(crate) async fn run(&self, shutdown: Shutdown) {
        tokio::select! {
            () = self.publish_changes() => {}
            () = self.follow_others() => {}
            () = shutdown.wait_for_request() => {}
        }
        // Once more for what changed just now; whatever is not stored is found again after the start.
        let _stored = tokio::time::timeout(RETRY_DELAY, self.publish_all()).await;
    }

    async fn publish_changes(&self) {
        loop {
            self.changed.notified().await;
            while let Err(error) = self.publish_all().await {
                tracing::debug!(%error, "publishing a state of a camera deferred");
                wait_about(RETRY_DELAY).await;
            }
        }
    }

    async fn publish_all(&self) -> Result<(), CarryError> {
        let waits =
            |(camera, states): (&CameraName, &CameraStates)| Some((camera.clone(), states.unpublished.clone()?));
        while let Some((camera, known)) = self.with(|cameras| cameras.iter().find_map(waits)) {
            self.publish(&camera, &known).await?;
            self.with_known(&camera, |states| {
                // It may have changed again meanwhile.
                states.unpublished = states.unpublished.take().filter(|unpublished| *unpublished != known);
            });
        }
        Ok(())
    }

    /// Stores a change, unless another recognizer stored the same state or a newer one.
    async fn publish(&self, camera: &CameraName, known: &KnownState) -> Result<(), CarryError> {
        loop {
            let (sequence, stored) = self.read_stored(camera).await?;
            if let Some(stored) = &stored
                && (stored.state == known.state || stored.image_sequence >= known.image_sequence)
            {
                let stored = KnownState::from(stored.clone());
                self.with_known(camera, |states| states.tracker.adopt(stored));
                return Ok(());
            }
            let state = RegionState {
                site: self.site.clone(),
                camera: camera.clone(),
                state: known.state.clone(),
                since_ms: known.since_ms,
                image_sequence: known.image_sequence,
                before: stored.map(|stored| stored.state),
            };
            let slot = subject::camera_state(&self.site, camera);
            // False if another recognizer was faster: compared again.
            if append_message(&self.bus, &slot, encode(&state)?.into(), sequence).await? {
                tracing::info!(camera = camera.as_str(), state = state.state, "state changed");
                return Ok(());
            }
        }
    }

    /// The stored state of a camera, and the sequence of its message, 0 without one.
    async fn read_stored(&self, camera: &CameraName) -> Result<(u64, Option<RegionState>), CarryError> {
        let slot = subject::camera_state(&self.site, camera);
        let message = reader::last_message(&self.bus, topology::CAMERAS, &slot).await?;
        let sequence = message.as_ref().map_or(0, |message| message.sequence);
        // One that cannot be read is replaced by the next change.
        Ok((sequence, message.and_then(|message| decode::<RegionState>(&message.payload).ok())))
    }

    async fn follow_others(&self) {
        loop {
            match watch_subject(&self.bus, &subject::camera_states(&self.site)).await {
                Ok(mut messages) => {
                    while let Some(message) = messages.next().await {
                        let state = decode::<RegionState>(&message.payload).ok();
                        let is_of_its_camera =
                            |state: &RegionState| subject::camera_state(&self.site, &state.camera) == message.subject;
                        if let Some(state) = state.filter(is_of_its_camera) {
                            let camera = state.camera.clone();
                            self.with_known(&camera, |states| states.tracker.adopt(state.into()));
                        }
                    }
                }
                Err(error) => tracing::debug!(%error, "subscription to states of cameras failed"),
            }
            wait_about(RETRY_DELAY).await;
        }
    }

    fn with_known<T>(&self, camera: &CameraName, act: impl FnOnce(&mut CameraStates) -> T) -> Option<T> {
        self.with(|cameras| cameras.get_mut(camera).map(act))
    }

    fn with<T>(&self, act: impl FnOnce(&mut CameraMap<CameraStates>) -> T) -> T {
        act(&mut self.cameras.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

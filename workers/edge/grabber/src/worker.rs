//! The grabber: starts a task for each camera, follows changes of the settings, and reports.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runtime::consumer::WorkerStats;
use runtime::{Fault, Shutdown, heartbeat};
use schemas::{CameraHealth, CameraName, FaultNote, MAX_CAMERAS, Role, SiteName, TaskId, encode};
use streams::{Bus, Publication, Publisher, subject};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::camera_task::{CameraShared, CameraTask};
use crate::image_sender::CameraImageSender;
use crate::published_camera::CameraLog;
use crate::settings::CameraSettings;

const ROLE: Role = Role::Grabber;
/// Interval of heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);
/// Interval of looking for cameras whose health changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Interval of writing the health of a camera that does not change.
const REFRESH_INTERVAL: Duration = Duration::from_secs(60);
/// How long writing the health is retried; later it is written anew.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// The cameras that are wanted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CameraPlan {
    /// The cameras of the site.
    pub cameras: Vec<CameraSettings>,
    /// Why the settings could not be read again; the cameras are those of before.
    pub fault: Option<FaultNote>,
}

/// A camera that runs.
struct RunningCamera {
    settings: CameraSettings,
    logs: Vec<CameraLog>,
    stop: Shutdown,
    task: JoinHandle<()>,
}

/// The logs of all cameras, and what is wrong with the plan.
#[derive(Default)]
struct GrabberReport {
    logs: Vec<CameraLog>,
    fault: Option<FaultNote>,
}

/// Takes pictures from a site's cameras until told to stop. `plan`: the cameras of all sites, and every change of them;
/// `is_first`: whether cameras that name no site are those of this one.
///
/// # Errors
/// None at present: what is wrong with a camera is in its health.
pub async fn run(
    bus: Bus,
    site: SiteName,
    is_first: bool,
    mut plan: watch::Receiver<CameraPlan>,
    shutdown: Shutdown,
) -> Result<(), Fault> {
    let stats = Arc::new(WorkerStats::default());
    let report = Arc::new(Mutex::new(GrabberReport::default()));
    let pace = heartbeat::HeartbeatPace { every: HEARTBEAT_INTERVAL, ..heartbeat::HeartbeatPace::default() };
    let for_beats = report.clone();
    let heartbeats = heartbeat::send_heartbeats(
        bus.clone(),
        ROLE,
        Some(site.clone()),
        stats.clone(),
        shutdown.clone(),
        pace,
        move |beat| {
            let report = for_beats.lock().unwrap_or_else(PoisonError::into_inner);
            beat.cameras = report.logs.iter().take(MAX_CAMERAS).map(CameraLog::health).collect();
            beat.faults = report.fault.iter().cloned().collect();
        },
    );
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let shared = Arc::new(CameraShared {
        site: site.clone(),
        sender: CameraImageSender::new(&bus, &site),
        stats,
        decoding: Semaphore::new(cores),
    });
    let running = async {
        let mut cameras: BTreeMap<CameraName, RunningCamera> = BTreeMap::new();
        let mut ended = Vec::new();
        tracing::info!(role = ROLE.as_str(), "started");
        let mut writer = HealthWriter::new(&bus, &site);
        let mut is_open = true;
        loop {
            let mut wanted = plan.borrow_and_update().clone();
            let is_ours = |camera: &CameraSettings| camera.site.as_ref().map_or(is_first, |named| *named == site);
            wanted.cameras.retain(is_ours);
            apply_plan(&wanted, &mut cameras, &mut ended, &shared).await;
            {
                let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                report.logs = cameras.values().flat_map(|camera| camera.logs.clone()).collect();
                report.fault = wanted.fault;
            }
            loop {
                let logs = cameras.values().flat_map(|camera| &camera.logs).chain(&ended);
                writer.write_changes(&logs.map(CameraLog::health).collect::<Vec<_>>()).await;
                ended.clear();
                tokio::select! {
                    changed = plan.changed(), if is_open => match changed {
                        Ok(()) => break,
                        // The plan is final.
                        Err(_) => is_open = false,
                    },
                    () = shutdown.wait_for_request() => {
                        apply_plan(&CameraPlan::default(), &mut cameras, &mut ended, &shared).await;
                        writer.write_changes(&ended.iter().map(CameraLog::health).collect::<Vec<_>>()).await;
                        tracing::info!(role = ROLE.as_str(), "stopped");
                        return;
                    }
                    () = tokio::time::sleep(LOOK_INTERVAL) => {}
                }
            }
        }
    };
    tokio::join!(running, heartbeats);
    Ok(())
}

/// Stops cameras that are gone or changed, and starts new ones; the others run on. `ended`: the logs of the stopped ones.
async fn apply_plan(
    plan: &CameraPlan,
    cameras: &mut BTreeMap<CameraName, RunningCamera>,
    ended: &mut Vec<CameraLog>,
    shared: &Arc<CameraShared>,
) {
    let is_wanted = |running: &RunningCamera| plan.cameras.contains(&running.settings);
    let gone: Vec<CameraName> =
        cameras.iter().filter(|(_, running)| !is_wanted(running)).map(|(name, _)| name.clone()).collect();
    let gone: Vec<RunningCamera> = gone.iter().filter_map(|name| cameras.remove(name)).collect();
    for running in &gone {
        running.stop.request();
    }
    for running in gone {
        tracing::info!(camera = %running.settings.name, "camera stopped");
        let _is_over = running.task.await;
        ended.extend(running.logs);
    }
    for settings in &plan.cameras {
        if cameras.contains_key(&settings.name) {
            continue;
        }
        tracing::info!(camera = %settings.name, address = %settings.url, "camera started");
        let task = CameraTask::new(settings.clone(), shared.clone());
        let (logs, stop) = (task.logs(), Shutdown::default());
        let task = tokio::spawn(task.run(stop.clone()));
        cameras.insert(settings.name.clone(), RunningCamera { settings: settings.clone(), logs, stop, task });
    }
    // A camera that was changed, not removed, goes on under its name.
    let names: Vec<CameraName> =
        cameras.values().flat_map(|camera| &camera.logs).map(|log| log.health().camera).collect();
    ended.retain(|log| !names.contains(&log.health().camera));
}

/// What of a camera's health is news.
#[derive(PartialEq)]
struct HealthNews {
    state: String,
    fault: Option<String>,
    picture_faults: Vec<String>,
    size_px: Option<(u32, u32)>,
}

impl HealthNews {
    fn of(health: &CameraHealth) -> Self {
        let faults = health.picture.iter().flat_map(|picture| &picture.faults);
        Self {
            state: health.state.as_str().to_owned(),
            fault: health.fault.as_ref().map(|fault| fault.kind.as_str().to_owned()),
            picture_faults: faults.map(|fault| fault.as_str().to_owned()).collect(),
            size_px: health.size_px,
        }
    }
}

/// Writes how each camera is when that changes, and every minute.
struct HealthWriter {
    publisher: Publisher,
    site: SiteName,
    written: BTreeMap<CameraName, (HealthNews, Instant)>,
}

impl HealthWriter {
    fn new(bus: &Bus, site: &SiteName) -> Self {
        Self { publisher: Publisher::new(bus.clone(), HEALTH_TIMEOUT), site: site.clone(), written: BTreeMap::new() }
    }

    async fn write_changes(&mut self, all: &[CameraHealth]) {
        for health in all {
            let news = HealthNews::of(health);
            let is_known = self
                .written
                .get(&health.camera)
                .is_some_and(|(before, at)| *before == news && at.elapsed() < REFRESH_INTERVAL);
            if is_known {
                continue;
            }
            let Ok(bytes) = encode(health) else { continue };
            let subject = subject::camera_health(&self.site, &health.camera);
            let message = Publication::with_id(subject, bytes, TaskId::new_random().to_string());
            match self.publisher.publish(&message).await {
                Ok(_) => {
                    self.written.insert(health.camera.clone(), (news, Instant::now()));
                }
                // Written with the next look.
                Err(error) => {
                    tracing::debug!(camera = %health.camera, %error, "camera health write deferred");
                    return;
                }
            }
        }
        // Of cameras that are gone, nothing is remembered.
        self.written.retain(|name, _| all.iter().any(|health| health.camera == *name));
    }
}

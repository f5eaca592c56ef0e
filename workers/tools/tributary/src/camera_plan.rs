//! Follows the cameras in the settings file while `up` or a grabber runs.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use grabber::CameraPlan;
use runtime::Shutdown;
use schemas::FaultNote;
use tokio::sync::watch;

use crate::settings::{self, Settings};
use crate::{CommonArgs, stdout};

/// Interval of looking whether the file changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The cameras of the settings, and from then on those of the settings file whenever it changes. `flags`: the settings
/// that the command line overrides. A file that is invalid changes nothing, and the plan says why.
pub(crate) fn follow_cameras(
    common: &CommonArgs,
    flags: Vec<(String, serde_json::Value)>,
    settings: &Settings,
    shutdown: &Shutdown,
) -> watch::Receiver<CameraPlan> {
    let (sender, plan) = watch::channel(CameraPlan { cameras: settings.camera.clone(), fault: None });
    let (common, shutdown) = (common.clone(), shutdown.clone());
    let file = common.settings.clone().unwrap_or_else(|| PathBuf::from(runtime::settings::DEFAULT_FILE));
    let mut known = stamp(&file);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = shutdown.wait_for_request() => return,
            }
            let now = stamp(&file);
            if now == known {
                continue;
            }
            known = now;
            let read = settings::load(&common, &flags).and_then(|loaded| {
                loaded.settings.check()?;
                Ok(loaded.settings.camera)
            });
            sender.send_modify(|plan| match read {
                Ok(cameras) => {
                    tracing::info!(file = %file.display(), cameras = cameras.len(), "settings file changed");
                    *plan = CameraPlan { cameras, fault: None };
                }
                Err(error) => {
                    let why = stdout::with_causes(&error, ": ");
                    tracing::warn!(file = %file.display(), why, "settings file changed and is invalid; cameras stay as they are");
                    let reason = format!("settings file {} was changed and is invalid, so cameras stay as they were: {why}", file.display());
                    plan.fault = Some(FaultNote::new("settings_invalid", reason, "correct the file; it is read again then"));
                }
            });
        }
    });
    plan
}

/// Size and time of a file; absent if it is not there.
fn stamp(path: &Path) -> Option<(u64, SystemTime)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_changes_the_plan_and_an_invalid_one_only_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("settings.toml");
        let camera = |name: &str| format!("[[camera]]\nname = \"{name}\"\nurl = \"/tmp\"\n");
        std::fs::write(&file, camera("one")).unwrap();
        let common = CommonArgs::from_settings(Some(file.clone()), Vec::new());
        let loaded = settings::load(&common, &[]).unwrap();
        let shutdown = Shutdown::default();
        let mut plan = follow_cameras(&common, Vec::new(), &loaded.settings, &shutdown);
        let names = |plan: &CameraPlan| plan.cameras.iter().map(|camera| camera.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&plan.borrow_and_update()), ["one"]);
        std::fs::write(&file, camera("one") + &camera("two")).unwrap();
        plan.changed().await.unwrap();
        assert_eq!(names(&plan.borrow_and_update()), ["one", "two"]);
        std::fs::write(&file, camera("one") + "rate_per_s = 0").unwrap();
        plan.changed().await.unwrap();
        let broken = plan.borrow_and_update().clone();
        assert_eq!(names(&broken).len(), 2);
        assert!(broken.fault.unwrap().reason.contains("rate_per_s"));
        std::fs::write(&file, "").unwrap();
        plan.changed().await.unwrap();
        assert_eq!(*plan.borrow(), CameraPlan::default());
    }
}

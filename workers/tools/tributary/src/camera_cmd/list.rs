//! `tributary camera list`: the cameras of a site, those whose pictures are taken and those that publish by themselves.

use anyhow::Context;
use runtime::clock;
use runtime::settings::LoadedSettings;
use schemas::{CameraHealth, CameraName, FaultNote, Role};
use streams::cameras::{CameraLogin, CameraLogins};
use streams::fleet;

use crate::camera_table::{CAMERA_HEAD, camera_cells, camera_problem};
use crate::settings::Settings;
use crate::site_target::{self, SiteTarget};
use crate::{format, stdout};

/// List a site's cameras: how those are whose pictures are taken, and the logins of those that publish by themselves.
#[derive(clap::Args)]
pub(super) struct ListArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Prints the cameras.
pub(super) async fn command(loaded: &LoadedSettings<Settings>, args: &ListArgs) -> anyhow::Result<()> {
    let site = site_target::open(loaded, "camera").await?;
    let beats = fleet::live_workers(&site.bus).await?;
    let grabbers = beats.iter().filter(|beat| beat.role == Role::Grabber);
    let faults: Vec<FaultNote> = grabbers.flat_map(|beat| beat.faults.clone()).collect();
    let cameras: Vec<CameraHealth> = beats.into_iter().flat_map(|beat| beat.cameras).collect();
    let logins = logins(&site, loaded)?;
    if args.json {
        let row = |(name, login): (&CameraName, &CameraLogin)| serde_json::json!({ "camera": name, "also": login.also, "since_ms": login.since_ms });
        let logins: Vec<_> = logins.iter().flat_map(CameraLogins::logins).map(row).collect();
        return stdout::json(&serde_json::json!({ "cameras": cameras, "faults": faults, "logins": logins }));
    }
    let now_ms = clock::now_ms();
    match cameras.is_empty() {
        true => stdout::print_line(
            "No pictures are taken from cameras: add a [[camera]] to the settings file of `tributary up`.",
        )?,
        false => {
            let rows: Vec<Vec<String>> = cameras.iter().map(|health| camera_cells(health, now_ms)).collect();
            stdout::print_line(format::table(&CAMERA_HEAD, &rows))?;
            for problem in cameras.iter().filter_map(|health| camera_problem(health, now_ms)) {
                stdout::print_line(format_args!("! {problem}"))?;
            }
        }
    }
    for fault in &faults {
        let (reason, remedy) = (format::plain_text(&fault.reason), format::plain_text(&fault.remedy));
        stdout::print_line(format_args!("! {reason}: {remedy}."))?;
    }
    let Some(logins) = logins.filter(|logins| !logins.logins().is_empty()) else { return Ok(()) };
    let also = |also: &[CameraName]| also.iter().map(CameraName::as_str).collect::<Vec<_>>().join(", ");
    let row = |(name, login): (&CameraName, &CameraLogin)| {
        vec![name.to_string(), also(&login.also), format::format_time(login.since_ms)]
    };
    let rows: Vec<Vec<String>> = logins.logins().iter().map(row).collect();
    stdout::print_line("\nLogins of cameras that publish by themselves:")?;
    stdout::print_line(format::table(&["camera", "also for", "since"], &rows))
}

/// The logins at the server of a running `up`; absent at a server of somebody else.
fn logins(site: &SiteTarget, loaded: &LoadedSettings<Settings>) -> anyhow::Result<Option<CameraLogins>> {
    let Some(store) = site.store(&loaded.settings) else { return Ok(None) };
    let read = CameraLogins::read(&store);
    read.map(Some).with_context(|| format!("camera logins in {} cannot be read", store.display()))
}

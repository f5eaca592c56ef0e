//! `tributary camera URL`: takes pictures from one camera and publishes those worth recognizing, until stopped.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use camera::CameraAddress;
use camera::motion_gate::MotionGateSettings;
use grabber::{CameraPlan, CameraSettings, check_cameras};
use runtime::settings::LoadedSettings;
use runtime::{Shutdown, heartbeat};
use schemas::{CameraHealth, CameraName, CameraState, Role};
use streams::{Bus, fleet};
use tokio::sync::watch;

use super::login_options::LoginOptions;
use crate::roles;
use crate::settings::Settings;
use crate::{format, site_target, stdout};

/// Interval of looking how the camera is.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub(super) struct RunArgs {
    /// Take pictures from this address: rtsp://HOST/PATH, http://HOST/PATH of a snapshot or of motion JPEG, /dev/video0,
    /// a video file or a folder of JPEGs.
    #[arg(value_name = "URL")]
    pub(super) address: Option<String>,
    /// Name of the camera, under which its images are published [default: made from the address].
    #[arg(long, value_name = "NAME")]
    name: Option<CameraName>,
    #[command(flatten)]
    login: LoginOptions,
    /// Pictures taken per second.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 1.0)]
    rate: f64,
    /// Least difference from the picture published before, 0 to 255; 0 publishes every picture.
    #[arg(long, value_name = "LEVELS", default_value_t = MotionGateSettings::default().min_difference)]
    min_difference: f32,
    /// File of the authority that signed the camera's certificate (PEM), if it is not one the system trusts.
    #[arg(long, value_name = "FILE")]
    authority: Option<PathBuf>,
}

/// Takes the pictures of one camera until stopped, or until a file has ended.
pub(super) async fn command(
    loaded: &LoadedSettings<Settings>,
    args: &RunArgs,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    // Not echoed: it may hold a password.
    let text = args.address.as_deref().context("name the camera's address")?;
    let address: CameraAddress = text.parse().context("the address cannot be read")?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => name_of(&address)?,
    };
    let mut camera = CameraSettings::new(name, address);
    if let Some(login) = args.login.read()? {
        camera.url.login = Some(login);
    }
    camera.rate_per_s = args.rate;
    camera.gate.min_difference = args.min_difference;
    camera.authority.clone_from(&args.authority);
    check_cameras(std::slice::from_ref(&camera)).map_err(anyhow::Error::msg)?;
    let site = site_target::open(loaded, "grabber").await?;
    stdout::print_note(format_args!(
        "taking pictures from {} as camera {} of site {}; Ctrl-C stops",
        camera.url, camera.name, site.name
    ));
    let (_sender, plan) = watch::channel(CameraPlan { cameras: vec![camera.clone()], fault: None });
    let running = grabber::run(site.bus.clone(), site.name.clone(), true, plan, shutdown.clone());
    let (ended, ()) = tokio::join!(running, report(&site.bus, &camera.name, &shutdown));
    roles::role_result(Role::Grabber, ended)
}

/// Prints what changes about the camera; requests the stop once its file has ended.
async fn report(bus: &Bus, name: &CameraName, shutdown: &Shutdown) {
    let mut said = String::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = shutdown.wait_for_request() => return,
        }
        let Ok(beats) = fleet::live_workers(bus).await else { continue };
        let own =
            beats.into_iter().filter(|beat| beat.role == Role::Grabber && beat.worker == heartbeat::worker_name());
        let Some(health) = own.flat_map(|beat| beat.cameras).find(|health| health.camera == *name) else { continue };
        let line = line(&health);
        if line != said {
            stdout::print_note(&line);
            said = line;
        }
        if health.state == CameraState::Ended {
            stdout::print_note("all of it was read");
            shutdown.request();
            return;
        }
    }
}

fn line(health: &CameraHealth) -> String {
    // Without times, so that it is said once.
    if let Some(fault) = health.fault.as_ref().filter(|_| health.state == CameraState::Silent) {
        return format!("{}; {}", format::plain_text(&fault.reason), format::plain_text(&fault.remedy));
    }
    if health.state == CameraState::Starting {
        return "connecting".into();
    }
    let counts = &health.counts;
    let faults = health.picture.iter().flat_map(|picture| &picture.faults);
    let faults: Vec<String> = faults.map(|fault| format::plain_text(fault.as_str())).collect();
    let faults = if faults.is_empty() { String::new() } else { format!("; pictures are {}", faults.join(", ")) };
    let lost = match counts.dropped + counts.damaged {
        0 => String::new(),
        lost => format!(", {lost} lost"),
    };
    format!("{} published, {} without a change{lost}{faults}", counts.published, counts.unchanged)
}

/// A camera's name made from its address.
fn name_of(address: &CameraAddress) -> anyhow::Result<CameraName> {
    let text: String = super::check::name_of(&address.place)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '-' })
        .collect();
    text.parse().with_context(|| format!("{text} is no name of a camera: name it with --name"))
}

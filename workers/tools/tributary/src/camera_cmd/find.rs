//! `tributary camera find`: cameras of the network, and the addresses of their streams.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use camera::CameraCredentials;
use camera::onvif::{self, OnvifCamera, OnvifError, OnvifHost, OnvifProfile};
use schemas::FaultNote;
use serde::Serialize;
use tokio::task::JoinSet;
use url::Url;

use super::login_options::LoginOptions;
use super::{clock_text, shell_word};
use crate::{format, stdout};

/// Most cameras that are asked at once.
const AT_ONCE: usize = 16;

const EXAMPLES: &str = "\
Cameras are searched for by ONVIF (WS-Discovery), and then asked for their streams. Most tell them only to a user: a \
login is sent as a digest, never readable, to every camera found, or with --host to that one only. Many makers keep \
ONVIF users apart from those of the web page.

Examples:
  tributary camera find
  tributary camera find --user admin --password-file cam.txt
  tributary camera find --host 192.168.1.20:8080 --user admin --password-env CAMERA_PASSWORD
  tributary camera find --json";

/// Find cameras on the network, and the addresses of their streams.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct FindArgs {
    /// Ask only this camera: HOST, HOST:PORT, or the address of its ONVIF service.
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    #[command(flatten)]
    login: LoginOptions,
    /// Seconds to wait for cameras to reply to the search.
    #[arg(long, value_name = "SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
    /// Size that the model needs, in pixels: the smallest stream that is at least as large is recommended.
    #[arg(long, value_name = "WIDTHxHEIGHT", default_value = "640x360", value_parser = read_size)]
    min_size: (u32, u32),
    /// Send the search to this address instead of all cameras.
    #[arg(long, value_name = "ADDRESS", hide = true)]
    probe: Option<SocketAddr>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn read_size(text: &str) -> Result<(u32, u32), String> {
    let sides =
        text.split_once(['x', 'X']).and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    sides.filter(|(width, height)| *width > 0 && *height > 0).ok_or_else(|| "use WIDTHxHEIGHT, such as 640x360".into())
}

/// A camera that was found.
struct FoundCamera {
    address: Url,
    /// What it calls itself in its reply to the search.
    name: Option<String>,
    asked: Result<OnvifCamera, OnvifError>,
}

/// Finds cameras and prints them. Fails if there is none, or the one that was named gives no streams.
pub(super) async fn command(args: &FindArgs) -> anyhow::Result<()> {
    let login = args.login.read()?;
    let cameras = match &args.host {
        Some(host) => {
            // Not echoed: it may hold a password.
            let host: OnvifHost = host.parse().context("--host cannot be read")?;
            vec![ask_host(&host, login.as_ref(), args.json).await?]
        }
        None => search(args, login.as_ref()).await?,
    };
    if args.json {
        let rows: Vec<CameraRow> = cameras.iter().map(|found| CameraRow::new(found, args.min_size)).collect();
        stdout::json(&serde_json::json!({ "cameras": rows }))?;
    } else {
        for found in &cameras {
            stdout::print_line(camera_text(found, args.min_size))?;
        }
        stdout::print_line(next_step(&cameras, args))?;
    }
    let fault = cameras.iter().find_map(FoundCamera::fault).filter(|_| args.host.is_some());
    match fault {
        Some(error) => bail!("{error}; {}", error.remedy()),
        None => Ok(()),
    }
}

async fn ask_host(host: &OnvifHost, login: Option<&CameraCredentials>, json: bool) -> anyhow::Result<FoundCamera> {
    match onvif::locate(host, login).await {
        Ok(camera) => Ok(FoundCamera { address: camera.address.clone(), name: None, asked: Ok(camera) }),
        Err(error) => {
            if json {
                stdout::json(&serde_json::json!({ "cameras": [], "fault": error.note() }))?;
            }
            bail!("{error}; {}", error.remedy())
        }
    }
}

async fn search(args: &FindArgs, login: Option<&CameraCredentials>) -> anyhow::Result<Vec<FoundCamera>> {
    let (to, wait) = (args.probe.unwrap_or_else(onvif::multicast_group), Duration::from_secs(args.timeout));
    stdout::print_note(format_args!("searching for {} s", args.timeout));
    let found = onvif::search(to, wait)
        .await
        .context("no camera can be searched for: check that this machine is on a network, or use --host HOST")?;
    if found.devices.is_empty() {
        if args.json {
            stdout::json(&serde_json::json!({ "cameras": [] }))?;
        }
        let from: Vec<String> = found.searched_from.iter().map(ToString::to_string).collect();
        let remedies = NOTHING_FOUND.map(|remedy| format!("\n  - {remedy}")).concat();
        bail!("no camera answered within {} s on the network of {}{remedies}", args.timeout, from.join(", "));
    }
    stdout::print_note(format_args!("asking {}", format::count(found.devices.len() as u64, "camera")));
    let mut asking = JoinSet::new();
    let (mut waiting, mut cameras) = (found.devices.into_iter().enumerate(), Vec::new());
    loop {
        while asking.len() < AT_ONCE
            && let Some((rank, device)) = waiting.next()
        {
            let login = login.cloned();
            asking.spawn(async move {
                let asked = onvif::ask(&device.address, login.as_ref()).await;
                let name = device.name.or(device.hardware);
                (rank, FoundCamera { address: device.address, name, asked })
            });
        }
        match asking.join_next().await {
            Some(asked) => cameras.extend(asked),
            None => break,
        }
    }
    cameras.sort_by_key(|(rank, _)| *rank);
    Ok(cameras.into_iter().map(|(_, camera)| camera).collect())
}

/// What to do if no camera answers.
const NOTHING_FOUND: [&str; 4] = [
    "Cameras must be in the same network as this machine: the search (multicast, UDP port 3702) passes no router, and neither do most VPNs, containers, guest networks and some Wi-Fi access points let it through.",
    "Many makers have ONVIF off: turn it on in the camera's settings, often under Network or Integration, where it may need a user of its own.",
    "Ask a camera whose address you know, which needs no multicast: tributary camera find --host HOST",
    "A camera without ONVIF has addresses all the same: look for RTSP, MJPEG or snapshot in its manual, and try one: tributary camera check URL",
];

impl FoundCamera {
    fn fault(&self) -> Option<&OnvifError> {
        match &self.asked {
            Ok(camera) => camera.fault.as_ref(),
            Err(error) => Some(error),
        }
    }

    fn profiles(&self) -> &[OnvifProfile] {
        self.asked.as_ref().map(|camera| camera.profiles.as_slice()).unwrap_or_default()
    }

    fn recommended(&self, (width_px, height_px): (u32, u32)) -> Option<&OnvifProfile> {
        self.asked.as_ref().ok()?.recommended(width_px, height_px)
    }

    fn title(&self) -> String {
        let told = self.asked.as_ref().ok();
        let made = told.map(|camera| [camera.make.as_deref(), camera.model.as_deref()]).unwrap_or_default();
        let made: Vec<&str> = made.into_iter().flatten().collect();
        let made = if made.is_empty() { self.name.clone().unwrap_or_default() } else { made.join(" ") };
        let clock = told.and_then(|camera| camera.clock_ahead_ms).map(clock_text);
        let clock = clock.map(|clock| format!(" (clock {clock})")).unwrap_or_default();
        let host = &self.address[url::Position::BeforeHost..url::Position::AfterPort];
        format::plain_text(&format!("{host}  {made}{clock}"))
    }
}

/// A camera for people.
fn camera_text(found: &FoundCamera, min_size: (u32, u32)) -> String {
    let mut lines = vec![found.title()];
    let recommended = found.recommended(min_size).map(|profile| profile.token.as_str());
    let dash = || "-".to_owned();
    let rows: Vec<Vec<String>> = found
        .profiles()
        .iter()
        .map(|profile| {
            let mark = if recommended == Some(&profile.token) { "*" } else { "" };
            vec![
                mark.to_owned(),
                profile_name(profile),
                profile.codec.clone().unwrap_or_else(dash),
                profile.size_px.map_or_else(dash, |(width, height)| format!("{width}x{height}")),
                profile.frames_per_s.map_or_else(dash, |rate| format!("{rate}/s")),
                profile.key_frame_distance_s.map_or_else(dash, |distance_s| format!("every {distance_s:.1} s")),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let table = format::table(&["", "profile", "codec", "size", "rate", "key frames"], &rows);
        lines.extend(table.lines().map(|line| format!("  {line}")));
    }
    let addresses = found.profiles().iter().flat_map(|profile| {
        let stream = profile.stream.as_ref().map(|url| format!("     {}: {url}", profile_name(profile)));
        let snapshot =
            profile.snapshot.as_ref().map(|url| format!("     {}, single pictures: {url}", profile_name(profile)));
        [stream, snapshot]
    });
    lines.extend(addresses.flatten().map(|line| format::plain_text(&line)));
    if let Some(error) = found.fault() {
        lines.push(format::plain_text(&format!("     {error}; {}", error.remedy())));
    }
    lines.join("\n") + "\n"
}

fn profile_name(profile: &OnvifProfile) -> String {
    let name = profile.name.as_deref().filter(|name| !name.is_empty()).unwrap_or(&profile.token);
    format::plain_text(name).chars().take(40).collect()
}

/// What a person does next.
fn next_step(cameras: &[FoundCamera], args: &FindArgs) -> String {
    let (width, height) = args.min_size;
    let first = cameras.iter().find_map(|found| found.recommended(args.min_size)?.stream.as_ref());
    let Some(stream) = first else {
        return "None told of a stream: see above for what to do.".into();
    };
    let mut lines = vec![format!(
        "* marks the smallest stream of at least {width}x{height} pixels that is decoded without ffmpeg, or the largest there is."
    )];
    if stream.as_str().contains("PASSWORD") {
        lines.push("In an address, PASSWORD stands for the password, which this camera wants there.".into());
    }
    lines.push(format!("Try it: tributary camera check {}{}", shell_word(stream.as_str()), args.login.repeated()));
    lines.join("\n")
}

/// A camera for programs.
#[derive(Serialize)]
struct CameraRow<'a> {
    address: &'a str,
    make: Option<&'a str>,
    model: Option<&'a str>,
    name: Option<&'a str>,
    clock_ahead_ms: Option<i64>,
    profiles: Vec<ProfileRow<'a>>,
    fault: Option<FaultNote>,
}

#[derive(Serialize)]
struct ProfileRow<'a> {
    token: &'a str,
    name: Option<&'a str>,
    codec: Option<&'a str>,
    size_px: Option<(u32, u32)>,
    frames_per_s: Option<f32>,
    key_frame_distance_s: Option<f32>,
    stream: Option<&'a str>,
    snapshot: Option<&'a str>,
    recommended: bool,
}

impl<'a> CameraRow<'a> {
    fn new(found: &'a FoundCamera, min_size: (u32, u32)) -> Self {
        let told = found.asked.as_ref().ok();
        let recommended = found.recommended(min_size).map(|profile| profile.token.as_str());
        let row = |profile: &'a OnvifProfile| ProfileRow {
            token: &profile.token,
            name: profile.name.as_deref(),
            codec: profile.codec.as_deref(),
            size_px: profile.size_px,
            frames_per_s: profile.frames_per_s,
            key_frame_distance_s: profile.key_frame_distance_s,
            stream: profile.stream.as_ref().map(Url::as_str),
            snapshot: profile.snapshot.as_ref().map(Url::as_str),
            recommended: recommended == Some(&profile.token),
        };
        Self {
            address: found.address.as_str(),
            make: told.and_then(|camera| camera.make.as_deref()),
            model: told.and_then(|camera| camera.model.as_deref()),
            name: found.name.as_deref(),
            clock_ahead_ms: told.and_then(|camera| camera.clock_ahead_ms),
            profiles: found.profiles().iter().map(row).collect(),
            fault: found.fault().map(OnvifError::note),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn camera(profiles: Vec<OnvifProfile>) -> FoundCamera {
        let address: Url = "http://10.0.0.5:8080/onvif/device_service".parse().unwrap();
        let told = OnvifCamera {
            address: address.clone(),
            make: Some("Maker".into()),
            model: Some("M-1\u{1b}[2J".into()),
            clock_ahead_ms: Some(7_200_000),
            profiles,
            fault: None,
        };
        FoundCamera { address, name: Some("gate".into()), asked: Ok(told) }
    }

    fn profile(token: &str, size_px: (u32, u32)) -> OnvifProfile {
        OnvifProfile {
            token: token.into(),
            name: None,
            codec: Some("h264".into()),
            size_px: Some(size_px),
            frames_per_s: Some(25.0),
            key_frame_distance_s: Some(2.0),
            stream: Some(format!("rtsp://10.0.0.5/{token}").parse().unwrap()),
            snapshot: Some(format!("http://10.0.0.5:8080/{token}.jpg").parse().unwrap()),
        }
    }

    #[test]
    fn a_camera_is_shown_with_its_streams_and_the_recommended_one_marked() {
        let text = camera_text(&camera(vec![profile("main", (1920, 1080)), profile("sub", (640, 480))]), (640, 360));
        let expected = "\
10.0.0.5:8080  Maker M-1\u{fffd}[2J (clock 2.0 h ahead)
     profile  codec  size       rate  key frames
     main     h264   1920x1080  25/s  every 2.0 s
  *  sub      h264   640x480    25/s  every 2.0 s
     main: rtsp://10.0.0.5/main
     main, single pictures: http://10.0.0.5:8080/main.jpg
     sub: rtsp://10.0.0.5/sub
     sub, single pictures: http://10.0.0.5:8080/sub.jpg
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_camera_that_gives_nothing_says_what_to_do() {
        let mut found = camera(Vec::new());
        let error = OnvifError::NoStreams { address: "http://10.0.0.5:8080/onvif/device_service".into() };
        found.asked = Err(error.clone());
        let text = camera_text(&found, (640, 360));
        assert!(text.starts_with("10.0.0.5:8080  gate\n") && text.contains(error.remedy()), "{text}");
        let row = serde_json::to_value(CameraRow::new(&found, (640, 360))).unwrap();
        assert_eq!(row["fault"]["name"].as_str().or(row["fault"]["kind"].as_str()), Some("onvif_no_streams"), "{row}");
    }

    #[test]
    fn sizes_are_read_and_others_refused() {
        assert_eq!(read_size("224x224"), Ok((224, 224)));
        for text in ["", "640", "0x1", "ax2", "1x-2"] {
            assert!(read_size(text).is_err(), "{text}");
        }
    }
}

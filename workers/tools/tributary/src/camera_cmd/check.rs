//! `tributary camera check`: what a camera sends, a picture of what it sees, and advice.

mod advice;
mod findings;
mod picture_file;
mod preview;
mod watch;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use camera::source::SourceOptions;
use camera::{CameraAddress, CameraPlace};

use self::findings::CheckFindings;
use super::login_options::LoginOptions;
use crate::{format, stdout};

const EXAMPLES: &str = "\
A password in the address works, too, but everybody on this machine can see it there.

Examples:
  tributary camera check http://192.168.1.20/snapshot.jpg
  tributary camera check rtsp://192.168.1.20/main --user admin --password-file cam.txt
  tributary camera check rtsp://192.168.1.20/main --user admin --password-env CAMERA_PASSWORD --seconds 60 \
--picture view.jpg
  tributary camera check rtsp://192.168.1.20/main --json";

/// Watch a camera for a while: what it sends, a picture of what it sees, and advice.
///
/// Pictures are taken as `tributary up` takes them, one a second; nothing is published. Fails with what to do if no
/// picture comes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CameraCheckArgs {
    /// Address: rtsp://HOST/PATH, http://HOST/PATH of a snapshot or of motion JPEG, /dev/video0, or a path.
    #[arg(value_name = "URL")]
    address: String,
    #[command(flatten)]
    login: LoginOptions,
    /// Seconds to watch it.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Write what it sees to this file [default: camera-HOST.jpg in this folder; none with --json].
    #[arg(long, value_name = "FILE", conflicts_with = "no_picture")]
    picture: Option<PathBuf>,
    /// Write no picture.
    #[arg(long)]
    no_picture: bool,
    /// File of the authority that signed the camera's certificate (PEM), if it is not one the system trusts.
    #[arg(long, value_name = "FILE")]
    authority: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Time between the pictures that are taken, as it is for a camera without a rate of its own.
const INTERVAL: Duration = Duration::from_secs(1);

/// Checks a camera. Fails if it sends no picture.
pub(super) async fn command(args: &CameraCheckArgs) -> anyhow::Result<()> {
    // Not echoed: it may hold a password.
    let address: CameraAddress = args.address.parse().context("the address cannot be read")?;
    if address.login.is_some() {
        stdout::print_note(
            "note: others on this machine can see the password in the address; use --user NAME with --password-file FILE or --password-env VARIABLE",
        );
    }
    let login = args.login.read()?.or_else(|| address.login.clone());
    if let Some(file) = &args.picture {
        picture_file::check_is_new(file)?;
    }
    let options = SourceOptions { login, interval: INTERVAL, authority: args.authority.clone(), ffmpeg: None };
    let watched = watch::watch(&address, &options, Duration::from_secs(args.seconds)).await;
    let watched = match watched {
        Ok(watched) => watched,
        Err(failure) => {
            if args.json {
                let (steps, fault) = (&failure.steps, failure.error.note());
                stdout::json(&serde_json::json!({ "address": address.to_string(), "steps": steps, "fault": fault }))?;
            }
            // A check tries once, other than a worker.
            let remedy = failure.error.remedy().trim_end_matches("; it is tried again");
            bail!("{}; {remedy}", format::plain_text(&failure.error.to_string()))
        }
    };
    let user = options.login.as_ref().map(|login| login.user.clone());
    let mut findings = CheckFindings::new(&address, user, &watched);
    findings.saved = save_picture(args, &address, &watched)?;
    if args.json {
        return stdout::json(&findings);
    }
    stdout::print_line(findings.text())?;
    if std::io::stdout().is_terminal() && preview::is_wanted() {
        stdout::print_line(preview::preview(&watched.measures.thumbnail))?;
    }
    stdout::print_line(findings.advice_text())
}

fn save_picture(
    args: &CameraCheckArgs,
    address: &CameraAddress,
    watched: &watch::WatchedCamera,
) -> anyhow::Result<Option<PathBuf>> {
    let is_wanted = args.picture.is_some() || !args.no_picture && !args.json;
    if !is_wanted {
        return Ok(None);
    }
    let jpeg = watched.jpeg().context("the picture cannot be written as JPEG")?;
    let written = match &args.picture {
        Some(file) => picture_file::write_new(file, &jpeg)?,
        None => picture_file::write_beside(&name_of(&address.place), &jpeg)?,
    };
    Ok(Some(written))
}

/// A name for the picture's file.
pub(super) fn name_of(place: &CameraPlace) -> String {
    let name = match place {
        CameraPlace::Http(url) | CameraPlace::Rtsp(url) => url.host_str().map(str::to_owned),
        CameraPlace::Device(path) | CameraPlace::Path(path) => {
            path.file_stem().map(|name| name.to_string_lossy().into_owned())
        }
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name: String = name.unwrap_or_default().chars().map(|c| if is_plain(c) { c } else { '-' }).take(64).collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { "picture".into() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_named_after_its_camera() {
        let named = |text: &str| name_of(&text.parse::<CameraAddress>().unwrap().place);
        assert_eq!(named("rtsp://u:p@192.168.1.20:554/a"), "192.168.1.20");
        assert_eq!(named("http://[fe80::1]/a"), "fe80--1");
        assert_eq!(named("/dev/video0"), "video0");
        assert_eq!(named("films/../Küche 1.mp4"), "K-che-1");
        assert_eq!(named(".."), "picture");
    }
}

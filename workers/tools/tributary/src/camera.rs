//! `tributary camera`: logins of cameras at a site's server.

use anyhow::Context;
use runtime::clock;
use runtime::settings::LoadedSettings;
use schemas::CameraName;
use streams::cameras::{CameraLogin, CameraLogins, mqtt_user};
use streams::permissions;

use crate::settings::Settings;
use crate::site_target::{self, CameraEntry, RunningSite, RunningUp};
use crate::{audit, format, stdout};

const EXAMPLES: &str = "\
A camera needs a login where other machines reach the site's server (up.listen, up.mqtt_listen). With it, a camera may
publish images under its own name and hear that they were stored, and nothing else. On this machine alone no login is
needed.

Examples:
  tributary up --model MODEL_DIR --set up.listen=0.0.0.0 --set up.port=4222     and for MQTT up.mqtt_listen, up.mqtt_port
  tributary camera add gate-1                 prints the login; it is shown again with `camera show`
  tributary camera add frigate --also yard --also door     one login for a program with several cameras
  tributary camera remove gate-1              its connection ends at once";

/// Give cameras on other machines a login at the site's server, and take it back.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct CameraArgs {
    #[command(subcommand)]
    command: CameraCommand,
}

#[derive(clap::Subcommand)]
enum CameraCommand {
    /// Make a login for a camera, and print it.
    Add {
        /// Name of the camera, the last word of its subject.
        name: CameraName,
        /// Another camera that the same program publishes for; may be repeated.
        #[arg(long, value_name = "CAMERA")]
        also: Vec<CameraName>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the login of a camera.
    Show {
        /// Name of the camera.
        name: CameraName,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the cameras that have a login.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// End a camera's login and its connection.
    Remove {
        /// Name of the camera.
        name: CameraName,
    },
}

/// Adds, shows and removes logins.
pub async fn command(loaded: &LoadedSettings<Settings>, args: &CameraArgs) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    let running = RunningUp::find_running(&settings.up.store).with_context(|| {
        format!(
            "no `tributary up` runs with the store {} (--store names another one): logins are its server's; on a server of your own, add a user as deploy/nats/site.conf shows",
            settings.up.store.display()
        )
    })?;
    let site = running.site_of(loaded)?;
    let store = running.store_of(site, settings);
    let unread = || format!("the cameras of {} cannot be read", store.display());
    let mut cameras = CameraLogins::read(&store).with_context(unread)?;
    match &args.command {
        CameraCommand::Add { name, also, json } => {
            let added = cameras.add(name, also, clock::now_ms())?;
            anyhow::ensure!(
                added.is_some(),
                "camera {name} has a login already: `tributary camera show {name}` prints it, `tributary camera remove {name}` ends it"
            );
            save(&cameras, &store, site)?;
            note(loaded, site, "camera add", name).await;
            show(site, &cameras, name, *json)
        }
        CameraCommand::Show { name, json } => show(site, &cameras, name, *json),
        CameraCommand::List { json } => list(&cameras, *json),
        CameraCommand::Remove { name } => {
            anyhow::ensure!(cameras.remove(name), "camera {name} has no login: {}", known(&cameras));
            save(&cameras, &store, site)?;
            note(loaded, site, "camera remove", name).await;
            stdout::print_line(format_args!("Camera {name} cannot publish any more."))
        }
    }
}

fn save(cameras: &CameraLogins, store: &std::path::Path, site: &RunningSite) -> anyhow::Result<()> {
    let told =
        cameras.save_logins(store, &site.site).with_context(|| format!("{} cannot be changed", store.display()))?;
    anyhow::ensure!(told, "the server in {} does not run: it takes the change when it is started", store.display());
    Ok(())
}

async fn note(loaded: &LoadedSettings<Settings>, site: &RunningSite, action: &str, camera: &CameraName) {
    if let Ok(found) = site_target::open(loaded, "camera").await {
        audit::record_command(&found.bus, &site.site, action, camera.as_str()).await;
    }
}

fn known(cameras: &CameraLogins) -> String {
    let names: Vec<&str> = cameras.logins().keys().map(CameraName::as_str).collect();
    match names.is_empty() {
        true => "no camera has".into(),
        false => format!("those that have are {}", names.join(", ")),
    }
}

/// Everything that whoever sets the camera up must know.
fn show(site: &RunningSite, cameras: &CameraLogins, name: &CameraName, json: bool) -> anyhow::Result<()> {
    let login =
        cameras.logins().get(name).with_context(|| format!("camera {name} has no login: {}", known(cameras)))?;
    let CameraEntry { nats, mqtt, is_mqtt_encrypted, authority, is_open_to_others } = &site.entrance;
    let subject = streams::subject::image(&site.site, name);
    let (inbox, topic) = (permissions::role_inbox(name.as_str()), subject.replace('.', "/"));
    if json {
        return stdout::json(&serde_json::json!({
            "camera": name, "also": login.also, "user": name, "mqtt_user": mqtt_user(name), "password": login.reveal_password(), "nats": nats, "subject": subject,
            "inbox_prefix": inbox, "mqtt": mqtt, "topic": topic, "authority": authority,
        }));
    }
    stdout::print_line(format_args!("user       {name}; over MQTT {}", mqtt_user(name)))?;
    stdout::print_line(format_args!("password   {}", login.reveal_password()))?;
    stdout::print_line(format_args!("NATS       {nats}, subject {subject}, inbox prefix {inbox}"))?;
    if let Some(mqtt) = mqtt {
        let tls = if *is_mqtt_encrypted { ", with TLS" } else { "" };
        stdout::print_line(format_args!("MQTT       {mqtt}{tls}, topic {topic}"))?;
    }
    if let Some(authority) = authority {
        stdout::print_line(format_args!("authority  {}: the camera trusts this certificate", authority.display()))?;
    }
    if !is_open_to_others {
        stdout::print_line("Only this machine reaches the server; up.listen and up.mqtt_listen let others in.")?;
    }
    Ok(())
}

fn list(cameras: &CameraLogins, json: bool) -> anyhow::Result<()> {
    if json {
        let rows = cameras
            .logins()
            .iter()
            .map(|(name, login)| serde_json::json!({ "camera": name, "since_ms": login.since_ms }));
        return stdout::json(&rows.collect::<Vec<_>>());
    }
    if cameras.logins().is_empty() {
        return stdout::print_line("No camera has a login: `tributary camera add NAME` makes one.");
    }
    let also = |also: &[CameraName]| also.iter().map(CameraName::as_str).collect::<Vec<_>>().join(", ");
    let row = |(name, login): (&CameraName, &CameraLogin)| {
        vec![name.to_string(), also(&login.also), format::format_time(login.since_ms)]
    };
    let rows: Vec<Vec<String>> = cameras.logins().iter().map(row).collect();
    stdout::print_line(format::table(&["camera", "also for", "since"], &rows))
}

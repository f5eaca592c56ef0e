//! `tributary camera add|show|remove`: logins at a site's server, of cameras that publish by themselves.

use anyhow::Context;
use operations::audit::record_change;
use runtime::clock;
use runtime::settings::LoadedSettings;
use schemas::CameraName;
use streams::cameras::{CameraLogins, mqtt_user};
use streams::permissions;

use crate::settings::Settings;
use crate::site_target::{self, CameraEntry, RunningSite, RunningUp};
use crate::stdout;

#[derive(clap::Subcommand)]
pub(super) enum LoginCommand {
    /// Create and print a login for a camera.
    Add {
        /// Name of the camera: the last token of its subject.
        name: CameraName,
        /// Another camera that the same login may publish for; repeatable.
        #[arg(long, value_name = "CAMERA")]
        also_camera: Vec<CameraName>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a camera's login.
    Show {
        /// Name of the camera.
        name: CameraName,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove a camera's login and close its connection.
    Remove {
        /// Name of the camera.
        name: CameraName,
    },
}

/// Adds, shows and removes logins.
pub(super) async fn command(loaded: &LoadedSettings<Settings>, command: &LoginCommand) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    let running = RunningUp::find_running(&settings.up.store).with_context(|| {
        format!(
            "no `tributary up` is running with the store {}, and logins belong to its server: start it or name another store with --store; on a server of your own, add a user as in deploy/nats/site.conf",
            settings.up.store.display()
        )
    })?;
    let site = running.site_of(loaded)?;
    let store = running.store_of(site, settings);
    let unread = || format!("camera logins in {} cannot be read", store.display());
    let mut cameras = CameraLogins::read(&store).with_context(unread)?;
    match command {
        LoginCommand::Add { name, also_camera, json } => {
            let added = cameras.add(name, also_camera, clock::now_ms())?;
            anyhow::ensure!(
                added.is_some(),
                "camera {name} already has a login: `tributary camera show {name}` prints it, `tributary camera remove {name}` removes it"
            );
            save(&cameras, &store, site)?;
            note(loaded, site, "camera add", name).await;
            show(site, &cameras, name, *json)
        }
        LoginCommand::Show { name, json } => show(site, &cameras, name, *json),
        LoginCommand::Remove { name } => {
            anyhow::ensure!(
                cameras.remove(name),
                "camera {name} has no login: {}; a [[camera]] of the settings file is removed there",
                known(&cameras)
            );
            save(&cameras, &store, site)?;
            note(loaded, site, "camera remove", name).await;
            stdout::print_line(format_args!("The login of camera {name} is removed."))
        }
    }
}

fn save(cameras: &CameraLogins, store: &std::path::Path, site: &RunningSite) -> anyhow::Result<()> {
    let is_reloaded =
        cameras.save_logins(store, &site.site).with_context(|| format!("{} cannot be changed", store.display()))?;
    anyhow::ensure!(
        is_reloaded,
        "the login is saved, but the server in {} is not running: it takes effect when `tributary up` is started",
        store.display()
    );
    Ok(())
}

async fn note(loaded: &LoadedSettings<Settings>, site: &RunningSite, action: &str, camera: &CameraName) {
    if let Ok(found) = site_target::open(loaded, "camera").await {
        record_change(&found.bus, &site.site, action, camera.as_str()).await;
    }
}

fn known(cameras: &CameraLogins) -> String {
    let names: Vec<&str> = cameras.logins().keys().map(CameraName::as_str).collect();
    match names.is_empty() {
        true => "no camera has one".into(),
        false => format!("the cameras with one are {}", names.join(", ")),
    }
}

/// Everything needed to configure the camera.
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
        stdout::print_line(format_args!(
            "authority  {}: the certificate that the camera must trust",
            authority.display()
        ))?;
    }
    if !is_open_to_others {
        stdout::print_line(
            "Only this machine reaches the server; set up.listen or up.mqtt_listen to open it to others.",
        )?;
    }
    Ok(())
}

//! Cameras that a site's server knows by name and password: each may publish its own images and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Error, ErrorKind};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use schemas::{CameraName, SiteName};
use serde::{Deserialize, Serialize};

use crate::permissions::SubjectPermissions;
use crate::server::{CAMERA_USERS, USERS, is_in_use, new_password, write_private};

/// File of the logins in the server's store.
const CAMERAS: &str = "cameras.json";
/// File with the server's process id.
const PROCESS: &str = "nats-server.pid";
/// Marks the line of a camera in the users file.
const OF_CAMERA: &str = " # camera";

/// Login of a camera.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CameraLogin {
    password: String,
    /// Other cameras that it publishes for; for programs with several cameras.
    #[serde(default)]
    pub also: Vec<CameraName>,
    /// When it was added, milliseconds since the epoch.
    pub since_ms: u64,
}

impl CameraLogin {
    /// The password, to configure the camera with.
    pub fn reveal_password(&self) -> &str {
        &self.password
    }
}

/// Logins of a site's cameras, kept in the folder of its server.
#[derive(Clone, Default)]
pub struct CameraLogins(BTreeMap<CameraName, CameraLogin>);

impl CameraLogins {
    /// Reads the logins; none if there is no file yet.
    ///
    /// # Errors
    /// The file cannot be read or parsed.
    pub fn read(store: &Path) -> std::io::Result<Self> {
        let path = store.join(CAMERAS);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Self).map_err(|error| {
                Error::new(
                    ErrorKind::InvalidData,
                    format!(
                        "{} could not be parsed: {error}; restore it, or delete it and add the cameras again",
                        path.display()
                    ),
                )
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// All logins, by camera.
    pub fn logins(&self) -> &BTreeMap<CameraName, CameraLogin> {
        &self.0
    }

    /// Adds a login for a camera that may publish for others too; `None` if the name is taken.
    ///
    /// # Errors
    /// The system provides no random numbers.
    pub fn add(
        &mut self,
        camera: &CameraName,
        also: &[CameraName],
        now_ms: u64,
    ) -> std::io::Result<Option<&CameraLogin>> {
        if self.0.contains_key(camera) {
            return Ok(None);
        }
        let login = CameraLogin { password: new_password()?, also: also.to_vec(), since_ms: now_ms };
        Ok(Some(self.0.entry(camera.clone()).or_insert(login)))
    }

    /// Removes a camera; false if there was no such name.
    pub fn remove(&mut self, camera: &CameraName) -> bool {
        self.0.remove(camera).is_some()
    }

    /// Saves the logins and reloads the server if one runs here, which disconnects removed cameras.
    /// Returns whether a server was reloaded.
    ///
    /// # Errors
    /// The disk is full, or the server could not be signalled.
    pub fn save_logins(&self, store: &Path, site: &SiteName) -> std::io::Result<bool> {
        let path = store.join(CAMERAS);
        let temporary = path.with_extension("new");
        write_private(&temporary, &(serde_json::to_string_pretty(&self.0).map_err(Error::other)? + "\n"))?;
        fs::rename(&temporary, &path)?;
        // Workers' passwords belong to the running server and are kept; they are generated anew when it starts.
        let Ok(users) = fs::read_to_string(store.join(USERS)) else { return Ok(false) };
        let kept = users.lines().filter(|line| line.trim_start().starts_with('{') && !line.contains(OF_CAMERA));
        let kept: Vec<String> = kept.map(|line| line.trim().to_owned()).collect();
        self.write_users(store, Some(site), &kept)?;
        if !is_in_use(store) {
            return Ok(false);
        }
        let process = fs::read_to_string(store.join(PROCESS)).ok().and_then(|text| text.trim().parse::<i32>().ok());
        match process {
            Some(process) => kill(Pid::from_raw(process), Signal::SIGHUP).map(|()| true).map_err(Error::from),
            None => Ok(false),
        }
    }

    /// Writes the server's users: these, and the cameras. Over NATS a camera is in the account of cameras
    /// ([`SubjectPermissions::account_share`]); over MQTT, where a publisher controls nothing but its topic, in the
    /// site's account.
    pub(crate) fn write_users(&self, store: &Path, site: Option<&SiteName>, users: &[String]) -> std::io::Result<()> {
        let (mut by_nats, mut own) = (Vec::new(), users.to_vec());
        for (site, (camera, login)) in site.iter().flat_map(|site| self.0.iter().map(move |camera| (site, camera))) {
            let (rights, password) = (SubjectPermissions::of_camera(site, camera, &login.also), &login.password);
            let permissions = rights.configuration();
            by_nats.push(format!(
                "{{ user: \"{camera}\", password: \"{password}\", allowed_connection_types: [\"STANDARD\"], permissions: {permissions} }}"
            ));
            let publish = rights.publish.join("\", \"");
            own.push(format!(
                "{{ user: \"{}\", password: \"{password}\", allowed_connection_types: [\"MQTT\"], permissions: {{ publish: [\"{publish}\"], subscribe: {{ deny: \">\" }} }} }}{OF_CAMERA}",
                mqtt_user(camera)
            ));
        }
        let list = |lines: &[String]| format!("users: [\n  {}\n]\n", lines.join("\n  "));
        write_private(&store.join(CAMERA_USERS), &list(&by_nats))?;
        write_private(&store.join(USERS), &list(&own))
    }
}

/// A camera's user name for MQTT; no camera name contains an `@`.
pub fn mqtt_user(camera: &CameraName) -> String {
    format!("{camera}@mqtt")
}

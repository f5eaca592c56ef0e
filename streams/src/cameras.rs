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

/// Who they are, in the server's store.
const CAMERAS: &str = "cameras.json";
/// Where the server says which process it is.
const PROCESS: &str = "nats-server.pid";
/// What ends the line of a camera among the users.
const OF_CAMERA: &str = " # camera";

/// A camera that may publish.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CameraLogin {
    password: String,
    /// Other cameras that it publishes for, as a program with several does.
    #[serde(default)]
    pub also: Vec<CameraName>,
    /// When it was added, milliseconds since the epoch.
    pub since_ms: u64,
}

impl CameraLogin {
    /// The password, for whoever sets the camera up.
    pub fn reveal_password(&self) -> &str {
        &self.password
    }
}

/// The cameras of a site, in the folder of its server.
#[derive(Clone, Default)]
pub struct CameraLogins(BTreeMap<CameraName, CameraLogin>);

impl CameraLogins {
    /// Reads them; a site begins with none.
    ///
    /// # Errors
    /// A file that cannot be read, or was changed by hand.
    pub fn read(store: &Path) -> std::io::Result<Self> {
        let path = store.join(CAMERAS);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Self).map_err(|error| {
                Error::new(ErrorKind::InvalidData, format!("{} is not what it should be: {error}", path.display()))
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Each by its name.
    pub fn logins(&self) -> &BTreeMap<CameraName, CameraLogin> {
        &self.0
    }

    /// Adds a login under a camera's name, which publishes for others, too; `None` if there is one of this name.
    ///
    /// # Errors
    /// That the system has no random numbers.
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

    /// Removes a camera; false if there is none of this name.
    pub fn remove(&mut self, camera: &CameraName) -> bool {
        self.0.remove(camera).is_some()
    }

    /// Writes them down, and tells the server, if one runs here. What has no login any more is cut off by the server.
    /// Returns whether one was told.
    ///
    /// # Errors
    /// A disk that takes nothing, or a server that cannot be told.
    pub fn save_logins(&self, store: &Path, site: &SiteName) -> std::io::Result<bool> {
        let path = store.join(CAMERAS);
        let beside = path.with_extension("new");
        write_private(&beside, &(serde_json::to_string_pretty(&self.0).map_err(Error::other)? + "\n"))?;
        fs::rename(&beside, &path)?;
        // Workers' passwords are the running server's and stay; they are made anew when it starts.
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

    /// What the server is told of its users: these, and the cameras. Over NATS a camera is in an account of cameras
    /// ([`Rights::shared`]); over MQTT, where a publisher names nothing but its topic, it is in the site's own.
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

/// The user of a camera over MQTT; no camera has a name with an `@`.
pub fn mqtt_user(camera: &CameraName) -> String {
    format!("{camera}@mqtt")
}

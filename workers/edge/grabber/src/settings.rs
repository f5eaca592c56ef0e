//! Settings of a site's cameras.

use std::path::PathBuf;
use std::time::Duration;

use camera::motion_gate::MotionGateSettings;
use camera::picture_health::PictureSettings;
use camera::region::RegionShape;
use camera::{CameraAddress, CameraCredentials, CameraError, PasswordSource};
use schemas::limits::MAX_LABEL_BYTES;
use schemas::{CameraName, SiteName};
use serde::{Deserialize, Serialize};

/// Most pictures per second that are taken from a camera.
const MAX_RATE_PER_S: f64 = 60.0;
/// Fewest: one a day.
const MIN_RATE_PER_S: f64 = 1.0 / 86_400.0;
/// Most states of a region.
const MAX_STATES: usize = 16;

/// A camera of a site, one `[[camera]]` of the settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CameraSettings {
    /// Name of the camera: the last token of its images' subject.
    pub name: CameraName,
    /// Address: `rtsp://HOST/PATH`, `http://HOST/PATH` of a snapshot or of motion JPEG, `/dev/video0`, a video file or a
    /// folder of JPEGs. A login in it is never shown.
    pub url: CameraAddress,
    /// Site it belongs to; absent: the only one, or with several sites the first.
    #[serde(default)]
    pub site: Option<SiteName>,
    /// User at the camera, if not in the address.
    #[serde(default)]
    pub user: Option<String>,
    /// Environment variable with the user's password.
    #[serde(default)]
    pub password_env: Option<String>,
    /// File whose first line is the user's password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// File of the authority that signed the camera's certificate, PEM, if it is not one the system trusts.
    #[serde(default)]
    pub authority: Option<PathBuf>,
    /// Pictures taken per second, 1/86400 to 60.
    #[serde(default = "default_rate")]
    pub rate_per_s: f64,
    /// Seconds without a picture after which the connection is made again, 1 to 86400; longer where the camera sends
    /// pictures at longer intervals.
    #[serde(default = "default_silence")]
    pub silent_after_s: u32,
    /// Which of the pictures are published.
    #[serde(default)]
    pub gate: MotionGateSettings,
    /// When a picture counts as unhealthy.
    #[serde(default)]
    pub picture: PictureSettings,
    /// The wanted part of the picture: left edge, upper edge, width and height as fractions of it.
    #[serde(default)]
    pub crop: Option<[f32; 4]>,
    /// Polygons that are painted black and in which nothing moves, as fractions of the picture.
    #[serde(default)]
    pub hidden: Vec<Vec<[f32; 2]>>,
    /// Labels that are states of what the picture shows, such as `open` and `closed`: answers say the state and since
    /// when.
    #[serde(default)]
    pub states: Vec<String>,
    /// Regions of the picture, each of which is a camera of its own; then the camera's own name is not published.
    #[serde(default)]
    pub region: Vec<RegionSettings>,
}

/// A region of a camera's picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionSettings {
    /// Its name as a camera.
    pub name: CameraName,
    /// As of a camera; absent: the whole picture.
    #[serde(default)]
    pub crop: Option<[f32; 4]>,
    /// As of a camera.
    #[serde(default)]
    pub hidden: Vec<Vec<[f32; 2]>>,
    /// As of a camera; the camera's own if absent. At most the camera's.
    #[serde(default)]
    pub rate_per_s: Option<f64>,
    /// As of a camera; the camera's own if absent.
    #[serde(default)]
    pub gate: Option<MotionGateSettings>,
    /// As of a camera.
    #[serde(default)]
    pub states: Vec<String>,
}

fn default_rate() -> f64 {
    1.0
}

fn default_silence() -> u32 {
    10
}

/// A camera as its images are published: a camera without regions, or one region.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PublishedCameraSettings {
    pub name: CameraName,
    pub shape: RegionShape,
    pub interval: Duration,
    pub gate: MotionGateSettings,
    pub picture: PictureSettings,
    pub states: Vec<String>,
}

impl CameraSettings {
    /// A camera with nothing but a name and an address.
    pub fn new(name: CameraName, url: CameraAddress) -> Self {
        Self {
            name,
            url,
            site: None,
            user: None,
            password_env: None,
            password_file: None,
            authority: None,
            rate_per_s: default_rate(),
            silent_after_s: default_silence(),
            gate: MotionGateSettings::default(),
            picture: PictureSettings::default(),
            crop: None,
            hidden: Vec::new(),
            states: Vec::new(),
            region: Vec::new(),
        }
    }

    /// Time between the pictures that are taken.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_secs_f64(1.0 / self.rate_per_s)
    }

    /// The cameras that its pictures are published as.
    pub(crate) fn published(&self) -> Vec<PublishedCameraSettings> {
        let own = PublishedCameraSettings {
            name: self.name.clone(),
            shape: RegionShape { crop: self.crop, hidden: self.hidden.clone() },
            interval: self.interval(),
            gate: self.gate,
            picture: self.picture,
            states: self.states.clone(),
        };
        if self.region.is_empty() {
            return vec![own];
        }
        let region = |region: &RegionSettings| PublishedCameraSettings {
            name: region.name.clone(),
            shape: RegionShape { crop: region.crop, hidden: region.hidden.clone() },
            interval: region.rate_per_s.map_or(own.interval, |rate| Duration::from_secs_f64(1.0 / rate)),
            gate: region.gate.unwrap_or(own.gate),
            picture: own.picture,
            states: region.states.clone(),
        };
        self.region.iter().map(region).collect()
    }

    /// The login, read anew at each connection: passwords change.
    ///
    /// # Errors
    /// The variable or file with the password is not there.
    pub fn login(&self) -> Result<Option<CameraCredentials>, CameraError> {
        let Some(user) = &self.user else { return Ok(self.url.login.clone()) };
        let password = match self.password_source() {
            Some(source) => source.read()?,
            None => String::new(),
        };
        Ok(Some(CameraCredentials { user: user.clone(), password }))
    }

    fn password_source(&self) -> Option<PasswordSource> {
        PasswordSource::named(self.password_env.as_deref(), self.password_file.as_deref())
    }

    /// Checks one camera.
    fn check(&self) -> Result<(), String> {
        check_rate(self.rate_per_s)?;
        if !(1..=86_400).contains(&self.silent_after_s) {
            return Err(format!("silent_after_s is {}; it must be between 1 and 86400", self.silent_after_s));
        }
        self.gate.check().map_err(|why| format!("gate.{why}"))?;
        self.picture.check().map_err(|why| format!("picture.{why}"))?;
        match (&self.user, self.password_source()) {
            (None, Some(_)) => return Err("password_env or password_file is set, so user must be set too".into()),
            (Some(_), None) => {
                return Err(
                    "user is set, so password_file or password_env must be set too (a user without a password: \
                            url = \"rtsp://USER:@HOST/PATH\")"
                        .into(),
                );
            }
            _ => {}
        }
        if self.password_env.is_some() && self.password_file.is_some() {
            return Err("password_env and password_file are both set; remove one".into());
        }
        if self.user.is_some() && self.url.login.is_some() {
            return Err("user is set, and url has a login too; remove one".into());
        }
        if !self.region.is_empty() && (self.crop.is_some() || !self.states.is_empty()) {
            return Err("region is set, so crop and states must be set in each region instead".into());
        }
        RegionShape { crop: self.crop, hidden: self.hidden.clone() }.check()?;
        check_states(&self.states)?;
        for region in &self.region {
            let of = |why: String| format!("region {}: {why}", region.name);
            RegionShape { crop: region.crop, hidden: region.hidden.clone() }.check().map_err(of)?;
            check_states(&region.states).map_err(of)?;
            region.gate.map_or(Ok(()), |gate| gate.check().map_err(|why| of(format!("gate.{why}"))))?;
            if let Some(rate) = region.rate_per_s {
                check_rate(rate).map_err(of)?;
                if rate > self.rate_per_s {
                    return Err(of(format!(
                        "rate_per_s is {rate}; it must be at most the camera's, {}",
                        self.rate_per_s
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Checks a site's cameras, and that no two are published under one name.
///
/// # Errors
/// One sentence that begins with the camera's name.
pub fn check_cameras(cameras: &[CameraSettings]) -> Result<(), String> {
    let mut names = std::collections::BTreeSet::new();
    for camera in cameras {
        camera.check().map_err(|why| format!("{}.{why}", camera.name))?;
        for published in camera.published() {
            if !names.insert((camera.site.clone(), published.name.clone())) {
                return Err(format!("{} is the name of two cameras or regions; give each its own", published.name));
            }
        }
    }
    Ok(())
}

fn check_rate(rate_per_s: f64) -> Result<(), String> {
    match (MIN_RATE_PER_S..=MAX_RATE_PER_S).contains(&rate_per_s) {
        true => Ok(()),
        false => Err(format!("rate_per_s is {rate_per_s}; it must be between 1/86400 and {MAX_RATE_PER_S}")),
    }
}

fn check_states(states: &[String]) -> Result<(), String> {
    if states.len() == 1 || states.len() > MAX_STATES {
        return Err(format!("states has {} labels; 2 to {MAX_STATES} are needed, or none", states.len()));
    }
    let is_wrong = |state: &&String| {
        state.is_empty() || state.len() > MAX_LABEL_BYTES || state.contains(|c: char| c.is_control() || c == ',')
    };
    match states.iter().find(is_wrong) {
        Some(state) => Err(format!("states has {state:?}; a state is a label without commas")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn camera() -> CameraSettings {
        CameraSettings::new("gate".parse().unwrap(), "rtsp://cam.local/main".parse().unwrap())
    }

    fn region(name: &str) -> RegionSettings {
        RegionSettings {
            name: name.parse().unwrap(),
            crop: Some([0.0, 0.0, 0.5, 0.5]),
            hidden: Vec::new(),
            rate_per_s: Some(0.5),
            gate: None,
            states: vec!["open".into(), "closed".into()],
        }
    }

    #[test]
    fn a_camera_is_published_as_itself_or_as_its_regions() {
        let whole = camera().published();
        assert_eq!((whole.len(), whole[0].name.as_str()), (1, "gate"));
        let with_regions = CameraSettings { region: vec![region("door"), region("yard")], ..camera() };
        let names: Vec<_> = with_regions.published().iter().map(|region| region.name.to_string()).collect();
        assert_eq!(names, ["door", "yard"]);
        assert_eq!(with_regions.published()[0].interval, Duration::from_secs(2));
        assert_eq!(check_cameras(&[with_regions]), Ok(()));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_camera() {
        let wrong = |change: &dyn Fn(&mut CameraSettings)| {
            let mut camera = camera();
            change(&mut camera);
            check_cameras(&[camera]).unwrap_err()
        };
        let said = [
            (wrong(&|camera| camera.rate_per_s = 0.0), "gate.rate_per_s is 0"),
            (wrong(&|camera| camera.rate_per_s = f64::NAN), "gate.rate_per_s is NaN"),
            (wrong(&|camera| camera.silent_after_s = 0), "gate.silent_after_s"),
            (wrong(&|camera| camera.gate.keep_alive_s = 0), "gate.gate.keep_alive_s"),
            (wrong(&|camera| camera.picture.new_view_after_s = 0), "gate.picture.new_view_after_s"),
            (wrong(&|camera| camera.password_env = Some("X".into())), "user must be set"),
            (wrong(&|camera| camera.user = Some("cam".into())), "password_file or password_env must be set"),
            (wrong(&|camera| camera.crop = Some([0.9, 0.0, 0.5, 1.0])), "gate.crop"),
            (wrong(&|camera| camera.states = vec!["open".into()]), "gate.states"),
            (wrong(&|camera| camera.states = vec!["a,b".into(), "c".into()]), "without commas"),
            (wrong(&|camera| camera.region = vec![region("a"), region("a")]), "two cameras"),
            (
                wrong(&|camera| {
                    camera.region = vec![RegionSettings { rate_per_s: Some(2.0), ..region("a") }];
                }),
                "at most the camera's",
            ),
        ];
        for (text, expected) in said {
            assert!(text.contains(expected), "{text}");
        }
        assert!(check_cameras(&[camera(), camera()]).unwrap_err().contains("two cameras"));
    }

    #[test]
    fn the_password_comes_from_its_file_and_is_shown_nowhere() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "geheim ß\n").unwrap();
        let camera = CameraSettings { user: Some("cam".into()), password_file: Some(file.path().into()), ..camera() };
        assert_eq!(camera.login().unwrap().unwrap().password, "geheim ß");
        let in_address = CameraSettings { url: "rtsp://cam:secret@host/x".parse().unwrap(), ..self::camera() };
        assert_eq!(in_address.login().unwrap().unwrap().password, "secret");
        for shown in [format!("{in_address:?}"), serde_json::to_string(&in_address).unwrap()] {
            assert!(!shown.contains("secret"), "{shown}");
        }
        let missing =
            CameraSettings { user: Some("cam".into()), password_env: Some("NO_SUCH_NAME".into()), ..self::camera() };
        assert!(missing.login().unwrap_err().to_string().contains("NO_SUCH_NAME"));
    }
}

//! Addresses of cameras, and logins, which are never shown.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

/// Where pictures come from.
#[derive(Clone, PartialEq, Eq)]
pub struct CameraAddress {
    /// The address, without a login.
    pub place: CameraPlace,
    /// The login that stood in the address.
    pub login: Option<CameraCredentials>,
}

/// Kinds of places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CameraPlace {
    /// HTTP: a snapshot, or motion JPEG.
    Http(Url),
    /// RTSP, over TCP.
    Rtsp(Url),
    /// A video device of this machine, such as `/dev/video0`.
    Device(PathBuf),
    /// A video file, a JPEG, or a folder of JPEGs.
    Path(PathBuf),
}

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct CameraCredentials {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for CameraCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CameraCredentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Why a text is no address of a camera.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Another scheme than the known ones.
    #[error("{scheme}:// is not supported; use http://, https://, rtsp://, rtsps://, /dev/video0 or a path")]
    Scheme {
        /// The scheme.
        scheme: String,
    },
    /// Not a URL.
    #[error("it is no valid address: {why}")]
    Invalid {
        /// What is wrong.
        why: String,
    },
    /// Nothing was given.
    #[error("it is empty; use rtsp://HOST/PATH, http://HOST/PATH, /dev/video0 or a path")]
    Empty,
}

impl FromStr for CameraAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        let Some((scheme, _)) = text.split_once("://") else {
            let path = PathBuf::from(text);
            let is_device = path.starts_with("/dev");
            let place = if is_device { CameraPlace::Device(path) } else { CameraPlace::Path(path) };
            return Ok(Self { place, login: None });
        };
        let known = ["http", "https", "rtsp", "rtsps", "file"];
        if !known.iter().any(|known| known.eq_ignore_ascii_case(scheme)) {
            // A scheme is echoed only as far as it is short: what stands before :// may be a password.
            let scheme = scheme.chars().take(16).collect();
            return Err(AddressError::Scheme { scheme });
        }
        let mut url = Url::parse(text).map_err(|error| {
            let hint = "; in a password, write @ as %40, / as %2F, : as %3A and ? as %3F";
            let hint = if text.contains('@') { hint } else { "" };
            AddressError::Invalid { why: format!("{error}{hint}") }
        })?;
        if url.scheme() == "file" {
            let path =
                url.to_file_path().map_err(|()| AddressError::Invalid { why: "its path is not absolute".into() })?;
            return Ok(Self { place: CameraPlace::Path(path), login: None });
        }
        let login = (!url.username().is_empty() || url.password().is_some()).then(|| CameraCredentials {
            user: percent_decode(url.username()),
            password: percent_decode(url.password().unwrap_or_default()),
        });
        // Both succeed for the schemes above.
        let _has_host = url.set_username("").is_ok() && url.set_password(None).is_ok();
        let place = if url.scheme().starts_with("rtsp") { CameraPlace::Rtsp(url) } else { CameraPlace::Http(url) };
        Ok(Self { place, login })
    }
}

/// Undoes `%41`; what is malformed stays.
pub(crate) fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl fmt::Display for CameraAddress {
    /// Without the login, and without the query and what follows a password in the path: some cameras take theirs there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            CameraPlace::Http(url) | CameraPlace::Rtsp(url) => {
                let mut shown = url.clone();
                if let Some(path) = path_before_password(url.path()) {
                    shown.set_path(&path);
                }
                if url.query().is_some() {
                    shown.set_query(Some("…"));
                }
                f.write_str(&percent_decode(shown.as_str()))
            }
            CameraPlace::Device(path) | CameraPlace::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// As it is shown: without its login.
impl Serialize for CameraAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CameraAddress {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The path up to a part that names a password; `None` if none does.
fn path_before_password(path: &str) -> Option<String> {
    let names_password = |part: &&str| {
        let part = part.to_ascii_lowercase();
        ["passw", "pwd", "pass=", "pass_"].iter().any(|word| part.contains(word))
    };
    let before = path.split('/').take_while(|part| !names_password(part)).collect::<Vec<_>>().join("/");
    (before.len() < path.len()).then(|| format!("{before}/…"))
}

impl fmt::Debug for CameraAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gives_its_login_and_never_shows_it() {
        let address: CameraAddress = "rtsp://caf%C3%A9:p%40ss%3Aw@cam.local:8554/main?token=abc".parse().unwrap();
        let login = address.login.clone().unwrap();
        assert_eq!((login.user.as_str(), login.password.as_str()), ("café", "p@ss:w"));
        for shown in [format!("{address}"), format!("{address:?}"), format!("{login:?}")] {
            assert!(!shown.contains("p@ss") && !shown.contains("p%40ss") && !shown.contains("abc"), "{shown}");
        }
        assert_eq!(address.to_string(), "rtsp://cam.local:8554/main?…");
        let address: CameraAddress =
            "rtsp://cam.local/live/user=admin_password=tlJwpbo6_channel=1.sdp".parse().unwrap();
        assert_eq!(address.to_string(), "rtsp://cam.local/live/…");
    }

    #[test]
    fn paths_devices_and_hosts_are_told_apart() {
        let place = |text: &str| text.parse::<CameraAddress>().unwrap().place;
        assert_eq!(place("/dev/video0"), CameraPlace::Device("/dev/video0".into()));
        assert_eq!(place("Küche/film.mp4"), CameraPlace::Path("Küche/film.mp4".into()));
        assert_eq!(place("file:///tmp/a%20b.mp4"), CameraPlace::Path("/tmp/a b.mp4".into()));
        assert!(matches!(place("HTTP://camera/snap.jpg"), CameraPlace::Http(_)));
        assert!(matches!(place("rtsps://camera/main"), CameraPlace::Rtsp(_)));
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_to_do() {
        for (text, says) in [
            ("", "empty"),
            ("ftp://camera/x", "ftp"),
            ("http://", "valid"),
            ("rtsp://[::1", "valid"),
            ("rtsp://user:pa/ss@camera/x", "/ as %2F"),
        ] {
            let error = text.parse::<CameraAddress>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}

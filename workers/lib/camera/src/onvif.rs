//! ONVIF: cameras on the network, and the addresses of their streams.
//!
//! In: nothing, or a host, and a login. Out: [`OnvifCamera`]s. Cameras are searched for by [`search`] (WS-Discovery), or
//! one host is asked for by [`locate`]; [`ask`] then asks a camera for its clock, its profiles and their addresses.
//!
//! Whatever a camera says may be wrong or hostile. Answers have limits on size, depth and number, addresses keep the host
//! that was asked, and the login is sent as a digest only, never readable.

mod answers;
mod client;
mod discovery;
mod host;
mod soap;
mod xml;

use std::time::Duration;

use schemas::FaultNote;
use url::Url;

pub use discovery::{DiscoveredDevice, DiscoverySearch, SearchError, multicast_group, search};
pub use host::{HostError, OnvifHost, locate};

use crate::{CameraCredentials, CameraError};

/// A camera as ONVIF describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct OnvifCamera {
    /// Where its device service answers, without a login.
    pub address: Url,
    /// Its maker; absent if it does not tell, mostly for want of a login.
    pub make: Option<String>,
    /// Its model, likewise.
    pub model: Option<String>,
    /// How far its clock is ahead of this machine's, milliseconds, negative if behind; exact to half a second. Absent if
    /// it tells no time.
    pub clock_ahead_ms: Option<i64>,
    /// Its streams.
    pub profiles: Vec<OnvifProfile>,
    /// Why not all is known, such as a wrong login.
    pub fault: Option<OnvifError>,
}

/// A stream of a camera, as it is set there.
#[derive(Debug, Clone, PartialEq)]
pub struct OnvifProfile {
    /// The camera's own name for it.
    pub token: String,
    /// Its name for people.
    pub name: Option<String>,
    /// Coding: `h264`, `h265`, `mjpeg` or what the camera calls it.
    pub codec: Option<String>,
    /// Width and height in pixels.
    pub size_px: Option<(u32, u32)>,
    /// Most pictures per second.
    pub frames_per_s: Option<f32>,
    /// Time between key frames, seconds; absent for motion JPEG.
    pub key_frame_distance_s: Option<f32>,
    /// Address of the stream, without a login; `PASSWORD` stands where the camera put the password into it.
    pub stream: Option<Url>,
    /// Address of single pictures, likewise; absent for cameras without them.
    pub snapshot: Option<Url>,
}

impl OnvifCamera {
    fn new(address: Url, clock_ahead_ms: Option<i64>) -> Self {
        Self { address, make: None, model: None, clock_ahead_ms, profiles: Vec::new(), fault: None }
    }

    /// The profile to take for a model with an input of this size: the smallest that is at least as large, preferably
    /// one that is decoded without the program ffmpeg. The largest if none is so large.
    pub fn recommended(&self, width_px: u32, height_px: u32) -> Option<&OnvifProfile> {
        let with_stream = || self.profiles.iter().filter(|profile| profile.stream.is_some());
        let area =
            |profile: &OnvifProfile| profile.size_px.map_or(0, |(width, height)| u64::from(width) * u64::from(height));
        let is_large = |profile: &OnvifProfile| {
            profile.size_px.is_some_and(|(width, height)| width >= width_px && height >= height_px)
        };
        let smallest = with_stream()
            .filter(|profile| is_large(profile))
            .min_by_key(|profile| (profile.needs_ffmpeg(), area(profile)));
        // The first of the largest: cameras list their main stream first.
        smallest.or_else(|| with_stream().rev().max_by_key(|profile| (!profile.needs_ffmpeg(), area(profile))))
    }
}

impl OnvifProfile {
    /// Whether its pictures are decoded by the program ffmpeg.
    pub fn needs_ffmpeg(&self) -> bool {
        self.codec.as_deref().is_some_and(|codec| !["h264", "mjpeg"].contains(&codec))
    }
}

/// Versions of the service that tells of streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MediaVersion {
    First,
    Second,
}

impl MediaVersion {
    fn namespace(self) -> &'static str {
        match self {
            Self::First => "http://www.onvif.org/ver10/media/wsdl",
            Self::Second => "http://www.onvif.org/ver20/media/wsdl",
        }
    }

    fn ask_for_profiles(self) -> &'static str {
        match self {
            Self::First => "<trt:GetProfiles/>",
            Self::Second => "<tr2:GetProfiles><tr2:Type>VideoEncoder</tr2:Type></tr2:GetProfiles>",
        }
    }

    /// The request for the address of a stream (`GetStreamUri`) or of snapshots (`GetSnapshotUri`).
    fn ask_for_address(self, method: &str, token: &str) -> String {
        let token = xml::escape(token);
        let is_stream = method == "GetStreamUri";
        match self {
            Self::First => {
                let setup = "<trt:StreamSetup><tt:Stream>RTP-Unicast</tt:Stream><tt:Transport><tt:Protocol>RTSP</tt:Protocol></tt:Transport></trt:StreamSetup>";
                let setup = if is_stream { setup } else { "" };
                format!("<trt:{method}>{setup}<trt:ProfileToken>{token}</trt:ProfileToken></trt:{method}>")
            }
            Self::Second => {
                let protocol = if is_stream { "<tr2:Protocol>RTSP</tr2:Protocol>" } else { "" };
                format!("<tr2:{method}>{protocol}<tr2:ProfileToken>{token}</tr2:ProfileToken></tr2:{method}>")
            }
        }
    }
}

/// Why a camera does not tell of its streams.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OnvifError {
    /// It could not be reached, or refused the login.
    #[error(transparent)]
    Connection(#[from] CameraError),
    /// What answers speaks no ONVIF.
    #[error("{address} does not speak ONVIF: {why}")]
    NotOnvif {
        /// The address without its login.
        address: String,
        /// What it sent.
        why: String,
    },
    /// It refused a request.
    #[error("{address} refused {method}: {reason}")]
    Refused {
        /// The address without its login.
        address: String,
        /// The request.
        method: &'static str,
        /// The camera's words.
        reason: String,
    },
    /// It has no streams: a device of another kind, or nothing is set up there.
    #[error("{address} tells of no video streams")]
    NoStreams {
        /// The address without its login.
        address: String,
    },
}

impl OnvifError {
    /// Whether the login is missing or wrong.
    pub fn is_login(&self) -> bool {
        matches!(self, Self::Connection(CameraError::Login { .. }))
    }

    /// Stable word for programs, in snake case.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Connection(error) => error.kind(),
            Self::NotOnvif { .. } => "onvif_absent",
            Self::Refused { .. } => "onvif_refused",
            Self::NoStreams { .. } => "onvif_no_streams",
        }
    }

    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Connection(CameraError::Login { .. }) => {
                "give the camera's ONVIF user: --user NAME with --password-env VARIABLE or --password-file FILE; many makers keep ONVIF users apart from those of the web page, and wrong passwords may lock an account"
            }
            Self::Connection(CameraError::NotFound { .. } | CameraError::Status { .. }) | Self::NotOnvif { .. } => {
                "turn ONVIF on in the camera's settings, where many makers have it off, or name its port: --host HOST:PORT"
            }
            Self::Connection(CameraError::Certificate { .. }) => "ask it without encryption: --host http://HOST",
            Self::Connection(
                CameraError::Unreachable { .. } | CameraError::Timeout { .. } | CameraError::Closed { .. },
            ) => "check that the camera is on, and its address and port",
            Self::Connection(error) => error.remedy(),
            Self::Refused { .. } => {
                "look up the stream's address in the camera's manual, and try it: tributary camera check URL"
            }
            Self::NoStreams { .. } => "set up a video profile on the camera's web page",
        }
    }

    /// As a fault for people and programs.
    pub fn note(&self) -> FaultNote {
        FaultNote::new(self.kind(), self.to_string(), self.remedy())
    }
}

/// How long all requests to one camera may take together.
const CAMERA_TIMEOUT: Duration = Duration::from_secs(60);

/// Asks the camera whose device service answers at this address for its clock, its streams and their addresses. The login
/// is sent as a digest, first over the camera's own clock.
///
/// # Errors
/// Nothing there speaks ONVIF. Errors after the first answer, a wrong login among them, stand in
/// [`fault`](OnvifCamera::fault).
pub async fn ask(service: &Url, login: Option<&CameraCredentials>) -> Result<OnvifCamera, OnvifError> {
    let mut service = service.clone();
    // Nobody sees a login that stood in the address.
    let _has_host = service.set_username("").is_ok() && service.set_password(None).is_ok();
    let asking = client::OnvifClient::new(&service, login).ask();
    tokio::time::timeout(CAMERA_TIMEOUT, asking).await.unwrap_or_else(|_| {
        let (address, seconds) = (service.to_string(), CAMERA_TIMEOUT.as_secs());
        Err(CameraError::Timeout { address, step: "all that it was asked", seconds }.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(token: &str, codec: &str, size_px: (u32, u32)) -> OnvifProfile {
        OnvifProfile {
            token: token.into(),
            name: None,
            codec: Some(codec.into()),
            size_px: Some(size_px),
            frames_per_s: None,
            key_frame_distance_s: None,
            stream: Some("rtsp://camera/".parse().unwrap()),
            snapshot: None,
        }
    }

    fn recommended(profiles: &[OnvifProfile], size: (u32, u32)) -> Option<String> {
        let mut camera = OnvifCamera::new("http://camera/".parse().unwrap(), None);
        camera.profiles = profiles.to_vec();
        camera.recommended(size.0, size.1).map(|profile| profile.token.clone())
    }

    #[test]
    fn the_smallest_profile_that_is_large_enough_is_recommended() {
        let (main, sub) = (profile("main", "h264", (1920, 1080)), profile("sub", "h264", (640, 480)));
        let tiny = profile("tiny", "mjpeg", (320, 240));
        let all = [main.clone(), sub.clone(), tiny.clone()];
        assert_eq!(recommended(&all, (224, 224)).as_deref(), Some("tiny"));
        assert_eq!(recommended(&all, (640, 480)).as_deref(), Some("sub"));
        assert_eq!(recommended(&all, (640, 640)).as_deref(), Some("main"), "each side counts");
        assert_eq!(recommended(&all, (4000, 4000)).as_deref(), Some("main"), "the largest there is");
        let h265 = profile("h265", "h265", (640, 480));
        assert_eq!(recommended(&[h265.clone(), main.clone()], (640, 480)).as_deref(), Some("main"), "without ffmpeg");
        assert_eq!(recommended(&[h265], (640, 480)).as_deref(), Some("h265"));
        let unreachable = OnvifProfile { stream: None, ..sub };
        assert_eq!(recommended(&[unreachable], (1, 1)), None);
        let unknown = OnvifProfile { size_px: None, ..main };
        assert_eq!(recommended(&[unknown], (640, 480)).as_deref(), Some("main"));
        assert_eq!(recommended(&[], (1, 1)), None);
    }

    #[test]
    fn a_token_cannot_leave_its_element() {
        for version in [MediaVersion::First, MediaVersion::Second] {
            let body = version.ask_for_address("GetStreamUri", "</x>&\"<y>");
            let read = xml::XmlElement::read(soap::envelope("", &body).as_bytes()).unwrap();
            assert_eq!(read.text_of("ProfileToken"), Some("</x>&\"<y>"));
        }
    }

    /// Every answer of a camera, bent at random, is read or refused.
    #[test]
    fn answers_that_were_bent_are_read_or_refused() {
        let corpus = bend::texts([
            "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"a\"><s:Header/><s:Body><trt:GetProfilesResponse><trt:Profiles token=\"main\" fixed=\"true\"><tt:Name>m</tt:Name><tt:VideoEncoderConfiguration><tt:Encoding>H264</tt:Encoding><tt:Resolution><tt:Width>1920</tt:Width><tt:Height>1080</tt:Height></tt:Resolution><tt:RateControl><tt:FrameRateLimit>25</tt:FrameRateLimit></tt:RateControl><tt:H264><tt:GovLength>50</tt:GovLength></tt:H264></tt:VideoEncoderConfiguration></trt:Profiles></trt:GetProfilesResponse></s:Body></s:Envelope>",
            "<E><B><r><UTCDateTime><Time><Hour>1</Hour><Minute>2</Minute><Second>3</Second></Time><Date><Year>2026</Year><Month>11</Month><Day>30</Day></Date></UTCDateTime></r></B></E>",
            "<E><B><MediaUri><Uri>rtsp://192.168.1.10:554/a?b=1&amp;c=2#x</Uri></MediaUri></B></E>",
            "<E><Fault><Code><Value>s:Sender</Value><Subcode><Value>ter:NotAuthorized</Value></Subcode></Code><Reason><Text>no &#x41; &lt;</Text></Reason></Fault></E>",
            "<!DOCTYPE a [<!ENTITY b \"c\">]><E><![CDATA[x]]><!-- y --></E>",
            "<E><H><RelatesTo>urn:uuid:1</RelatesTo></H><B><ProbeMatch><EndpointReference><Address>urn:uuid:2</Address></EndpointReference><Types>dn:NetworkVideoTransmitter</Types><Scopes>onvif://www.onvif.org/name/A%20B onvif://www.onvif.org/hardware/C</Scopes><XAddrs>http://192.168.1.10/onvif/device_service http://[fe80::1]/x</XAddrs></ProbeMatch></B></E>",
        ]);
        let login = CameraCredentials { user: "u".into(), password: "a".into() };
        bend::bend_all("ONVIF", &corpus, bend::turns(), |bytes| {
            discovery::read_reply(bytes, "10.0.0.5".parse().unwrap(), &["urn:uuid:1".into()]);
            let Ok(read) = xml::XmlElement::read(bytes) else { return 1 };
            soap::fault(&read);
            answers::clock_ms(&read);
            answers::make_and_model(&read);
            let found = answers::profiles(&read);
            assert!(found.len() <= answers::MAX_PROFILES);
            let services = answers::MediaServices::read(&read);
            let mut host = answers::ReachedHost::new("http://10.0.0.5/onvif/device_service".parse().unwrap());
            for text in
                [services.media.as_deref(), services.media2.as_deref(), read.text_of("Uri")].into_iter().flatten()
            {
                assert!(host.service(text).is_none_or(|url| url.host_str() == Some("10.0.0.5")), "{text}");
                let media = host.media(text).map(|url| answers::hide_password(url, Some(&login)));
                assert!(media.is_none_or(|url| url.host_str() == Some("10.0.0.5")), "{text}");
            }
            2
        });
    }
}

//! What cameras answer, read from their XML. Pure.

use time::{Date, Month, PrimitiveDateTime, Time};
use url::{Host, Url};

use super::OnvifProfile;
use super::soap::plain;
use super::xml::XmlElement;
use crate::CameraCredentials;

/// Most profiles of a camera. Four are usual; recorders give four for each of their channels.
pub(super) const MAX_PROFILES: usize = 64;
/// Longest address, in bytes.
const MAX_ADDRESS_BYTES: usize = 1024;
/// Longest token of a profile, in bytes: 64 by the standard.
const MAX_TOKEN_BYTES: usize = 256;
/// What stands in an address in place of the password.
const PASSWORD: &str = "PASSWORD";

/// The camera's time in UTC, milliseconds since the epoch, from GetSystemDateAndTime. `None` if it gives none, or one
/// that is none.
pub(super) fn clock_ms(answer: &XmlElement) -> Option<i64> {
    let utc = answer.find("UTCDateTime")?;
    let number = |name: &str| utc.text_of(name)?.parse::<u16>().ok();
    let small = |name: &str| number(name).and_then(|number| u8::try_from(number).ok());
    let month = Month::try_from(small("Month")?).ok()?;
    let date = Date::from_calendar_date(number("Year")?.into(), month, small("Day")?).ok()?;
    // A leap second is the last of its minute.
    let time = Time::from_hms(small("Hour")?, small("Minute")?, small("Second")?.min(59)).ok()?;
    i64::try_from(PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp_nanos() / 1_000_000).ok()
}

/// Make and model, from GetDeviceInformation.
pub(super) fn make_and_model(answer: &XmlElement) -> (Option<String>, Option<String>) {
    let text = |name: &str| answer.text_of(name).map(plain).filter(|text| !text.is_empty());
    (text("Manufacturer"), text("Model"))
}

/// Addresses of the services that tell of streams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct MediaServices {
    /// Of the first version of the media service.
    pub(super) media: Option<String>,
    /// Of its second version, the only one that knows H.265.
    pub(super) media2: Option<String>,
}

impl MediaServices {
    /// From GetServices, or GetCapabilities, which does not know the second version by itself.
    pub(super) fn read(answer: &XmlElement) -> Self {
        let of = |version: &str| {
            let is_it = |service: &&XmlElement| {
                service.text_of("Namespace").is_some_and(|name| name.trim_end_matches('/').ends_with(version))
            };
            answer.find_all("Service").into_iter().find(is_it)?.text_of("XAddr").map(str::to_owned)
        };
        let capability = |name: &str| answer.find(name)?.text_of("XAddr").map(str::to_owned);
        Self {
            media: of("ver10/media/wsdl").or_else(|| capability("Media")),
            media2: of("ver20/media/wsdl").or_else(|| capability("Media2")),
        }
    }
}

/// The profiles with a video, from GetProfiles of either version, without addresses.
pub(super) fn profiles(answer: &XmlElement) -> Vec<OnvifProfile> {
    answer.find_all("Profiles").into_iter().filter_map(profile).take(MAX_PROFILES).collect()
}

fn profile(profile: &XmlElement) -> Option<OnvifProfile> {
    let token = profile.attribute("token").filter(|token| !token.is_empty() && token.len() <= MAX_TOKEN_BYTES)?;
    let encoder = profile.find("VideoEncoderConfiguration").or_else(|| profile.find("VideoEncoder"))?;
    let side = |name: &str| {
        let side = encoder.find_path(&["Resolution", name])?.text().parse::<u32>().ok()?;
        (1..=65_535).contains(&side).then_some(side)
    };
    let frames_per_s = encoder.text_of("FrameRateLimit").and_then(|rate| rate.parse::<f32>().ok());
    let frames_per_s = frames_per_s.filter(|rate| (0.01..=1000.0).contains(rate));
    let group = encoder.attribute("GovLength").or_else(|| encoder.text_of("GovLength"));
    let group = group.and_then(|length| length.parse::<u16>().ok()).filter(|length| *length > 0);
    // Every picture of motion JPEG stands alone.
    let codec = encoder.text_of("Encoding").and_then(codec);
    let group = group.filter(|_| codec.as_deref() != Some("mjpeg"));
    Some(OnvifProfile {
        name: profile.children().iter().find(|child| child.name() == "Name").map(|name| plain(name.text())),
        token: token.to_owned(),
        size_px: side("Width").zip(side("Height")),
        key_frame_distance_s: group.zip(frames_per_s).map(|(group, rate)| f32::from(group) / rate),
        codec,
        frames_per_s,
        stream: None,
        snapshot: None,
    })
}

/// A coding as Tributary names it.
fn codec(encoding: &str) -> Option<String> {
    let word: String = encoding.chars().filter(char::is_ascii_alphanumeric).take(16).collect::<String>().to_lowercase();
    match word.as_str() {
        "" => None,
        "jpeg" => Some("mjpeg".into()),
        "hevc" => Some("h265".into()),
        "avc" => Some("h264".into()),
        _ => Some(word),
    }
}

/// The host by which a camera is reached, in place of the one it gives itself, which may be that of another network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReachedHost {
    /// Where its device service answers.
    pub(super) service: Url,
    /// The host and port that the camera gives for its services, if they are others.
    pub(super) own: Option<(Host, u16)>,
}

impl ReachedHost {
    /// Of a camera that answers here.
    pub(super) fn new(service: Url) -> Self {
        Self { service, own: None }
    }

    /// The address of a service. Where the camera gives itself another host, host and port are those that were
    /// reached. `None` if it is no address.
    pub(super) fn service(&mut self, text: &str) -> Option<Url> {
        let mut url = address(text, &["http", "https"])?;
        if url.host() == self.service.host() {
            return Some(url);
        }
        self.own = Some((url.host()?.to_owned(), url.port_or_known_default()?));
        self.replace_host(&mut url)?;
        url.set_scheme(self.service.scheme()).ok()?;
        url.set_port(self.service.port()).ok()?;
        Some(url)
    }

    /// The address of a stream or a snapshot, with the host that was reached. Its port is replaced if it is that of the
    /// camera's services, as behind a router that forwards another one.
    pub(super) fn media(&self, text: &str) -> Option<Url> {
        let mut url = address(text, &["rtsp", "rtsps", "http", "https"])?;
        let given = (url.host()?.to_owned(), url.port_or_known_default());
        let is_web = url.scheme().starts_with("http");
        let is_of_services = self.own.as_ref().is_some_and(|(host, port)| given == (host.clone(), Some(*port)));
        self.replace_host(&mut url)?;
        if is_web && is_of_services && url.scheme() == self.service.scheme() {
            url.set_port(self.service.port()).ok()?;
        }
        Some(url)
    }

    fn replace_host(&self, url: &mut Url) -> Option<()> {
        url.set_host(self.service.host_str()).ok()
    }
}

/// A camera's address without a login: one that can be trusted no more than the camera.
fn address(text: &str, schemes: &[&str]) -> Option<Url> {
    let text = Some(text).filter(|text| text.len() <= MAX_ADDRESS_BYTES && !text.chars().any(char::is_control))?;
    let mut url = Url::parse(text).ok().filter(|url| schemes.contains(&url.scheme()) && url.has_host())?;
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    Some(url)
}

/// The address with the password replaced, where a camera puts it into its path or query.
pub(super) fn hide_password(url: Url, login: Option<&CameraCredentials>) -> Url {
    let Some(password) = login.map(|login| login.password.as_str()).filter(|password| !password.is_empty()) else {
        return url;
    };
    let encoded: String = url::form_urlencoded::byte_serialize(password.as_bytes()).collect();
    let spaced = encoded.replace('+', "%20");
    let host_end = url.as_str().len() - url[url::Position::BeforePath..].len();
    let (host, rest) = url.as_str().split_at(host_end);
    let hidden =
        [password, &encoded, &spaced].into_iter().fold(rest.to_owned(), |rest, secret| replace_word(&rest, secret));
    Url::parse(&format!("{host}{hidden}")).unwrap_or(url)
}

/// Replaces a text by `PASSWORD` where it is not a part of a longer word.
fn replace_word(text: &str, secret: &str) -> String {
    let (mut replaced, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once(secret) {
        let is_word = !before.ends_with(char::is_alphanumeric) && !after.starts_with(char::is_alphanumeric);
        replaced.push_str(before);
        replaced.push_str(if is_word { PASSWORD } else { secret });
        rest = after;
    }
    replaced + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> XmlElement {
        XmlElement::read(text.as_bytes()).unwrap()
    }

    fn clock(inside: &str) -> Option<i64> {
        clock_ms(&read(&format!("<E><R><x:UTCDateTime>{inside}</x:UTCDateTime></R></E>")))
    }

    #[test]
    fn a_clock_is_read_and_an_impossible_one_is_none() {
        let time = "<t:Time><t:Hour>23</t:Hour><t:Minute>59</t:Minute><t:Second>60</t:Second></t:Time>";
        let date = "<t:Date><t:Year>2016</t:Year><t:Month>12</t:Month><t:Day>31</t:Day></t:Date>";
        assert_eq!(clock(&format!("{time}{date}")), Some(1_483_228_799_000));
        // The order does not matter.
        assert_eq!(clock(&format!("{date}{time}")), Some(1_483_228_799_000));
        let never_set = "<Time><Hour>0</Hour><Minute>1</Minute><Second>2</Second></Time><Date><Year>1970</Year><Month>1</Month><Day>1</Day></Date>";
        assert_eq!(clock(never_set), Some(62_000));
        for broken in
            ["", time, date, &format!("{time}{}", date.replace("12", "13")), &time.replace("23", "99999999999")]
        {
            assert_eq!(clock(broken), None, "{broken}");
        }
        // What some cameras send instead.
        assert_eq!(clock_ms(&read("<E><LocalDateTime><Time/></LocalDateTime></E>")), None);
    }

    #[test]
    fn services_are_found_by_both_ways_of_asking() {
        let services = read(
            "<E><tds:Service><tds:Namespace>http://www.onvif.org/ver10/device/wsdl</tds:Namespace><tds:XAddr>http://c/d</tds:XAddr></tds:Service>\
             <tds:Service><tds:Namespace>http://www.onvif.org/ver10/media/wsdl</tds:Namespace><tds:XAddr>http://c/m</tds:XAddr></tds:Service>\
             <tds:Service><tds:Namespace>http://www.onvif.org/ver20/media/wsdl</tds:Namespace><tds:XAddr>http://c/m2</tds:XAddr></tds:Service></E>",
        );
        let (media, media2) = (Some("http://c/m".to_owned()), Some("http://c/m2".to_owned()));
        assert_eq!(MediaServices::read(&services), MediaServices { media: media.clone(), media2 });
        let capabilities = read(
            "<E><C><tt:Device><tt:XAddr>http://c/d</tt:XAddr></tt:Device><tt:Media><tt:XAddr>http://c/m</tt:XAddr></tt:Media></C></E>",
        );
        assert_eq!(MediaServices::read(&capabilities), MediaServices { media, media2: None });
        assert_eq!(MediaServices::read(&read("<E/>")), MediaServices::default());
    }

    #[test]
    fn profiles_of_both_versions_are_read() {
        let first = read(
            "<E><trt:Profiles fixed=\"true\" token=\"Profile_1\"><tt:Name>mainStream</tt:Name>\
             <tt:VideoSourceConfiguration token=\"v\"><tt:Name>VideoSource</tt:Name><tt:Bounds height=\"1080\" width=\"1920\"/></tt:VideoSourceConfiguration>\
             <tt:VideoEncoderConfiguration token=\"e\"><tt:Name>VideoEncoder</tt:Name><tt:Encoding>H264</tt:Encoding>\
             <tt:Resolution><tt:Width>1920</tt:Width><tt:Height>1080</tt:Height></tt:Resolution>\
             <tt:RateControl><tt:FrameRateLimit>25</tt:FrameRateLimit></tt:RateControl><tt:H264><tt:GovLength>50</tt:GovLength></tt:H264></tt:VideoEncoderConfiguration></trt:Profiles>\
             <trt:Profiles token=\"audio\"><tt:Name>sound alone</tt:Name></trt:Profiles>\
             <trt:Profiles token=\"j\"><tt:VideoEncoderConfiguration><tt:Encoding>JPEG</tt:Encoding></tt:VideoEncoderConfiguration></trt:Profiles></E>",
        );
        let profile = OnvifProfile {
            token: "Profile_1".into(),
            name: Some("mainStream".into()),
            codec: Some("h264".into()),
            size_px: Some((1920, 1080)),
            frames_per_s: Some(25.0),
            key_frame_distance_s: Some(2.0),
            stream: None,
            snapshot: None,
        };
        let found = profiles(&first);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0], profile);
        assert_eq!((found[1].codec.as_deref(), found[1].size_px), (Some("mjpeg"), None));
        let second = read(
            "<E><tr2:Profiles token='t1'><tr2:Name>HEVC</tr2:Name><tr2:Configurations><tr2:VideoEncoder token='x' GovLength='100' Profile='Main'>\
             <tt:Encoding>H265</tt:Encoding><tt:Resolution><tt:Width>3840</tt:Width><tt:Height>2160</tt:Height></tt:Resolution>\
             <tt:RateControl ConstantBitRate='false'><tt:FrameRateLimit>12.5</tt:FrameRateLimit></tt:RateControl></tr2:VideoEncoder></tr2:Configurations></tr2:Profiles></E>",
        );
        let found = profiles(&second);
        assert_eq!((found[0].codec.as_deref(), found[0].size_px), (Some("h265"), Some((3840, 2160))));
        assert_eq!((found[0].frames_per_s, found[0].key_frame_distance_s), (Some(12.5), Some(8.0)));
    }

    #[test]
    fn numbers_out_of_range_are_none_and_profiles_have_a_limit() {
        let one = "<Profiles token='a'><VideoEncoder GovLength='0'><Encoding>?!</Encoding><Resolution><Width>99999999999</Width><Height>0</Height></Resolution><FrameRateLimit>NaN</FrameRateLimit></VideoEncoder></Profiles>";
        let found = profiles(&read(&format!("<E>{}</E>", one.repeat(500))));
        assert_eq!(found.len(), MAX_PROFILES);
        let OnvifProfile { codec, size_px, frames_per_s, key_frame_distance_s, .. } = &found[0];
        assert_eq!((codec, size_px, frames_per_s, key_frame_distance_s), (&None, &None, &None, &None));
    }

    fn reached(service: &str, own: &str) -> ReachedHost {
        let mut host = ReachedHost::new(service.parse().unwrap());
        host.service(own).unwrap();
        host
    }

    #[test]
    fn the_host_that_was_reached_replaces_the_cameras_own() {
        let mut host = ReachedHost::new("http://gate.example:8080/onvif/device_service".parse().unwrap());
        let media = host.service("http://192.168.1.10/onvif/Media?a=1").unwrap();
        assert_eq!(media.as_str(), "http://gate.example:8080/onvif/Media?a=1");
        let stream = host.media("rtsp://192.168.1.10:554/live?x=1&y=2").unwrap();
        assert_eq!(stream.as_str(), "rtsp://gate.example:554/live?x=1&y=2");
        assert_eq!(
            host.media("http://192.168.1.10:80/snap.jpg").unwrap().as_str(),
            "http://gate.example:8080/snap.jpg"
        );
        assert_eq!(host.media("http://192.168.1.10:81/snap.jpg").unwrap().as_str(), "http://gate.example:81/snap.jpg");
        // The same host on another port is believed.
        let mut near = ReachedHost::new("http://10.0.0.5:2020/onvif/device_service".parse().unwrap());
        assert_eq!(near.service("http://10.0.0.5:8081/m").unwrap().as_str(), "http://10.0.0.5:8081/m");
        let six = reached("http://[fe80::1]/onvif/device_service", "http://169.254.1.1/m");
        assert_eq!(six.media("rtsp://0.0.0.0/a").unwrap().as_str(), "rtsp://[fe80::1]/a");
    }

    #[test]
    fn an_address_that_is_none_is_refused_and_logins_in_it_are_dropped() {
        let host = reached("http://10.0.0.5/onvif/device_service", "http://10.0.0.5/m");
        for text in ["", "live", "file:///etc/passwd", "javascript:alert(1)", "rtsp:///live", "rtsp://c/\u{1b}[2J"] {
            assert_eq!(host.media(text), None, "{text:?}");
        }
        assert_eq!(host.media(&format!("rtsp://c/{}", "a".repeat(2000))), None);
        assert_eq!(host.media("rtsp://admin:secret@10.0.0.5/live").unwrap().as_str(), "rtsp://10.0.0.5/live");
    }

    #[test]
    fn a_password_in_an_address_is_replaced_wherever_it_is_a_word() {
        let login = |password: &str| Some(CameraCredentials { user: "admin".into(), password: password.into() });
        let hidden = |url: &str, password| hide_password(url.parse().unwrap(), login(password).as_ref()).to_string();
        assert_eq!(
            hidden("rtsp://c:554/user=admin_password=s3cret_channel=1.sdp?s3cret", "s3cret"),
            "rtsp://c:554/user=admin_password=PASSWORD_channel=1.sdp?PASSWORD"
        );
        assert_eq!(hidden("rtsp://c/a?pw=a%26b%20c", "a&b c"), "rtsp://c/a?pw=PASSWORD");
        assert_eq!(hidden("rtsp://cam/stream1", "1"), "rtsp://cam/stream1", "a part of a word");
        assert_eq!(hidden("rtsp://cam/cam", "cam"), "rtsp://cam/PASSWORD", "never the host");
        assert_eq!(hidden("rtsp://c/live", ""), "rtsp://c/live");
    }
}

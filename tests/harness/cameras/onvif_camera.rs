//! A camera that describes itself by ONVIF: services over HTTP, and replies to searches over UDP.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet};

use super::http_server::{HttpRequest, head, respond};
use super::web_camera::{digest_demand, is_digest_right};

/// Seconds by which a request's time may differ from the camera's, as usual.
const MAX_SKEW_S: i64 = 300;
/// The nonce of HTTP digest logins.
const NONCE: &str = "5ccc069c403ebaf9f0171e9517f40e41";

/// How a camera is.
#[derive(Debug, Clone)]
pub struct OnvifPlan {
    /// User and password; none are asked for if absent.
    pub login: Option<(String, String)>,
    /// Whether the login is asked for by HTTP digest instead of in the message.
    pub asks_http_digest: bool,
    /// How far its clock is ahead, seconds.
    pub clock_ahead_s: i64,
    /// Address of its streams; `?profile=TOKEN&x=1` is added, escaped.
    pub stream: String,
    /// Address of its snapshots; it has none if absent.
    pub snapshot: Option<String>,
    /// How its XML looks.
    pub style: XmlStyle,
    /// The host and port that it gives for its services; where it listens if absent.
    pub own_host: Option<String>,
    /// Whether it knows the second version of the media service, which has a profile in H.265.
    pub has_media2: bool,
    /// What it sends instead of answers.
    pub hostile: Option<HostileAnswer>,
    /// Its address, one of loopback.
    pub ip: Ipv4Addr,
    /// The port on which it listens for searches; any free one if 0.
    pub probe_port: u16,
}

impl Default for OnvifPlan {
    fn default() -> Self {
        Self {
            login: Some(("admin".into(), "s3cret".into())),
            asks_http_digest: false,
            clock_ahead_s: 0,
            stream: "rtsp://127.0.0.1:554/live".into(),
            snapshot: Some("http://127.0.0.1:80/snap.jpg".into()),
            style: XmlStyle::Usual,
            own_host: None,
            has_media2: false,
            hostile: None,
            ip: Ipv4Addr::LOCALHOST,
            probe_port: 0,
        }
    }
}

/// How makers write XML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XmlStyle {
    /// `s:`, `tds:`, `trt:` and `tt:`.
    Usual,
    /// `SOAP-ENV:`, and numbers for all others.
    Numbered,
    /// No prefix anywhere.
    Bare,
}

/// Answers that shall do harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostileAnswer {
    /// Entities that grow to gigabytes.
    EntityBomb,
    /// Ten megabytes, without a length.
    Flood,
    /// A hundred thousand elements inside each other.
    Nesting,
    /// A web page.
    Page,
    /// Nothing, on an open connection.
    Silence,
}

/// A camera on a port of loopback.
pub struct OnvifCamera {
    address: SocketAddr,
    probe_address: SocketAddr,
    state: Arc<CameraState>,
    serving: JoinHandle<()>,
}

struct CameraState {
    plan: OnvifPlan,
    address: SocketAddr,
    nonces: Mutex<BTreeSet<Vec<u8>>>,
    calls: Mutex<Vec<String>>,
}

impl OnvifCamera {
    /// Starts a camera.
    pub async fn start(plan: OnvifPlan) -> io::Result<Self> {
        let listener = TcpListener::bind((plan.ip, 0)).await?;
        let probes = UdpSocket::bind((plan.ip, plan.probe_port)).await?;
        let (address, probe_address) = (listener.local_addr()?, probes.local_addr()?);
        let state = Arc::new(CameraState { plan, address, nonces: Mutex::default(), calls: Mutex::default() });
        let shared = state.clone();
        let serving = tokio::spawn(async move {
            let services = async {
                // Its connections end with it.
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let state = shared.clone();
                    connections.spawn(async move { serve(BufReader::new(stream), &state).await });
                }
            };
            tokio::join!(services, reply_to_probes(&probes, &shared));
        });
        Ok(Self { address, probe_address, state, serving })
    }

    /// Host and port of its services.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Address of its device service.
    pub fn service(&self) -> String {
        format!("http://{}/onvif/device_service", self.address)
    }

    /// Where it listens for searches.
    pub fn probe_address(&self) -> SocketAddr {
        self.probe_address
    }

    /// Names of all calls so far, `-refused` added where the login was missing or wrong.
    pub fn calls(&self) -> Vec<String> {
        self.state.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for OnvifCamera {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn reply_to_probes(socket: &UdpSocket, state: &CameraState) {
    let mut buffer = vec![0; 65_536];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let probe = String::from_utf8_lossy(&buffer[..length]).into_owned();
        // It answers to one of the two usual questions only.
        if !text_of(&probe, "Types").is_some_and(|types| types.contains("NetworkVideoTransmitter")) {
            continue;
        }
        let id = text_of(&probe, "MessageID").unwrap_or_default();
        let host = state.plan.own_host.clone().unwrap_or_else(|| state.address.to_string());
        // Behind a router, the port is that of the router.
        let port = state.address.port();
        let host = host.split(':').next().unwrap_or_default();
        let reply = format!(
            "<s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\"><s:Header><a:RelatesTo>{id}</a:RelatesTo></s:Header><s:Body><d:ProbeMatches><d:ProbeMatch><a:EndpointReference><a:Address>urn:uuid:{port}</a:Address></a:EndpointReference><d:Types>dn:NetworkVideoTransmitter tds:Device</d:Types><d:Scopes>onvif://www.onvif.org/type/video_encoder onvif://www.onvif.org/name/Test%20Camera onvif://www.onvif.org/hardware/T-1000</d:Scopes><d:XAddrs>http://{host}:{port}/onvif/device_service</d:XAddrs><d:MetadataVersion>1</d:MetadataVersion></d:ProbeMatch></d:ProbeMatches></s:Body></s:Envelope>"
        );
        let _lost_like_any_datagram = socket.send_to(reply.as_bytes(), from).await;
    }
}

async fn serve(mut stream: BufReader<TcpStream>, state: &CameraState) -> io::Result<()> {
    while let Some(request) = HttpRequest::read(&mut stream).await? {
        if let Some(hostile) = state.plan.hostile {
            return be_hostile(stream, hostile).await;
        }
        let message = String::from_utf8_lossy(&request.body).into_owned();
        let call = call_of(&message);
        // The time is told to anyone.
        let is_open = state.plan.login.is_none() || call == "GetSystemDateAndTime" && !state.plan.asks_http_digest;
        let is_allowed = is_open || state.is_login_right(&request, &message);
        let refused = if is_allowed { "" } else { "-refused" };
        state.calls.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{call}{refused}"));
        let kind = ("Content-Type", "application/soap+xml; charset=utf-8");
        if !is_allowed && state.plan.asks_http_digest {
            respond(&mut stream, 401, &[kind, ("WWW-Authenticate", &digest_demand(NONCE))], b"").await?;
            continue;
        }
        let (status, body) = match is_allowed.then(|| state.answer(&call, &message)).flatten() {
            Some(body) => (200, body),
            None if is_allowed => (400, fault("ter:ActionNotSupported", "Optional Action Not Implemented")),
            None => (400, fault("ter:NotAuthorized", "Sender not Authorized")),
        };
        respond(&mut stream, status, &[kind], state.plan.style.dress(&body).as_bytes()).await?;
    }
    Ok(())
}

fn fault(code: &str, reason: &str) -> String {
    format!(
        "<s:Fault><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value>{code}</s:Value></s:Subcode></s:Code><s:Reason><s:Text xml:lang=\"en\">{reason}</s:Text></s:Reason></s:Fault>"
    )
}

async fn be_hostile(mut stream: BufReader<TcpStream>, hostile: HostileAnswer) -> io::Result<()> {
    let body = match hostile {
        HostileAnswer::Silence => std::future::pending().await,
        HostileAnswer::Page => "<!DOCTYPE html><html><body>Log in<br></body></html>".into(),
        HostileAnswer::Flood => format!("<E><B>{}</B></E>", "x".repeat(10 << 20)),
        HostileAnswer::Nesting => "<a>".repeat(100_000),
        HostileAnswer::EntityBomb => {
            let entities = (1..40).map(|n| format!("<!ENTITY e{n} \"&e{};&e{};\">", n - 1, n - 1)).collect::<String>();
            format!("<!DOCTYPE E [<!ENTITY e0 \"boom\">{entities}]><E><B>&e39;</B></E>")
        }
    };
    let kind = if hostile == HostileAnswer::Page { "text/html" } else { "application/soap+xml" };
    stream.write_all(&head(200, &[("Content-Type", kind), ("Connection", "close")])).await?;
    stream.write_all(body.as_bytes()).await
}

impl CameraState {
    fn is_login_right(&self, request: &HttpRequest, message: &str) -> bool {
        let Some((user, password)) = &self.plan.login else { return true };
        if self.plan.asks_http_digest {
            let given = request.header("authorization").unwrap_or_default();
            return is_digest_right(given, "POST", &request.target, user, password, NONCE);
        }
        let text = |name: &str| text_of(message, name).unwrap_or_default();
        let nonce = STANDARD.decode(text("Nonce")).unwrap_or_default();
        let created = text("Created");
        let right = [nonce.as_slice(), created.as_bytes(), password.as_bytes()].concat();
        let right = STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &right));
        let skew =
            OffsetDateTime::parse(&created, &Rfc3339).map(|created| (created - self.now()).whole_seconds().abs());
        let is_new = self.nonces.lock().unwrap_or_else(PoisonError::into_inner).insert(nonce);
        text("Username") == *user && text("Password") == right && is_new && skew.is_ok_and(|skew| skew < MAX_SKEW_S)
    }

    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + time::Duration::seconds(self.plan.clock_ahead_s)
    }

    /// The answer to a call; `None` if the camera does not know it.
    fn answer(&self, call: &str, message: &str) -> Option<String> {
        let host = self.plan.own_host.clone().unwrap_or_else(|| self.address.to_string());
        let is_second = message.contains("tr2:") && message.contains(&format!("<tr2:{call}"));
        let token = text_of(message, "ProfileToken").unwrap_or_default();
        let of = |prefix: &str, body: String| format!("<{prefix}:{call}Response>{body}</{prefix}:{call}Response>");
        Some(match call {
            "GetSystemDateAndTime" => {
                let now = self.now();
                let (hour, minute, second) = now.to_hms();
                let (year, month, day) = (now.year(), u8::from(now.month()), now.day());
                of("tds", format!(
                    "<tds:SystemDateAndTime><tt:DateTimeType>NTP</tt:DateTimeType><tt:UTCDateTime><tt:Time><tt:Hour>{hour}</tt:Hour><tt:Minute>{minute}</tt:Minute><tt:Second>{second}</tt:Second></tt:Time><tt:Date><tt:Year>{year}</tt:Year><tt:Month>{month}</tt:Month><tt:Day>{day}</tt:Day></tt:Date></tt:UTCDateTime></tds:SystemDateAndTime>"
                ))
            }
            "GetDeviceInformation" => of(
                "tds",
                "<tds:Manufacturer>Test &amp; Sons</tds:Manufacturer><tds:Model>T-1000</tds:Model><tds:FirmwareVersion>1.0</tds:FirmwareVersion>".into(),
            ),
            "GetServices" if self.plan.has_media2 => {
                let service = |version: &str, path: &str| {
                    format!(
                        "<tds:Service><tds:Namespace>http://www.onvif.org/{version}/wsdl</tds:Namespace><tds:XAddr>http://{host}/onvif/{path}</tds:XAddr></tds:Service>"
                    )
                };
                of("tds", service("ver10/device", "device_service") + &service("ver10/media", "media") + &service("ver20/media", "media2"))
            }
            "GetCapabilities" => of("tds", format!(
                "<tds:Capabilities><tt:Device><tt:XAddr>http://{host}/onvif/device_service</tt:XAddr></tt:Device><tt:Media><tt:XAddr>http://{host}/onvif/media</tt:XAddr></tt:Media></tds:Capabilities>"
            )),
            "GetProfiles" if is_second => of("tr2", second_profile("main", "H265", 3840, 2160) + &second_profile("sub", "H264", 640, 360)),
            "GetProfiles" => of("trt", first_profile("main", "H264", 1920, 1080) + &first_profile("sub", "H264", 640, 480)),
            "GetStreamUri" => {
                let uri = format!("{}?profile={token}&amp;x=1", self.plan.stream);
                if is_second { of("tr2", format!("<tr2:Uri>{uri}</tr2:Uri>")) } else { of("trt", media_uri(&uri)) }
            }
            "GetSnapshotUri" => {
                let uri = self.plan.snapshot.as_ref()?.replace('&', "&amp;");
                if is_second { of("tr2", format!("<tr2:Uri>{uri}</tr2:Uri>")) } else { of("trt", media_uri(&uri)) }
            }
            _ => return None,
        })
    }
}

fn media_uri(uri: &str) -> String {
    format!(
        "<trt:MediaUri><tt:Uri>{uri}</tt:Uri><tt:InvalidAfterConnect>false</tt:InvalidAfterConnect><tt:Timeout>PT60S</tt:Timeout></trt:MediaUri>"
    )
}

fn first_profile(token: &str, encoding: &str, width: u32, height: u32) -> String {
    format!(
        "<trt:Profiles fixed=\"true\" token=\"{token}\"><tt:Name>{token}Stream</tt:Name><tt:VideoSourceConfiguration token=\"v\"><tt:Name>source</tt:Name><tt:Bounds x=\"0\" y=\"0\" width=\"1920\" height=\"1080\"/></tt:VideoSourceConfiguration><tt:VideoEncoderConfiguration token=\"e\"><tt:Name>encoder</tt:Name><tt:Encoding>{encoding}</tt:Encoding><tt:Resolution><tt:Width>{width}</tt:Width><tt:Height>{height}</tt:Height></tt:Resolution><tt:RateControl><tt:FrameRateLimit>25</tt:FrameRateLimit><tt:EncodingInterval>1</tt:EncodingInterval></tt:RateControl><tt:H264><tt:GovLength>50</tt:GovLength></tt:H264></tt:VideoEncoderConfiguration></trt:Profiles>"
    )
}

fn second_profile(token: &str, encoding: &str, width: u32, height: u32) -> String {
    format!(
        "<tr2:Profiles token=\"{token}\" fixed=\"true\"><tr2:Name>{token}Stream</tr2:Name><tr2:Configurations><tr2:VideoEncoder token=\"e\" GovLength=\"250\" Profile=\"Main\"><tt:Name>encoder</tt:Name><tt:Encoding>{encoding}</tt:Encoding><tt:Resolution><tt:Width>{width}</tt:Width><tt:Height>{height}</tt:Height></tt:Resolution><tt:RateControl ConstantBitRate=\"false\"><tt:FrameRateLimit>25</tt:FrameRateLimit></tt:RateControl></tr2:VideoEncoder></tr2:Configurations></tr2:Profiles>"
    )
}

impl XmlStyle {
    /// A whole message in this style, from a body in the usual one.
    fn dress(self, body: &str) -> String {
        let namespaces = "xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\" xmlns:tds=\"http://www.onvif.org/ver10/device/wsdl\" xmlns:trt=\"http://www.onvif.org/ver10/media/wsdl\" xmlns:tr2=\"http://www.onvif.org/ver20/media/wsdl\" xmlns:tt=\"http://www.onvif.org/ver10/schema\"";
        let usual = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<s:Envelope {namespaces}><s:Header/><s:Body>{body}</s:Body></s:Envelope>"
        );
        let prefixes = [("s", "SOAP-ENV"), ("tds", "ns1"), ("trt", "ns2"), ("tr2", "ns3"), ("tt", "ns4")];
        match self {
            Self::Usual => usual,
            Self::Numbered => prefixes.iter().fold(usual, |text, (old, new)| {
                text.replace(&format!("<{old}:"), &format!("<{new}:"))
                    .replace(&format!("</{old}:"), &format!("</{new}:"))
                    .replace(&format!("xmlns:{old}="), &format!("xmlns:{new}="))
            }),
            Self::Bare => prefixes.iter().fold(usual.replace(namespaces, ""), |text, (old, _)| {
                text.replace(&format!("<{old}:"), "<").replace(&format!("</{old}:"), "</")
            }),
        }
    }
}

/// Name of the first element in the body, without its prefix.
fn call_of(message: &str) -> String {
    let body = message.split_once("Body").map_or("", |(_, rest)| rest);
    let element = body.split('<').nth(1).unwrap_or_default();
    let name = element.split([' ', '>', '/']).next().unwrap_or_default();
    name.rsplit(':').next().unwrap_or_default().to_owned()
}

/// Text of the first element of this name, whatever its prefix.
fn text_of(message: &str, name: &str) -> Option<String> {
    message.split('<').find_map(|element| {
        let (tag, text) = element.split_once('>')?;
        let tag = tag.split(' ').next()?;
        (tag.rsplit(':').next() == Some(name) && !tag.starts_with('/')).then(|| text.to_owned())
    })
}

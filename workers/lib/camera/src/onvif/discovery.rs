//! WS-Discovery: a question to all cameras of the network, and what they reply.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

use super::soap::plain;
use super::xml::XmlElement;
use crate::address::percent_decode;

/// Port of WS-Discovery.
pub(super) const PORT: u16 = 3702;
/// Multicast group of WS-Discovery.
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
/// Largest reply, in bytes: a datagram cannot be larger.
const MAX_REPLY_BYTES: usize = 65_536;
/// Most replies that are read on one interface; whoever floods the network hides the others.
const MAX_REPLIES: usize = 1024;
/// Most devices that are found.
const MAX_DEVICES: usize = 512;
/// Times between the sendings of the question: datagrams get lost, and cameras that sleep miss the first.
const REPEATS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(900)];
/// Most words of a reply's types, scopes or addresses that are read.
const MAX_WORDS: usize = 128;

/// A device that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredDevice {
    /// Address of its device service, with the host that the reply came from.
    pub address: Url,
    /// Its name, as it was set there or by its maker; absent if it does not tell.
    pub name: Option<String>,
    /// Its model, likewise.
    pub hardware: Option<String>,
    /// Its lasting identity.
    endpoint: String,
}

/// What a search brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiscoverySearch {
    /// Devices, ordered by address.
    pub devices: Vec<DiscoveredDevice>,
    /// Own addresses from which was searched, one for each network.
    pub searched_from: Vec<IpAddr>,
}

/// Why nothing could be searched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("could not search the network: {why}")]
pub struct SearchError {
    /// The system's reason.
    pub why: String,
}

/// Where cameras listen for questions to all of them.
pub fn multicast_group() -> SocketAddr {
    (GROUP, PORT).into()
}

/// Asks for cameras at this address, which is mostly the [`multicast_group`], and waits for their replies. A multicast
/// goes out on every network of this machine (IPv4).
///
/// # Errors
/// The question could be sent on no network.
pub async fn search(to: SocketAddr, wait: Duration) -> Result<DiscoverySearch, SearchError> {
    let deadline = Instant::now() + wait;
    let sources = if to.ip().is_multicast() { own_addresses() } else { Vec::new() };
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED) };
    let sources = if sources.is_empty() { vec![any] } else { sources };
    let mut searching = JoinSet::new();
    for source in sources {
        searching.spawn(async move { (source, search_from(source, to, deadline).await) });
    }
    let (mut found, mut why) = (DiscoverySearch::default(), "no network".to_owned());
    while let Some(Ok((source, devices))) = searching.join_next().await {
        match devices {
            Ok(devices) => {
                found.searched_from.push(source);
                found.devices.extend(devices);
            }
            Err(error) => why = format!("from {source} to {to}: {error}"),
        }
    }
    if found.searched_from.is_empty() {
        return Err(SearchError { why });
    }
    found.searched_from.sort();
    found.devices.sort_by_key(|device| (device.address.host().map(|host| host.to_owned()), device.address.port()));
    // A camera that is reached by two networks, or says the same twice, is one.
    let mut known = BTreeSet::new();
    found.devices.retain(|device| known.insert(device.endpoint.clone()));
    let mut known = BTreeSet::new();
    found.devices.retain(|device| known.insert(device.address.clone()));
    found.devices.truncate(MAX_DEVICES);
    Ok(found)
}

async fn search_from(source: IpAddr, to: SocketAddr, deadline: Instant) -> std::io::Result<Vec<DiscoveredDevice>> {
    let socket = UdpSocket::bind((source, 0)).await?;
    if let (IpAddr::V4(source), true) = (source, to.ip().is_multicast() && !source.is_unspecified()) {
        SockRef::from(&socket).set_multicast_if_v4(&source)?;
    }
    // One question for each way in which cameras describe themselves: some answer to the one, some to the other.
    let types = ["dn:NetworkVideoTransmitter", "tds:Device"];
    let questions = types.map(|kind| (format!("urn:uuid:{}", Uuid::now_v7()), kind));
    let messages = questions.each_ref().map(|(id, kind)| probe(id, kind));
    let ids = questions.map(|(id, _)| id);
    let asking = async {
        for pause in REPEATS {
            tokio::time::sleep(pause).await;
            for message in &messages {
                socket.send_to(message.as_bytes(), to).await?;
            }
        }
        Ok::<_, std::io::Error>(())
    };
    let mut devices = Vec::new();
    let listening = async {
        let mut buffer = vec![0; MAX_REPLY_BYTES];
        for _ in 0..MAX_REPLIES {
            // An error here is that of an earlier sending, such as a closed port.
            let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
            devices.extend(read_reply(buffer.get(..length).unwrap_or_default(), from.ip(), &ids));
        }
    };
    // Until the time is over, or the question cannot be sent.
    let asked_in_vain = async {
        let asked = asking.await;
        if asked.is_ok() {
            std::future::pending::<()>().await;
        }
        asked
    };
    tokio::select! {
        asked = asked_in_vain => asked?,
        () = listening => {}
        () = tokio::time::sleep_until(deadline) => {}
    }
    Ok(devices)
}

/// Addresses of this machine's networks.
fn own_addresses() -> Vec<IpAddr> {
    use nix::net::if_::InterfaceFlags;
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let wanted = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_MULTICAST;
    let mut found: Vec<IpAddr> = interfaces
        .filter(|interface| interface.flags.contains(wanted) && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK))
        .filter_map(|interface| Some(IpAddr::V4(interface.address?.as_sockaddr_in()?.ip())))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// The question: SOAP 1.2 with addressing, as WS-Discovery of April 2005 has it.
fn probe(id: &str, kind: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\" xmlns:a=\"http://schemas.xmlsoap.org/ws/2004/08/addressing\" xmlns:d=\"http://schemas.xmlsoap.org/ws/2005/04/discovery\" xmlns:dn=\"http://www.onvif.org/ver10/network/wsdl\" xmlns:tds=\"http://www.onvif.org/ver10/device/wsdl\"><s:Header><a:Action s:mustUnderstand=\"1\">http://schemas.xmlsoap.org/ws/2005/04/discovery/Probe</a:Action><a:MessageID>{id}</a:MessageID><a:ReplyTo><a:Address>http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:Address></a:ReplyTo><a:To s:mustUnderstand=\"1\">urn:schemas-xmlsoap-org:ws:2005:04:discovery</a:To></s:Header><s:Body><d:Probe><d:Types>{kind}</d:Types></d:Probe></s:Body></s:Envelope>"
    )
}

/// The devices of a reply from this address; none if it replies to another question, or is no device of ONVIF.
pub(super) fn read_reply(bytes: &[u8], from: IpAddr, questions: &[String]) -> Vec<DiscoveredDevice> {
    let Ok(reply) = XmlElement::read(bytes) else { return Vec::new() };
    // Some cameras do not say what they reply to.
    if reply.text_of("RelatesTo").is_some_and(|id| !questions.iter().any(|question| question.eq_ignore_ascii_case(id)))
    {
        return Vec::new();
    }
    reply.find_all("ProbeMatch").into_iter().take(MAX_WORDS).filter_map(|found| device(found, from)).collect()
}

fn device(found: &XmlElement, from: IpAddr) -> Option<DiscoveredDevice> {
    let words = |name: &str| found.text_of(name).unwrap_or_default().split_whitespace().take(MAX_WORDS);
    let is_camera = words("Types").any(|kind| kind.ends_with("NetworkVideoTransmitter"));
    let is_onvif = words("Scopes").any(|scope| scope.starts_with("onvif://www.onvif.org/"));
    if !is_camera && !is_onvif {
        return None;
    }
    let mut addresses: Vec<Url> = words("XAddrs").filter_map(|text| service_address(text, from)).collect();
    // Without encryption first, whose certificates nobody trusts; logins are sent as digests either way.
    addresses.sort_by_key(|url| url.scheme() != "http");
    let address = addresses.into_iter().next()?;
    let scope = |name: &str| {
        let value = words("Scopes").find_map(|scope| scope.strip_prefix("onvif://www.onvif.org/")?.strip_prefix(name));
        value.map(|value| plain(&percent_decode(value))).filter(|text| !text.is_empty())
    };
    let endpoint = found.find_path(&["EndpointReference", "Address"]).map(|element| plain(element.text()));
    Some(DiscoveredDevice {
        endpoint: endpoint.unwrap_or_else(|| address.to_string()),
        address,
        name: scope("name/"),
        hardware: scope("hardware/"),
    })
}

/// The address with the host that the reply came from: a camera may have several, of which others cannot be reached from
/// here, and may say anything.
fn service_address(text: &str, from: IpAddr) -> Option<Url> {
    let mut url = Url::parse(text).ok().filter(|url| ["http", "https"].contains(&url.scheme()))?;
    url.set_ip_host(from).ok()?;
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENDER: &str = "192.168.1.20";

    fn reply(inside: &str) -> Vec<DiscoveredDevice> {
        let text = format!(
            "<S:Envelope><S:Header><A:RelatesTo>urn:uuid:ask</A:RelatesTo></S:Header><S:Body><D:ProbeMatches>{inside}</D:ProbeMatches></S:Body></S:Envelope>"
        );
        read_reply(text.as_bytes(), SENDER.parse().unwrap(), &["urn:uuid:ASK".to_owned()])
    }

    fn found(types: &str, scopes: &str, addresses: &str) -> String {
        format!(
            "<D:ProbeMatch><A:EndpointReference><A:Address>urn:uuid:cam</A:Address></A:EndpointReference><D:Types>{types}</D:Types><D:Scopes>{scopes}</D:Scopes><D:XAddrs>{addresses}</D:XAddrs></D:ProbeMatch>"
        )
    }

    #[test]
    fn a_camera_is_found_at_the_address_that_replied() {
        let scopes = "onvif://www.onvif.org/type/video_encoder onvif://www.onvif.org/name/AXIS%20M1065 onvif://www.onvif.org/hardware/M1065-L onvif://www.onvif.org/location/";
        let addresses = "https://169.254.1.2/onvif/device_service http://169.254.1.2:8080/onvif/device_service";
        let devices = reply(&found("dn:NetworkVideoTransmitter tds:Device", scopes, addresses));
        let expected = DiscoveredDevice {
            address: "http://192.168.1.20:8080/onvif/device_service".parse().unwrap(),
            name: Some("AXIS M1065".into()),
            hardware: Some("M1065-L".into()),
            endpoint: "urn:uuid:cam".into(),
        };
        assert_eq!(devices, [expected]);
    }

    #[test]
    fn what_is_no_camera_or_no_reply_to_us_is_ignored() {
        let camera = found("dn:NetworkVideoTransmitter", "", "http://c/onvif/device_service");
        assert_eq!(reply(&camera).len(), 1);
        assert_eq!(reply(&found("wprt:PrintDeviceType", "ldap:///ou=x", "http://c/print")), []);
        assert_eq!(reply(&found("tds:Device", "onvif://www.onvif.org/name/x", "ftp://c/ file:///etc/passwd x")), []);
        let sender = SENDER.parse().unwrap();
        let other = format!("<E><H><RelatesTo>urn:uuid:other</RelatesTo></H><B>{camera}</B></E>");
        assert_eq!(read_reply(other.as_bytes(), sender, &["urn:uuid:ask".to_owned()]), []);
        let silent = format!("<E><B>{camera}</B></E>");
        assert_eq!(read_reply(silent.as_bytes(), sender, &["urn:uuid:ask".to_owned()]).len(), 1);
        assert_eq!(read_reply(b"\0\xff", sender, &[]), []);
    }

    #[test]
    fn one_datagram_brings_no_flood_of_devices() {
        let one = found("dn:NetworkVideoTransmitter", "", &"http://c/x ".repeat(100));
        let devices = reply(&one.repeat(1000));
        assert!(devices.len() <= MAX_WORDS, "{}", devices.len());
    }

    #[test]
    fn the_question_is_whole_xml() {
        let read = XmlElement::read(probe("urn:uuid:1", "dn:NetworkVideoTransmitter").as_bytes()).unwrap();
        assert_eq!(
            (read.text_of("MessageID"), read.text_of("Types")),
            (Some("urn:uuid:1"), Some("dn:NetworkVideoTransmitter"))
        );
    }
}

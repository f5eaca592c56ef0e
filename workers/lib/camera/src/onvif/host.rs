//! One host that is asked for its ONVIF services.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use tokio::task::JoinSet;
use url::{Host, Url};

use super::discovery::{self, PORT};
use super::{OnvifCamera, OnvifError, ask};
use crate::{CameraCredentials, CameraError};

/// Where device services answer by the standard.
const PATH: &str = "/onvif/device_service";
/// Ports at which makers have them.
const PORTS: [u16; 6] = [80, 8080, 8000, 8899, 2020, 5000];
/// How long the host may take to tell of its ports.
const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);

/// A host that a person names: `camera.local`, `192.168.1.20:8080`, or the whole address of its device service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnvifHost {
    /// Address of the device service, if a port or a path was given; else that of the usual port.
    address: Url,
    is_exact: bool,
}

/// Why a text names no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Not an address.
    #[error("it is no host; use HOST, HOST:PORT or http://HOST:PORT/onvif/device_service")]
    Invalid,
    /// Another scheme, such as that of a stream.
    #[error(
        "it has another scheme than http:// and https://; use HOST, HOST:PORT or http://HOST:PORT/onvif/device_service"
    )]
    Scheme,
    /// A login in the address.
    #[error("it holds a login; use --user NAME with --password-env VARIABLE or --password-file FILE")]
    Login,
}

impl FromStr for OnvifHost {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let text = text.trim();
        let is_plain = !text.contains("://");
        let mut address = match is_plain {
            true => Url::parse(&format!("http://{text}")),
            false => Url::parse(text),
        }
        .map_err(|_| HostError::Invalid)?;
        if !["http", "https"].contains(&address.scheme()) {
            return Err(HostError::Scheme);
        }
        if !address.username().is_empty() || address.password().is_some() {
            return Err(HostError::Login);
        }
        let has_path = !["", "/"].contains(&address.path());
        if !has_path {
            address.set_path(PATH);
        }
        // A port that is the usual one is not kept by an address, but was given.
        let names_port = text.trim_start_matches("http://").trim_start_matches("https://").trim_end_matches('/');
        let names_port = names_port.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        Ok(Self { is_exact: has_path || names_port || address.scheme() == "https", address })
    }
}

/// Asks a host: at the port that was given, else at those it tells of and those that makers use.
///
/// # Errors
/// Nothing there speaks ONVIF.
pub async fn locate(host: &OnvifHost, login: Option<&CameraCredentials>) -> Result<OnvifCamera, OnvifError> {
    if host.is_exact {
        return ask(&host.address, login).await;
    }
    let mut addresses = told_addresses(&host.address).await;
    let usual = PORTS.map(|port| {
        let mut address = host.address.clone();
        let _http_has_ports = address.set_port(Some(port));
        address
    });
    for address in usual {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    // Without the login, which only what speaks ONVIF shall get.
    let mut asking: JoinSet<_> = addresses
        .into_iter()
        .enumerate()
        .map(|(rank, address)| async move { (rank, ask(&address, None).await) })
        .collect();
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    while let Some(Ok((rank, answer))) = asking.join_next().await {
        match answer {
            Ok(camera) => found.push((rank, camera)),
            Err(error) => failed.push((is_nothing_there(&error), rank, error)),
        }
    }
    found.sort_by_key(|(rank, _)| *rank);
    match (found.into_iter().next(), login) {
        (Some((_, camera)), None) => Ok(camera),
        (Some((_, camera)), Some(login)) => ask(&camera.address, Some(login)).await,
        (None, _) => {
            // A port that answers something says more than those where nothing is.
            failed.sort_by_key(|(is_nothing_there, rank, _)| (*is_nothing_there, *rank));
            let first = failed.into_iter().next().map(|(_, _, error)| error);
            let (address, why) = (host.address.to_string(), "it was not asked".into());
            Err(first.unwrap_or_else(|| CameraError::Unreachable { address, why }.into()))
        }
    }
}

fn is_nothing_there(error: &OnvifError) -> bool {
    matches!(error, OnvifError::Connection(CameraError::Unreachable { .. } | CameraError::Timeout { .. }))
}

/// Addresses of device services that the host itself tells, by a question to it alone.
async fn told_addresses(address: &Url) -> Vec<Url> {
    let Some(to) = resolve(address).await else { return Vec::new() };
    let found = discovery::search(to, PROBE_TIMEOUT).await.unwrap_or_default();
    let with_name = |device: discovery::DiscoveredDevice| {
        let mut told = device.address;
        // The host as it was named: its certificate may have that name.
        told.set_host(address.host_str()).ok().map(|()| told)
    };
    found.devices.into_iter().filter_map(with_name).collect()
}

async fn resolve(address: &Url) -> Option<SocketAddr> {
    match address.host()? {
        Host::Ipv4(ip) => Some((ip, PORT).into()),
        Host::Ipv6(ip) => Some((ip, PORT).into()),
        Host::Domain(name) => tokio::net::lookup_host((name, PORT)).await.ok()?.next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_with_and_without_ports() {
        let read = |text: &str| text.parse::<OnvifHost>().map(|host| (host.address.to_string(), host.is_exact));
        let at = |address: &str, is_exact| Ok((address.to_owned(), is_exact));
        assert_eq!(read("camera.local"), at("http://camera.local/onvif/device_service", false));
        assert_eq!(read(" 10.0.0.5:8080 "), at("http://10.0.0.5:8080/onvif/device_service", true));
        assert_eq!(read("10.0.0.5:80"), at("http://10.0.0.5/onvif/device_service", true));
        assert_eq!(read("[fe80::1]"), at("http://[fe80::1]/onvif/device_service", false));
        assert_eq!(read("http://c/"), at("http://c/onvif/device_service", false));
        assert_eq!(read("https://c"), at("https://c/onvif/device_service", true));
        assert_eq!(read("http://c/other"), at("http://c/other", true));
        assert_eq!(read("rtsp://c/live"), Err(HostError::Scheme));
        assert_eq!(read("http://admin:secret@c/"), Err(HostError::Login));
        for text in ["", "a b", "http://", "c:99999"] {
            assert_eq!(read(text), Err(HostError::Invalid), "{text:?}");
        }
    }
}

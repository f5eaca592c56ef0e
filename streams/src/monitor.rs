//! A server's monitoring pages: its health, the clients it disconnected, and its links.
//! They require no password, so they belong on loopback or on a network of the servers' own.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::connect::without_credentials;
use crate::error::CarryError;

const PAGE_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest part of a page that is read; closed connections are about 600 bytes each.
const MAX_PAGE_BYTES: usize = 8 * 1024 * 1024;
/// Closed connections that are examined, the latest first; the server itself keeps 10,000.
const MAX_CLOSED_CONNECTIONS: usize = 2000;

/// Health of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It works.
    Well,
    /// A stream met a full disk and stores nothing until the server is restarted; the server's message.
    CannotWrite(String),
    /// Another problem; the server's message.
    Unwell(String),
}

/// Parses the response of `/healthz`, head and body. Pure.
pub fn parse_health(response: &str) -> Health {
    #[derive(Deserialize)]
    struct HealthzReply {
        #[serde(default)]
        error: String,
        #[serde(default)]
        errors: Vec<HealthzFault>,
    }
    #[derive(Deserialize)]
    struct HealthzFault {
        #[serde(default)]
        error: String,
    }
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((response, ""));
    if head.split(' ').nth(1) == Some("200") {
        return Health::Well;
    }
    let message = match serde_json::from_str::<HealthzReply>(body) {
        Ok(page) => {
            let all = std::iter::once(page.error).chain(page.errors.into_iter().map(|fault| fault.error));
            all.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ")
        }
        Err(_) => body.chars().take(500).collect(),
    };
    match names_write_error(&message) {
        true => Health::CannotWrite(message),
        false => Health::Unwell(message),
    }
}

/// Whether a stream cannot write any more. The server has no code for it.
fn names_write_error(message: &str) -> bool {
    message.contains("write error")
}

/// Health of the server at a monitoring address; `None` if it does not respond.
pub async fn health_at(address: &str) -> Option<Health> {
    let _already_set = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().timeout(PAGE_TIMEOUT).no_proxy().build().ok()?;
    let response = client.get(format!("{}/healthz", address.trim_end_matches('/'))).send().await.ok()?;
    let code = response.status().as_u16();
    let body = response.text().await.ok()?;
    Some(parse_health(&format!("HTTP/1.1 {code} \r\n\r\n{body}")))
}

/// A configured link of a server to another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteLink {
    /// Addresses of the other server, `host:port` each.
    pub addresses: Vec<String>,
    /// Account of this server in which the link ends.
    pub account: String,
}

/// A server's links to others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerLinks {
    /// Links in its configuration.
    pub remotes: Vec<RemoteLink>,
    /// Names of the servers that are connected at present.
    pub joined: Vec<String>,
    /// The server's JetStream domain; empty without one.
    pub domain: String,
    /// Bytes its streams may hold together; absent where the server derives it from the free space at its start.
    pub max_store_bytes: Option<u64>,
}

/// Links of the server at a monitoring address.
///
/// # Errors
/// The pages cannot be read.
pub async fn fetch_links(address: &str) -> Result<ServerLinks, CarryError> {
    #[derive(Deserialize)]
    struct Varz {
        #[serde(default)]
        leaf: VarzLeaf,
        #[serde(default)]
        jetstream: VarzJetStream,
    }
    #[derive(Deserialize, Default)]
    struct VarzLeaf {
        #[serde(default)]
        remotes: Vec<VarzRemote>,
    }
    #[derive(Deserialize)]
    struct VarzRemote {
        #[serde(default)]
        urls: Vec<String>,
        #[serde(default)]
        local_account: String,
    }
    #[derive(Deserialize, Default)]
    struct VarzJetStream {
        #[serde(default)]
        config: VarzJetStreamConfig,
    }
    #[derive(Deserialize, Default)]
    struct VarzJetStreamConfig {
        #[serde(default)]
        domain: String,
        #[serde(default)]
        max_storage: i64,
    }
    #[derive(Deserialize)]
    struct Leafz {
        #[serde(default)]
        leafs: Vec<LeafzConnection>,
    }
    #[derive(Deserialize)]
    struct LeafzConnection {
        #[serde(default)]
        name: String,
    }
    let (varz, leafz): (Varz, Leafz) = (page(address, "varz").await?, page(address, "leafz").await?);
    let remotes = varz.leaf.remotes.into_iter();
    Ok(ServerLinks {
        remotes: remotes
            .map(|VarzRemote { urls, local_account }| RemoteLink {
                addresses: urls.iter().map(|url| host_and_port(url)).collect(),
                account: local_account,
            })
            .collect(),
        joined: leafz.leafs.into_iter().map(|leaf| leaf.name).collect(),
        domain: varz.jetstream.config.domain,
        max_store_bytes: u64::try_from(varz.jetstream.config.max_storage).ok(),
    })
}

/// Host and port of a leaf address, without scheme and password; port 7422 where it names none. Pure.
fn host_and_port(url: &str) -> String {
    let host = without_credentials(url);
    let host = host.split_once("://").map_or(&*host, |(_, host)| host).trim_end_matches('/');
    // An IPv6 address has colons of its own, in brackets.
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if has_port { host.to_owned() } else { format!("{host}:7422") }
}

/// How many of the recently closed connections were closed for a message over the server's limit; `None` if the
/// pages cannot be read.
pub async fn fetch_oversized_connections(address: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Connz {
        #[serde(default)]
        connections: Vec<ConnzConnection>,
    }
    #[derive(Deserialize)]
    struct ConnzConnection {
        #[serde(default)]
        reason: String,
    }
    let closed: Connz =
        page(address, &format!("connz?state=closed&sort=stop&limit={MAX_CLOSED_CONNECTIONS}")).await.ok()?;
    let oversized = closed.connections.iter().filter(|closed| closed.reason == "Maximum Message Payload Exceeded");
    Some(oversized.count() as u64)
}

async fn page<P: DeserializeOwned>(address: &str, path: &str) -> Result<P, CarryError> {
    let url = format!("{}/{path}", address.trim_end_matches('/'));
    let what = format!("reading {}/{path}", without_credentials(address));
    // The HTTP client uses the process's TLS provider even without encryption, and panics without one.
    let _already_set = rustls::crypto::ring::default_provider().install_default();
    let read = async {
        let client = reqwest::Client::builder().timeout(PAGE_TIMEOUT).no_proxy().build()?;
        let mut response = client.get(&url).send().await?.error_for_status()?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > MAX_PAGE_BYTES {
                break;
            }
            body.extend_from_slice(&chunk);
        }
        Ok::<_, reqwest::Error>(body)
    };
    let body = read.await.map_err(CarryError::broker(what.clone()))?;
    serde_json::from_slice(&body).map_err(CarryError::broker(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_link_is_shown_without_its_password() {
        assert_eq!(host_and_port("nats-leaf://site:secret@hub.example:7000"), "hub.example:7000");
        assert_eq!(host_and_port("hub.example"), "hub.example:7422");
        assert_eq!(host_and_port("tls://[2001:db8::1]"), "[2001:db8::1]:7422");
        assert_eq!(host_and_port("[::1]:7000"), "[::1]:7000");
    }

    #[test]
    fn a_store_that_cannot_be_written_is_distinguished_from_other_problems() {
        let answer =
            |code: &str, body: &str| parse_health(&format!("HTTP/1.0 {code}\r\nContent-Type: json\r\n\r\n{body}"));
        assert_eq!(answer("200 OK", r#"{"status":"ok"}"#), Health::Well);
        let full = r#"{"status":"unavailable","status_code":503,"error":"JetStream stream '$G > IMAGES' write error: write /s/1.blk: no space left on device"}"#;
        assert!(matches!(answer("503 Service Unavailable", full), Health::CannotWrite(_)));
        let starting = r#"{"status":"unavailable","error":"JetStream is not current"}"#;
        assert!(matches!(answer("503 Service Unavailable", starting), Health::Unwell(_)));
        assert!(matches!(parse_health(""), Health::Unwell(_)));
    }
}

//! What a server says of itself on its monitoring pages: how it is, whom it sent away, and what its links deny.
//! Nothing there asks for a password, so the pages belong on loopback or on a network of the servers' own.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::connect::without_credentials;
use crate::error::CarryError;

const PATIENCE: Duration = Duration::from_secs(3);
/// A page is cut off after this; closed connections are about 600 bytes each.
const MAX_PAGE_BYTES: usize = 8 * 1024 * 1024;
/// Closed connections that are looked at, the latest first; the server itself remembers 10,000.
const CLOSED: usize = 2000;

/// What a server may say about its health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It takes work.
    Well,
    /// A stream met a disk without room and stores nothing more, until the server is started again.
    CannotWrite(String),
    /// Something else, in its own words.
    Unwell(String),
}

/// Reads the answer of `/healthz`: the head of the response and its body. Pure.
pub fn parse_health(answer: &str) -> Health {
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
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    if head.split(' ').nth(1) == Some("200") {
        return Health::Well;
    }
    let words = match serde_json::from_str::<HealthzReply>(body) {
        Ok(page) => {
            let all = std::iter::once(page.error).chain(page.errors.into_iter().map(|fault| fault.error));
            all.filter(|words| !words.is_empty()).collect::<Vec<_>>().join("; ")
        }
        Err(_) => body.chars().take(500).collect(),
    };
    match names_write_error(&words) {
        true => Health::CannotWrite(words),
        false => Health::Unwell(words),
    }
}

/// Whether a stream cannot write any more. The server has no code for it.
fn names_write_error(words: &str) -> bool {
    words.contains("write error")
}

/// What the server at a monitoring address says of its health; absent when it does not answer.
pub async fn health_at(address: &str) -> Option<Health> {
    let _already_set = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().ok()?;
    let answer = client.get(format!("{}/healthz", address.trim_end_matches('/'))).send().await.ok()?;
    let code = answer.status().as_u16();
    let body = answer.text().await.ok()?;
    Some(parse_health(&format!("HTTP/1.1 {code} \r\n\r\n{body}")))
}

/// A link of a site's server to another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteLink {
    /// Where the other server is, `host:port` each.
    pub addresses: Vec<String>,
    /// The account of this server in which it ends.
    pub account: String,
}

/// How a server is joined to others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerLinks {
    /// The links it is to have, by its configuration.
    pub remotes: Vec<RemoteLink>,
    /// Names of the servers it is joined to at this moment.
    pub joined: Vec<String>,
    /// Its own JetStream domain; empty without one.
    pub domain: String,
    /// Bytes its streams may hold together; absent where it decides by what is free at its start.
    pub max_store_bytes: Option<u64>,
}

/// How the server at a monitoring address is joined to others.
///
/// # Errors
/// That the pages cannot be read.
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

/// Host and port of a leaf's address, without scheme and password; 7422 where it names no port. Pure.
fn host_and_port(url: &str) -> String {
    let host = without_credentials(url);
    let host = host.split_once("://").map_or(&*host, |(_, host)| host).trim_end_matches('/');
    // An address of version 6 has colons of its own, in brackets.
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if has_port { host.to_owned() } else { format!("{host}:7422") }
}

/// How many of the connections that the server at a monitoring address closed lately were closed for a message above its
/// limit; absent where the pages cannot be read.
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
    let closed: Connz = page(address, &format!("connz?state=closed&sort=stop&limit={CLOSED}")).await.ok()?;
    let for_size = closed.connections.iter().filter(|closed| closed.reason == "Maximum Message Payload Exceeded");
    Some(for_size.count() as u64)
}

async fn page<P: DeserializeOwned>(address: &str, path: &str) -> Result<P, CarryError> {
    let url = format!("{}/{path}", address.trim_end_matches('/'));
    let what = format!("reading {}/{path}", without_credentials(address));
    // The client takes the process's provider also where nothing is encrypted, and panics without one.
    let _already_set = rustls::crypto::ring::default_provider().install_default();
    let read = async {
        let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build()?;
        let mut answer = client.get(&url).send().await?.error_for_status()?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
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
    fn where_a_link_leads_is_told_without_its_password() {
        assert_eq!(host_and_port("nats-leaf://site:secret@hub.example:7000"), "hub.example:7000");
        assert_eq!(host_and_port("hub.example"), "hub.example:7422");
        assert_eq!(host_and_port("tls://[2001:db8::1]"), "[2001:db8::1]:7422");
        assert_eq!(host_and_port("[::1]:7000"), "[::1]:7000");
    }

    #[test]
    fn a_store_that_cannot_be_written_is_told_from_other_ills() {
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

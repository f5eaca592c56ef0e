//! Faults of a site's server, streams, consumers and link, each with a name, a reason and a remedy. The same check
//! serves `status`, `doctor`, and the janitor, whose heartbeat turns it into a metric.

use std::path::Path;
use std::time::Duration;

use schemas::{FaultKind, FaultNote, SiteName};

use crate::connect::Bus;
use crate::error::{CarryError, error_chain};
use crate::monitor::{self, ServerLinks};
use crate::server;
use crate::{image_refusal, reader, topology};

/// Timeout of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// How long messages that the server dropped are reported.
const DROPPED_WITHIN: Duration = Duration::from_secs(3600);
/// Number of consumers that workers and commands of a site may temporarily have on one stream.
const TEMPORARY_CONSUMERS: i64 = 32;

/// What to check.
pub struct Checkup<'a> {
    /// Connection to the site's own JetStream domain.
    pub bus: &'a Bus,
    /// Connection to the cloud over the leaf link; absent where site and cloud share a server.
    pub cloud: Option<&'a Bus>,
    /// JetStream domain of the cloud, from the settings.
    pub cloud_domain: Option<&'a str>,
    /// Site to check.
    pub site: &'a SiteName,
    /// Address of the monitoring pages of the site's server; absent where they cannot be read.
    pub monitor: Option<&'a str>,
    /// Store of the site's server; absent unless the server is ours and on this machine.
    pub store: Option<&'a Path>,
}

impl Checkup<'_> {
    /// All faults found; empty if everything is in order.
    pub async fn find_faults(&self) -> Vec<FaultNote> {
        let mut faults = Vec::new();
        if let Some(address) = self.monitor
            && let Some(monitor::Health::CannotWrite(reason)) = monitor::health_at(address).await
        {
            let remedy = "free space on its disk; `tributary up` then restarts it, and any other server must be restarted by whoever runs it";
            faults.push(FaultNote::new(
                "store_cannot_write",
                format!("nats-server has stored nothing since its disk was full: {reason}"),
                remedy,
            ));
        }
        if let Ok(Some(reason)) = image_refusal::refusal_reason(self.bus).await {
            let remedy =
                "free space on the disk of the site's nats-server; images are then accepted again automatically";
            faults.push(FaultNote::new("images_refused", format!("new images are refused: {reason}"), remedy));
        }
        faults.extend(self.store.and_then(dropped_fault).into_iter().chain(self.store.and_then(refused_fault)));
        let (streams, consumers, account) = tokio::join!(self.streams(), self.consumers(), self.account());
        faults.extend(streams.into_iter().chain(consumers).chain(account));
        let links = match self.monitor {
            Some(address) => monitor::fetch_links(address).await.ok(),
            None => None,
        };
        if let Some(links) = &links {
            faults.extend(self.bus.account().await.and_then(|account| link_fault(links, &account)));
        }
        faults.extend(self.link(links.as_ref()).await);
        faults
    }

    /// Faults of streams that are missing, do not respond, or forbid what workers must do.
    async fn streams(&self) -> Vec<FaultNote> {
        let buckets = [format!("KV_{}", topology::FLEET), format!("KV_{}", topology::LEDGER)];
        let names = [topology::IMAGES, topology::ANSWERS, topology::OUTBOX, topology::DEAD];
        // All at once: each that does not respond takes the whole timeout.
        let lookups = names.into_iter().chain(buckets.iter().map(String::as_str)).map(async |name| {
            match tokio::time::timeout(REQUEST_TIMEOUT, reader::stream_restriction(self.bus, name)).await {
                // Buckets forbid deleting by design; the others must allow deleting and purging.
                Ok(Ok(Some(flag))) if !name.starts_with("KV_") => Some(FaultNote::new(
                    "stream_forbids",
                    format!("stream {name} has {flag} set, so nothing can be deleted and it will fill up"),
                    "the server cannot unset it: copy the stream, or delete it and run `tributary setup`",
                )),
                Ok(Ok(_)) => None,
                Ok(Err(CarryError::Missing { .. })) => Some(FaultNote::new(
                    "stream_missing",
                    format!("stream {name} does not exist"),
                    "create it with `tributary setup`",
                )),
                Ok(Err(error)) if !self.bus.is_connected() => {
                    Some(FaultNote::new(FaultKind::ServerAway, error_chain(&error), "start the site's nats-server"))
                }
                Ok(Err(_)) | Err(_) => Some(FaultNote::new(
                    "stream_silent",
                    format!("stream {name} does not respond although its server does: its only replica may be on a server that is down"),
                    "restart that server; if it is lost for good, remove it (`nats server cluster peer-remove`) and run `tributary setup`",
                )),
            }
        });
        let mut faults: Vec<FaultNote> = futures::future::join_all(lookups).await.into_iter().flatten().collect();
        // A server that is down is one fault, not one per stream.
        if let Some(away) = faults.iter().position(|fault| fault.kind == FaultKind::ServerAway) {
            faults = vec![faults.swap_remove(away)];
        }
        faults
    }

    /// Faults of consumers that deliver nothing.
    async fn consumers(&self) -> Vec<FaultNote> {
        let required = [
            (topology::IMAGES, topology::recognizer_durable(self.site), "no image reaches a recognizer"),
            (
                topology::ANSWERS,
                topology::promises_durable(self.site),
                "no provisional answer becomes final at its deadline",
            ),
        ];
        let mut faults = Vec::new();
        for (stream, durable, effect) in required {
            let Ok(Ok(states)) = tokio::time::timeout(REQUEST_TIMEOUT, reader::consumer_states(self.bus, stream)).await
            else {
                continue;
            };
            match states.iter().find(|state| state.name == durable) {
                None => faults.push(FaultNote::new(
                    FaultKind::ConsumerMissing,
                    format!("consumer {durable} on {stream} does not exist, so {effect}"),
                    "create it with `tributary setup`",
                )),
                Some(state) if state.paused => faults.push(FaultNote::new(
                    FaultKind::ConsumerPaused,
                    format!("consumer {durable} on {stream} is paused, so {effect}"),
                    format!("resume it with `tributary setup --apply`, or `nats consumer resume {stream} {durable}`"),
                )),
                Some(_) => {}
            }
        }
        faults
    }

    /// The fault of an account whose limits are too low for the workers.
    async fn account(&self) -> Option<FaultNote> {
        let account =
            tokio::time::timeout(REQUEST_TIMEOUT, self.bus.nats().ok()?.js.query_account()).await.ok()?.ok()?;
        let max_consumers = account.limits.max_consumers.filter(|max| (0..TEMPORARY_CONSUMERS).contains(max))?;
        Some(FaultNote::new(
            "account_limit",
            format!(
                "the account allows {max_consumers} consumers per stream, but workers and commands temporarily need about {TEMPORARY_CONSUMERS}"
            ),
            "raise max_consumers of the account in the server's configuration",
        ))
    }

    /// The fault of the link to the cloud.
    async fn link(&self, links: Option<&ServerLinks>) -> Option<FaultNote> {
        let (cloud, named) = (self.cloud?, self.cloud_domain?);
        let own = match links {
            Some(links) => Some(links.domain.clone()),
            None => {
                let account = tokio::time::timeout(REQUEST_TIMEOUT, self.bus.nats().ok()?.js.query_account()).await;
                account.ok().and_then(Result::ok).and_then(|account| account.domain)
            }
        };
        if own.as_deref() == Some(named) {
            return Some(FaultNote::new(
                "domain_of_cloud",
                format!(
                    "the site's own server uses the JetStream domain {named}, which nats.cloud_domain names as the cloud's"
                ),
                "give the site's server a domain of its own (deploy/nats/site.conf), and set nats.cloud_domain to the cloud's domain",
            ));
        }
        if reader::round_trip(cloud, REQUEST_TIMEOUT).await.is_ok() {
            return None;
        }
        match links {
            Some(links) if links.remotes.is_empty() => Some(FaultNote::new(
                "link_missing",
                "nats.cloud_domain names a cloud, but the site's server has no leaf link in its configuration",
                "add one as in deploy/nats/site.conf, or remove nats.cloud_domain",
            )),
            Some(links) if links.joined.is_empty() => Some(not_joined(links).await),
            Some(links) => Some(FaultNote::new(
                "domain_unknown",
                format!(
                    "the leaf link is up ({}), but no server behind it responds as domain {named}",
                    links.joined.join(", ")
                ),
                "nats.cloud_domain and `jetstream { domain }` of the hub must be the same; also check that the hub's JetStream is up",
            )),
            None => Some(FaultNote::new(
                "cloud_silent",
                format!(
                    "no server responds as domain {named}: the link is down or refused, or the domain name is wrong"
                ),
                "check /leafz of the site's server (set janitor.monitor for more detail), and compare nats.cloud_domain with the hub's domain",
            )),
        }
    }
}

/// The fault of a link that is not up, as far as this side can see.
async fn not_joined(links: &ServerLinks) -> FaultNote {
    let addresses: Vec<&str> = links.remotes.iter().flat_map(|remote| &remote.addresses).map(String::as_str).collect();
    let hubs = addresses.join(", ");
    let reachable = futures::future::join_all(addresses.iter().map(async |address| {
        matches!(tokio::time::timeout(REQUEST_TIMEOUT, tokio::net::TcpStream::connect(address)).await, Ok(Ok(_)))
    }));
    if reachable.await.contains(&true) {
        return FaultNote::new(
            "link_refused",
            format!(
                "the hub at {hubs} is reachable but the leaf link is not up: it refuses the site (a revoked key, a wrong password or certificate, or a second site of the same name)"
            ),
            "see the log of the site's nats-server (lines with `Leafnode`) for which one",
        );
    }
    FaultNote::new(
        "link_down",
        format!("the leaf link to the cloud is down, and the hub at {hubs} is unreachable"),
        "start the hub or repair the network; the site works without it and catches up later",
    )
}

/// The fault of messages that the server refused without telling every publisher.
fn refused_fault(store: &Path) -> Option<FaultNote> {
    server::refused_within(store, DROPPED_WITHIN).map(|subject| {
        FaultNote::new(
            "publish_refused",
            format!("within the last hour the server refused a message on {subject}, which the client's login does not allow; MQTT clients are not told"),
            "publish under the camera's own name (`tributary camera show NAME` prints its subject and topic), or add a login that allows it (`tributary camera add NAME --also-camera CAMERA`)",
        )
    })
}

/// The fault of messages that the server dropped without telling every publisher.
fn dropped_fault(store: &Path) -> Option<FaultNote> {
    server::dropped_within(store, DROPPED_WITHIN).map(|stream| {
        FaultNote::new(
            "messages_dropped",
            format!("within the last hour the server dropped messages for {stream}, which arrived faster than its disk writes; publishers over MQTT, or without a reply subject, were not told"),
            "publish with acknowledgements (as `tributary publish` does), send smaller or fewer images at once, or use a faster disk",
        )
    })
}

/// The fault of a link that ends in the account that holds the site's own streams. Pure.
fn link_fault(links: &ServerLinks, own_account: &str) -> Option<FaultNote> {
    let shared = links.remotes.iter().any(|link| link.account == own_account);
    shared.then(|| {
        FaultNote::new(
            FaultKind::LinkLetsThrough,
            format!("the leaf link ends in account {own_account}, which holds the site's streams: the cloud can read and change them"),
            "give the link an account of its own without JetStream, and the courier a user there (deploy/nats/site.conf, nats.link_user)",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::RemoteLink;

    #[test]
    fn a_link_that_ends_in_the_account_of_the_images_is_reported() {
        let link = |account: &str| RemoteLink { addresses: Vec::new(), account: account.into() };
        let ending = |account: &str| ServerLinks { remotes: vec![link(account)], ..ServerLinks::default() };
        assert_eq!(link_fault(&ending("LINK"), "SITE"), None);
        assert!(link_fault(&ending("SITE"), "SITE").is_some());
    }
}

//! What is wrong with a site's server, streams, consumers and link, each with a name, a reason and a remedy. The same
//! look for whoever asks: `status`, `doctor`, and the janitor, whose heartbeat makes a metric of it.

use std::path::Path;
use std::time::Duration;

use schemas::{FaultNote, SiteName};

use crate::connect::Bus;
use crate::error::{CarryError, error_chain};
use crate::monitor::{self, ServerLinks};
use crate::server;
use crate::{image_refusal, reader, topology};

/// One question has this long to be answered.
const PATIENCE: Duration = Duration::from_secs(3);
/// What the server dropped is said for so long.
const DROPPED_WITHIN: Duration = Duration::from_secs(3600);
/// Consumers that workers and commands of a site have on one stream at times, about.
const PASSING_CONSUMERS: i64 = 32;

/// What is looked at.
pub struct Checkup<'a> {
    /// The site's own domain.
    pub bus: &'a Bus,
    /// The cloud over the leaf link, where it is another.
    pub cloud: Option<&'a Bus>,
    /// The cloud's domain, as the settings name it.
    pub cloud_domain: Option<&'a str>,
    /// The site.
    pub site: &'a SiteName,
    /// Address of the monitoring pages of the site's server, where they can be read.
    pub monitor: Option<&'a str>,
    /// The store of the site's server, where it is ours and on this machine.
    pub store: Option<&'a Path>,
}

impl Checkup<'_> {
    /// Everything that is wrong; empty when nothing is.
    pub async fn find_faults(&self) -> Vec<FaultNote> {
        let mut faults = Vec::new();
        if let Some(address) = self.monitor
            && let Some(monitor::Health::CannotWrite(words)) = monitor::health_at(address).await
        {
            let remedy = "make room on its disk; `tributary up` starts it again by itself then, other servers must be started again by whoever runs them";
            faults.push(FaultNote::new(
                "store_cannot_write",
                format!("nats-server stores nothing more since its disk was full: {words}"),
                remedy,
            ));
        }
        if let Ok(Some(reason)) = image_refusal::refusal_reason(self.bus).await {
            let remedy = "make room on the disk of the site's nats-server; images are taken again by themselves then";
            faults.push(FaultNote::new("images_refused", format!("new images are refused: {reason}"), remedy));
        }
        faults.extend(self.store.and_then(dropped).into_iter().chain(self.store.and_then(refused)));
        let (streams, consumers, account) = tokio::join!(self.streams(), self.consumers(), self.account());
        faults.extend(streams.into_iter().chain(consumers).chain(account));
        let links = match self.monitor {
            Some(address) => monitor::fetch_links(address).await.ok(),
            None => None,
        };
        if let Some(links) = &links {
            faults.extend(self.bus.account().await.and_then(|account| link_rules(links, &account)));
        }
        faults.extend(self.link(links.as_ref()).await);
        faults
    }

    /// Streams that are missing, silent, or forbid what workers must do.
    async fn streams(&self) -> Vec<FaultNote> {
        let buckets = [format!("KV_{}", topology::FLEET), format!("KV_{}", topology::LEDGER)];
        let names = [topology::IMAGES, topology::ANSWERS, topology::OUTBOX, topology::DEAD];
        // All at once: each that is silent takes the whole patience.
        let looks = names.into_iter().chain(buckets.iter().map(String::as_str)).map(async |name| {
            match tokio::time::timeout(PATIENCE, reader::stream_restriction(self.bus, name)).await {
                // Buckets forbid deleting by design, and the others need both.
                Ok(Ok(Some(flag))) if !name.starts_with("KV_") => Some(FaultNote::new(
                    "stream_forbids",
                    format!("stream {name} has {flag} set, so nothing can be cleared away and it fills up"),
                    "the server never unsets it: copy the stream, or delete it and run `tributary setup`",
                )),
                Ok(Ok(_)) => None,
                Ok(Err(CarryError::Missing { .. })) => Some(FaultNote::new(
                    "stream_missing",
                    format!("stream {name} does not exist"),
                    "create it with `tributary setup`",
                )),
                Ok(Err(error)) if !self.bus.is_connected() => {
                    Some(FaultNote::new("server_away", error_chain(&error), "start the site's nats-server"))
                }
                Ok(Err(_)) | Err(_) => Some(FaultNote::new(
                    "stream_silent",
                    format!("stream {name} does not answer although its server does: its only replica may be on a server that is away"),
                    "start that server again; if it is lost for good, remove it (`nats server cluster peer-remove`) and run `tributary setup`",
                )),
            }
        });
        let mut faults: Vec<FaultNote> = futures::future::join_all(looks).await.into_iter().flatten().collect();
        // A server that is away is one fault.
        if let Some(away) = faults.iter().position(|fault| fault.name == "server_away") {
            faults = vec![faults.swap_remove(away)];
        }
        faults
    }

    /// Consumers that deliver nothing.
    async fn consumers(&self) -> Vec<FaultNote> {
        let wanted = [
            (topology::IMAGES, topology::recognizer_durable(self.site), "no image reaches a recognizer"),
            (
                topology::ANSWERS,
                topology::promises_durable(self.site),
                "no provisional answer becomes final at its deadline",
            ),
        ];
        let mut faults = Vec::new();
        for (stream, durable, then) in wanted {
            let Ok(Ok(states)) = tokio::time::timeout(PATIENCE, reader::consumer_states(self.bus, stream)).await else {
                continue;
            };
            match states.iter().find(|state| state.name == durable) {
                None => faults.push(FaultNote::new(
                    "consumer_missing",
                    format!("consumer {durable} on {stream} does not exist, so {then}"),
                    "create it with `tributary setup`",
                )),
                Some(state) if state.paused => faults.push(FaultNote::new(
                    "consumer_paused",
                    format!("consumer {durable} on {stream} is paused, so {then}"),
                    format!("resume it with `tributary setup --apply`, or `nats consumer resume {stream} {durable}`"),
                )),
                Some(_) => {}
            }
        }
        faults
    }

    /// Limits of the account that leave workers no room.
    async fn account(&self) -> Option<FaultNote> {
        let account = tokio::time::timeout(PATIENCE, self.bus.js.query_account()).await.ok()?.ok()?;
        let most = account.limits.max_consumers.filter(|most| (0..PASSING_CONSUMERS).contains(most))?;
        Some(FaultNote::new(
            "account_limit",
            format!(
                "by the account's limit a stream may have {most} consumers, and workers and commands need about {PASSING_CONSUMERS} for a while"
            ),
            "raise max_consumers in the server's configuration of the account",
        ))
    }

    /// The link to the cloud.
    async fn link(&self, links: Option<&ServerLinks>) -> Option<FaultNote> {
        let (cloud, named) = (self.cloud?, self.cloud_domain?);
        let own = match links {
            Some(links) => Some(links.domain.clone()),
            None => {
                let account = tokio::time::timeout(PATIENCE, self.bus.js.query_account()).await;
                account.ok().and_then(Result::ok).and_then(|account| account.domain)
            }
        };
        if own.as_deref() == Some(named) {
            return Some(FaultNote::new(
                "domain_of_cloud",
                format!(
                    "the site's own server has the JetStream domain {named}, which nats.cloud_domain names as the cloud's"
                ),
                "give the site's server a domain of its own (deploy/nats/site.conf), and set nats.cloud_domain to the cloud's",
            ));
        }
        if reader::round_trip(cloud, PATIENCE).await.is_ok() {
            return None;
        }
        match links {
            Some(links) if links.remotes.is_empty() => Some(FaultNote::new(
                "link_missing",
                "the site's server has no leaf link in its configuration, and nats.cloud_domain names a cloud",
                "add one as in deploy/nats/site.conf, or leave nats.cloud_domain out",
            )),
            Some(links) if links.joined.is_empty() => Some(not_joined(links).await),
            Some(links) => Some(FaultNote::new(
                "domain_unknown",
                format!(
                    "the leaf link is joined ({}), and nothing behind it answers as domain {named}",
                    links.joined.join(", ")
                ),
                "nats.cloud_domain and `jetstream { domain }` of the hub must be the same; the hub's JetStream may be down, too",
            )),
            None => Some(FaultNote::new(
                "cloud_silent",
                format!("nothing answers as domain {named}: the link is down or refused, or the domain is another"),
                "look at /leafz of the site's server (set janitor.monitor for more), and compare nats.cloud_domain with the hub's domain",
            )),
        }
    }
}

/// Why the link to the hub is not there, as far as it can be seen from here.
async fn not_joined(links: &ServerLinks) -> FaultNote {
    let addresses: Vec<&str> = links.remotes.iter().flat_map(|remote| &remote.addresses).map(String::as_str).collect();
    let hubs = addresses.join(", ");
    let reached = futures::future::join_all(addresses.iter().map(async |address| {
        matches!(tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(address)).await, Ok(Ok(_)))
    }));
    if reached.await.contains(&true) {
        return FaultNote::new(
            "link_refused",
            format!(
                "the hub at {hubs} answers, and the leaf link to it is not joined: it refuses the site (a key that was revoked, a password, a certificate, a second site of the same name)"
            ),
            "the log of the site's nats-server says which (lines with `Leafnode`)",
        );
    }
    FaultNote::new(
        "link_down",
        format!("the leaf link to the cloud is not joined, and the hub at {hubs} does not answer"),
        "start the hub, or see to the network between; the site works without it and catches up",
    )
}

/// Messages that the server refused without telling everybody.
fn refused(store: &Path) -> Option<FaultNote> {
    server::refused_within(store, DROPPED_WITHIN).map(|subject| {
        FaultNote::new(
            "publish_refused",
            format!("within the last hour the server refused what a client published on {subject}, which its login does not allow; over MQTT the client was not told"),
            "publish under the camera's own name (`tributary camera show NAME` prints its subject and topic), or add a login that may (`tributary camera add NAME --also-camera CAMERA`)",
        )
    })
}

/// Messages that the server dropped without telling everybody.
fn dropped(store: &Path) -> Option<FaultNote> {
    server::dropped_within(store, DROPPED_WITHIN).map(|stream| {
        FaultNote::new(
            "messages_dropped",
            format!("within the last hour the server dropped messages for {stream}, which came faster than its disk takes them; publishers over MQTT, or without a reply, were not told"),
            "publish with an acknowledgement (`tributary publish` does), send smaller or fewer images at once, or use a faster disk",
        )
    })
}

/// A link that ends in the account in which the site's own streams are. Pure.
fn link_rules(links: &ServerLinks, own_account: &str) -> Option<FaultNote> {
    let shared = links.remotes.iter().any(|link| link.account == own_account);
    shared.then(|| {
        FaultNote::new(
            "link_lets_through",
            format!("the leaf link ends in account {own_account}, where the site's streams are: the cloud can read and change them"),
            "give the link an account of its own without JetStream, and the courier a user there (deploy/nats/site.conf, nats.link_user)",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::RemoteLink;

    #[test]
    fn a_link_that_ends_where_the_images_are_is_told() {
        let link = |account: &str| RemoteLink { addresses: Vec::new(), account: account.into() };
        let ending = |account: &str| ServerLinks { remotes: vec![link(account)], ..ServerLinks::default() };
        assert_eq!(link_rules(&ending("LINK"), "SITE"), None);
        assert!(link_rules(&ending("SITE"), "SITE").is_some());
    }
}

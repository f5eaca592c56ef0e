//! The nats-servers of `up`: one for a site with its cloud, or a hub and one for each site, and their listeners.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use fleet::Membership;
use schemas::SiteName;
use streams::server::{CertificateFiles, ClientListener, FleetLeaf, LeafMode, Server, ServerSettings, host_of};
use streams::topology::{self, PlanScope};

use super::CLOUD;
use crate::settings::{Settings, UpSettings};
use crate::site_target::{ALONE, CameraEntry};

/// The servers that `up` started.
pub(super) struct LocalServers {
    /// The hub, where it is a server of its own.
    pub cloud: Option<Server>,
    /// One for each site.
    pub sites: Vec<Server>,
}

impl LocalServers {
    /// All of them, the hub first.
    pub(super) fn all(&self) -> impl Iterator<Item = &Server> {
        self.cloud.iter().chain(&self.sites)
    }
}

/// One server for everything, or a hub and a leaf for each site.
pub(super) async fn start_servers(
    settings: &Settings,
    names: &[SiteName],
    leaves: bool,
    member: Option<&Membership>,
) -> anyhow::Result<LocalServers> {
    let up = &settings.up;
    let base = |name: &str, domain: Option<&str>, leaf: LeafMode, place: &PlanScope| ServerSettings {
        encryption_key: up.encryption_key.clone(),
        max_store_bytes: topology::plan_topology(place, &settings.streams).max_store_bytes(),
        program: up.nats_server.clone(),
        store: up.store.join(name),
        name: name.into(),
        domain: domain.map(str::to_owned),
        port: 0,
        mqtt: None,
        mappings: Vec::new(),
        durability: up.durability,
        leaf,
        site: None,
        entry: ClientListener::default(),
    };
    let entry = entry(settings)?;
    if let Some(member) = member {
        let leaf = LeafMode::OfFleet(FleetLeaf {
            hub: member.hub.clone(),
            authority: std::path::absolute(Membership::authority_file(&up.store))?,
            seed: member.leaf_seed.clone().into(),
        });
        let site = &member.site;
        let server = ServerSettings {
            port: up.port,
            mqtt: up.mqtt_port.map(|port| SocketAddr::new(up.mqtt_listen, port)),
            mappings: up.mappings(site).map_err(anyhow::Error::msg)?,
            site: Some(site.clone()),
            entry,
            ..base(site.as_str(), Some(site.as_str()), leaf, &PlanScope::Site(site.clone()))
        };
        return Ok(LocalServers { cloud: None, sites: vec![spawn(server).await?] });
    }
    if !leaves {
        let alone = ServerSettings {
            port: up.port,
            mqtt: up.mqtt_port.map(|port| SocketAddr::new(up.mqtt_listen, port)),
            mappings: up.mappings(&settings.site).map_err(anyhow::Error::msg)?,
            site: Some(settings.site.clone()),
            entry,
            ..base(ALONE, None, LeafMode::Alone, &PlanScope::Both(settings.site.clone()))
        };
        return Ok(LocalServers { cloud: None, sites: vec![spawn(alone).await?] });
    }
    let hub = base(CLOUD, Some(CLOUD), LeafMode::Hub(names.to_vec()), &PlanScope::Cloud(names.to_vec()));
    let hub = spawn(ServerSettings { port: up.cloud_port, ..hub }).await?;
    let mut sites = Vec::new();
    for (site, number) in names.iter().zip(0u16..) {
        let address = hub.leaf_url(site, hub.leaf_port()).context("the hub does not know the site")?;
        let next = |port: u16| if port == 0 { 0 } else { port.saturating_add(number) };
        let leaf = ServerSettings {
            port: next(up.port),
            mqtt: up.mqtt_port.map(|port| SocketAddr::new(up.mqtt_listen, next(port))),
            mappings: up.mappings(site).map_err(anyhow::Error::msg)?,
            site: Some(site.clone()),
            entry: entry.clone(),
            ..base(site.as_str(), Some(site.as_str()), LeafMode::Of(address), &PlanScope::Site(site.clone()))
        };
        sites.push(spawn(leaf).await?);
    }
    Ok(LocalServers { cloud: Some(hub), sites })
}

/// The listener for clients: encrypted and with logins where other machines can reach it, unless up.insecure is set.
fn entry(settings: &Settings) -> anyhow::Result<ClientListener> {
    let up = &settings.up;
    if up.insecure || !up.listens_beyond_loopback() {
        return Ok(ClientListener { listen: up.listen, certificate: None, is_open: true });
    }
    let certificate = match (&up.certificate, &up.certificate_key, &up.host) {
        (Some(certificate), Some(key), Some(host)) => CertificateFiles {
            certificate: std::path::absolute(certificate)?,
            key: std::path::absolute(key)?,
            authority: up.authority.as_ref().map(std::path::absolute).transpose()?,
            host: host.clone(),
        },
        _ => {
            let mut names = vec![host_name(up), "localhost".into(), "127.0.0.1".into(), "::1".into()];
            names.extend([up.listen, up.mqtt_listen].iter().filter(|ip| !ip.is_unspecified()).map(IpAddr::to_string));
            names.sort();
            names.dedup();
            let made = fleet::certify_site(&up.store.join("tls"), &names)?;
            CertificateFiles {
                certificate: std::path::absolute(made.certificate)?,
                key: std::path::absolute(made.key)?,
                authority: Some(std::path::absolute(made.authority)?),
                host: host_of(up.listen),
            }
        }
    };
    Ok(ClientListener { listen: up.listen, certificate: Some(certificate), is_open: false })
}

/// Host name by which cameras reach this machine.
fn host_name(up: &UpSettings) -> String {
    let own = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    up.host.clone().or_else(own).unwrap_or_else(|| "localhost".into())
}

pub(super) async fn spawn(settings: ServerSettings) -> anyhow::Result<Server> {
    Ok(tokio::task::spawn_blocking(move || Server::start(&settings)).await??)
}

/// How cameras reach a site's server.
pub(super) fn entrance(up: &UpSettings, server: &Server) -> CameraEntry {
    let host = |listen: IpAddr| if listen.is_loopback() { listen.to_string() } else { host_name(up) };
    let port = server.url().rsplit_once(':').map(|(_, port)| port.to_owned()).unwrap_or_default();
    let is_secure = up.listens_beyond_loopback() && !up.insecure;
    let is_encrypted = |listen: IpAddr| is_secure && !listen.is_loopback();
    let scheme = if is_encrypted(up.listen) { "tls" } else { "nats" };
    let made = is_secure.then(|| up.store.join("tls/ca.pem"));
    let authority = if up.certificate.is_some() { up.authority.clone() } else { made };
    CameraEntry {
        nats: format!("{scheme}://{}:{port}", host(up.listen)),
        mqtt: server.mqtt_port().map(|port| format!("{}:{port}", host(up.mqtt_listen))),
        is_mqtt_encrypted: is_encrypted(up.mqtt_listen),
        authority: authority.and_then(|path| std::path::absolute(path).ok()),
        is_open_to_others: up.listens_beyond_loopback(),
    }
}

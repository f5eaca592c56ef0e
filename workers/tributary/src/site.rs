//! Finding the servers of a running `tributary up`, so that other commands need no address.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use runtime::settings::Loaded;
use schemas::SiteName;
use serde::{Deserialize, Serialize};
use streams::{Bus, NatsSettings};

use crate::settings::Settings;

/// What a running `up` writes into its store for other commands to find.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Running {
    /// Its process.
    pub process: u32,
    /// The cloud's server.
    pub cloud_url: String,
    /// JetStream domain of the cloud as seen from a site; absent when they share a server.
    pub cloud_domain: Option<String>,
    /// Its sites.
    pub sites: Vec<RunningSite>,
}

/// One site of a running `up`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunningSite {
    /// Its name.
    pub site: SiteName,
    /// Its server.
    pub url: String,
    /// Its port for MQTT clients.
    pub mqtt_port: Option<u16>,
}

fn path(store: &Path) -> PathBuf {
    store.join("up.json")
}

impl Running {
    /// Makes it known.
    pub fn write(&self, store: &Path) -> anyhow::Result<()> {
        let path = path(store);
        fs::write(&path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("{} cannot be written", path.display()))
    }

    /// The running `up` of a store, if its process lives.
    pub fn find(store: &Path) -> Option<Self> {
        let running: Self = serde_json::from_slice(&fs::read(path(store)).ok()?).ok()?;
        streams::server::is_alive(running.process).then_some(running)
    }

    /// Takes it back.
    pub fn remove(store: &Path) {
        if let Err(error) = fs::remove_file(path(store)) {
            tracing::debug!(%error, "was not there");
        }
    }
}

/// Where a command goes: the address that was set, or a running `up`, or the usual port.
pub fn nats(loaded: &Loaded<Settings>) -> anyhow::Result<NatsSettings> {
    let settings = &loaded.settings;
    let chosen = loaded.list().iter().any(|setting| setting.key == "nats.url" && setting.origin != "default");
    let Some(running) = Running::find(&settings.up.store).filter(|_| !chosen) else { return Ok(settings.nats.clone()) };
    let known = || running.sites.iter().map(|site| site.site.as_str()).collect::<Vec<_>>().join(", ");
    let site = running.sites.iter().find(|site| site.site == settings.site);
    let site = site.with_context(|| {
        format!("site {} is not one of the running `tributary up` ({}): choose one with --site", settings.site, known())
    })?;
    Ok(NatsSettings { url: site.url.clone(), cloud_domain: running.cloud_domain.clone(), ..settings.nats.clone() })
}

/// A connection to the site's server, and the same speaking to the cloud's domain.
pub async fn connect(loaded: &Loaded<Settings>, name: &str) -> anyhow::Result<(Bus, Bus)> {
    let nats = nats(loaded)?;
    let bus = Bus::connect(&nats, name).await?;
    let cloud = bus.in_domain(nats.cloud_domain.as_deref());
    Ok((bus, cloud))
}

//! Finding the servers of a running `tributary up`, so that other commands need no address.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use runtime::clock;
use runtime::settings::{LoadedSettings, SettingOrigin};
use schemas::{FaultNote, Root, SiteName};
use serde::{Deserialize, Serialize};
use streams::checkup::Checkup;
use streams::connect::Secret;
use streams::fleet::Ledger;
use streams::server::{LINK_USER, OWN_USER};
use streams::{Bus, NatsSettings};

use crate::certificate_expiry;
use crate::settings::Settings;

/// Name of the one server, and of its folder in the store, where site and cloud share it.
pub const ALONE: &str = "site";

/// What a running `up` writes into its store for other commands to find.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunningUp {
    /// Its process.
    pub process: u32,
    /// The cloud's server.
    pub cloud_url: String,
    /// JetStream domain of the cloud as seen from a site; absent when they share a server.
    pub cloud_domain: Option<String>,
    /// Its sites.
    pub sites: Vec<RunningSite>,
    /// Folder of the model that its sites began with.
    #[serde(default)]
    pub model: PathBuf,
    /// How the operator is known to the hub of a fleet.
    #[serde(default)]
    pub operator: Option<CloudLogin>,
    /// Password of the place itself at the cloud's server, where that is no hub of a fleet.
    #[serde(default)]
    pub cloud_password: Option<String>,
    /// The authority by which clients know the server, where it is encrypted under one of its own.
    #[serde(default)]
    pub authority: Option<PathBuf>,
}

/// How somebody is known to the cloud's server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CloudLogin {
    /// The authority by which the server is known.
    pub ca: PathBuf,
    /// File with the seed of the key.
    pub nkey: PathBuf,
    /// What the subjects of answers begin with.
    pub inbox: String,
    /// File of the key that the opening of a round is signed with.
    pub round_key: PathBuf,
}

/// The key that the opening of a round is signed with: as set, or that of a running hub.
pub fn round_key(loaded: &LoadedSettings<Settings>) -> Option<PathBuf> {
    let up = || RunningUp::find_running(&loaded.settings.up.store)?.operator.map(|operator| operator.round_key);
    loaded.settings.aggregator.key.clone().or_else(up)
}

impl RunningUp {
    /// The site that a command speaks to: the one that was chosen, or the only one.
    pub fn site_of(&self, loaded: &LoadedSettings<Settings>) -> anyhow::Result<&RunningSite> {
        anyhow::ensure!(
            !self.sites.is_empty(),
            "the running `tributary up` is a fleet's hub and has no site: run this at a site, or use a command of the cloud"
        );
        let chosen = &loaded.settings.site;
        let site = match &self.sites[..] {
            [only] if !is_set(loaded, "site") => Some(only),
            sites => sites.iter().find(|site| site.site == *chosen),
        };
        site.with_context(|| {
            let known = self.sites.iter().map(|site| site.site.as_str()).collect::<Vec<_>>().join(", ");
            format!("site {chosen} is not one of the running `tributary up` ({known}): choose one with --site")
        })
    }

    /// Folder of the store of a site's server.
    pub fn store_of(&self, site: &RunningSite, settings: &Settings) -> PathBuf {
        settings.up.store.join(if self.cloud_domain.is_some() { site.site.as_str() } else { ALONE })
    }

    /// How the cloud's own server is reached. `more`: everything else.
    pub fn cloud_nats(&self, more: &NatsSettings) -> NatsSettings {
        let mut nats = NatsSettings { url: self.cloud_url.clone(), ..more.clone() };
        if let Some(password) = &self.cloud_password {
            nats = NatsSettings { ca: self.authority.clone(), ..own(&self.cloud_url, password, &nats) };
        }
        if let Some(operator) = &self.operator {
            nats.ca = Some(operator.ca.clone());
            nats.nkey = Some(operator.nkey.clone());
            nats.inbox = Some(operator.inbox.clone());
        }
        nats
    }
}

/// How the place itself is known to its server, which it may do everything on.
fn own(url: &str, password: &str, more: &NatsSettings) -> NatsSettings {
    let (user, password) = (Some(OWN_USER.to_owned()), Some(Secret::from(password.to_owned())));
    NatsSettings { url: url.into(), user, password, password_file: None, ..more.clone() }
}

/// How cameras reach a site's server.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CameraEntry {
    /// Address over NATS.
    pub nats: String,
    /// `HOST:PORT` over MQTT, where it listens for that.
    pub mqtt: Option<String>,
    /// Whether MQTT is encrypted.
    pub is_mqtt_encrypted: bool,
    /// The certificate authority that cameras trust, where it is not one that the system does.
    pub authority: Option<PathBuf>,
    /// Whether other machines reach it.
    pub is_open_to_others: bool,
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
    /// Address of its server's monitoring pages.
    #[serde(default)]
    pub monitor: String,
    /// Password at the near end of its link to the cloud, where it has one.
    #[serde(default)]
    pub link_password: Option<String>,
    /// How cameras reach its server.
    #[serde(default)]
    pub entrance: CameraEntry,
    /// Password of the site itself, which may do everything on its server.
    #[serde(default)]
    pub password: String,
    /// The authority by which clients know its server, where it is encrypted under one of its own.
    #[serde(default)]
    pub authority: Option<PathBuf>,
}

impl RunningSite {
    /// How its server is reached, and the cloud over its link. `more`: everything else.
    pub fn nats(&self, cloud_domain: Option<&str>, more: &NatsSettings) -> NatsSettings {
        NatsSettings {
            ca: self.authority.clone(),
            cloud_domain: cloud_domain.map(str::to_owned),
            link_user: self.link_password.as_ref().map(|_| LINK_USER.to_owned()),
            link_password: self.link_password.clone().map(Secret::from),
            link_password_file: None,
            ..own(&self.url, &self.password, more)
        }
    }
}

fn path(store: &Path) -> PathBuf {
    store.join("up.json")
}

impl RunningUp {
    /// Makes it known.
    pub fn write(&self, store: &Path) -> anyhow::Result<()> {
        let path = path(store);
        streams::server::write_private(&path, &serde_json::to_string_pretty(self)?)
            .with_context(|| format!("{} cannot be written", path.display()))
    }

    /// The running `up` of a store, if its process lives.
    pub fn find_running(store: &Path) -> Option<Self> {
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

/// A site that a command speaks to.
pub struct SiteTarget {
    /// Its name.
    pub name: SiteName,
    /// Its server.
    pub bus: Bus,
    /// The cloud: its own server's where that belongs to the `up` found, over the site's link with the site's rights where not.
    pub cloud: Bus,
    /// The cloud over the site's link.
    pub link: Bus,
    /// Whether `cloud` is its own server's, so that everything there can be seen and done.
    pub is_cloud_whole: bool,
    /// How its server was reached.
    pub nats: NatsSettings,
    /// The `up` it belongs to, if that is how its server was found.
    pub up: Option<RunningUp>,
}

impl SiteTarget {
    /// Folder of the store of its server, if that belongs to the `up` found.
    pub fn store(&self, settings: &Settings) -> Option<PathBuf> {
        let up = self.up.as_ref()?;
        let site = up.sites.iter().find(|site| site.site == self.name)?;
        Some(up.store_of(site, settings))
    }
}

impl SiteTarget {
    /// The cloud, where everything there can be seen and done.
    ///
    /// # Errors
    /// That it is seen over a site's link, which leads to what is the site's own.
    pub fn whole_cloud(&self) -> anyhow::Result<&Bus> {
        anyhow::ensure!(
            self.is_cloud_whole,
            "site {} sees of the cloud only what is its own: run this against the cloud's own server (--nats nats://CLOUD:4222)",
            self.name
        );
        Ok(&self.cloud)
    }

    /// Everything that is wrong with its server, streams and link.
    pub async fn find_faults(&self, settings: &Settings) -> Vec<FaultNote> {
        let running = self.up.iter().flat_map(|up| &up.sites).find(|site| site.site == self.name);
        let monitor = settings.janitor.monitor.as_deref().or(running.map(|site| site.monitor.as_str()));
        let (domain, store) = (self.nats.cloud_domain.as_deref(), self.store(settings));
        let root = match Ledger::open(&self.bus).await {
            Ok(ledger) => ledger.read(courier::trust_anchor::NOTE).await.ok().flatten(),
            Err(_) => None,
        };
        let root: Option<Root> = root.and_then(|text| serde_json::from_str(&text).ok());
        let ending = certificate_expiry::faults(&certificate_expiry::all(settings, root.as_ref()), clock::now_ms());
        let mut faults = Checkup {
            bus: &self.bus,
            cloud: domain.map(|_| &self.link),
            cloud_domain: domain,
            site: &self.name,
            monitor: monitor.filter(|address| !address.is_empty()),
            store: store.as_deref(),
        }
        .find_faults()
        .await;
        faults.extend(ending);
        faults
    }
}

/// Whether somebody chose a setting.
pub fn is_set(loaded: &LoadedSettings<Settings>, key: &str) -> bool {
    loaded.list().iter().any(|setting| setting.key == key && setting.origin != SettingOrigin::Default)
}

/// Where a command goes.
struct CommandRoute {
    site: SiteName,
    nats: NatsSettings,
    up: Option<RunningUp>,
}

/// The address that was set, or a running `up`, or the usual port.
fn way(loaded: &LoadedSettings<Settings>) -> anyhow::Result<CommandRoute> {
    let settings = &loaded.settings;
    let Some(up) = RunningUp::find_running(&settings.up.store).filter(|_| !is_set(loaded, "nats.url")) else {
        return Ok(CommandRoute { site: settings.site.clone(), nats: settings.nats.clone(), up: None });
    };
    let site = up.site_of(loaded)?;
    let nats = site.nats(up.cloud_domain.as_deref(), &settings.nats);
    Ok(CommandRoute { site: site.site.clone(), nats, up: Some(up) })
}

/// Where a command goes: the address that was set, or a running `up`, or the usual port.
pub fn nats(loaded: &LoadedSettings<Settings>) -> anyhow::Result<NatsSettings> {
    Ok(way(loaded)?.nats)
}

/// A connection to the site's server, and which site that is.
pub async fn open(loaded: &LoadedSettings<Settings>, name: &str) -> anyhow::Result<SiteTarget> {
    let settings = &loaded.settings;
    let CommandRoute { site, nats, up } = way(loaded)?;
    let bus = reach(loaded, &nats, up.is_some(), name).await?;
    let link = bus.connect_cloud(&nats, &site, name).await?;
    // A hub that is away is away over the link, too, and the site is there all the same.
    let own = match up.as_ref().filter(|up| up.cloud_domain.is_some() && !up.cloud_url.is_empty()) {
        Some(up) => Bus::connect(&up.cloud_nats(&settings.nats), name).await.ok(),
        None => None,
    };
    let is_cloud_whole = own.is_some() || nats.cloud_domain.is_none();
    let cloud = own.unwrap_or_else(|| link.clone());
    Ok(SiteTarget { name: site, bus, cloud, link, is_cloud_whole, nats, up })
}

/// A connection to the cloud's own server, not through the site's.
pub async fn cloud(loaded: &LoadedSettings<Settings>, name: &str) -> anyhow::Result<Bus> {
    let mut nats = loaded.settings.nats.clone();
    let up = RunningUp::find_running(&loaded.settings.up.store);
    if let Some(up) = up.as_ref().filter(|_| !is_set(loaded, "nats.url")) {
        anyhow::ensure!(
            !up.cloud_url.is_empty(),
            "this is a site of a fleet: run it at the hub, or name its server with --nats, nats.ca and nats.nkey"
        );
        nats = up.cloud_nats(&nats);
    }
    reach(loaded, &nats, up.is_some(), name).await
}

async fn reach(loaded: &LoadedSettings<Settings>, nats: &NatsSettings, up: bool, name: &str) -> anyhow::Result<Bus> {
    let reached = Bus::connect(nats, name).await;
    if up || is_set(loaded, "nats.url") {
        return Ok(reached?);
    }
    let store = loaded.settings.up.store.display().to_string();
    reached.with_context(|| format!("no `tributary up` runs with the store {store} (--store names another one)"))
}

//! Which server a command talks to: the one that was named, or that of a running `tributary up`.

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
use streams::topology::StreamSettings;
use streams::{Bus, NatsSettings};

use crate::certificate_expiry;
use crate::settings::Settings;

/// Name of the server, and of its folder in the store, where site and cloud share one.
pub const ALONE: &str = "site";

/// What a running `up` writes into its store, so that other commands find its servers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunningUp {
    /// Process id.
    pub process: u32,
    /// Address of the cloud's server; empty at a site of a fleet.
    pub cloud_url: String,
    /// JetStream domain of the cloud as seen from a site; absent when they share a server.
    pub cloud_domain: Option<String>,
    /// The sites; none at the hub of a fleet.
    pub sites: Vec<RunningSite>,
    /// Folder of the model that the sites were started with.
    #[serde(default)]
    pub model: PathBuf,
    /// What else it was started with, for commands that would need the same flags.
    #[serde(default)]
    pub chosen: UpChoices,
    /// The operator's login at the hub; absent except at the hub of a fleet.
    #[serde(default)]
    pub operator: Option<CloudLogin>,
    /// Password for everything at the cloud's server; absent with a fleet.
    #[serde(default)]
    pub cloud_password: Option<String>,
    /// File of the authority of the server's certificate; absent if unencrypted or publicly trusted.
    #[serde(default)]
    pub authority: Option<PathBuf>,
}

/// What a running `up` was started with, besides the sites' model.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UpChoices {
    /// Folder of the cloud's model; absent without a verifier.
    pub cloud_model: Option<PathBuf>,
    /// Release store; an absolute path where it is a folder.
    pub release_store: Option<String>,
    /// Folder of the public set; absent without one.
    pub public: Option<PathBuf>,
    /// Limits of the streams.
    pub streams: Option<StreamSettings>,
}

impl UpChoices {
    /// The choices in these settings, with absolute paths, because other commands may run in another folder.
    pub fn of(settings: &Settings) -> Self {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let store = &settings.aggregator.store;
        Self {
            cloud_model: settings.verifier.model.as_ref().map(absolute),
            release_store: Some(match store.contains("://") {
                true => store.clone(),
                false => absolute(&PathBuf::from(store)).display().to_string(),
            }),
            public: settings.aggregator.public.as_ref().map(absolute),
            streams: Some(settings.streams.clone()),
        }
    }
}

/// Takes over what a running `up` was started with, where nobody set anything else: `up --model X` is known to every
/// command beside it.
pub fn adopt_running_up(loaded: &mut LoadedSettings<Settings>) {
    let up = RunningUp::find_running(&loaded.settings.up.store).filter(|_| !is_set(loaded, "nats.url"));
    let Some(RunningUp { model, chosen, .. }) = up else { return };
    let set: Vec<String> = loaded
        .list()
        .into_iter()
        .filter(|setting| setting.origin != SettingOrigin::Default)
        .map(|setting| setting.key)
        .collect();
    let is_free = |section: &str| {
        !set.iter().any(|key| key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    };
    let settings = &mut loaded.settings;
    if is_free("recognizer.model") && !model.as_os_str().is_empty() {
        settings.recognizer.model = model;
    }
    if is_free("verifier.model") {
        settings.verifier.model = chosen.cloud_model;
    }
    if let Some(store) = chosen.release_store.filter(|_| is_free("aggregator.store")) {
        settings.aggregator.store = store;
    }
    if is_free("aggregator.public") {
        settings.aggregator.public = chosen.public;
    }
    if let Some(streams) = chosen.streams.filter(|_| is_free("streams")) {
        settings.streams = streams;
    }
}

/// A login at the cloud's server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CloudLogin {
    /// File of the authority of the server's certificate.
    pub ca: PathBuf,
    /// File of the key's seed.
    pub nkey: PathBuf,
    /// Inbox prefix of the login.
    pub inbox: String,
    /// File of the key that signs round openings.
    pub round_key: PathBuf,
}

/// File of the key that signs round openings: as configured, or that of a running hub.
pub fn round_key(loaded: &LoadedSettings<Settings>) -> Option<PathBuf> {
    let up = || RunningUp::find_running(&loaded.settings.up.store)?.operator.map(|operator| operator.round_key);
    loaded.settings.aggregator.key.clone().or_else(up)
}

impl RunningUp {
    /// The site that a command is about: the one that was chosen, or the only one.
    pub fn site_of(&self, loaded: &LoadedSettings<Settings>) -> anyhow::Result<&RunningSite> {
        anyhow::ensure!(
            !self.sites.is_empty(),
            "the running `tributary up` is a fleet's hub and has no site: run this command at a site"
        );
        let chosen = &loaded.settings.site;
        let site = match &self.sites[..] {
            [only] if !is_set(loaded, "site") => Some(only),
            sites => sites.iter().find(|site| site.site == *chosen),
        };
        site.with_context(|| {
            let known = self.sites.iter().map(|site| site.site.as_str()).collect::<Vec<_>>().join(", ");
            format!("the running `tributary up` has no site {chosen}: choose one of {known} with --site")
        })
    }

    /// Folder of the store of a site's server.
    pub fn store_of(&self, site: &RunningSite, settings: &Settings) -> PathBuf {
        settings.up.store.join(if self.cloud_domain.is_some() { site.site.as_str() } else { ALONE })
    }

    /// Connection settings for the cloud's own server. `more`: everything else.
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

/// Connection settings with the server's own login, which may do everything.
fn own(url: &str, password: &str, more: &NatsSettings) -> NatsSettings {
    let (user, password) = (Some(OWN_USER.to_owned()), Some(Secret::from(password.to_owned())));
    NatsSettings { url: url.into(), user, password, password_file: None, ..more.clone() }
}

/// How cameras reach a site's server.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CameraEntry {
    /// Address over NATS.
    pub nats: String,
    /// `HOST:PORT` over MQTT; absent if MQTT is off.
    pub mqtt: Option<String>,
    /// Whether MQTT is encrypted.
    pub is_mqtt_encrypted: bool,
    /// File of the authority that cameras must trust; absent if unencrypted or publicly trusted.
    pub authority: Option<PathBuf>,
    /// Whether other machines can reach it.
    pub is_open_to_others: bool,
}

/// One site of a running `up`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunningSite {
    /// Its name.
    pub site: SiteName,
    /// Address of its server.
    pub url: String,
    /// Port for MQTT clients; absent if MQTT is off.
    pub mqtt_port: Option<u16>,
    /// Address of its server's monitoring pages.
    #[serde(default)]
    pub monitor: String,
    /// Password of the link's local account; absent without a link.
    #[serde(default)]
    pub link_password: Option<String>,
    /// How cameras reach its server.
    #[serde(default)]
    pub entrance: CameraEntry,
    /// Password for everything at its server.
    #[serde(default)]
    pub password: String,
    /// File of the authority of its server's certificate; absent if unencrypted or publicly trusted.
    #[serde(default)]
    pub authority: Option<PathBuf>,
}

impl RunningSite {
    /// Connection settings for its server, and for the cloud over its link. `more`: everything else.
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

/// Whether an `up` was started on this store and has not been stopped; it may have been killed.
pub fn was_started(store: &Path) -> bool {
    path(store).exists()
}

fn path(store: &Path) -> PathBuf {
    store.join("up.json")
}

impl RunningUp {
    /// Writes it into the store.
    pub fn write(&self, store: &Path) -> anyhow::Result<()> {
        let path = path(store);
        streams::server::write_private(&path, &serde_json::to_string_pretty(self)?)
            .with_context(|| format!("{} cannot be written", path.display()))
    }

    /// Finds the running `up` of a store, if its process is alive.
    pub fn find_running(store: &Path) -> Option<Self> {
        let running: Self = serde_json::from_slice(&fs::read(path(store)).ok()?).ok()?;
        streams::server::is_alive(running.process).then_some(running)
    }

    /// Removes it from the store.
    pub fn remove(store: &Path) {
        if let Err(error) = fs::remove_file(path(store)) {
            tracing::debug!(%error, "up.json not removed");
        }
    }
}

/// The site that a command talks to.
pub struct SiteTarget {
    /// Its name.
    pub name: SiteName,
    /// Connection to its server.
    pub bus: Bus,
    /// Connection to the cloud: to its own server if that belongs to the same `up`, else over the site's link, with the
    /// site's rights.
    pub cloud: Bus,
    /// Connection to the cloud over the site's link.
    pub link: Bus,
    /// Whether `cloud` reaches everything there, and not only what is the site's.
    pub is_cloud_whole: bool,
    /// The connection settings of `bus`.
    pub nats: NatsSettings,
    /// The running `up`, if the server was found by it.
    pub up: Option<RunningUp>,
}

impl SiteTarget {
    /// Folder of the store of its server; `None` unless the server belongs to a running `up` here.
    pub fn store(&self, settings: &Settings) -> Option<PathBuf> {
        let up = self.up.as_ref()?;
        let site = up.sites.iter().find(|site| site.site == self.name)?;
        Some(up.store_of(site, settings))
    }
}

impl SiteTarget {
    /// The cloud, if everything there is reachable.
    ///
    /// # Errors
    /// The cloud is reached over a site's link, which leads only to what is the site's.
    pub fn whole_cloud(&self) -> anyhow::Result<&Bus> {
        anyhow::ensure!(
            self.is_cloud_whole,
            "site {} reaches only its own part of the cloud: run this against the cloud's server (--nats nats://CLOUD:4222)",
            self.name
        );
        Ok(&self.cloud)
    }

    /// All faults of its server, streams, link and certificates.
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

/// Whether a setting differs from its default by choice: file, environment or flag.
pub fn is_set(loaded: &LoadedSettings<Settings>, key: &str) -> bool {
    loaded.list().iter().any(|setting| setting.key == key && setting.origin != SettingOrigin::Default)
}

/// Whether a setting, or one in a section, differs from its default by choice.
pub fn is_set_below(loaded: &LoadedSettings<Settings>, section: &str) -> bool {
    let is_in = |key: &str| key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    loaded.list().iter().any(|setting| is_in(&setting.key) && setting.origin != SettingOrigin::Default)
}

/// The server that a command talks to.
struct CommandRoute {
    site: SiteName,
    nats: NatsSettings,
    up: Option<RunningUp>,
}

/// The configured address, or a running `up`, or the default port.
fn route(loaded: &LoadedSettings<Settings>) -> anyhow::Result<CommandRoute> {
    let settings = &loaded.settings;
    let Some(up) = RunningUp::find_running(&settings.up.store).filter(|_| !is_set(loaded, "nats.url")) else {
        return Ok(CommandRoute { site: settings.site.clone(), nats: settings.nats.clone(), up: None });
    };
    let site = up.site_of(loaded)?;
    let nats = site.nats(up.cloud_domain.as_deref(), &settings.nats);
    Ok(CommandRoute { site: site.site.clone(), nats, up: Some(up) })
}

/// Connection settings of a command: the configured address, or a running `up`, or the default port.
pub fn nats(loaded: &LoadedSettings<Settings>) -> anyhow::Result<NatsSettings> {
    Ok(route(loaded)?.nats)
}

/// Connects to the site's server and to the cloud.
pub async fn open(loaded: &LoadedSettings<Settings>, name: &str) -> anyhow::Result<SiteTarget> {
    let settings = &loaded.settings;
    let CommandRoute { site, nats, up } = route(loaded)?;
    let bus = connect(loaded, &nats, up.is_some(), name).await?;
    let link = bus.connect_cloud(&nats, &site, name).await?;
    // Without an answer from the hub, the site is still of use.
    let own = match up.as_ref().filter(|up| up.cloud_domain.is_some() && !up.cloud_url.is_empty()) {
        Some(up) => Bus::connect(&up.cloud_nats(&settings.nats), name).await.ok(),
        None => None,
    };
    let is_cloud_whole = own.is_some() || nats.cloud_domain.is_none();
    let cloud = own.unwrap_or_else(|| link.clone());
    Ok(SiteTarget { name: site, bus, cloud, link, is_cloud_whole, nats, up })
}

/// The name of the site that a command is about, without a connection: as configured, or the only site of a running
/// `up`.
pub fn site_name(loaded: &LoadedSettings<Settings>) -> SiteName {
    let up = RunningUp::find_running(&loaded.settings.up.store).filter(|_| !is_set(loaded, "nats.url"));
    match up.as_ref().map(|up| &up.sites[..]) {
        Some([only]) if !is_set(loaded, "site") => only.site.clone(),
        _ => loaded.settings.site.clone(),
    }
}

/// Connects to the cloud's own server, not over a site's link.
pub async fn cloud(loaded: &LoadedSettings<Settings>, name: &str) -> anyhow::Result<Bus> {
    let mut nats = loaded.settings.nats.clone();
    let up = RunningUp::find_running(&loaded.settings.up.store);
    if let Some(up) = up.as_ref().filter(|_| !is_set(loaded, "nats.url")) {
        anyhow::ensure!(
            !up.cloud_url.is_empty(),
            "this is a site of a fleet: run the command at the hub, or name the hub's server with --nats, nats.ca and nats.nkey"
        );
        nats = up.cloud_nats(&nats);
    }
    connect(loaded, &nats, up.is_some(), name).await
}

async fn connect(loaded: &LoadedSettings<Settings>, nats: &NatsSettings, up: bool, name: &str) -> anyhow::Result<Bus> {
    let connected = Bus::connect(nats, name).await;
    if up || is_set(loaded, "nats.url") {
        return Ok(connected?);
    }
    let store = loaded.settings.up.store.display().to_string();
    connected.with_context(|| {
        format!("no `tributary up` is running with the store {store}: start it, or name another store with --store")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beside_up(flags: &[(&str, &str)]) -> Settings {
        let store = tempfile::tempdir().unwrap();
        let running = serde_json::json!({
            "process": std::process::id(), "cloud_url": "", "cloud_domain": null, "sites": [], "model": "/models/x",
            "chosen": { "cloud_model": "/models/y", "release_store": "/releases", "streams": { "images_max_mib": 77 } },
        });
        fs::write(path(store.path()), running.to_string()).unwrap();
        let nothing = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
        let place = ("up.store".to_owned(), store.path().display().to_string().into());
        let flags = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).into()));
        let flags: Vec<(String, serde_json::Value)> = flags.chain([place]).collect();
        let mut loaded = runtime::settings::load::<Settings>(Some(nothing.path()), &flags).unwrap();
        adopt_running_up(&mut loaded);
        loaded.settings
    }

    #[test]
    fn what_a_running_up_was_started_with_is_taken_over_where_nothing_else_is_set() {
        let settings = beside_up(&[]);
        assert_eq!(settings.recognizer.model, Path::new("/models/x"));
        assert_eq!(settings.verifier.model.as_deref(), Some(Path::new("/models/y")));
        assert_eq!((settings.aggregator.store.as_str(), settings.streams.images_max_mib), ("/releases", 77));
        let settings = beside_up(&[("recognizer.model", "mine"), ("aggregator.store", "here")]);
        assert_eq!(settings.recognizer.model, Path::new("mine"));
        assert_eq!((settings.aggregator.store.as_str(), settings.streams.images_max_mib), ("here", 77));
        let elsewhere = beside_up(&[("nats.url", "nats://elsewhere:4222")]);
        assert_eq!(elsewhere.recognizer.model, Settings::default().recognizer.model, "its server is another one");
    }
}

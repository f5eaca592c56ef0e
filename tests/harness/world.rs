//! The servers and workers of one test; all of them end with it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use fleet::{FleetFolder, HubAddress};
use nix::sys::signal::Signal;
use schemas::{Role, SiteName};
use streams::permissions;
use streams::server::{ClientListener, Durability, FleetHub, FleetLeaf, LINK_USER, LeafMode, Server, ServerSettings};
use streams::topology::{self, PlanScope, RepairMode, StreamSettings};
use streams::{Blobs, Bus, NatsSettings};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::bare_server::free_ports;
use crate::pictures::{HEAVY, INITIAL, LIGHT};
use crate::program::{CommandOutput, WorkerProcess, fixture, run};
use crate::proxy::Proxy;
use crate::until::until;

/// Most worlds at a time: on two cores, more would slow each other down.
static WORLDS: Semaphore = Semaphore::const_new(2);
/// JetStream domain of the cloud.
const CLOUD: &str = "cloud";

/// Layout and settings of a [`TestWorld`].
#[derive(Debug, Clone)]
pub struct WorldPlan {
    /// Number of sites, each with its own server, which a link that can be cut joins to a hub. 0: one site and the
    /// cloud share one server.
    pub leaves: usize,
    /// Whether hub and sites form a fleet, with encrypted links and a key for each site and role.
    pub fleet: bool,
    /// When the servers sync stored messages to disk.
    pub durability: Durability,
    /// Stream limits and acknowledgement wait.
    pub streams: StreamSettings,
    /// Folder of the servers' stores; if absent, the temporary folder that also holds the logs.
    pub stores: Option<PathBuf>,
    /// Port of the shared server when `leaves` is 0; 0 finds a free one.
    pub port: u16,
    /// Additional settings for every worker, as `key=value`.
    pub set: Vec<String>,
}

impl Default for WorldPlan {
    fn default() -> Self {
        Self {
            leaves: 0,
            fleet: false,
            durability: Durability::PowerSafe,
            streams: StreamSettings { ack_wait_s: 2, ..StreamSettings::default() },
            stores: None,
            port: 0,
            set: Vec::new(),
        }
    }
}

impl WorldPlan {
    /// A hub and `leaves` sites.
    pub fn leaves(leaves: usize) -> Self {
        Self { leaves, ..Self::default() }
    }

    /// Adds a setting for every worker, as `key=value`.
    pub fn set(mut self, pair: &str) -> Self {
        self.set.push(pair.into());
        self
    }
}

/// A site and its server.
pub struct TestSite {
    /// Name of the site.
    pub name: SiteName,
    /// The site's NATS server.
    pub server: Server,
    /// Its link to the cloud; absent where they share a server.
    pub link: Option<Proxy>,
    /// A connection to its server.
    pub bus: Bus,
}

impl TestSite {
    /// Connects to the cloud over the site's link, with the courier's rights.
    pub async fn over_link(&self) -> anyhow::Result<Bus> {
        let password = self.server.link_password().context("the site has no link")?;
        let settings = NatsSettings {
            url: self.server.url(),
            cloud_domain: Some(CLOUD.into()),
            link_user: Some(LINK_USER.into()),
            link_password: Some(password.to_owned().into()),
            ..NatsSettings::default()
        };
        Ok(self.bus.connect_cloud(&settings, &self.name, "test").await?)
    }
}

/// Servers and workers. Dropping it kills the workers, then the servers.
pub struct TestWorld {
    /// The workers by name, such as `recognizer-0` or `courier-1`.
    pub workers: BTreeMap<String, WorkerProcess>,
    /// The sites, by number.
    pub sites: Vec<TestSite>,
    /// The cloud's server; absent if it shares the site's server.
    pub hub: Option<Server>,
    /// A connection to the cloud's server.
    pub cloud: Bus,
    /// Environment variables for workers that are started from now on.
    pub environment: Vec<(String, String)>,
    plan: WorldPlan,
    allows_refusals: AtomicBool,
    fleet: Option<FleetFolder>,
    folder: TempDir,
    _permit: SemaphorePermit<'static>,
}

impl TestWorld {
    /// Starts the servers and creates their streams, but starts no workers.
    pub async fn start(plan: WorldPlan) -> anyhow::Result<Self> {
        let permit = WORLDS.acquire().await?;
        let folder = tempfile::Builder::new().prefix("tributary-test-").tempdir()?;
        let stores = plan.stores.clone().unwrap_or_else(|| folder.path().into());
        let settings = |name: &str, domain: Option<&str>, leaf| ServerSettings {
            encryption_key: None,
            program: None,
            store: stores.join(name),
            name: name.into(),
            domain: domain.map(str::to_owned),
            port: 0,
            mqtt: None,
            mappings: Vec::new(),
            durability: plan.durability,
            // Leave room for sites that tests add to the cloud later.
            max_store_bytes: topology::plan_topology(&PlanScope::Both(SiteName::default_site()), &plan.streams)
                .max_store_bytes()
                * 8,
            leaf,
            site: None,
            entry: ClientListener::default(),
        };
        let mut sites = Vec::new();
        let mut fleet = None;
        let (hub, cloud) = if plan.leaves == 0 {
            let name = SiteName::default_site();
            let alone =
                ServerSettings { port: plan.port, site: Some(name.clone()), ..settings("site", None, LeafMode::Alone) };
            let server = serve(alone).await?;
            let bus = set_up(&server, &PlanScope::Both(name.clone()), &plan.streams).await?;
            sites.push(TestSite { name, server, link: None, bus: bus.clone() });
            (None, bus)
        } else {
            let names: Vec<SiteName> =
                (1..=plan.leaves).map(|number| format!("site-{number}").parse()).collect::<Result<_, _>>()?;
            let (leaf, port) = match plan.fleet {
                true => {
                    let new_fleet = make_fleet(&folder.path().join("fleet"))?;
                    let hub = FleetHub {
                        leaf_port: new_fleet.hub().leaf_port,
                        certificate: new_fleet.certificate_file(),
                        key: new_fleet.key_file(),
                        accounts: new_fleet.accounts_file(),
                    };
                    let port = new_fleet.hub().client_port;
                    fleet = Some(new_fleet);
                    (LeafMode::HubOfFleet(hub), port)
                }
                false => (LeafMode::Hub(names.clone()), 0),
            };
            let mut members = Vec::new();
            if let Some(fleet) = &mut fleet {
                for name in &names {
                    members.push(fleet.add_site(name)?);
                }
            }
            let hub = serve(ServerSettings { port, ..settings(CLOUD, Some(CLOUD), leaf) }).await?;
            let login = fleet.as_ref().map(|fleet| role_login(fleet, Role::Operator)).unwrap_or_default();
            let nats = NatsSettings { url: hub.url(), ..login };
            let cloud = set_up_with(&hub, nats, &PlanScope::Cloud(names.clone()), &plan.streams).await?;
            for (number, name) in names.into_iter().enumerate() {
                let link = Proxy::start(SocketAddr::from(([127, 0, 0, 1], hub.leaf_port()))).await?;
                let leaf = match (&fleet, members.get(number)) {
                    (Some(fleet), Some(member)) => LeafMode::OfFleet(FleetLeaf {
                        hub: format!("tls://127.0.0.1:{}", link.port()),
                        authority: fleet.authority_file(),
                        seed: member.leaf_seed.clone().into(),
                    }),
                    _ => LeafMode::Of(hub.leaf_url(&name, link.port()).context("the hub does not know the site")?),
                };
                let own =
                    ServerSettings { site: Some(name.clone()), ..settings(name.as_str(), Some(name.as_str()), leaf) };
                let server = serve(own).await?;
                let bus = set_up(&server, &PlanScope::Site(name.clone()), &plan.streams).await?;
                sites.push(TestSite { name, server, link: Some(link), bus });
            }
            (Some(hub), cloud)
        };
        let (workers, environment) = (BTreeMap::new(), Vec::new());
        Ok(Self {
            workers,
            sites,
            hub,
            cloud,
            environment,
            plan,
            allows_refusals: AtomicBool::new(false),
            fleet,
            folder,
            _permit: permit,
        })
    }

    /// Starts the servers, a verifier, and a recognizer, a courier and a janitor for each site.
    pub async fn start_with_workers(plan: WorldPlan) -> anyhow::Result<Self> {
        let mut world = Self::start(plan).await?;
        world.start_workers().await?;
        Ok(world)
    }

    /// Starts a verifier, and a recognizer, a courier and a janitor for each site.
    pub async fn start_workers(&mut self) -> anyhow::Result<()> {
        self.verifier("verifier-0")?;
        for site in 0..self.sites.len() {
            self.recognizer(&format!("recognizer-{site}"), site)?;
            self.courier(&format!("courier-{site}"), site)?;
            self.janitor(&format!("janitor-{site}"), site)?;
        }
        self.all_started().await
    }

    /// Waits until every worker has logged its start.
    pub async fn all_started(&mut self) -> anyhow::Result<()> {
        for worker in self.workers.values() {
            worker.wait_for_log("started", Duration::from_secs(30)).await?;
        }
        Ok(())
    }

    /// Starts a recognizer.
    pub fn recognizer(&mut self, name: &str, site: usize) -> anyhow::Result<&mut WorkerProcess> {
        self.recognizer_of(name, site, LIGHT)
    }

    /// Starts a recognizer with an untrained model, to which nearly every image is doubtful.
    pub fn untrained_recognizer(&mut self, name: &str, site: usize) -> anyhow::Result<&mut WorkerProcess> {
        self.recognizer_of(name, site, INITIAL)
    }

    /// Starts a trainer of the untrained model. It checks for samples every second and may use the whole processor.
    pub fn trainer(&mut self, name: &str, site: usize) -> anyhow::Result<&mut WorkerProcess> {
        let work = self.folder().join(format!("training-{site}")).display().to_string();
        let model = fixture(INITIAL).display().to_string();
        let mut more = vec!["--model".into(), model];
        for pair in
            [format!("trainer.work={work}"), "trainer.collect.every_s=1".into(), "trainer.limits.cpu_ratio=1".into()]
        {
            more.extend(["--set".into(), pair]);
        }
        self.start_site_worker(name, Role::Trainer, site, &more)
    }

    /// Starts a recognizer with a model from the fixtures.
    pub fn recognizer_of(&mut self, name: &str, site: usize, model: &str) -> anyhow::Result<&mut WorkerProcess> {
        let model = fixture(model).display().to_string();
        let work = format!("recognizer.work={}", self.folder().join(format!("releases-{name}")).display());
        let one = "recognizer.infer.replicas=1".to_owned();
        let more = ["--model".into(), model, "--set".into(), one, "--set".into(), work];
        self.start_site_worker(name, Role::Recognizer, site, &more)
    }

    /// Starts a courier.
    pub fn courier(&mut self, name: &str, site: usize) -> anyhow::Result<&mut WorkerProcess> {
        self.start_site_worker(name, Role::Courier, site, &[])
    }

    /// Starts a janitor that runs every second.
    pub fn janitor(&mut self, name: &str, site: usize) -> anyhow::Result<&mut WorkerProcess> {
        self.janitor_with(name, site, &[])
    }

    /// Starts a janitor that runs every second, with more settings, as `key=value`.
    pub fn janitor_with(&mut self, name: &str, site: usize, more: &[String]) -> anyhow::Result<&mut WorkerProcess> {
        // Verbose, because an audit that finds nothing is logged at that level only.
        let mut options = vec!["--verbose".into(), "--set".into(), "janitor.every_s=1".into()];
        if let Some(stores) = &self.plan.stores {
            let store = format!("janitor.store={}", stores.join(self.site(site).name.as_str()).display());
            options.extend(["--set".into(), store, "--set".into(), "janitor.disk_reserve_mib=24".into()]);
        }
        options.extend(more.iter().flat_map(|pair| ["--set".into(), pair.clone()]));
        self.start_site_worker(name, Role::Janitor, site, &options)
    }

    /// Starts a verifier.
    pub fn verifier(&mut self, name: &str) -> anyhow::Result<&mut WorkerProcess> {
        self.verifier_of(name, HEAVY)
    }

    /// Starts a verifier with a model from the fixtures.
    pub fn verifier_of(&mut self, name: &str, model: &str) -> anyhow::Result<&mut WorkerProcess> {
        let model = fixture(model).display().to_string();
        let url = self.cloud_url();
        let work = format!("verifier.work={}", self.folder().join(format!("releases-{name}")).display());
        let one = "verifier.infer.replicas=1".to_owned();
        let mut more = vec!["--model".into(), model, "--set".into(), one, "--set".into(), work];
        more.extend(self.login(Role::Verifier));
        let arguments = self.arguments(Role::Verifier, &url, &more);
        self.start_worker(name, &arguments)
    }

    /// Starts an aggregator of the untrained model, with the world's release store and more settings, as `key=value`.
    pub fn aggregator(&mut self, name: &str, more: &[String]) -> anyhow::Result<&mut WorkerProcess> {
        let mut arguments = vec!["--model".into(), fixture(INITIAL).display().to_string()];
        let places = [self.release_store(), format!("aggregator.work={}", self.folder().join(name).display())];
        for pair in places.iter().chain(more) {
            arguments.extend(["--set".into(), pair.clone()]);
        }
        let url = self.cloud_url();
        let arguments = self.arguments(Role::Aggregator, &url, &arguments);
        self.start_worker(name, &arguments)
    }

    /// Starts a releaser that judges every second, with the world's release store.
    pub fn releaser(&mut self, name: &str) -> anyhow::Result<&mut WorkerProcess> {
        let url = self.cloud_url();
        let more = ["--set".into(), self.release_store(), "--set".into(), "releaser.judge_s=1".into()];
        let arguments = self.arguments(Role::Releaser, &url, &more);
        self.start_worker(name, &arguments)
    }

    /// The setting that names the world's release store, as `key=value`.
    pub fn release_store(&self) -> String {
        format!("aggregator.store={}", self.folder().join("releases").display())
    }

    /// Runs `tributary release` against the cloud.
    pub async fn release(&self, words: &[&str]) -> anyhow::Result<CommandOutput> {
        let mut arguments: Vec<String> =
            ["release", "--nats", &self.cloud_url(), "--set", &self.release_store()].map(str::to_owned).to_vec();
        arguments.extend(words.iter().map(|word| (*word).to_owned()));
        run(self.folder(), &arguments).await
    }

    /// Creates the cloud's streams for one more site, which has no server. Idempotent.
    pub async fn add_site_to_cloud(&self, site: &SiteName) -> anyhow::Result<()> {
        if Blobs::open_sent_by(&self.cloud, site).bucket_exists().await? {
            return Ok(());
        }
        let wanted = topology::plan_topology(&PlanScope::Cloud(vec![site.clone()]), &self.plan.streams);
        for finding in topology::apply_plan(&self.cloud, &wanted, RepairMode::Everything).await? {
            anyhow::ensure!(!matches!(finding.state, topology::SetupStatus::Refused(_)), "{finding:?}");
        }
        Ok(())
    }

    /// The options with which a role logs in to the cloud; empty if no login is needed.
    fn login(&self, name: Role) -> Vec<String> {
        let Some(fleet) = &self.fleet else {
            return worker_login(self.hub.as_ref().unwrap_or(&self.site(0).server), name);
        };
        let NatsSettings { ca, nkey, inbox, .. } = role_login(fleet, name);
        let path = |path: Option<PathBuf>| path.map(|path| path.display().to_string()).unwrap_or_default();
        let pairs = [("ca", path(ca)), ("nkey", path(nkey)), ("inbox", inbox.unwrap_or_default())];
        pairs.into_iter().flat_map(|(key, value)| ["--set".to_owned(), format!("nats.{key}={value}")]).collect()
    }

    /// URL of the cloud's server.
    pub fn cloud_url(&self) -> String {
        self.hub.as_ref().map(Server::url).unwrap_or_else(|| self.site(0).server.url())
    }

    /// The options that connect a command of the binary to a site.
    pub fn at(&self, site: usize) -> Vec<String> {
        let site = self.site(site);
        let mut options = vec!["--nats".into(), site.server.url(), "--site".into(), site.name.to_string()];
        if site.link.is_some() {
            options.extend(["--set".into(), format!("nats.cloud_domain={CLOUD}")]);
            if let Some(password) = site.server.link_password() {
                options.extend(["--set".into(), format!("nats.link_user={LINK_USER}")]);
                options.extend(["--set".into(), format!("nats.link_password={password}")]);
            }
        }
        options
    }

    /// A site by number, from 0.
    pub fn site(&self, site: usize) -> &TestSite {
        &self.sites[site]
    }

    /// The connection to a site's server.
    pub fn bus(&self, site: usize) -> &Bus {
        &self.site(site).bus
    }

    /// A worker by name; an error if it was never started.
    pub fn worker_mut(&mut self, name: &str) -> anyhow::Result<&mut WorkerProcess> {
        self.workers.get_mut(name).with_context(|| format!("no worker {name}"))
    }

    /// Lets the test pass although servers refuse workers something, when that is what it tests.
    pub fn allow_refusals(&self) {
        self.allows_refusals.store(true, Ordering::Relaxed);
    }

    /// The temporary folder with the logs, and with the stores unless [`WorldPlan::stores`] names another.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The consumers' acknowledgement wait.
    pub fn ack_wait(&self) -> Duration {
        Duration::from_secs(self.plan.streams.ack_wait_s.into())
    }

    /// The last lines of every worker's log, for failure messages.
    pub fn log_tails(&self) -> String {
        let mut text = String::new();
        for worker in self.workers.values() {
            let log = worker.log();
            let from = log.lines().count().saturating_sub(12);
            let lines: Vec<&str> = log.lines().skip(from).collect();
            text.push_str(&format!("--- {}\n{}\n", worker.name, lines.join("\n")));
        }
        text
    }

    fn start_site_worker(
        &mut self,
        name: &str,
        role: Role,
        site: usize,
        more: &[String],
    ) -> anyhow::Result<&mut WorkerProcess> {
        let url = self.site(site).server.url();
        let mut all = self.at(site);
        all.extend(worker_login(&self.site(site).server, role));
        all.extend(more.iter().cloned());
        let arguments = self.arguments(role, &url, &all);
        self.start_worker(name, &arguments)
    }

    fn arguments(&self, role: Role, url: &str, more: &[String]) -> Vec<String> {
        let mut arguments = vec![role.to_string()];
        if !more.iter().any(|argument| argument == "--nats") {
            arguments.extend(["--nats".into(), url.to_owned()]);
        }
        arguments.extend(more.iter().cloned());
        let ack_wait = format!("streams.ack_wait_s={}", self.plan.streams.ack_wait_s);
        for pair in self.plan.set.iter().chain([&ack_wait]) {
            arguments.extend(["--set".into(), pair.clone()]);
        }
        arguments
    }

    fn start_worker(&mut self, name: &str, arguments: &[String]) -> anyhow::Result<&mut WorkerProcess> {
        let worker = WorkerProcess::start(name, self.folder.path(), arguments, &self.environment)?;
        Ok(self.workers.entry(name.to_owned()).insert_entry(worker).into_mut())
    }
}

/// The options with which a worker logs in to a server under its role's rights; empty for a role without a login.
fn worker_login(server: &Server, role: Role) -> Vec<String> {
    let Some(login) = server.login(role) else { return Vec::new() };
    let pairs = [("user", login.user), ("password", login.password), ("inbox", permissions::role_inbox(role.as_str()))];
    pairs.into_iter().flat_map(|(key, value)| ["--set".to_owned(), format!("nats.{key}={value}")]).collect()
}

/// Permission violations of workers in the servers' logs: rights that a worker needs and does not have.
fn worker_violations(folder: &Path) -> Vec<String> {
    let stores = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let logs = stores.filter_map(|store| std::fs::read_to_string(store.path().join("nats-server.log")).ok());
    let is_violation = |line: &&str| line.contains("Violation") && line.contains("User \"@");
    logs.flat_map(|log| log.lines().filter(is_violation).map(str::to_owned).collect::<Vec<_>>()).collect()
}

impl Drop for TestWorld {
    fn drop(&mut self) {
        if self.allows_refusals.load(Ordering::Relaxed) {
            return;
        }
        let violations = worker_violations(self.plan.stores.as_deref().unwrap_or(self.folder.path()));
        // So every end-to-end test also proves that the workers' rights suffice.
        assert!(violations.is_empty() || std::thread::panicking(), "{}", violations.join("\n"));
    }
}

/// Starts a server on a blocking thread.
pub async fn serve(settings: ServerSettings) -> anyhow::Result<Server> {
    Ok(tokio::task::spawn_blocking(move || Server::start(&settings)).await??)
}

/// Creates a fleet whose hub is this machine.
fn make_fleet(folder: &Path) -> anyhow::Result<FleetFolder> {
    let [leaf_port, client_port] = free_ports()?;
    Ok(FleetFolder::init(folder, HubAddress { host: "127.0.0.1".into(), leaf_port, client_port })?)
}

/// The credentials of a fleet's role at its hub.
fn role_login(fleet: &FleetFolder, name: Role) -> NatsSettings {
    NatsSettings {
        ca: Some(fleet.authority_file()),
        nkey: Some(fleet.role_file(name)),
        inbox: Some(permissions::role_inbox(name.as_str())),
        ..NatsSettings::default()
    }
}

/// Connects to a server and creates the streams of a site or the cloud.
pub async fn set_up(server: &Server, place: &PlanScope, streams: &StreamSettings) -> anyhow::Result<Bus> {
    let nats = NatsSettings { url: server.url(), ..NatsSettings::default() };
    set_up_with(server, nats, place, streams).await
}

async fn set_up_with(
    server: &Server,
    nats: NatsSettings,
    place: &PlanScope,
    streams: &StreamSettings,
) -> anyhow::Result<Bus> {
    let bus = Bus::connect(&nats, "test").await?;
    for finding in topology::apply_plan(&bus, &topology::plan_topology(place, streams), RepairMode::Missing).await? {
        anyhow::ensure!(!matches!(finding.state, topology::SetupStatus::Refused(_)), "{finding:?}");
    }
    server.sync_store()?;
    Ok(bus)
}

/// Kills a server and waits until its supervisor has restarted it and it answers.
pub async fn crash(server: &Server, bus: &Bus) -> anyhow::Result<()> {
    let process = until("the server has a process", Duration::from_secs(10), async || Ok(server.process())).await?;
    let restarts = server.restarts();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.cast_signed()), Signal::SIGKILL)?;
    until("nats-server is restarted", Duration::from_secs(30), async || {
        let is_restarted = server.restarts() > restarts && server.process().is_some();
        let answers = is_restarted && streams::reader::round_trip(bus, Duration::from_secs(1)).await.is_ok();
        Ok(answers.then_some(()))
    })
    .await
}

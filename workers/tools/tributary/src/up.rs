//! `tributary up`: servers and all roles in one process, until stopped.

mod supervisor;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use fleet::{FleetFolder, Membership};
use futures::FutureExt;
use notifier::NotifierSettings;
use releases::trial::TrialRunner;
use runtime::settings::LoadedSettings;
use runtime::{Shutdown, clock};
use schemas::{Role, SiteName};
use serving::serving_model::ServingModel;
use streams::permissions;
use streams::server::{
    CertificateFiles, ClientListener, FleetHub, FleetLeaf, LeafMode, Server, ServerSettings, host_of,
};
use streams::topology::{self, PlanScope, RepairMode, SetupFinding, SetupStatus};
use streams::{Bus, NatsSettings};
use tokio::task::JoinSet;

use crate::certificate_expiry;
use crate::fleet_cmd;
use crate::roles::{self, ack_wait, start as begin};
use crate::settings::{Settings, UpSettings};
use crate::site_target::{ALONE, CameraEntry, CloudLogin, RunningSite, RunningUp, UpChoices, is_set_below};
use crate::stdout;
use crate::up::supervisor::{RoleLogin, RoleStart, SupervisedRole};

/// JetStream domain of the cloud.
const CLOUD: &str = "cloud";
/// Sites that the disk limit of a fleet's hub is computed for.
const MOST_SITES: usize = 1000;

/// The merge rule where no public set is configured. `agreement` needs none either, and loses ten points and more to
/// this one where sites differ most (docs/benchmarks.md).
const RULE_WITHOUT_PUBLIC_SET: &str = "fedavg";

const EXAMPLES: &str = "\
Starts a nats-server on a free loopback port with its store in --store, and all roles of a site and of the cloud in \
one process; other commands in this folder find it. Ctrl-C stops it; nothing that was acknowledged is lost.

What is wrong at the start ends it at once: a setting out of range, a model that is not there, a recognizer's model \
that cannot be loaded, a key that cannot be read. A role that fails later, or a verifier, trainer or aggregator whose \
model cannot be loaded, is started again after 1 s to 1 min, while the others go on: `tributary status` and \
`tributary doctor` say which, why, and when it is tried again.

--merge without a public set (aggregator.public) merges by fedavg, unless aggregator.merge.rule says otherwise: the \
default rule, pick, tries its candidates on that set.

Examples:
  tributary up --model ./model                    one site; doubtful answers stay as they are
  tributary up --model ./model --cloud-model ./larger
                                                  the larger model verifies doubtful answers
  tributary up --model ./model --cloud-model ./larger --sites 2 --train --merge
                                                  a hub and two sites that learn
  tributary up --fleet tributary-fleet --cloud-model ./larger
                                                  the hub of a fleet";

/// Start servers and all roles on this machine, and keep them running.
#[derive(clap::Args, Debug, Default)]
#[command(after_help = EXAMPLES)]
pub struct UpArgs {
    /// Folder of the site's model: model.toml, graph.onnx and labels.txt, or a Hugging Face export.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Folder of the cloud's model, which verifies doubtful answers.
    #[arg(long, value_name = "DIR")]
    pub cloud_model: Option<PathBuf>,
    /// Start a hub and N sites with a server each, joined by leaf links as in production.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub sites: Option<u16>,
    /// Start the hub of the fleet in this folder, made by `tributary fleet init`, instead of a site.
    #[arg(long, value_name = "DIR", conflicts_with = "sites")]
    pub fleet: Option<PathBuf>,
    /// Run a trainer at each site, on the images labelled there.
    #[arg(long)]
    pub train: bool,
    /// Run an aggregator, which merges the sites' updates into releases (`tributary round open`).
    #[arg(long)]
    pub merge: bool,
}

impl UpArgs {
    /// The settings that the flags override.
    pub fn flags(&self) -> Vec<(String, serde_json::Value)> {
        let flag = |key: &str, path: &Option<PathBuf>| {
            path.as_ref().map(|path| (key.to_owned(), path.display().to_string().into()))
        };
        let train = self.train.then(|| ("up.train".to_owned(), true.into()));
        let models = flag("recognizer.model", &self.model).into_iter().chain(flag("verifier.model", &self.cloud_model));
        let merge = self.merge.then(|| ("up.merge".to_owned(), true.into()));
        models.chain(train).chain(merge).collect()
    }
}

/// Starts everything, prints the addresses, and waits.
pub async fn command(settings: &Settings, args: &UpArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let up = match &args.fleet {
        Some(folder) => start_hub(settings, folder, shutdown.clone()).await?,
        None => start(settings, args.sites, shutdown.clone()).await?,
    };
    if let Err(error) = stdout::print_line(welcome(&up.running, settings)) {
        tracing::warn!(%error, "stdout closed");
    }
    up.wait_until_stopped().await
}

/// The running servers and roles. Dropping it stops the servers, after the roles.
pub struct LocalSystem {
    /// What other commands need to find it.
    pub running: RunningUp,
    roles: JoinSet<anyhow::Result<()>>,
    shutdown: Shutdown,
    store: PathBuf,
    _sites: Vec<Server>,
    _cloud: Option<Server>,
}

impl LocalSystem {
    /// Waits until stopped, or until a role finds a mistake in the settings; then stops everything in order.
    pub async fn wait_until_stopped(mut self) -> anyhow::Result<()> {
        let mut first = Ok(());
        while let Some(ended) = self.roles.join_next().await {
            // A role ends of itself only at the start: half a site would look like a whole one.
            self.shutdown.request();
            let ended = ended.map_err(anyhow::Error::from).and_then(|ended| ended);
            first = first.and(ended);
        }
        RunningUp::remove(&self.store);
        streams::connect::expect_end(true);
        tokio::task::spawn_blocking(move || drop((self._sites, self._cloud))).await?;
        first
    }
}

/// Starts everything, and returns once it accepts work.
pub async fn start(settings: &Settings, sites: Option<u16>, shutdown: Shutdown) -> anyhow::Result<LocalSystem> {
    streams::connect::expect_end(false);
    runtime::metrics::expect_roles(usize::MAX);
    let mut settings = settings.clone();
    let member = Membership::find(&settings.up.store)?;
    if let Some(member) = &member {
        apply_membership(member, &mut settings, sites)?;
    }
    check_model_folders(&settings)?;
    let heavy = match member.is_some() {
        // The verifiers run at the fleet's hub.
        true => None,
        false => load_verifier(&mut settings).await?,
    };
    let names = names(&settings.site, sites)?;
    let servers = servers(&settings, &names, sites.is_some(), member.as_ref()).await?;
    let running = running(&names, &servers, member.as_ref(), &settings);
    let mut roles = JoinSet::new();
    if member.is_none() {
        let nats = running.cloud_nats(&NatsSettings::default());
        let cloud = Bus::connect(&nats, "up").await?;
        let scope =
            if sites.is_some() { PlanScope::Cloud(names.clone()) } else { PlanScope::Both(settings.site.clone()) };
        set_up(&cloud, &scope, &settings).await?;
        let server = servers.all().next().context("no server was started")?;
        start_cloud(&mut roles, &settings, heavy, |role| as_worker(server, role, &nats), &shutdown).await?;
    }
    let leaves = sites.is_some() || member.is_some();
    for (site, server) in running.sites.iter().zip(&servers.sites) {
        let nats = site.nats(running.cloud_domain.as_deref(), &NatsSettings::default());
        let here = Bus::connect(&nats, site.site.as_str()).await?;
        if leaves {
            set_up(&here, &PlanScope::Site(site.site.clone()), &settings).await?;
        }
        if member.is_some() {
            clock::align_at_start(&here).await;
        }
        let light = start_recognizer_model(&settings, &site.site).await?;
        let own = SiteServer { site, server, nats: &nats };
        for role in site_roles(&settings, &own, light)? {
            roles.spawn(role.keep_running(shutdown.clone()));
        }
    }
    for server in servers.all() {
        server.sync_store().context("the store cannot be written to the disk")?;
    }
    running.write(&settings.up.store)?;
    certificate_expiry::report_expiries(&certificate_expiry::all(&settings, None));
    runtime::metrics::expect_roles(roles.len());
    let LocalServers { cloud, sites } = servers;
    Ok(LocalSystem { running, roles, shutdown, store: settings.up.store, _sites: sites, _cloud: cloud })
}

/// Starts the hub of a fleet: its server, encrypted on every address, and the roles of the cloud, each with its own
/// key.
pub async fn start_hub(settings: &Settings, folder: &Path, shutdown: Shutdown) -> anyhow::Result<LocalSystem> {
    runtime::metrics::expect_roles(usize::MAX);
    let fleet = FleetFolder::open(folder)?;
    let mut settings = settings.clone();
    check_model_folders(&settings)?;
    let heavy = load_verifier(&mut settings).await?;
    // With any key here, updates count only if their site signed them.
    let keys = fleet.sites().iter().map(|(site, member)| (site.clone(), member.update_key.clone()));
    settings.aggregator.check.keys.extend(keys);
    settings.aggregator.key.get_or_insert_with(|| fleet.signing_file(Role::Aggregator));
    settings.releaser.key.get_or_insert_with(|| fleet.signing_file(Role::Releaser));
    let names: Vec<SiteName> = fleet.sites().keys().cloned().collect();
    let scope = PlanScope::Cloud(names);
    let most_sites = PlanScope::Cloud((0..MOST_SITES).filter_map(|number| format!("s{number}").parse().ok()).collect());
    let hub = ServerSettings {
        encryption_key: settings.up.encryption_key.clone(),
        program: settings.up.nats_server.clone(),
        store: settings.up.store.join(CLOUD),
        name: CLOUD.into(),
        domain: Some(CLOUD.into()),
        port: fleet.hub().client_port,
        mqtt: None,
        mappings: Vec::new(),
        durability: settings.up.durability,
        // Sites are added while it runs.
        max_store_bytes: topology::plan_topology(&most_sites, &settings.streams).max_store_bytes(),
        leaf: LeafMode::HubOfFleet(FleetHub {
            leaf_port: fleet.hub().leaf_port,
            certificate: std::path::absolute(fleet.certificate_file())?,
            key: std::path::absolute(fleet.key_file())?,
            accounts: fleet.accounts_file(),
        }),
        site: None,
        entry: ClientListener::default(),
    };
    let server = spawn(hub).await?;
    let login = |role: Role| NatsSettings { url: server.url(), ..fleet_cmd::role_settings(&fleet, role) };
    let operator = Bus::connect(&login(Role::Operator), "up").await?;
    set_up(&operator, &scope, &settings).await?;
    fleet_cmd::note_fleet(&fleet, &operator).await?;
    let mut roles = JoinSet::new();
    start_cloud(&mut roles, &settings, heavy, |role| Ok(login(role)), &shutdown).await?;
    server.sync_store().context("the store cannot be written to the disk")?;
    let running = RunningUp {
        process: std::process::id(),
        cloud_url: server.url(),
        cloud_domain: None,
        sites: Vec::new(),
        model: PathBuf::new(),
        chosen: UpChoices::of(&settings),
        operator: Some(CloudLogin {
            ca: std::path::absolute(fleet.authority_file())?,
            nkey: std::path::absolute(fleet.role_file(Role::Operator))?,
            inbox: permissions::role_inbox(Role::Operator.as_str()),
            round_key: std::path::absolute(fleet.signing_file(Role::Aggregator))?,
        }),
        cloud_password: None,
        authority: None,
    };
    running.write(&settings.up.store)?;
    roles.spawn(report_calendar(folder.to_owned(), shutdown.clone()));
    // Reporting expiries is no role.
    runtime::metrics::expect_roles(roles.len().saturating_sub(1));
    Ok(LocalSystem { running, roles, shutdown, store: settings.up.store, _sites: Vec::new(), _cloud: Some(server) })
}

/// Reports hourly when the hub's certificates and root expire; other commands renew them while it runs.
async fn report_calendar(folder: PathBuf, shutdown: Shutdown) -> anyhow::Result<()> {
    const EVERY: Duration = Duration::from_secs(3600);
    loop {
        match FleetFolder::open(&folder) {
            Ok(fleet) => certificate_expiry::report_expiries(&certificate_expiry::of_hub(&fleet)),
            Err(error) => tracing::warn!(%error, "expiry check failed"),
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shutdown.wait_for_request() => return Ok(()),
        }
    }
}

/// Applies the settings of a site that belongs to a fleet.
fn apply_membership(member: &Membership, settings: &mut Settings, sites: Option<u16>) -> anyhow::Result<()> {
    anyhow::ensure!(
        sites.is_none() && settings.verifier.model.is_none() && !settings.up.merge,
        "the store {} belongs to site {} of a fleet, whose hub runs the verifiers and the rounds: omit --sites, --cloud-model and --merge, or use another --store",
        settings.up.store.display(),
        member.site
    );
    settings.site = member.site.clone();
    settings.courier.root.get_or_insert_with(|| Membership::root_file(&settings.up.store));
    settings.trainer.key.get_or_insert_with(|| Membership::update_key_file(&settings.up.store));
    Ok(())
}

/// Checks that the folders of models are there: a wrong path is a mistake, a folder that cannot be loaded may be mended.
fn check_model_folders(settings: &Settings) -> anyhow::Result<()> {
    let (verifier, up) = (&settings.verifier, &settings.up);
    let folders = [
        ("verifier.model", verifier.model.as_ref()),
        ("verifier.head", verifier.head.as_ref().filter(|_| verifier.model.is_some())),
        ("trainer.model", settings.trainer.model.as_ref().filter(|_| up.train)),
        ("aggregator.model", settings.aggregator.model.as_ref().filter(|_| up.merge)),
    ];
    for (key, folder) in folders {
        if let Some(missing) = folder.filter(|folder| !folder.is_dir()) {
            anyhow::bail!("{key} is {}, which is no folder: it must be the folder of a model", missing.display());
        }
    }
    Ok(())
}

/// The verifier's model, if one was named; or why it cannot be loaded, which the verifier tries again.
async fn load_verifier(settings: &mut Settings) -> anyhow::Result<Option<anyhow::Result<ServingModel>>> {
    if settings.verifier.model.is_none() {
        tracing::info!("no cloud model; doubtful answers are not verified (set --cloud-model)");
        settings.recognizer.verify.enabled = false;
        return Ok(None);
    }
    Ok(Some(start_verifier_model(settings).await))
}

async fn start_verifier_model(settings: &Settings) -> anyhow::Result<ServingModel> {
    let model = settings.verifier.model.clone().context("the verifier has no model")?;
    let work = settings.up.store.join("verifier");
    begin(settings.onnxruntime.clone(), model, settings.verifier.infer.clone(), work).await
}

/// Takes a merge rule that needs no public set where none is configured and nobody chose a rule: a round can then
/// merge, but not compare what it merged with its base.
pub fn choose_merge_rule(loaded: &mut LoadedSettings<Settings>) {
    const CHOICES: [&str; 3] = ["aggregator.merge.rule", "aggregator.merge.candidates", "aggregator.public"];
    let is_open = !CHOICES.iter().any(|key| is_set_below(loaded, key));
    let settings = &mut loaded.settings;
    if settings.up.merge && is_open && settings.aggregator.public.is_none() {
        settings.aggregator.merge.rule = RULE_WITHOUT_PUBLIC_SET.into();
        tracing::info!(
            rule = RULE_WITHOUT_PUBLIC_SET,
            "no public set; updates are merged by samples, and releases are not compared with their base (set aggregator.public)"
        );
    }
}

/// Starts the roles of the cloud. `login`: how a role logs in to the cloud.
async fn start_cloud(
    roles: &mut JoinSet<anyhow::Result<()>>,
    settings: &Settings,
    heavy: Option<anyhow::Result<ServingModel>>,
    login: impl Fn(Role) -> anyhow::Result<NatsSettings>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    if settings.up.merge {
        // Before anything says that it is up.
        aggregator::check_requirements(&settings.aggregator).await.map_err(roles::into_anyhow)?;
    }
    roles::release_store(settings)?;
    let bus = Bus::connect(&login(Role::Releaser)?, Role::Releaser.as_str()).await?;
    clock::align_at_start(&bus).await;
    for role in cloud_roles(settings, heavy, login)? {
        roles.spawn(role.keep_running(shutdown.clone()));
    }
    Ok(())
}

/// The roles of the cloud.
fn cloud_roles(
    settings: &Settings,
    heavy: Option<anyhow::Result<ServingModel>>,
    login: impl Fn(Role) -> anyhow::Result<NatsSettings>,
) -> anyhow::Result<Vec<SupervisedRole>> {
    let wait = ack_wait(settings);
    let supervised = |role: Role, start: RoleStart| {
        Ok::<_, anyhow::Error>(SupervisedRole { login: RoleLogin { role, nats: login(role)? }, site: None, start })
    };
    let mut all = Vec::new();
    if let Some(heavy) = heavy {
        let (settings, mut loaded) = (settings.clone(), Some(heavy));
        let start = move |login: RoleLogin, stop: Shutdown| {
            let (settings, loaded) = (settings.clone(), loaded.take());
            async move {
                let model = match loaded {
                    Some(loaded) => loaded?,
                    None => start_verifier_model(&settings).await?,
                };
                let head = roles::load_head(settings.onnxruntime.clone(), settings.verifier.head.clone()).await?;
                let ended = verifier::run(login.connect().await?, model, head, &settings.verifier, wait, stop).await;
                roles::role_result(Role::Verifier, ended)
            }
            .boxed()
        };
        all.push(supervised(Role::Verifier, Box::new(start))?);
    }
    if settings.up.merge {
        let mut settings = settings.clone();
        settings.aggregator.work = settings.up.store.join("aggregator");
        let start = move |login: RoleLogin, stop: Shutdown| {
            let settings = settings.clone();
            async move {
                let (onnx, model) = roles::load_to_merge(&settings).await?;
                let trial = TrialRunner::of_this_program(settings.onnxruntime.clone());
                let ended =
                    aggregator::run(login.connect().await?, onnx, model, trial, &settings.aggregator, stop).await;
                roles::role_result(Role::Aggregator, ended)
            }
            .boxed()
        };
        all.push(supervised(Role::Aggregator, Box::new(start))?);
    }
    let settings = settings.clone();
    let start = move |login: RoleLogin, stop: Shutdown| {
        let settings = settings.clone();
        async move {
            let store = roles::release_store(&settings)?;
            roles::role_result(
                Role::Releaser,
                releaser::run(login.connect().await?, store, &settings.releaser, stop).await,
            )
        }
        .boxed()
    };
    all.push(supervised(Role::Releaser, Box::new(start))?);
    Ok(all)
}

/// A site's server, with the login that may do everything.
struct SiteServer<'a> {
    site: &'a RunningSite,
    server: &'a Server,
    nats: &'a NatsSettings,
}

/// The roles of a site, each with the rights it needs. `light`: the recognizer's model.
fn site_roles(settings: &Settings, own: &SiteServer<'_>, light: ServingModel) -> anyhow::Result<Vec<SupervisedRole>> {
    let SiteServer { site, server, nats } = own;
    let name = site.site.clone();
    let supervised = |role: Role, start: RoleStart| {
        Ok::<_, anyhow::Error>(SupervisedRole {
            login: RoleLogin { role, nats: as_worker(server, role, nats)? },
            site: Some(site.site.clone()),
            start,
        })
    };
    let mut all = vec![
        supervised(Role::Recognizer, recognizer_start(settings, &name, light))?,
        supervised(Role::Courier, courier_start(settings, &name, nats))?,
        supervised(Role::Janitor, janitor_start(settings, site, nats))?,
    ];
    if settings.up.answers_json {
        let (name, chosen) = (name.clone(), notifier_settings(settings, site, server)?);
        let start = move |login: RoleLogin, stop: Shutdown| {
            let (name, chosen) = (name.clone(), chosen.clone());
            async move {
                roles::role_result(Role::Notifier, notifier::run(login.connect().await?, name, &chosen, stop).await)
            }
            .boxed()
        };
        all.push(supervised(Role::Notifier, Box::new(start))?);
    }
    if settings.up.train {
        let mut settings = settings.clone();
        settings.trainer.work = settings.up.store.join(format!("training-{name}"));
        let start = move |login: RoleLogin, stop: Shutdown| {
            let (name, settings) = (name.clone(), settings.clone());
            async move {
                let (onnx, model) = roles::load_to_train(&settings).await?;
                let ended = trainer::run(login.connect().await?, name, onnx, model, &settings.trainer, stop).await;
                roles::role_result(Role::Trainer, ended)
            }
            .boxed()
        };
        all.push(supervised(Role::Trainer, Box::new(start))?);
    }
    Ok(all)
}

/// The recognizer, first with the model that was loaded already.
fn recognizer_start(settings: &Settings, name: &SiteName, light: ServingModel) -> RoleStart {
    let (settings, name, mut loaded) = (settings.clone(), name.clone(), Some(light));
    let wait = ack_wait(&settings);
    Box::new(move |login, stop| {
        let (settings, name, loaded) = (settings.clone(), name.clone(), loaded.take());
        async move {
            let model = match loaded {
                Some(loaded) => loaded,
                None => start_recognizer_model(&settings, &name).await?,
            };
            let ended = recognizer::run(login.connect().await?, name, model, &settings.recognizer, wait, stop).await;
            roles::role_result(Role::Recognizer, ended)
        }
        .boxed()
    })
}

async fn start_recognizer_model(settings: &Settings, name: &SiteName) -> anyhow::Result<ServingModel> {
    let (model, infer) = (settings.recognizer.model.clone(), settings.recognizer.inference());
    let work = settings.up.store.join(format!("recognizer-{name}"));
    begin(settings.onnxruntime.clone(), model, infer, work).await
}

fn courier_start(settings: &Settings, name: &SiteName, nats: &NatsSettings) -> RoleStart {
    let (settings, name, nats) = (settings.clone(), name.clone(), nats.clone());
    let wait = ack_wait(&settings);
    Box::new(move |login, stop| {
        let (settings, name, nats) = (settings.clone(), name.clone(), nats.clone());
        async move {
            let bus = login.connect().await?;
            let cloud = bus.connect_cloud(&nats, &name, "courier").await?;
            let ended = courier::run(bus, cloud, name, &settings.courier, wait, stop).await;
            roles::role_result(Role::Courier, ended)
        }
        .boxed()
    })
}

fn janitor_start(settings: &Settings, site: &RunningSite, nats: &NatsSettings) -> RoleStart {
    let (name, nats, mut chosen) = (site.site.clone(), nats.clone(), settings.janitor.clone());
    let folder = if nats.cloud_domain.is_some() { name.as_str() } else { ALONE };
    chosen.store = Some(settings.up.store.join(folder));
    chosen.monitor = Some(site.monitor.clone());
    Box::new(move |login, stop| {
        let (name, nats, chosen) = (name.clone(), nats.clone(), chosen.clone());
        async move {
            let bus = login.connect().await?;
            let afar = match nats.cloud_domain.clone() {
                Some(domain) => Some((bus.connect_cloud(&nats, &name, "courier").await?, domain)),
                None => None,
            };
            roles::role_result(Role::Janitor, janitor::run(bus, name, &chosen, afar, stop).await)
        }
        .boxed()
    })
}

/// The notifier's settings. It publishes over MQTT, which alone can retain answers, where the listener is not
/// encrypted.
fn notifier_settings(settings: &Settings, site: &RunningSite, server: &Server) -> anyhow::Result<NotifierSettings> {
    let up = &settings.up;
    let mut chosen = settings.notifier.clone();
    let Some(port) = site.mqtt_port.filter(|_| up.insecure || up.mqtt_listen.is_loopback()) else { return Ok(chosen) };
    // A server that listens on every address listens on loopback, too.
    let listen = Some(up.mqtt_listen).filter(|address| !address.is_unspecified());
    let listen = listen.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let login = server.login(Role::Notifier).context("the notifier has no login")?;
    let file = up.store.join(format!("notifier-{}.password", site.site));
    streams::server::write_private(&file, &login.password)
        .with_context(|| format!("{} cannot be written", file.display()))?;
    chosen.mqtt = Some(SocketAddr::new(listen, port).to_string());
    chosen.mqtt_user = Some(login.user);
    chosen.mqtt_password_file = Some(file);
    Ok(chosen)
}

/// Connection settings with the login of a worker. `nats`: those of the place itself.
fn as_worker(server: &Server, role: Role, nats: &NatsSettings) -> anyhow::Result<NatsSettings> {
    let login = server.login(role).with_context(|| format!("the server has no user for the {}", role.as_str()))?;
    let inbox = Some(permissions::role_inbox(role.as_str()));
    Ok(NatsSettings { user: Some(login.user), password: Some(login.password.into()), inbox, ..nats.clone() })
}

/// The site's own name, or `NAME-1` … for several.
fn names(site: &SiteName, sites: Option<u16>) -> anyhow::Result<Vec<SiteName>> {
    let Some(count) = sites else { return Ok(vec![site.clone()]) };
    let stem = site.as_str().trim_end_matches("-1");
    (1..=count).map(|number| Ok(format!("{stem}-{number}").parse()?)).collect()
}

struct LocalServers {
    cloud: Option<Server>,
    sites: Vec<Server>,
}

impl LocalServers {
    fn all(&self) -> impl Iterator<Item = &Server> {
        self.cloud.iter().chain(&self.sites)
    }
}

/// One server for everything, or a hub and a leaf for each site.
async fn servers(
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

async fn spawn(settings: ServerSettings) -> anyhow::Result<Server> {
    Ok(tokio::task::spawn_blocking(move || Server::start(&settings)).await??)
}

/// How cameras reach a site's server.
fn entrance(up: &UpSettings, server: &Server) -> CameraEntry {
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

fn running(names: &[SiteName], servers: &LocalServers, member: Option<&Membership>, settings: &Settings) -> RunningUp {
    let up = &settings.up;
    let site = |(site, server): (&SiteName, &Server)| RunningSite {
        site: site.clone(),
        url: server.url(),
        mqtt_port: server.mqtt_port(),
        monitor: server.monitor_url(),
        link_password: server.link_password().map(str::to_owned),
        entrance: entrance(up, server),
        password: server.own_login().password,
        authority: server.authority().map(Path::to_owned),
    };
    let sites: Vec<RunningSite> = names.iter().zip(&servers.sites).map(site).collect();
    // At a site of a fleet, the hub is another machine's.
    let hub = servers.all().next().filter(|_| member.is_none());
    let cloud = hub.map(Server::url).unwrap_or_default();
    let cloud_domain = match member {
        Some(member) => Some(member.domain.clone()),
        None => servers.cloud.is_some().then(|| CLOUD.to_owned()),
    };
    // Absolute, because other commands may run in another folder.
    let model = &settings.recognizer.model;
    let model = std::path::absolute(model).unwrap_or_else(|_| model.clone());
    RunningUp {
        process: std::process::id(),
        cloud_url: cloud,
        cloud_domain,
        sites,
        model,
        chosen: UpChoices::of(settings),
        operator: None,
        cloud_password: hub.map(|server| server.own_login().password),
        authority: hub.and_then(Server::authority).map(Path::to_owned),
    }
}

async fn set_up(bus: &Bus, place: &PlanScope, settings: &Settings) -> anyhow::Result<()> {
    let plan = topology::plan_topology(place, &settings.streams);
    let mut findings = topology::apply_plan(bus, &plan, RepairMode::Everything).await;
    let refused =
        |findings: &[SetupFinding]| findings.iter().any(|finding| matches!(finding.state, SetupStatus::Refused(_)));
    if findings.as_deref().map_or(true, refused) {
        tracing::info!("streams not set up; retrying once");
        tokio::time::sleep(Duration::from_secs(1)).await;
        findings = topology::apply_plan(bus, &plan, RepairMode::Everything).await;
    }
    for finding in findings? {
        if let SetupStatus::Refused(why) = &finding.state {
            anyhow::bail!("{} cannot be set up: {why}", finding.what);
        }
        if let SetupStatus::Differs(differences) = &finding.state {
            for difference in differences {
                tracing::warn!(
                    what = finding.what,
                    setting = difference.setting,
                    found = %difference.found,
                    wanted = %difference.wanted,
                    remedy = "tributary setup --apply --shrink",
                    "higher limit kept"
                );
            }
        }
    }
    Ok(())
}

fn welcome(running: &RunningUp, settings: &Settings) -> String {
    let mut lines = vec![String::from("Tributary is up.")];
    for site in &running.sites {
        let mqtt = site.mqtt_port.map(|port| format!(", MQTT on port {port}")).unwrap_or_default();
        lines.push(format!("  site {:12} {}{mqtt}", site.site, site.url));
    }
    if running.cloud_domain.is_some() && !running.cloud_url.is_empty() {
        lines.push(format!("  cloud             {}", running.cloud_url));
    }
    if running.sites.is_empty() {
        if let Some(first) = lines.first_mut() {
            *first = String::from("The hub is up.");
        }
        lines.push(format!("  operators         {}", running.cloud_url));
        lines.push("  add a site        tributary site add NAME".into());
        lines.push("  list sites        tributary site list".into());
        lines.push("Stop it with Ctrl-C; sites continue without it and catch up.".into());
        return lines.join("\n");
    }
    // A single site is found without its name.
    let site = match &running.sites[..] {
        [first, _, ..] => format!(" --site {}", first.site),
        _ => String::new(),
    };
    let store = match settings.up.store == UpSettings::default().store {
        true => String::new(),
        false => format!(" --store {}", settings.up.store.display()),
    };
    lines.push(format!("  publish           tributary publish FOLDER --camera cam-1{store}{site}"));
    lines.push(format!("  read answers      tributary answers --follow{store}{site}"));
    lines.push(format!("  show its state    tributary status{store}{site}"));
    lines.push("Stop it with Ctrl-C; nothing that was acknowledged is lost.".into());
    lines.join("\n")
}

//! `tributary up`: servers and all roles in one process, until stopped.

mod local_servers;
mod role_starts;
mod supervisor;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use fleet::{FleetFolder, Membership};
use grabber::CameraPlan;
use runtime::settings::LoadedSettings;
use runtime::{Shutdown, clock};
use schemas::{Role, SiteName};
use serving::serving_model::ServingModel;
use streams::permissions;
use streams::server::{ClientListener, FleetHub, LeafMode, Server, ServerSettings};
use streams::topology::{self, PlanScope, RepairMode, SetupFinding, SetupStatus};
use streams::{Bus, NatsSettings};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::certificate_expiry;
use crate::fleet_cmd;
use crate::roles;
use crate::settings::{Settings, UpSettings};
use crate::site_target::{CloudLogin, RunningSite, RunningUp, UpChoices, is_set_below};
use crate::stdout;
use crate::up::local_servers::{LocalServers, entrance, spawn, start_servers};
use crate::up::role_starts::{
    SiteCameras, SiteServer, as_worker, cloud_roles, load_verifier, site_roles, start_recognizer_model,
};

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
pub async fn command(
    settings: &Settings,
    args: &UpArgs,
    cameras: watch::Receiver<CameraPlan>,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let up = match &args.fleet {
        Some(folder) => start_hub(settings, folder, shutdown.clone()).await?,
        None => start(settings, args.sites, Some(cameras), shutdown.clone()).await?,
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

/// Starts everything, and returns once it accepts work. `cameras`: the cameras of all sites; absent: none will ever be
/// taken pictures from.
pub async fn start(
    settings: &Settings,
    sites: Option<u16>,
    cameras: Option<watch::Receiver<CameraPlan>>,
    shutdown: Shutdown,
) -> anyhow::Result<LocalSystem> {
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
    check_camera_sites(&settings, &names)?;
    let servers = start_servers(&settings, &names, sites.is_some(), member.as_ref()).await?;
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
        let grabs = cameras.clone().map(|plan| SiteCameras { plan, is_first: names.first() == Some(&site.site) });
        for role in site_roles(&settings, &own, light, grabs)? {
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

/// Checks that cameras name sites that are started.
fn check_camera_sites(settings: &Settings, names: &[SiteName]) -> anyhow::Result<()> {
    let stray = settings.camera.iter().find_map(|camera| Some((camera, camera.site.as_ref()?)));
    match stray.filter(|(_, site)| !names.contains(site)) {
        Some((camera, site)) => {
            let names: Vec<&str> = names.iter().map(SiteName::as_str).collect();
            anyhow::bail!("camera {} belongs to site {site}; the sites here are {}", camera.name, names.join(", "))
        }
        None => Ok(()),
    }
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

/// The site's own name, or `NAME-1` … for several.
fn names(site: &SiteName, sites: Option<u16>) -> anyhow::Result<Vec<SiteName>> {
    let Some(count) = sites else { return Ok(vec![site.clone()]) };
    let stem = site.as_str().trim_end_matches("-1");
    (1..=count).map(|number| Ok(format!("{stem}-{number}").parse()?)).collect()
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

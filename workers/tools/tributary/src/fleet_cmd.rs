//! `tributary fleet`, `tributary site`, `tributary join`: who belongs to a fleet.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Context;
use fleet::{FleetError, FleetFolder, HubAddress, Membership, RENEW_WITHIN_DAYS, days_left, make_code};
use runtime::clock;
use schemas::{ReleaseId, Role, SiteName};
use streams::fleet::Ledger;
use streams::topology::{self, PlanScope, RepairMode, SetupStatus};
use streams::{Bus, NatsSettings, admin, permissions};

use crate::settings::Settings;
use crate::{audit, format, stdout};

/// Folder of a fleet where nobody names one.
const FOLDER: &str = "tributary-fleet";

const FLEET_EXAMPLES: &str = "\
The folder is the operator's: a certificate authority, the hub's certificate, the keys of the roles in
the cloud. Of a site it keeps public keys only. `ca.key` is needed for `renew`, `root.key` for `root`:
keep both elsewhere meanwhile.

Examples:
  tributary fleet init tributary-fleet --hub hub.example
  tributary up --fleet tributary-fleet --cloud-model MODEL_DIR       the hub: its server, verifier and releaser
  tributary site add reef                                            one file, reef.site, to carry to the site
  tributary join reef.site --model MODEL_DIR                         there";

/// Make the operator's side of a fleet, and keep its certificates.
#[derive(clap::Args)]
#[command(after_help = FLEET_EXAMPLES)]
pub struct FleetArgs {
    #[command(subcommand)]
    command: FleetCommand,
}

#[derive(clap::Subcommand)]
enum FleetCommand {
    /// Make a certificate authority, the hub's certificate, and a key for each role in the cloud.
    Init {
        /// Folder to make.
        #[arg(value_name = "DIR", default_value = FOLDER)]
        folder: PathBuf,
        /// Name or address by which sites reach the hub.
        #[arg(long, value_name = "HOST")]
        hub: String,
        /// Port for sites.
        #[arg(long, value_name = "PORT", default_value_t = 7422)]
        leaf_port: u16,
        /// Port for operators, and for roles on other machines.
        #[arg(long, value_name = "PORT", default_value_t = 4222)]
        client_port: u16,
    },
    /// Issue the hub a new certificate for a year; a running hub takes it without a restart.
    Renew {
        /// Folder of the fleet.
        #[arg(value_name = "DIR", default_value = FOLDER)]
        folder: PathBuf,
    },
    /// Make the next root: whom sites obey, for another year. Sites take it over the link within a minute.
    Root {
        /// Folder of the fleet.
        #[arg(value_name = "DIR", default_value = FOLDER)]
        folder: PathBuf,
        /// Release that no site runs from now on, whoever orders it; may be repeated.
        #[arg(long, value_name = "RELEASE")]
        never: Vec<ReleaseId>,
        /// File of the offline key; root.key in the folder if absent.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Give a role in the cloud new keys: verifier, aggregator, releaser, operator or system. Those of releaser and aggregator
    /// need the offline key, for a new root names them.
    Rotate {
        /// The role.
        #[arg(value_name = "ROLE")]
        role: String,
        /// Folder of the fleet.
        #[arg(value_name = "DIR", default_value = FOLDER)]
        folder: PathBuf,
        /// Count nothing any more that the old key signed.
        #[arg(long)]
        stolen: bool,
        /// File of the offline key; root.key in the folder if absent.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Show every certificate and key with the days it has left.
    Calendar {
        /// Folder of the fleet.
        #[arg(value_name = "DIR", default_value = FOLDER)]
        folder: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

const SITE_EXAMPLES: &str = "\
A site gets one file with its keys. Whoever has the file is the site: carry it as you would a password, and delete it
after `tributary join`. A site reaches of the hub only what is its own.

Examples:
  tributary site add reef
  tributary site add reef --sealed  the file is of no use without the code that is printed
  tributary site rotate reef       new keys; the old ones are good until `tributary site rotate reef --settle`
  tributary site revoke reef       its connection ends at once, and it does not come back";

/// Add, list, re-key and revoke the sites of a fleet.
#[derive(clap::Args)]
#[command(after_help = SITE_EXAMPLES)]
pub struct SiteArgs {
    #[command(subcommand)]
    command: SiteCommand,
    /// Folder of the fleet.
    #[arg(long, global = true, value_name = "DIR", default_value = FOLDER)]
    fleet: PathBuf,
}

#[derive(clap::Subcommand)]
enum SiteCommand {
    /// Make a site's keys, and the file with which it joins.
    Add {
        /// Name of the site.
        name: SiteName,
        /// File to write; NAME.site in this folder if absent.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Seal the file with a code, which is printed: tell it by another way than the file goes.
        #[arg(long)]
        sealed: bool,
    },
    /// Show the sites, and which are joined at this moment.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Give a site new keys, in a new file.
    Rotate {
        /// Name of the site.
        name: SiteName,
        /// File to write; NAME.site in this folder if absent.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Seal the file with a code, which is printed: tell it by another way than the file goes.
        #[arg(long)]
        sealed: bool,
        /// End the old key instead, after the site has joined with the new one.
        #[arg(long, conflicts_with_all = ["out", "sealed"])]
        settle: bool,
    },
    /// End a site's keys and its connection.
    Revoke {
        /// Name of the site.
        name: SiteName,
    },
}

/// Makes or keeps a fleet.
pub async fn fleet(args: &FleetArgs) -> anyhow::Result<()> {
    match &args.command {
        FleetCommand::Init { folder, hub, leaf_port, client_port } => {
            let address = HubAddress { host: hub.clone(), leaf_port: *leaf_port, client_port: *client_port };
            let made = FleetFolder::init(folder, address)?;
            stdout::print_line(format_args!(
                "Made {}. Only you can read it; back it up, and keep ca.key and root.key elsewhere.",
                folder.display()
            ))?;
            if made.hub().is_loopback() {
                stdout::print_line("The hub is this machine itself: sites on other machines cannot join it.")?;
            }
            stdout::print_line(format_args!(
                "Start the hub:  tributary up --fleet {} --cloud-model MODEL_DIR",
                folder.display()
            ))?;
            stdout::print_line(format_args!("Add a site:     tributary site add NAME --fleet {}", folder.display()))
        }
        FleetCommand::Renew { folder } => {
            let mut fleet = FleetFolder::open(folder)?;
            fleet.renew()?;
            let ends = fleet.calendar().into_iter().find_map(|dated| dated.ends_at_ms).unwrap_or(0);
            stdout::print_line(format_args!(
                "The hub's certificate is good until {}; a running hub takes it now.",
                format::format_time(ends)
            ))?;
            tell_hub(&fleet, false).await
        }
        FleetCommand::Root { folder, never, key } => {
            let mut fleet = FleetFolder::open(folder)?;
            let root = fleet.make_root(key.as_deref(), never)?;
            stdout::print_line(format_args!(
                "Root {} is good until {}.",
                root.number,
                format::format_time(root.expires_at_ms)
            ))?;
            match reach(&fleet, Role::Operator).await {
                Some(operator) => {
                    note_fleet(&fleet, &operator).await?;
                    let about = format!("number {}, {} never run", fleet.root().number, fleet.root().never.len());
                    audit::record_command(&operator, &SiteName::cloud(), "fleet root", about).await;
                    Ok(())
                }
                None => stdout::print_line("The hub does not answer here: it offers the root when it is started."),
            }
        }
        FleetCommand::Rotate { role, folder, stolen, key } => {
            let (mut fleet, role) = (FleetFolder::open(folder)?, fleet::hub_role(role)?);
            // With the keys that the hub still knows.
            let (system, operator) = (reach(&fleet, Role::System).await, reach(&fleet, Role::Operator).await);
            fleet.rotate_role(role, key.as_deref(), *stolen)?;
            if let Some(operator) = operator {
                note_fleet(&fleet, &operator).await?;
                audit::record_command(&operator, &SiteName::cloud(), "fleet rotate", role.as_str()).await;
            }
            match system {
                Some(system) => {
                    admin::reload(&system).await?;
                    stdout::print_line(format_args!(
                        "The {role} has new keys, and the old one is cut off from the hub. Start `tributary up --fleet` again: its roles read their keys when they start."
                    ))
                }
                None => {
                    stdout::print_line(format_args!("The {role} has new keys; the hub takes them when it is started."))
                }
            }
        }
        FleetCommand::Calendar { folder, json } => {
            let all = FleetFolder::open(folder)?.calendar();
            if *json {
                return stdout::json(&all);
            }
            let now_ms = clock::now_ms();
            let rows: Vec<Vec<String>> = all
                .into_iter()
                .map(|dated| {
                    let left = dated.ends_at_ms.map(|ends| days_left(ends, now_ms));
                    let days = match left {
                        Some(left) if left < RENEW_WITHIN_DAYS => format!("{left} !"),
                        Some(left) => left.to_string(),
                        None => "no end".into(),
                    };
                    vec![
                        dated.what,
                        days,
                        dated.ends_at_ms.map(format::format_time).unwrap_or_default(),
                        dated.renewed_by,
                    ]
                })
                .collect();
            stdout::print_line(format::table(&["what", "days left", "ends", "renewed by"], &rows))
        }
    }
}

/// Adds, lists, re-keys or revokes.
pub async fn site(settings: &Settings, args: &SiteArgs) -> anyhow::Result<()> {
    let mut fleet = FleetFolder::open(&args.fleet)?;
    let file = |out: &Option<PathBuf>, name: &SiteName| out.clone().unwrap_or_else(|| format!("{name}.site").into());
    match &args.command {
        SiteCommand::Add { name, out, sealed } => {
            let path = file(out, name);
            anyhow::ensure!(!path.exists(), "{} is there already: name another file with --out", path.display());
            let membership = fleet.add_site(name)?;
            give(&membership, &path, *sealed)?;
            tell_hub(&fleet, false).await?;
            set_up(settings, &fleet, name).await
        }
        SiteCommand::Rotate { name, settle: true, .. } => {
            match fleet.settle_rotation(name)? {
                true => stdout::print_line(format_args!("The old key of site {name} is not good any more."))?,
                false => stdout::print_line(format_args!("Site {name} has one key; nothing was to settle."))?,
            }
            tell_hub(&fleet, true).await
        }
        SiteCommand::Rotate { name, out, sealed, settle: false } => {
            let path = file(out, name);
            anyhow::ensure!(!path.exists(), "{} is there already: name another file with --out", path.display());
            let membership = fleet.rotate_site(name)?;
            give(&membership, &path, *sealed)?;
            stdout::print_line(format_args!(
                "Until `tributary site rotate {name} --settle` its old key is good, too; updates must be signed with the new one."
            ))?;
            if let Some(operator) = reach(&fleet, Role::Operator).await {
                note_fleet(&fleet, &operator).await?;
                audit::record_command(&operator, &SiteName::cloud(), "site rotate", name.as_str()).await;
            }
            tell_hub(&fleet, false).await
        }
        SiteCommand::Revoke { name } => {
            fleet.revoke_site(name)?;
            stdout::print_line(format_args!("Site {name} does not belong to the fleet any more."))?;
            tell_hub(&fleet, true).await?;
            if let Some(operator) = reach(&fleet, Role::Operator).await {
                admin::forget_site(&operator, name).await?;
                note_fleet(&fleet, &operator).await?;
                audit::record_command(&operator, &SiteName::cloud(), "site revoke", name.as_str()).await;
            }
            Ok(())
        }
        SiteCommand::List { json } => list(&fleet, *json).await,
    }
}

fn give(membership: &Membership, path: &std::path::Path, is_sealed: bool) -> anyhow::Result<()> {
    let code = is_sealed.then(make_code).transpose().ok().context("the system has no random numbers")?;
    membership.write_new(path, code.as_deref())?;
    let (path, site) = (path.display(), &membership.site);
    match code {
        None => stdout::print_line(format_args!(
            "Wrote {path}: whoever has it is site {site}. Carry it there, and run `tributary join {path}`."
        )),
        Some(code) => stdout::print_line(format_args!(
            "Wrote {path}, sealed with the code {code}, which is shown once. Carry the file to site {site}, tell the code by another way, and run `tributary join {path} --code CODE` there."
        )),
    }
}

/// The hub takes what was changed. `ends`: keys ended, so connections do.
async fn tell_hub(fleet: &FleetFolder, ends: bool) -> anyhow::Result<()> {
    let Some(system) = reach(fleet, Role::System).await else {
        return stdout::print_line(
            "The hub does not answer here: it takes the change when it is started, or at the next change.",
        );
    };
    admin::reload(&system).await?;
    if ends {
        let ended = admin::end_leaves(&system).await?;
        stdout::print_line(format_args!(
            "The hub knows, and ended {}; sites that belong to the fleet come back by themselves.",
            format::count(ended as u64, "connection")
        ))?;
    }
    Ok(())
}

/// The cloud knows whom sites obey, and the aggregator the keys with which sites sign. A note without any key would take every
/// update, so there is none before the first site.
pub async fn note_fleet(fleet: &FleetFolder, operator: &Bus) -> anyhow::Result<()> {
    let ledger = Ledger::open(operator).await?;
    ledger.write(permissions::ROOT_KEY, serde_json::to_string(fleet.root())?).await?;
    let keys: BTreeMap<&SiteName, &str> =
        fleet.sites().iter().map(|(site, member)| (site, member.update_key.as_str())).collect();
    if keys.is_empty() {
        return Ok(());
    }
    Ok(ledger.write(aggregator::check::SITE_KEYS, serde_json::to_string(&keys)?).await?)
}

/// The hub's streams and consumers of a site.
async fn set_up(settings: &Settings, fleet: &FleetFolder, site: &SiteName) -> anyhow::Result<()> {
    let Some(operator) = reach(fleet, Role::Operator).await else { return Ok(()) };
    note_fleet(fleet, &operator).await?;
    let plan = topology::plan_topology(&PlanScope::Cloud(vec![site.clone()]), &settings.streams);
    for finding in topology::apply_plan(&operator, &plan, RepairMode::Everything).await? {
        if let SetupStatus::Refused(why) = finding.state {
            anyhow::bail!("{} cannot be set up at the hub: {why}", finding.what);
        }
    }
    audit::record_command(&operator, &SiteName::cloud(), "site add", site.as_str()).await;
    Ok(())
}

/// The hub as one of its roles; absent where it does not answer. What is wrong with our own files is logged.
async fn reach(fleet: &FleetFolder, role: Role) -> Option<Bus> {
    Bus::connect(&role_settings(fleet, role), role.as_str())
        .await
        .inspect_err(|error| tracing::debug!(%error, role = role.as_str(), "the hub is not reached"))
        .ok()
}

/// How a role reaches the hub.
pub fn role_settings(fleet: &FleetFolder, role: Role) -> NatsSettings {
    let hub = fleet.hub();
    NatsSettings {
        url: format!("tls://{}:{}", hub.host, hub.client_port),
        ca: Some(fleet.authority_file()),
        nkey: Some(fleet.role_file(role)),
        inbox: Some(permissions::role_inbox(role.as_str())),
        ..NatsSettings::default()
    }
}

async fn list(fleet: &FleetFolder, json: bool) -> anyhow::Result<()> {
    let joined = match reach(fleet, Role::System).await {
        Some(system) => Some(admin::joined_leaves(&system).await?),
        None => None,
    };
    let is_joined =
        |site: &SiteName| joined.as_ref().map(|joined| joined.iter().any(|leaf| leaf.name == site.as_str()));
    if json {
        let sites: Vec<serde_json::Value> = fleet
            .sites()
            .iter()
            .map(|(site, member)| {
                let rotating = member.previous_nkey.is_some();
                serde_json::json!({
                    "site": site, "nkey": member.nkey, "update_key": member.update_key, "since_ms": member.since_ms,
                    "rotating": rotating, "joined": is_joined(site),
                })
            })
            .collect();
        return stdout::json(&sites);
    }
    if fleet.sites().is_empty() {
        return stdout::print_line("No site belongs to it yet: `tributary site add NAME` adds one.");
    }
    let rows: Vec<Vec<String>> = fleet
        .sites()
        .iter()
        .map(|(site, member)| {
            let joined = match is_joined(site) {
                Some(true) => "yes",
                Some(false) => "no",
                None => "the hub does not answer",
            };
            let keys = if member.previous_nkey.is_some() { "two, until rotate --settle" } else { "one" };
            vec![site.to_string(), joined.into(), format::format_time(member.since_ms), keys.into()]
        })
        .collect();
    stdout::print_line(format::table(&["site", "joined", "keys since", "keys"], &rows))
}

const JOIN_EXAMPLES: &str = "\
What the file says is laid out in the store (--store, tributary-data if absent), readable by its owner alone. From then on
`tributary up` with the same store starts the site; the file itself can be deleted.

Examples:
  tributary join reef.site --model MODEL_DIR
  tributary up --model MODEL_DIR                    the next time";

/// Make this machine a site of a fleet, and start it.
#[derive(clap::Args)]
#[command(after_help = JOIN_EXAMPLES)]
pub struct JoinArgs {
    /// File that `tributary site add` wrote.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Code of a sealed file; asked for if absent.
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// How the site is started.
    #[command(flatten)]
    pub up: crate::up::UpArgs,
}

/// Lays out what the site's file says.
pub fn join(settings: &Settings, args: &JoinArgs) -> anyhow::Result<()> {
    let membership = match Membership::read_with_code(&args.file, args.code.as_deref()) {
        Err(FleetError::Sealed { .. }) if args.code.is_none() && std::io::stdin().is_terminal() => {
            stdout::print_line(format_args!("{} is sealed. Code:", args.file.display()))?;
            let mut code = String::new();
            std::io::stdin().read_line(&mut code).context("the code cannot be read")?;
            Membership::read_with_code(&args.file, Some(&code))?
        }
        read => read?,
    };
    anyhow::ensure!(
        args.up.sites.is_none() && args.up.cloud_model.is_none() && args.up.fleet.is_none() && !args.up.merge,
        "a site of a fleet has no --sites, --cloud-model, --fleet or --merge: the verifiers and the rounds are its hub's"
    );
    let store = &settings.up.store;
    membership.install(store).with_context(|| format!("the store {} cannot be made a site's", store.display()))?;
    stdout::print_line(format_args!(
        "This is site {} of the fleet at {}. {} is not needed any more: delete it.",
        membership.site,
        membership.hub,
        args.file.display()
    ))
}

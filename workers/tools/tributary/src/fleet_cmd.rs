//! `tributary fleet`, `tributary site`, `tributary join`: a fleet and its sites.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Context;
use fleet::{FleetError, FleetFolder, HubAddress, Membership, RENEW_WITHIN_DAYS, days_left, make_code};
use operations::audit::record_change;
use runtime::clock;
use schemas::{ReleaseId, Role, SiteName};
use streams::fleet::Ledger;
use streams::topology::{self, PlanScope, RepairMode, SetupStatus};
use streams::{Bus, NatsSettings, admin, permissions};

use crate::settings::Settings;
use crate::{format, stdout};

/// Default folder of a fleet.
const FOLDER: &str = "tributary-fleet";

const FLEET_EXAMPLES: &str = "\
The operator's folder holds a certificate authority, the hub's certificate and the keys of the roles in the cloud; of \
the sites it holds public keys only. Keep ca.key and root.key elsewhere until `renew` needs ca.key, or `root` and \
`rotate` need root.key.

Examples:
  tributary fleet init tributary-fleet --hub hub.example
  tributary up --fleet tributary-fleet --cloud-model DIR
                                                  the hub: its server, verifier and releaser
  tributary site add reef                         writes reef.site, to carry to the site
  tributary join reef.site --model DIR            at the site";

/// Create a fleet and maintain its certificates and keys.
#[derive(clap::Args)]
#[command(after_help = FLEET_EXAMPLES)]
pub(crate) struct FleetArgs {
    #[command(subcommand)]
    command: FleetCommand,
}

#[derive(clap::Subcommand)]
enum FleetCommand {
    /// Create a fleet: certificate authority, hub certificate, and keys for the cloud's roles.
    Init {
        /// Folder to create.
        #[arg(value_name = "DIR", default_value = FOLDER)]
        folder: PathBuf,
        /// Host name or address of the hub, as sites reach it.
        #[arg(long, value_name = "HOST")]
        hub: String,
        /// Port for the links of sites.
        #[arg(long, value_name = "PORT", default_value_t = 7422)]
        leaf_port: u16,
        /// Port for operators and for roles on other machines.
        #[arg(long, value_name = "PORT", default_value_t = 4222)]
        client_port: u16,
    },
    /// Renew the hub's certificate for one year; a running hub loads it without a restart.
    Renew {
        /// Folder of the fleet.
        #[arg(value_name = "DIR", default_value = FOLDER)]
        folder: PathBuf,
    },
    /// Sign the next root, the list of keys that sites trust, valid for one year.
    ///
    /// Sites receive it over the link within a minute.
    Root {
        /// Folder of the fleet.
        #[arg(value_name = "DIR", default_value = FOLDER)]
        folder: PathBuf,
        /// Forbid this release at every site, whoever orders it; repeatable.
        #[arg(long, value_name = "RELEASE")]
        never: Vec<ReleaseId>,
        /// File of the offline key [default: root.key in the folder].
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Replace the keys of a role in the cloud.
    ///
    /// Releaser and aggregator need the offline key, because the root names their signing keys.
    Rotate {
        /// verifier, aggregator, releaser, operator or system.
        #[arg(value_name = "ROLE")]
        role: String,
        /// Folder of the fleet.
        #[arg(value_name = "DIR", default_value = FOLDER)]
        folder: PathBuf,
        /// Distrust everything that the old key signed.
        #[arg(long)]
        stolen: bool,
        /// File of the offline key [default: root.key in the folder].
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Show all certificates and keys with the days until they expire.
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
A site gets one file with its keys. Whoever has the file can act as the site: treat it like a password, and delete it \
after `tributary join`. At the hub, a site reaches only what is its own.

Examples:
  tributary site add reef
  tributary site add reef --sealed                encrypted with a code, which is printed
  tributary site rotate reef                      new keys; the old ones work until --settle
  tributary site rotate reef --settle
  tributary site revoke reef                      closes its connection for good";

/// Add, list and revoke the sites of a fleet, and rotate their keys.
#[derive(clap::Args)]
#[command(after_help = SITE_EXAMPLES)]
pub(crate) struct SiteArgs {
    #[command(subcommand)]
    command: SiteCommand,
    /// Folder of the fleet.
    #[arg(long, global = true, value_name = "DIR", default_value = FOLDER)]
    fleet: PathBuf,
}

#[derive(clap::Subcommand)]
enum SiteCommand {
    /// Create a site's keys and the file with which it joins.
    Add {
        /// Name of the site.
        name: SiteName,
        /// File to write [default: NAME.site].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Encrypt the file with a code, which is printed: send it separately.
        #[arg(long)]
        sealed: bool,
    },
    /// List the sites, and which are connected now.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Create new keys for a site, in a new file.
    Rotate {
        /// Name of the site.
        name: SiteName,
        /// File to write [default: NAME.site].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Encrypt the file with a code, which is printed: send it separately.
        #[arg(long)]
        sealed: bool,
        /// Disable the old keys, once the site has joined with the new ones.
        #[arg(long, conflicts_with_all = ["out", "sealed"])]
        settle: bool,
    },
    /// Disable a site's keys and close its connection.
    Revoke {
        /// Name of the site.
        name: SiteName,
    },
}

/// Creates or maintains a fleet.
pub(crate) async fn fleet(args: &FleetArgs) -> anyhow::Result<()> {
    match &args.command {
        FleetCommand::Init { folder, hub, leaf_port, client_port } => {
            let address = HubAddress { host: hub.clone(), leaf_port: *leaf_port, client_port: *client_port };
            let made = FleetFolder::init(folder, address)?;
            stdout::print_line(format_args!(
                "Created {}, readable by you only. Back it up, and keep ca.key and root.key elsewhere.",
                folder.display()
            ))?;
            if made.hub().is_loopback() {
                stdout::print_line("The hub is on loopback: sites on other machines cannot join it.")?;
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
                "The hub's certificate is valid until {}; a running hub loads it now.",
                format::format_time(ends)
            ))?;
            reload_hub(&fleet, false).await
        }
        FleetCommand::Root { folder, never, key } => {
            let mut fleet = FleetFolder::open(folder)?;
            let root = fleet.make_root(key.as_deref(), never)?;
            stdout::print_line(format_args!(
                "Root {} is valid until {}.",
                root.number,
                format::format_time(root.expires_at_ms)
            ))?;
            match reach(&fleet, Role::Operator).await {
                Some(operator) => {
                    note_fleet(&fleet, &operator).await?;
                    let about =
                        format!("number {}, {} releases forbidden", fleet.root().number, fleet.root().never.len());
                    record_change(&operator, &SiteName::cloud(), "fleet root", about).await;
                    Ok(())
                }
                None => stdout::print_line("The hub does not answer from here: it offers the root once it is started."),
            }
        }
        FleetCommand::Rotate { role, folder, stolen, key } => {
            let (mut fleet, role) = (FleetFolder::open(folder)?, fleet::hub_role(role)?);
            // Connect first, with the keys that the hub still knows.
            let (system, operator) = (reach(&fleet, Role::System).await, reach(&fleet, Role::Operator).await);
            fleet.rotate_role(role, key.as_deref(), *stolen)?;
            if let Some(operator) = operator {
                note_fleet(&fleet, &operator).await?;
                record_change(&operator, &SiteName::cloud(), "fleet rotate", role.as_str()).await;
            }
            match system {
                Some(system) => {
                    admin::reload(&system).await?;
                    stdout::print_line(format_args!(
                        "The {role} has new keys, and the hub refuses the old ones. Restart `tributary up --fleet`: roles read their keys at the start."
                    ))
                }
                None => stdout::print_line(format_args!(
                    "The {role} has new keys; the hub accepts them once it is started."
                )),
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
                        None => "never".into(),
                    };
                    vec![
                        dated.what,
                        days,
                        dated.ends_at_ms.map(format::format_time).unwrap_or_default(),
                        dated.renewed_by,
                    ]
                })
                .collect();
            stdout::print_line(format::table(&["what", "days left", "expires", "renew with"], &rows))
        }
    }
}

/// Adds, lists and revokes sites, and rotates their keys.
pub(crate) async fn site(settings: &Settings, args: &SiteArgs) -> anyhow::Result<()> {
    let mut fleet = FleetFolder::open(&args.fleet)?;
    let file = |out: &Option<PathBuf>, name: &SiteName| out.clone().unwrap_or_else(|| format!("{name}.site").into());
    match &args.command {
        SiteCommand::Add { name, out, sealed } => {
            let path = file(out, name);
            anyhow::ensure!(!path.exists(), "{} is there already: name another file with --out", path.display());
            let membership = fleet.add_site(name)?;
            write_membership(&membership, &path, *sealed)?;
            reload_hub(&fleet, false).await?;
            set_up(settings, &fleet, name).await
        }
        SiteCommand::Rotate { name, settle: true, .. } => {
            match fleet.settle_rotation(name)? {
                true => stdout::print_line(format_args!("The old keys of site {name} are disabled."))?,
                false => stdout::print_line(format_args!("Site {name} has no old keys; nothing to do."))?,
            }
            reload_hub(&fleet, true).await
        }
        SiteCommand::Rotate { name, out, sealed, settle: false } => {
            let path = file(out, name);
            anyhow::ensure!(!path.exists(), "{} is there already: name another file with --out", path.display());
            let membership = fleet.rotate_site(name)?;
            write_membership(&membership, &path, *sealed)?;
            stdout::print_line(format_args!(
                "Its old keys work until `tributary site rotate {name} --settle`; updates must be signed with the new one."
            ))?;
            if let Some(operator) = reach(&fleet, Role::Operator).await {
                note_fleet(&fleet, &operator).await?;
                record_change(&operator, &SiteName::cloud(), "site rotate", name.as_str()).await;
            }
            reload_hub(&fleet, false).await
        }
        SiteCommand::Revoke { name } => {
            fleet.revoke_site(name)?;
            stdout::print_line(format_args!("Site {name} is removed from the fleet."))?;
            reload_hub(&fleet, true).await?;
            if let Some(operator) = reach(&fleet, Role::Operator).await {
                admin::forget_site(&operator, name).await?;
                note_fleet(&fleet, &operator).await?;
                record_change(&operator, &SiteName::cloud(), "site revoke", name.as_str()).await;
            }
            Ok(())
        }
        SiteCommand::List { json } => list(&fleet, *json).await,
    }
}

fn write_membership(membership: &Membership, path: &std::path::Path, is_sealed: bool) -> anyhow::Result<()> {
    let code = is_sealed.then(make_code).transpose().ok().context("the system has no random numbers")?;
    membership.write_new(path, code.as_deref())?;
    let (path, site) = (path.display(), &membership.site);
    match code {
        None => stdout::print_line(format_args!(
            "Wrote {path}. Carry it to site {site} like a password, and run `tributary join {path}` there."
        )),
        Some(code) => stdout::print_line(format_args!(
            "Wrote {path}, encrypted with the code {code}, which is not shown again. Carry the file to site {site}, send the code separately, and run `tributary join {path} --code CODE` there."
        )),
    }
}

/// Makes a running hub load the changed keys. `close_links`: keys were disabled, so their connections are closed.
async fn reload_hub(fleet: &FleetFolder, close_links: bool) -> anyhow::Result<()> {
    let Some(system) = reach(fleet, Role::System).await else {
        return stdout::print_line(
            "The hub does not answer from here: the change takes effect once it is started, or at the next change.",
        );
    };
    admin::reload(&system).await?;
    if close_links {
        let ended = admin::end_leaves(&system).await?;
        stdout::print_line(format_args!(
            "The hub has reloaded its keys and closed {}; sites of the fleet reconnect by themselves.",
            format::count(ended as u64, "connection")
        ))?;
    }
    Ok(())
}

/// Publishes the root for the sites, and the sites' update keys for the aggregator. An empty list of keys would accept
/// every update, so none is written before the first site.
pub(crate) async fn note_fleet(fleet: &FleetFolder, operator: &Bus) -> anyhow::Result<()> {
    let ledger = Ledger::open(operator).await?;
    ledger.write(permissions::ROOT_KEY, serde_json::to_string(fleet.root())?).await?;
    let keys: BTreeMap<&SiteName, &str> =
        fleet.sites().iter().map(|(site, member)| (site, member.update_key.as_str())).collect();
    if keys.is_empty() {
        return Ok(());
    }
    Ok(ledger.write(aggregator::check::SITE_KEYS, serde_json::to_string(&keys)?).await?)
}

/// Creates a site's streams and consumers at the hub.
async fn set_up(settings: &Settings, fleet: &FleetFolder, site: &SiteName) -> anyhow::Result<()> {
    let Some(operator) = reach(fleet, Role::Operator).await else { return Ok(()) };
    note_fleet(fleet, &operator).await?;
    let plan = topology::plan_topology(&PlanScope::Cloud(vec![site.clone()]), &settings.streams);
    for finding in topology::apply_plan(&operator, &plan, RepairMode::Everything).await? {
        if let SetupStatus::Refused(why) = finding.state {
            anyhow::bail!("{} cannot be created at the hub: {why}", finding.what);
        }
    }
    record_change(&operator, &SiteName::cloud(), "site add", site.as_str()).await;
    Ok(())
}

/// A connection to the hub as one of its roles; `None`, logged, if there is no answer.
async fn reach(fleet: &FleetFolder, role: Role) -> Option<Bus> {
    Bus::connect(&role_settings(fleet, role), role.as_str())
        .await
        .inspect_err(|error| tracing::debug!(%error, role = role.as_str(), "hub unreachable"))
        .ok()
}

/// Connection settings of a role at the hub.
pub(crate) fn role_settings(fleet: &FleetFolder, role: Role) -> NatsSettings {
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
        return stdout::print_line("The fleet has no sites yet: add one with `tributary site add NAME`.");
    }
    let rows: Vec<Vec<String>> = fleet
        .sites()
        .iter()
        .map(|(site, member)| {
            let joined = match is_joined(site) {
                Some(true) => "yes",
                Some(false) => "no",
                None => "unknown: no answer from the hub",
            };
            let keys = if member.previous_nkey.is_some() { "old and new, until `rotate --settle`" } else { "current" };
            vec![site.to_string(), joined.into(), format::format_time(member.since_ms), keys.into()]
        })
        .collect();
    stdout::print_line(format::table(&["site", "connected", "keys since", "keys"], &rows))
}

const JOIN_EXAMPLES: &str = "\
Unpacks the file into the store (--store), readable by its owner only, and starts the site. From then on `tributary \
up` with the same store starts it; the file can be deleted.

Examples:
  tributary join reef.site --model DIR
  tributary up --model DIR                        the next time";

/// Make this machine a site of a fleet, and start it.
#[derive(clap::Args)]
#[command(after_help = JOIN_EXAMPLES)]
pub(crate) struct JoinArgs {
    /// File written by `tributary site add`.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Code of an encrypted file [default: ask for it].
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    #[command(flatten)]
    pub up: crate::up::UpArgs,
}

/// Unpacks a site's file into the store.
pub(crate) fn join(settings: &Settings, args: &JoinArgs) -> anyhow::Result<()> {
    let membership = match Membership::read_with_code(&args.file, args.code.as_deref()) {
        Err(FleetError::Sealed { .. }) if args.code.is_none() && std::io::stdin().is_terminal() => {
            stdout::print_line(format_args!("{} is encrypted. Code:", args.file.display()))?;
            let mut code = String::new();
            std::io::stdin().read_line(&mut code).context("the code cannot be read")?;
            Membership::read_with_code(&args.file, Some(&code))?
        }
        read => read?,
    };
    anyhow::ensure!(
        args.up.sites.is_none() && args.up.cloud_model.is_none() && args.up.fleet.is_none() && !args.up.merge,
        "--sites, --cloud-model, --fleet and --merge are for the hub: omit them at a site of a fleet"
    );
    let store = &settings.up.store;
    membership
        .install(store)
        .with_context(|| format!("the site's keys cannot be written to the store {}", store.display()))?;
    stdout::print_line(format_args!(
        "This machine is now site {} of the fleet at {}. Delete {}; it is no longer needed.",
        membership.site,
        membership.hub,
        args.file.display()
    ))
}

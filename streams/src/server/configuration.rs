//! Writes a server's configuration: addresses, store, accounts, logins and link.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use schemas::limits::MAX_MESSAGE_BYTES;
use schemas::{Role, SiteName};

use super::log::LOG;
use super::{
    ACCOUNTS, BUFFERED, CAMERA_USERS, CertificateFiles, ClientListener, Durability, ENCRYPTED, LINK_USER, LeafMode,
    OWN_USER, ServerError, ServerSettings, USERS, new_password, write_private,
};
use crate::permissions::{self, CAMERAS_ACCOUNT, CLOUD_DOMAIN, SITE_ACCOUNT, SubjectPermissions};

#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) client: u16,
    pub(super) monitor: u16,
    pub(super) leaf: u16,
    pub(super) mqtt: Option<SocketAddr>,
}

/// Passwords of a server; generated anew at each start.
#[derive(Debug, Clone, Default)]
pub(super) struct ServerPasswords {
    /// Of the operator at the site or in the cloud; not needed on loopback, where a client without a login is that
    /// user.
    pub(super) own: String,
    /// Of the user at the near end of the link.
    pub(super) link: String,
    /// Of each site that may join.
    pub(super) sites: Vec<(SiteName, String)>,
    /// Of each role that works here.
    pub(super) roles: Vec<(Role, String)>,
}

impl ServerPasswords {
    /// # Errors
    /// The system provides no random numbers.
    pub(super) fn new(leaf: &LeafMode) -> std::io::Result<Self> {
        let sites = match leaf {
            LeafMode::Hub(sites) => {
                sites.iter().map(|site| Ok((site.clone(), new_password()?))).collect::<std::io::Result<_>>()?
            }
            LeafMode::Alone | LeafMode::Of(_) | LeafMode::HubOfFleet(_) | LeafMode::OfFleet(_) => Vec::new(),
        };
        // A fleet's hub identifies its roles by keys.
        let roles: &[&[Role]] = match leaf {
            LeafMode::Alone => &[&Role::AT_SITE, &Role::IN_CLOUD],
            LeafMode::Hub(_) => &[&Role::IN_CLOUD],
            LeafMode::Of(_) | LeafMode::OfFleet(_) => &[&Role::AT_SITE],
            LeafMode::HubOfFleet(_) => &[],
        };
        let roles = roles.concat().into_iter().map(|role| Ok((role, new_password()?)));
        let roles = roles.collect::<std::io::Result<_>>()?;
        Ok(Self { own: new_password()?, link: new_password()?, sites, roles })
    }
}

/// The user of a worker.
pub(super) fn role_user(role: Role) -> String {
    format!("@{}", role.as_str())
}

/// Whether connections of clients are encrypted; not needed on loopback.
pub(super) fn needs_encryption(entry: &ClientListener, certificate: Option<&CertificateFiles>) -> bool {
    certificate.is_some() && !entry.listen.is_loopback()
}

/// Limits a site's login to leaf servers.
pub(super) const SITE_IS_LEAF: &str = "allowed_connection_types: [\"LEAFNODE\"]";

pub(super) fn choose_ports(settings: &ServerSettings) -> std::io::Result<Ports> {
    // All are bound until all are chosen, so that no two are the same.
    let free = || TcpListener::bind("127.0.0.1:0");
    let (client, monitor, leaf, mqtt) = (free()?, free()?, free()?, free()?);
    let port = |held: &TcpListener| held.local_addr().map(|address| address.port());
    let (client, monitor, leaf, mqtt) = (port(&client)?, port(&monitor)?, port(&leaf)?, port(&mqtt)?);
    let chosen = |port: u16, free: u16| if port == 0 { free } else { port };
    let leaf = match &settings.leaf {
        LeafMode::HubOfFleet(hub) => chosen(hub.leaf_port, leaf),
        _ => leaf,
    };
    Ok(Ports {
        client: chosen(settings.port, client),
        monitor,
        leaf,
        mqtt: settings.mqtt.map(|address| SocketAddr::new(address.ip(), chosen(address.port(), mqtt))),
    })
}

/// The configuration line that makes the server encrypt its store (docs.nats.io, JetStream encryption at rest).
pub(super) fn encryption_line(path: &Path, store: &Path) -> Result<String, ServerError> {
    let failed = |source| ServerError::Store { path: path.to_owned(), source };
    if !path.exists() {
        let is_used = fs::read_dir(store.join("jetstream")).is_ok_and(|mut entries| entries.next().is_some());
        if is_used {
            return Err(ServerError::NotEncrypted { store: store.to_owned(), key: path.to_owned() });
        }
        write_private(path, &(new_password().map_err(failed)? + "\n")).map_err(failed)?;
    }
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
    if mode & 0o027 != 0 {
        return Err(failed(std::io::Error::other(format!(
            "the key file has mode {:o}, so other users can read it: run `chmod 600` on it",
            mode & 0o777
        ))));
    }
    let key = fs::read_to_string(path).map_err(failed)?;
    let key = key.trim();
    if key.len() < 16 || !key.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(failed(std::io::Error::other(
            "the key file holds no key; expected at least 16 letters and digits",
        )));
    }
    // For a later start without the key: the server's own error would only say that it cannot recover anything.
    write_private(&store.join(ENCRYPTED), "").map_err(failed)?;
    Ok(format!("  cipher: chachapoly, key: \"{key}\""))
}

/// The text of the configuration file.
pub(super) fn write_configuration(
    settings: &ServerSettings,
    store: &Path,
    ports: Ports,
    passwords: &ServerPasswords,
    encryption: Option<&str>,
) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let file = |name: &str| quoted(&store.join(name).display().to_string());
    let sync = sync_interval(settings.durability);
    let listen = match settings.leaf {
        LeafMode::HubOfFleet(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => settings.entry.listen,
    };
    let mut lines = vec![
        format!("server_name: {}", quoted(&settings.name)),
        format!("listen: \"{}\"", SocketAddr::new(listen, ports.client)),
        format!("http: \"127.0.0.1:{}\"", ports.monitor),
        format!("pid_file: {}", file("nats-server.pid")),
        format!("log_file: {}", file(LOG)),
        "logfile_size_limit: 16MB".into(),
        "logfile_max_num: 2".into(),
        "logtime_utc: true".into(),
        format!("max_payload: {MAX_MESSAGE_BYTES}"),
        // The default of 64 MB drops connections that pull large images.
        "max_pending: 256MB".into(),
        "write_deadline: \"10s\"".into(),
        "ping_interval: \"5s\"".into(),
        format!(
            "jetstream {{ store_dir: {}, sync_interval: {sync}, {BUFFERED}, max_file_store: {}",
            file("jetstream"),
            settings.max_store_bytes
        ),
    ];
    if let Some(domain) = &settings.domain {
        lines.push(format!("  domain: {}", quoted(domain)));
    }
    lines.extend(encryption.map(str::to_owned));
    lines.push("}".into());
    let mappings = settings.mappings.iter().map(|(from, to)| format!("{}: {}", quoted(from), quoted(to)));
    let mappings = match settings.mappings.is_empty() {
        true => String::new(),
        false => format!("mappings {{ {} }}", mappings.collect::<Vec<_>>().join(", ")),
    };
    let site_accounts = site_accounts(settings.site.as_ref(), &mappings);
    // On loopback a client without a login is the operator, as with a server without passwords.
    if settings.entry.is_open && !matches!(settings.leaf, LeafMode::HubOfFleet(_)) {
        lines.push(format!("no_auth_user: {}", quoted(OWN_USER)));
    }
    let path = |path: &Path| quoted(&path.display().to_string());
    let tls = settings.entry.certificate.as_ref().map(|files| {
        format!("tls {{ cert_file: {}, key_file: {}, timeout: 5 }}", path(&files.certificate), path(&files.key))
    });
    lines.extend(tls.clone().filter(|_| needs_encryption(&settings.entry, settings.entry.certificate.as_ref())));
    match &settings.leaf {
        LeafMode::Alone => lines.push(format!("accounts {{\n{site_accounts}}}")),
        LeafMode::Hub(_) => {
            let domain = settings.domain.as_deref().unwrap_or(CLOUD_DOMAIN);
            let site = |(site, password): &(SiteName, String)| {
                let (user, password) = (quoted(site.as_str()), quoted(password));
                (site.clone(), vec![format!("{{ user: {user}, password: {password}, {SITE_IS_LEAF} }}")])
            };
            let sites: Vec<(SiteName, Vec<String>)> = passwords.sites.iter().map(site).collect();
            lines.push(format!("leafnodes {{ listen: \"127.0.0.1:{}\", no_advertise: true }}", ports.leaf));
            let accounts = permissions::hub_accounts(&local_users(settings, passwords), &sites, domain);
            lines.push(format!("accounts {{\n{accounts}}}"));
        }
        LeafMode::HubOfFleet(hub) => {
            let tls = format!("cert_file: {}, key_file: {}, timeout: 5", path(&hub.certificate), path(&hub.key));
            lines.push(format!("tls {{ {tls} }}"));
            lines.push(format!(
                "leafnodes {{ listen: \"0.0.0.0:{}\", no_advertise: true, tls {{ {tls}, handshake_first: true }} }}",
                ports.leaf
            ));
            lines.push(format!("include {ACCOUNTS}"));
        }
        LeafMode::Of(hub) => lines.extend(site_lines(&format!("url: {}", quoted(hub)), passwords, &site_accounts)),
        LeafMode::OfFleet(leaf) => {
            let remote = format!(
                "url: {}, nkey: {}, tls {{ ca_file: {}, handshake_first: true }}",
                quoted(&leaf.hub),
                quoted(leaf.seed.reveal()),
                quoted(&leaf.authority.display().to_string())
            );
            lines.extend(site_lines(&remote, passwords, &site_accounts));
        }
    }
    if let Some(address) = ports.mqtt {
        let tls = tls.filter(|_| !address.ip().is_loopback()).unwrap_or_default();
        lines.push(format!("mqtt {{ listen: \"{address}\"\n  {tls} }}"));
    }
    lines.join("\n") + "\n"
}

/// The accounts of a site: its own, and one for cameras that use NATS. Users are in files of their own, because cameras
/// are added while the server runs.
pub(super) fn site_accounts(site: Option<&SiteName>, mappings: &str) -> String {
    let share = site.map(|site| SubjectPermissions::of_cameras(site).account_share("", SITE_ACCOUNT, CAMERAS_ACCOUNT));
    let exports = share.iter().flat_map(|share| share.exports.clone()).collect::<Vec<_>>().join(" ");
    let own = format!(
        "  {SITE_ACCOUNT}: {{ jetstream: enabled, include {USERS}\n  exports: [ {exports} ]\n  {mappings} }}\n"
    );
    let cameras = share.map(|share| {
        let imports = share.imports.join(" ");
        format!("  {CAMERAS_ACCOUNT}: {{ include {CAMERA_USERS}\n  imports: [ {imports} ] }}\n")
    });
    own + &cameras.unwrap_or_default()
}

/// The configuration of a site's link, which ends in an account without JetStream.
pub(super) fn site_lines(remote: &str, passwords: &ServerPasswords, site: &str) -> [String; 2] {
    let password = &passwords.link;
    [
        format!("leafnodes {{ reconnect: 1s, remotes: [ {{ {remote}, account: LINK }} ] }}"),
        format!("accounts {{\n{site}  LINK: {{ users: [ {{ user: {LINK_USER}, password: \"{password}\" }} ] }}\n}}"),
    ]
}

/// The users of the site or cloud itself: the operator with all rights, and each worker with those it needs.
pub(super) fn local_users(settings: &ServerSettings, passwords: &ServerPasswords) -> Vec<String> {
    let is_alone = matches!(settings.leaf, LeafMode::Alone);
    let mut users = vec![format!("{{ user: \"{OWN_USER}\", password: \"{}\" }}", passwords.own)];
    for (role, password) in &passwords.roles {
        let at_site =
            settings.site.as_ref().and_then(|site| SubjectPermissions::of_role_at_site(*role, site, is_alone));
        let Some(rights) = at_site.or_else(|| SubjectPermissions::of_role_in_cloud(*role)) else { continue };
        users.push(format!(
            "{{ user: \"{}\", password: \"{password}\", permissions: {} }}",
            role_user(*role),
            rights.configuration()
        ));
    }
    users
}

pub(super) fn sync_interval(durability: Durability) -> &'static str {
    match durability {
        Durability::PowerSafe => "always",
        Durability::Fast => "2m",
    }
}

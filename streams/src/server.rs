//! Runs a nats-server of our own: finds and checks the program, starts it on loopback, restarts it when it dies, and
//! stops it with us. Downloads nothing.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use schemas::limits::MAX_MESSAGE_BYTES;
use schemas::{Role, SiteName};
use serde::{Deserialize, Serialize};
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use crate::cameras::CameraLogins;
use crate::connect::{OLDEST_SERVER, Secret, parse_version};
use crate::monitor::{self, Health};
use crate::permissions::{self, CAMERAS_ACCOUNT, CLOUD_DOMAIN, SITE_ACCOUNT, SubjectPermissions};

/// The version that `make setup` fetches.
pub const PINNED: &str = "2.15.1";

/// File of the configuration in a server's store.
const CONFIGURATION: &str = "nats-server.conf";
/// File that marks a store as encrypted.
const ENCRYPTED: &str = "encrypted";
/// File of the users of the site or cloud itself, in the store.
pub(crate) const USERS: &str = "users.conf";
/// File of the cameras that use NATS, in the store.
pub(crate) const CAMERA_USERS: &str = "cameras.conf";
/// Link to the accounts of a fleet's hub, in the store.
const ACCOUNTS: &str = "accounts.conf";
/// File of the log in a server's store; its times are UTC.
const LOG: &str = "nats-server.log";
/// Bytes at the end of a log that are examined.
const LOG_TAIL_BYTES: u64 = 512 * 1024;
/// Attempts to start: ports come from the system, and somebody else may take one before the server binds it.
const START_TRIES: usize = 5;
const START_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// How often the server's health is checked.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
/// Free bytes on the disk before a server that cannot write is restarted: less would be used up at once.
const MIN_FREE_TO_RESTART: u64 = 8 * 1024 * 1024;
/// After running this long, the next restart starts with the first backoff again.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// Why no server runs.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The program was not found.
    #[error(
        "nats-server was not found (searched: {looked_at}); run `make setup`, or name one in TRIBUTARY_NATS_SERVER"
    )]
    NotFound {
        /// Paths that were searched.
        looked_at: String,
    },
    /// The program is not a nats-server, or too old.
    #[error("{path} is {found}; at least nats-server {}.{} is needed: run `make setup` for {PINNED}, or name another in TRIBUTARY_NATS_SERVER", OLDEST_SERVER.0, OLDEST_SERVER.1)]
    Refused {
        /// Path of the program.
        path: PathBuf,
        /// What the program reports itself to be.
        found: String,
    },
    /// Another process uses the store.
    #[error("{path} is in use by another tributary; stop it, or choose another folder with --store")]
    InUse {
        /// Path of the store.
        path: PathBuf,
    },
    /// An encryption key is set, but the store holds unencrypted data.
    #[error("{store} holds unencrypted data, and the key {key} does not exist; use another store, or remove up.encryption_key", store = store.display(), key = key.display())]
    NotEncrypted {
        /// Path of the store.
        store: PathBuf,
        /// Path of the missing key.
        key: PathBuf,
    },
    /// The store is encrypted, but no key is set.
    #[error("{store} is encrypted; name its key file with up.encryption_key", store = store.display())]
    Encrypted {
        /// Path of the store.
        store: PathBuf,
    },
    /// The server did not start.
    #[error("nats-server did not start: {why} (see its log: {log})")]
    NotStarted {
        /// The last error in its log.
        why: String,
        /// Path of the log.
        log: PathBuf,
    },
    /// A file of the store could not be written.
    #[error("{path} could not be written")]
    Store {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        #[source]
        source: std::io::Error,
    },
}

/// When a stored message is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// Before it is acknowledged: it survives a power cut.
    #[default]
    PowerSafe,
    /// Within two minutes: it survives the crash of any process, but not of the machine.
    Fast,
}

/// How a server is linked to others.
#[derive(Debug, Clone, PartialEq)]
pub enum LeafMode {
    /// It is not linked.
    Alone,
    /// These sites may join it, each with a password of its own and only the permissions a site needs.
    Hub(Vec<SiteName>),
    /// It joins the hub at this address, for example `nats-leaf://reef:PASSWORD@127.0.0.1:7422`.
    Of(String),
    /// The hub of a fleet: it listens on every address, encrypted, for sites with a key.
    HubOfFleet(FleetHub),
    /// A site of a fleet, whose hub may be far away.
    OfFleet(FleetLeaf),
}

/// Configuration of a fleet's hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetHub {
    /// Port for leaf servers.
    pub leaf_port: u16,
    /// File of its certificate, PEM.
    pub certificate: PathBuf,
    /// File of the certificate's key, PEM.
    pub key: PathBuf,
    /// File with its accounts, users and permissions, in the server's syntax.
    pub accounts: PathBuf,
}

/// Configuration of a site in a fleet.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetLeaf {
    /// Address of the hub's port for leaf servers, `tls://HOST:PORT`.
    pub hub: String,
    /// File of the authority that certifies the hub, PEM.
    pub authority: PathBuf,
    /// Seed of the site's NKey.
    pub seed: Secret,
}

/// How to run a server.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Path of the program; searched for if absent.
    pub program: Option<PathBuf>,
    /// Folder of its store, configuration and log; created if absent.
    pub store: PathBuf,
    /// Name of the server.
    pub name: String,
    /// JetStream domain; required with leaf links.
    pub domain: Option<String>,
    /// Port for clients; 0 picks a free one.
    pub port: u16,
    /// Address and port for MQTT clients; port 0 picks a free one; absent: no MQTT.
    pub mqtt: Option<SocketAddr>,
    /// Subjects with wildcards, and the subjects that they are mapped to ([`crate::subject::map_topic`]).
    pub mappings: Vec<(String, String)>,
    /// When a stored message is on the disk.
    pub durability: Durability,
    /// File of the key that encrypts everything stored; created if absent, unless something is stored already.
    /// Without the file nothing in the store can be read.
    pub encryption_key: Option<PathBuf>,
    /// Bytes its streams may hold together ([`crate::topology::TopologyPlan::max_store_bytes`]). By itself a server
    /// would use three quarters of the free space at its start, and nothing at all if the disk is full then.
    pub max_store_bytes: u64,
    /// Links to other servers.
    pub leaf: LeafMode,
    /// Site whose workers and cameras have users here; absent at a hub.
    pub site: Option<SiteName>,
    /// Access for clients on other machines.
    pub entry: ClientListener,
}

/// Access for clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientListener {
    /// Address to listen on.
    pub listen: IpAddr,
    /// Certificate for NATS and MQTT clients; absent: no encryption.
    pub certificate: Option<CertificateFiles>,
    /// Whether a client without a login has all rights, as is fit where only programs on this machine reach the server.
    pub is_open: bool,
}

impl Default for ClientListener {
    /// Loopback only, unencrypted, without a password.
    fn default() -> Self {
        Self { listen: IpAddr::V4(Ipv4Addr::LOCALHOST), certificate: None, is_open: true }
    }
}

/// Files of a certificate and its authority, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// Certificate of the server.
    pub certificate: PathBuf,
    /// Key of the certificate.
    pub key: PathBuf,
    /// Authority that signed it; absent: one that the system trusts.
    pub authority: Option<PathBuf>,
    /// Host name in the certificate by which workers on this machine reach the server.
    pub host: String,
}

/// Login of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    client: u16,
    monitor: u16,
    leaf: u16,
    mqtt: Option<SocketAddr>,
}

/// Passwords of a server; generated anew at each start.
#[derive(Debug, Clone, Default)]
struct ServerPasswords {
    /// Of the operator at the site or in the cloud; not needed on loopback, where a client without a login is that
    /// user.
    own: String,
    /// Of the user at the near end of the link.
    link: String,
    /// Of each site that may join.
    sites: Vec<(SiteName, String)>,
    /// Of each role that works here.
    roles: Vec<(Role, String)>,
}

impl ServerPasswords {
    /// # Errors
    /// The system provides no random numbers.
    fn new(leaf: &LeafMode) -> std::io::Result<Self> {
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

/// A password of 128 random bits. It starts with a letter, because the server would read digits as a number.
///
/// # Errors
/// The system provides no random numbers.
pub fn new_password() -> std::io::Result<String> {
    let random = ring::rand::generate::<[u8; 16]>(&ring::rand::SystemRandom::new());
    let random = random.map_err(|_| std::io::Error::other("the system provides no random numbers"))?;
    Ok(random.expose().iter().fold("p".to_owned(), |text, byte| format!("{text}{byte:02x}")))
}

/// The user with all rights at a site or in the cloud. No camera has such a name: camera names contain no `@`.
pub const OWN_USER: &str = "@own";

/// The user of a worker.
fn role_user(role: Role) -> String {
    format!("@{}", role.as_str())
}

/// The host in a URL by which this machine's workers reach a server that listens on an address.
pub fn host_of(listen: IpAddr) -> String {
    match listen {
        listen if listen.is_unspecified() => "127.0.0.1".into(),
        IpAddr::V4(listen) => listen.to_string(),
        IpAddr::V6(listen) => format!("[{listen}]"),
    }
}

/// Whether connections of clients are encrypted; not needed on loopback.
fn needs_encryption(entry: &ClientListener, certificate: Option<&CertificateFiles>) -> bool {
    certificate.is_some() && !entry.listen.is_loopback()
}

/// The user at a site's end of the link to the cloud, in an account of its own: whatever comes over the link reaches
/// only that account, and nothing of the site's.
pub const LINK_USER: &str = "link";

/// Limits a site's login to leaf servers.
const SITE_IS_LEAF: &str = "allowed_connection_types: [\"LEAFNODE\"]";

/// A running server. Dropping it stops the server.
pub struct Server {
    ports: Ports,
    scheme: &'static str,
    host: String,
    authority: Option<PathBuf>,
    passwords: ServerPasswords,
    has_link: bool,
    running: Arc<RunningServer>,
    supervisor: Option<std::thread::JoinHandle<()>>,
    /// Locks the store while the server may write to it.
    lock: Option<Flock<fs::File>>,
}

#[derive(Default)]
struct RunningServer {
    process: Mutex<ServerProcess>,
}

#[derive(Default)]
struct ServerProcess {
    id: Option<u32>,
    stopping: bool,
    restarts: u64,
}

impl Server {
    /// Starts a server and waits until it is healthy. Blocks; call it outside async threads.
    pub fn start(settings: &ServerSettings) -> Result<Self, ServerError> {
        let program = find_program(settings.program.as_deref())?;
        let storing = |path: &Path| {
            let path = path.to_owned();
            move |source| ServerError::Store { path, source }
        };
        fs::create_dir_all(&settings.store).map_err(storing(&settings.store))?;
        let store = settings.store.canonicalize().map_err(storing(&settings.store))?;
        let mut lock = Some(lock(&store)?);
        rename_unnamed_account(&store).map_err(storing(&store))?;
        let log = store.join(LOG);
        if let LeafMode::HubOfFleet(hub) = &settings.leaf {
            // The server includes files from its own folder only; a link is resolved again at each reload.
            let link = store.join(ACCOUNTS);
            let accounts = hub.accounts.canonicalize().map_err(storing(&hub.accounts))?;
            let _absent = fs::remove_file(&link);
            std::os::unix::fs::symlink(accounts, &link).map_err(storing(&link))?;
        }
        if settings.encryption_key.is_none() && store.join(ENCRYPTED).exists() {
            return Err(ServerError::Encrypted { store });
        }
        let encryption = settings.encryption_key.as_deref().map(|path| encryption_line(path, &store)).transpose()?;
        let passwords = ServerPasswords::new(&settings.leaf).map_err(storing(&store))?;
        let mut why = String::new();
        for _ in 0..START_TRIES {
            let ports = choose_ports(settings).map_err(storing(&store))?;
            let path = store.join(CONFIGURATION);
            write_private(&path, &configuration(settings, &store, ports, &passwords, encryption.as_deref()))
                .map_err(storing(&path))?;
            let cameras = CameraLogins::read(&store).map_err(storing(&store))?;
            let users = local_users(settings, &passwords);
            cameras.write_users(&store, settings.site.as_ref(), &users).map_err(storing(&store))?;
            let running = Arc::new(RunningServer::default());
            let supervisor = supervise(program.clone(), path, store.clone(), ports.monitor, running.clone());
            let has_link = matches!(settings.leaf, LeafMode::Of(_) | LeafMode::OfFleet(_));
            let certificate = settings.entry.certificate.as_ref();
            let is_encrypted =
                matches!(settings.leaf, LeafMode::HubOfFleet(_)) || needs_encryption(&settings.entry, certificate);
            let mut server = Self {
                ports,
                scheme: if is_encrypted { "tls" } else { "nats" },
                host: match certificate.filter(|_| is_encrypted) {
                    Some(files) => files.host.clone(),
                    None => host_of(settings.entry.listen),
                },
                authority: certificate.filter(|_| is_encrypted).and_then(|files| files.authority.clone()),
                passwords: passwords.clone(),
                has_link,
                running,
                supervisor: Some(supervisor),
                lock: lock.take(),
            };
            if server.wait_until_healthy() {
                return Ok(server);
            }
            why = last_error(&log);
            server.stop();
            lock = server.lock.take();
        }
        Err(ServerError::NotStarted { why, log })
    }

    /// Address for clients.
    pub fn url(&self) -> String {
        format!("{}://{}:{}", self.scheme, self.host, self.ports.client)
    }

    /// Authority that clients need to verify the server; `None` unless it is encrypted with one of its own.
    pub fn authority(&self) -> Option<&Path> {
        self.authority.as_deref()
    }

    /// Login of the operator, with all rights.
    pub fn own_login(&self) -> Login {
        Login { user: OWN_USER.into(), password: self.passwords.own.clone() }
    }

    /// Login of a worker, with only the rights it needs; `None` if the role has no user here.
    pub fn login(&self, role: Role) -> Option<Login> {
        let (_, password) = self.passwords.roles.iter().find(|(known, _)| *known == role)?;
        Some(Login { user: role_user(role), password: password.clone() })
    }

    /// Address of the monitoring pages.
    pub fn monitor_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.monitor)
    }

    /// Port for leaf servers, if it is a hub.
    pub fn leaf_port(&self) -> u16 {
        self.ports.leaf
    }

    /// Address by which a site joins as a leaf, with the site's password; `port` is this server's own or that of a
    /// proxy before it. `None` unless it is a hub of that site.
    pub fn leaf_url(&self, site: &SiteName, port: u16) -> Option<String> {
        let (_, password) = self.passwords.sites.iter().find(|(name, _)| name == site)?;
        Some(format!("nats-leaf://{site}:{password}@127.0.0.1:{port}"))
    }

    /// Password of [`LINK_USER`], if it joins another server.
    pub fn link_password(&self) -> Option<&str> {
        self.has_link.then_some(self.passwords.link.as_str())
    }

    /// Port for MQTT clients, if it has one.
    pub fn mqtt_port(&self) -> Option<u16> {
        self.ports.mqtt.map(|address| address.port())
    }

    /// Writes the whole store to the disk. Needed after streams were created: the server does not wait for the disk
    /// then, and a power cut would lose the stream with its messages.
    pub fn sync_store(&self) -> std::io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(lock) = &self.lock {
            nix::unistd::syncfs(&**lock)?;
        }
        Ok(())
    }

    /// Process id; `None` between an exit and the restart.
    pub fn process(&self) -> Option<u32> {
        self.running.lock().id
    }

    /// How often the server was restarted.
    pub fn restarts(&self) -> u64 {
        self.running.lock().restarts
    }

    /// Waits until the server reports that it is healthy, JetStream included; false after the timeout or an exit.
    fn wait_until_healthy(&self) -> bool {
        let until = Instant::now() + START_TIMEOUT;
        while Instant::now() < until {
            if query_health(self.ports.monitor) == Some(Health::Well) {
                return true;
            }
            if self.running.lock().restarts > 0 {
                return false;
            }
            pause(Duration::from_millis(20));
        }
        false
    }

    /// Stops the server, by force after a timeout.
    fn stop(&mut self) {
        let process = {
            let mut process = self.running.lock();
            process.stopping = true;
            process.id
        };
        if let Some(id) = process {
            signal(id, Signal::SIGTERM);
        }
        let until = Instant::now() + STOP_TIMEOUT;
        let Some(supervisor) = self.supervisor.take() else { return };
        while !supervisor.is_finished() {
            if Instant::now() > until
                && let Some(id) = self.running.lock().id
            {
                signal(id, Signal::SIGKILL);
            }
            pause(Duration::from_millis(10));
        }
        if supervisor.join().is_err() {
            tracing::error!("nats-server supervisor panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl RunningServer {
    fn lock(&self) -> std::sync::MutexGuard<'_, ServerProcess> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a process with this id exists.
pub fn is_alive(process: u32) -> bool {
    kill(Pid::from_raw(process.cast_signed()), None).is_ok()
}

/// The program to run: from the settings, TRIBUTARY_NATS_SERVER, PATH, or the cache of `make setup`, in this order. One
/// that was named and is unsuitable is an error; one on PATH that is too old is skipped in favour of the
/// cache's.
pub fn find_program(setting: Option<&Path>) -> Result<PathBuf, ServerError> {
    let named = setting.map(Path::to_owned).or_else(|| std::env::var_os("TRIBUTARY_NATS_SERVER").map(PathBuf::from));
    if let Some(path) = named {
        return check(&path).map(|()| path);
    }
    let mut looked_at = Vec::new();
    let on_path =
        std::env::var_os("PATH").into_iter().flat_map(|paths| std::env::split_paths(&paths).collect::<Vec<_>>());
    let candidates = on_path
        .map(|folder| folder.join("nats-server"))
        .chain([program_cache().join(format!("nats-server-{PINNED}/nats-server"))]);
    let mut refused = None;
    for path in candidates {
        if path.is_file() {
            match check(&path) {
                Ok(()) => return Ok(path),
                Err(error) => {
                    tracing::warn!(%error, "nats-server binary skipped");
                    refused = Some(error);
                }
            }
        }
        looked_at.push(path.display().to_string());
    }
    Err(refused.unwrap_or(ServerError::NotFound { looked_at: looked_at.join(", ") }))
}

fn check(path: &Path) -> Result<(), ServerError> {
    server_version(path).map(|_| ())
}

/// Version of the program at a path, if it is a nats-server and new enough.
pub fn server_version(path: &Path) -> Result<String, ServerError> {
    let refused = |found: String| ServerError::Refused { path: path.to_owned(), found };
    let output = Command::new(path).arg("--version").output().map_err(|error| refused(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(found) = text.trim().strip_prefix("nats-server: ") else {
        return Err(refused("not a nats-server".into()));
    };
    if parse_version(found).is_none_or(|found| found < OLDEST_SERVER) {
        return Err(refused(format!("nats-server {found}")));
    }
    Ok(found.trim_start_matches('v').to_owned())
}

/// Durability of the server in a store, according to its configuration.
pub fn durability(store: &Path) -> Option<Durability> {
    let configuration = fs::read_to_string(store.join(CONFIGURATION)).ok()?;
    let (_, sync) = configuration.split_once("sync_interval:")?;
    let fast = !sync.trim_start().starts_with(sync_interval(Durability::PowerSafe));
    Some(if fast { Durability::Fast } else { Durability::PowerSafe })
}

/// Free bytes on the disk of a store, as available to ordinary users.
pub fn free_bytes(store: &Path) -> std::io::Result<u64> {
    let stats = nix::sys::statvfs::statvfs(store)?;
    // Narrower integers on some systems.
    #[allow(clippy::useless_conversion)]
    let (blocks, block_bytes) = (u64::from(stats.blocks_available()), u64::from(stats.fragment_size()));
    Ok(blocks.saturating_mul(block_bytes))
}

/// The stream for which the server of this store last dropped messages within `time`: they arrived faster than its
/// disk writes, and only publishers who asked for an acknowledgement were told. Read from the server's log.
pub fn dropped_within(store: &Path, time: Duration) -> Option<String> {
    last_drop(&log_tail(store)?, OffsetDateTime::now_utc() - time)
}

/// The subject on which the server of this store last refused a message within `time`. Read from the server's log: an
/// MQTT client is not told, because version 3.1.1 has no way to say it.
pub fn refused_within(store: &Path, time: Duration) -> Option<String> {
    last_refusal(&log_tail(store)?, OffsetDateTime::now_utc() - time)
}

/// The end of a server's log.
fn log_tail(store: &Path) -> Option<String> {
    let mut log = fs::File::open(store.join(LOG)).ok()?;
    let length = log.metadata().ok()?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES))).ok()?;
    let mut end = Vec::new();
    log.take(LOG_TAIL_BYTES).read_to_end(&mut end).ok()?;
    Some(String::from_utf8_lossy(&end).into_owned())
}

/// The subject of the last refusal in a log, unless it is older than `since`. Pure.
fn last_refusal(log: &str, since: OffsetDateTime) -> Option<String> {
    // [pid] 2026/11/30 07:51:43.201269 [ERR] 127.0.0.1:56641 - mid:119 - "client" - Publish Violation - Subject
    // "image.a.b"
    let line = log.lines().rev().find(|line| line.contains("Publish Violation"))?;
    let subject = line.rsplit_once("Subject \"")?.1.split('"').next()?;
    (time_of(line)? >= since).then(|| subject.to_owned())
}

/// The time of a log line. Pure.
fn time_of(line: &str) -> Option<OffsetDateTime> {
    let (_, rest) = line.split_once("] ")?;
    let format = format_description!("[year]/[month]/[day] [hour]:[minute]:[second]");
    Some(PrimitiveDateTime::parse(rest.get(..19)?, format).ok()?.assume_utc())
}

/// The stream of the last drop in a log, unless it is older than `since`. Pure.
fn last_drop(log: &str, since: OffsetDateTime) -> Option<String> {
    // [pid] 2026/11/29 03:00:22.123456 [WRN] Dropping messages due to excessive stream ingest rate on '$G' > 'IMAGES':
    // …
    let line = log.lines().rev().find(|line| line.contains("Dropping messages due to excessive stream ingest rate"))?;
    let stream = line.split('\'').nth(3)?;
    (time_of(line)? >= since).then(|| stream.to_owned())
}

fn sync_interval(durability: Durability) -> &'static str {
    match durability {
        Durability::PowerSafe => "always",
        Durability::Fast => "2m",
    }
}

/// The folder into which `make setup` puts programs.
pub fn program_cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("TRIBUTARY_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("tributary")))
        .unwrap_or_else(|| set("HOME").unwrap_or_default().join(".cache/tributary"))
}

/// Whether a server runs with this store, or is about to.
pub(crate) fn is_in_use(store: &Path) -> bool {
    matches!(lock(store), Err(ServerError::InUse { .. }))
}

fn lock(store: &Path) -> Result<Flock<fs::File>, ServerError> {
    let path = store.join("lock");
    let file = fs::File::create(&path).map_err(|source| ServerError::Store { path, source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| ServerError::InUse { path: store.to_owned() })
}

fn choose_ports(settings: &ServerSettings) -> std::io::Result<Ports> {
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
fn encryption_line(path: &Path, store: &Path) -> Result<String, ServerError> {
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

fn configuration(
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
fn site_accounts(site: Option<&SiteName>, mappings: &str) -> String {
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
fn site_lines(remote: &str, passwords: &ServerPasswords, site: &str) -> [String; 2] {
    let password = &passwords.link;
    [
        format!("leafnodes {{ reconnect: 1s, remotes: [ {{ {remote}, account: LINK }} ] }}"),
        format!("accounts {{\n{site}  LINK: {{ users: [ {{ user: {LINK_USER}, password: \"{password}\" }} ] }}\n}}"),
    ]
}

/// Renames the account of a store written before accounts had names.
fn rename_unnamed_account(store: &Path) -> std::io::Result<()> {
    let (unnamed, named) = (store.join("jetstream/jetstream/$G"), store.join("jetstream/jetstream").join(SITE_ACCOUNT));
    match unnamed.exists() && !named.exists() {
        // The encryption key of an account's streams is derived from its name.
        true if store.join(ENCRYPTED).exists() => {
            Err(std::io::Error::other("its encrypted streams were written by an earlier version; use another store"))
        }
        true => fs::rename(unnamed, named),
        false => Ok(()),
    }
}

/// The users of the site or cloud itself: the operator with all rights, and each worker with those it needs.
fn local_users(settings: &ServerSettings, passwords: &ServerPasswords) -> Vec<String> {
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

/// What a server buffers for a stream ahead of its disk: 32 of the largest images. Beyond it messages are dropped, and
/// only a publisher who asked for an acknowledgement is told; the default of 128 MB is a burst of 16.
pub const BUFFERED: &str = "max_buffered_size: 256MB";

/// Writes a file that only its owner can read.
pub fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // An existing file would keep its mode otherwise.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())
}

/// Runs the server until it is stopped; restarts it when it exits, and when it cannot write although
/// the disk has space again.
fn supervise(
    program: PathBuf,
    configuration: PathBuf,
    store: PathBuf,
    monitor: u16,
    running: Arc<RunningServer>,
) -> std::thread::JoinHandle<()> {
    // A thread of its own: on Linux the server dies with the *thread* that started it, and threads of a
    // pool come and go.
    std::thread::spawn(move || {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let started_at = Instant::now();
            let started = {
                let mut process = running.lock();
                if process.stopping {
                    return;
                }
                let started = spawn(&program, &configuration);
                process.id = started.as_ref().ok().map(Child::id);
                started
            };
            match started {
                Ok(mut child) => {
                    let ended = supervise_child(&mut child, &store, monitor, &running);
                    let mut process = running.lock();
                    process.id = None;
                    process.restarts += 1;
                    if process.stopping {
                        return;
                    }
                    tracing::warn!(?ended, "nats-server exited; restarting");
                }
                Err(error) => {
                    running.lock().restarts += 1;
                    tracing::error!(%error, program = %program.display(), "nats-server failed to start");
                }
            }
            if started_at.elapsed() > STABLE_AFTER {
                backoff = FIRST_BACKOFF;
            }
            pause(backoff);
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    })
}

/// Waits until the server exits. One that met a full disk stores nothing until it is restarted, even if there is space
/// again (nats-server 2.14 and 2.15), so it is stopped then.
fn supervise_child(
    child: &mut Child,
    store: &Path,
    monitor: u16,
    running: &RunningServer,
) -> std::io::Result<std::process::ExitStatus> {
    let mut check_at = Instant::now() + HEALTH_INTERVAL;
    let mut asked_to_stop = None;
    loop {
        if let Some(ended) = child.try_wait()? {
            return Ok(ended);
        }
        pause(Duration::from_millis(50));
        match asked_to_stop {
            Some(at) if Instant::now() > at + STOP_TIMEOUT => child.kill()?,
            Some(_) => {}
            None if Instant::now() >= check_at && !running.lock().stopping => {
                check_at = Instant::now() + HEALTH_INTERVAL;
                if let Some(Health::CannotWrite(why)) = query_health(monitor)
                    && free_bytes(store).is_ok_and(|free| free >= MIN_FREE_TO_RESTART)
                {
                    tracing::warn!(why, "nats-server stopped writing after a full disk; restarting");
                    signal(child.id(), Signal::SIGTERM);
                    asked_to_stop = Some(Instant::now());
                }
            }
            None => {}
        }
    }
}

fn spawn(program: &Path, configuration: &Path) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    command.arg("-c").arg(configuration).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // A process group of its own: an interrupt typed at the terminal reaches us, and we stop the server last.
    command.process_group(0);
    #[cfg(target_os = "linux")]
    prepare(&mut command);
    command.spawn()
}

/// Has the kernel stop the server if we are killed without a chance to do it ourselves, and schedule it as
/// batch work.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn prepare(command: &mut Command) {
    let parent = std::process::id();
    let before_exec = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
        // Our parent was killed between fork and here, so the signal would never come.
        if nix::unistd::getppid().as_raw().cast_unsigned() != parent {
            return Err(std::io::Error::other("the parent process has ended"));
        }
        // Where it is forbidden, the server is only slower.
        let _refused = os::scheduling::set_batch_scheduling();
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; prctl, getppid and
    // sched_setscheduler are, and nothing is allocated unless the parent has ended, when the child exits anyway.
    unsafe {
        command.pre_exec(before_exec);
    }
}

fn signal(process: u32, signal: Signal) {
    if let Err(error) = kill(Pid::from_raw(process.cast_signed()), signal) {
        tracing::debug!(process, %error, "nats-server already exited");
    }
}

/// Queries the monitoring page; healthy means JetStream is up with its streams recovered. `None` without a response.
fn query_health(port: u16) -> Option<Health> {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(500)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.take(64 * 1024).read_to_end(&mut answer).ok()?;
    Some(monitor::parse_health(&String::from_utf8_lossy(&answer)))
}

fn last_error(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let telling = text.lines().rev().find(|line| line.contains("[FTL]") || line.contains("[ERR]"));
    telling.or(text.lines().last()).unwrap_or("its log is empty").to_owned()
}

/// Sleeps on a thread that has nothing else to do.
fn pause(time: Duration) {
    let (_keep, never) = mpsc::channel::<()>();
    let _timed_out = never.recv_timeout(time);
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn dropped_messages_are_read_from_the_log_for_a_while() {
        let log = "[7] 2026/11/28 23:10:04.271811 [INF] Server is ready\n\
                   [7] 2026/11/29 03:20:15.100000 [WRN] Dropping messages due to excessive stream ingest rate on '$G' > 'IMAGES': IPQ size limit reached\n\
                   [7] 2026/11/29 03:21:00.000000 [INF] another line\n";
        assert_eq!(last_drop(log, datetime!(2026-11-29 03:00 UTC)).as_deref(), Some("IMAGES"));
        assert_eq!(last_drop(log, datetime!(2026-11-29 03:21 UTC)), None);
        assert_eq!(last_drop("cut off in the mid", datetime!(2026-11-29 03:00 UTC)), None);
    }

    #[test]
    fn refused_messages_are_read_from_the_log_for_a_while() {
        let log = "[7] 2026/11/30 07:51:43.201269 [ERR] 127.0.0.1:56641 - mid:119 - \"yUol\" - Publish Violation - Subject \"image.site-1.gate-2\"\n\
                   [7] 2026/11/30 07:52:00.000000 [INF] another line\n";
        assert_eq!(last_refusal(log, datetime!(2026-11-30 07:51 UTC)).as_deref(), Some("image.site-1.gate-2"));
        assert_eq!(last_refusal(log, datetime!(2026-11-30 07:52 UTC)), None);
        assert_eq!(last_refusal("[7] 2026 Publish Violation - Subject", datetime!(2026-11-30 07:51 UTC)), None);
    }
}

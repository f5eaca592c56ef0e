//! Runs a nats-server of our own: finds and checks the program, starts it on loopback, restarts it when it dies, and
//! stops it with us. Downloads nothing.

mod configuration;
mod log;
mod supervisor;

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use schemas::{Role, SiteName};
use serde::{Deserialize, Serialize};

use self::configuration::{
    Ports, ServerPasswords, choose_ports, encryption_line, local_users, needs_encryption, role_user, sync_interval,
    write_configuration,
};
use self::log::{LOG, last_error};
pub use self::log::{dropped_within, refused_within};
use self::supervisor::{RunningServer, STOP_TIMEOUT, pause, query_health, signal, supervise};
use crate::cameras::CameraLogins;
use crate::connect::{OLDEST_SERVER, Secret, parse_version};
use crate::monitor::Health;
use crate::permissions::SITE_ACCOUNT;

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
/// Attempts to start: ports come from the system, and somebody else may take one before the server binds it.
const START_TRIES: usize = 5;
const START_TIMEOUT: Duration = Duration::from_secs(20);

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

/// The host in a URL by which this machine's workers reach a server that listens on an address.
pub fn host_of(listen: IpAddr) -> String {
    match listen {
        listen if listen.is_unspecified() => "127.0.0.1".into(),
        IpAddr::V4(listen) => listen.to_string(),
        IpAddr::V6(listen) => format!("[{listen}]"),
    }
}

/// The user at a site's end of the link to the cloud, in an account of its own: whatever comes over the link reaches
/// only that account, and nothing of the site's.
pub const LINK_USER: &str = "link";

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
            write_private(&path, &write_configuration(settings, &store, ports, &passwords, encryption.as_deref()))
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

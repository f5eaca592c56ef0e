//! Connections to a nats-server: logs their events and checks the server's version.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::client::FlushErrorKind;
use async_nats::jetstream::{self, context::ContextBuilder};
use async_nats::{Auth, Client, ConnectOptions, Event, ServerInfo};
use bytes::Bytes;
use schemas::SiteName;
#[cfg(feature = "memory")]
use schemas::limits::MAX_MESSAGE_BYTES;
use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;
use crate::error::CarryError;
#[cfg(feature = "memory")]
use crate::memory::MemoryLink;
use crate::nkey::UserKey;
use crate::permissions;
use crate::publish::Publication;

/// Oldest version accepted; older servers silently ignore stream settings they do not know.
pub const OLDEST_SERVER: (u64, u64) = (2, 12);

/// Timeout of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait until the last messages were sent.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Pauses between attempts to reach a server that is not there yet.
const FIRST_CONNECT_PAUSE: Duration = Duration::from_millis(200);
const MAX_CONNECT_PAUSE: Duration = Duration::from_secs(2);
/// Interval of pings; a dead server is noticed within two.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Messages a subscription may hold before the client drops some; ours hold one batch at most.
const SUBSCRIPTION_CAPACITY: usize = 4096;
/// Publishes that may await their acknowledgement; the publisher limits their bytes.
const UNACKED_PUBLISHES: usize = 1024;
/// Longest password read from a file, in bytes; far above what anybody types.
const MAX_PASSWORD_BYTES: u64 = 1024;

/// Address of the server, and how to log in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsSettings {
    /// Address, such as `nats://127.0.0.1:4222`; `tls://` for an encrypted connection.
    pub url: String,
    /// User name; absent if the server requires none.
    pub user: Option<String>,
    /// Password; better set by TRIBUTARY_NATS__PASSWORD than in a file. Never logged or shown.
    #[serde(skip_serializing)]
    pub password: Option<Secret>,
    /// File with the password, as containers receive secrets; read at each start, in place of `password`.
    pub password_file: Option<PathBuf>,
    /// File with the certificate of the server's authority, PEM; absent: the system's trusted authorities
    /// apply.
    pub ca: Option<PathBuf>,
    /// File with the seed of our NKey; no other user may be able to read it.
    pub nkey: Option<PathBuf>,
    /// Prefix of the subjects on which we receive replies, where our permissions name one; absent: `_INBOX`.
    pub inbox: Option<String>,
    /// JetStream domain of the cloud as seen from a site; absent when site and cloud share a server.
    pub cloud_domain: Option<String>,
    /// User at the site's end of the leaf link, in an account of its own; absent when the link ends in the account
    /// that holds the images.
    pub link_user: Option<String>,
    /// Password of `link_user`; better set by TRIBUTARY_NATS__LINK_PASSWORD than in a file. Never logged or shown.
    #[serde(skip_serializing)]
    pub link_password: Option<Secret>,
    /// File with that password, in place of `link_password`.
    pub link_password_file: Option<PathBuf>,
}

impl Default for NatsSettings {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".into(),
            user: None,
            password: None,
            password_file: None,
            ca: None,
            nkey: None,
            inbox: None,
            cloud_domain: None,
            link_user: None,
            link_password: None,
            link_password_file: None,
        }
    }
}

/// A text that is never printed.
#[derive(Clone, PartialEq)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl<'de> Deserialize<'de> for Secret {
    /// Accepts any single value: an environment variable of digits alone is read as a number. Errors never quote it.
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        match serde_json::Value::deserialize(from) {
            Ok(serde_json::Value::String(text)) => Ok(Self(text)),
            Ok(value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_))) => Ok(Self(value.to_string())),
            _ => Err(D::Error::custom("not a string; put it in quotes")),
        }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}

/// A connection, and the JetStream domain it uses. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    carrier: Carrier,
    domain: Option<String>,
}

/// What carries.
#[derive(Clone)]
// The small one is for tests alone.
#[allow(clippy::large_enum_variant)]
enum Carrier {
    Nats(NatsLink),
    #[cfg(feature = "memory")]
    Memory(MemoryLink),
}

/// A connection to a nats-server.
#[derive(Clone)]
pub(crate) struct NatsLink {
    pub(crate) client: Client,
    pub(crate) js: jetstream::Context,
}

impl Bus {
    /// Connects once, or fails; for commands.
    pub async fn connect(settings: &NatsSettings, name: &str) -> Result<Self, CarryError> {
        Self::open(settings, options(settings, name)?).await
    }

    /// Waits until a server is there and connects; for workers, which may start before it.
    pub async fn connect_when_ready(settings: &NatsSettings, name: &str) -> Result<Self, CarryError> {
        let mut backoff = Backoff::new(FIRST_CONNECT_PAUSE, MAX_CONNECT_PAUSE);
        loop {
            match Self::connect(settings, name).await {
                Err(CarryError::Unreachable { url, source }) => {
                    tracing::warn!(url, %source, "waiting for nats-server");
                    backoff.pause().await;
                }
                other => return other,
            }
        }
    }

    async fn open(settings: &NatsSettings, options: ConnectOptions) -> Result<Self, CarryError> {
        let url = without_credentials(&settings.url);
        let client = options
            .connect(&settings.url)
            .await
            .map_err(|source| CarryError::Unreachable { url: url.clone(), source: source.into() })?;
        let found = client.server_info().version;
        if parse_version(&found).is_none_or(|found| found < OLDEST_SERVER) {
            let needed = format!("{}.{}", OLDEST_SERVER.0, OLDEST_SERVER.1);
            return Err(CarryError::OldServer { url, found, needed });
        }
        let js = context(client.clone(), None);
        Ok(Self { carrier: Carrier::Nats(NatsLink { client, js }), domain: None })
    }

    /// A connection to the cloud over the leaf link: through the account in which the link ends, if there is one,
    /// otherwise through this connection; where site and cloud share a server, this connection itself.
    ///
    /// # Errors
    /// The server is down or refuses the link's user.
    pub async fn connect_cloud(
        &self,
        settings: &NatsSettings,
        site: &SiteName,
        name: &str,
    ) -> Result<Self, CarryError> {
        let (Some(domain), Some(user)) = (&settings.cloud_domain, &settings.link_user) else {
            return Ok(self.in_domain(settings.cloud_domain.as_deref()));
        };
        let password = find_password("nats.link_password", &settings.link_password, &settings.link_password_file)?;
        let user = Some(user.clone());
        let link = NatsSettings { user, password, password_file: None, nkey: None, ..settings.clone() };
        let options = options(&link, name)?.custom_inbox_prefix(permissions::inbox_prefix(site));
        Ok(Self::open(&link, options).await?.in_domain(Some(domain)))
    }

    /// The same connection with another JetStream domain, such as the cloud's across
    /// the leaf link. `None` is the server's own.
    pub fn in_domain(&self, domain: Option<&str>) -> Self {
        let carrier = match &self.carrier {
            Carrier::Nats(NatsLink { client, .. }) => {
                Carrier::Nats(NatsLink { js: context(client.clone(), domain), client: client.clone() })
            }
            #[cfg(feature = "memory")]
            Carrier::Memory(link) => Carrier::Memory(link.in_domain(domain)),
        };
        Self { carrier, domain: domain.map(str::to_owned) }
    }

    /// A connection to servers in memory.
    #[cfg(feature = "memory")]
    pub(crate) fn in_memory(link: MemoryLink) -> Self {
        Self { carrier: Carrier::Memory(link), domain: None }
    }

    /// The connection to servers in memory, where it is one.
    #[cfg(feature = "memory")]
    pub(crate) fn memory(&self) -> Option<&MemoryLink> {
        match &self.carrier {
            Carrier::Nats(_) => None,
            Carrier::Memory(link) => Some(link),
        }
    }

    /// The connection to a nats-server.
    ///
    /// # Errors
    /// That the servers are in memory, which do not know this verb.
    pub(crate) fn nats(&self) -> Result<&NatsLink, CarryError> {
        match &self.carrier {
            Carrier::Nats(link) => Ok(link),
            #[cfg(feature = "memory")]
            Carrier::Memory(_) => Err(CarryError::broker("a verb that servers in memory do not know")("not simulated")),
        }
    }

    /// Prefix of the subjects of JetStream requests.
    pub(crate) fn api_prefix(&self) -> String {
        match &self.domain {
            Some(domain) => format!("$JS.{domain}.API"),
            None => "$JS.API".into(),
        }
    }

    /// Whether it uses the JetStream of another place, whose streams others maintain.
    pub fn is_remote(&self) -> bool {
        self.domain.is_some()
    }

    /// The account that this connection belongs to; `None` if the server does not say.
    pub async fn account(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct UserInfoReply {
            data: UserInfo,
        }
        #[derive(Deserialize)]
        struct UserInfo {
            account: String,
        }
        let answer = self.nats().ok()?.client.request("$SYS.REQ.USER.INFO", Bytes::new()).await.ok()?;
        Some(serde_json::from_slice::<UserInfoReply>(&answer.payload).ok()?.data.account)
    }

    /// Whether both use the same JetStream domain.
    pub fn in_same_domain(&self, other: &Self) -> bool {
        self.domain == other.domain
    }

    /// Id of the server process; changes with every restart.
    pub fn server_id(&self) -> String {
        in_memory!(self, link => link.server_id());
        self.server_info().server_id
    }

    /// Version of the server.
    pub fn server_version(&self) -> String {
        self.server_info().version
    }

    fn server_info(&self) -> ServerInfo {
        self.nats().map(|link| link.client.server_info()).unwrap_or_default()
    }

    /// Largest payload the server accepts, bytes.
    pub fn max_payload_bytes(&self) -> usize {
        in_memory!(self, _link => MAX_MESSAGE_BYTES);
        self.server_info().max_payload
    }

    /// Whether the connection is up at present.
    pub fn is_connected(&self) -> bool {
        in_memory!(self, link => link.is_connected());
        let state = self.nats().map(|link| link.client.connection_state());
        matches!(state, Ok(async_nats::connection::State::Connected))
    }

    /// Whether the client itself has ended, which no reconnect repairs; a server that is down for a while does not
    /// count.
    pub async fn is_gone(&self) -> bool {
        let Ok(link) = self.nats() else { return false };
        // Fails at once if the client has ended; while the server is down, it does not return in time.
        let flushed = tokio::time::timeout(Duration::from_millis(100), link.client.flush()).await;
        matches!(flushed, Ok(Err(error)) if error.kind() == FlushErrorKind::SendError)
    }

    /// Publishes a message to current subscribers only; no stream stores it.
    pub async fn publish_unstored(&self, publication: &Publication) -> Result<(), CarryError> {
        in_memory!(self, link => {
            link.publish_unstored(&publication.subject, &publication.header_list(), &publication.payload);
            Ok(())
        });
        let (subject, payload) = (publication.subject.clone(), publication.payload.clone());
        let sent = self.nats()?.client.publish_with_headers(subject, publication.header_map(), payload).await;
        sent.map_err(CarryError::broker(format!("publishing on {}", publication.subject)))
    }

    /// Waits until everything published so far was sent, acknowledgements included; only briefly, because the
    /// server may be down.
    pub async fn flush_published(&self) {
        in_memory!(self, link => link.flush().await);
        let Ok(link) = self.nats() else { return };
        if !matches!(tokio::time::timeout(FLUSH_TIMEOUT, link.client.flush()).await, Ok(Ok(()))) {
            tracing::debug!("connection lost; the last messages may not have been sent");
        }
    }
}

fn options(settings: &NatsSettings, name: &str) -> Result<ConnectOptions, CarryError> {
    // The client uses the process's TLS provider, and panics without one.
    let _already_set = rustls::crypto::ring::default_provider().install_default();
    let options = match &settings.nkey {
        Some(path) => {
            let key = Arc::new(read_nkey(path)?);
            ConnectOptions::with_auth_callback(move |nonce| {
                let key = key.clone();
                async move { Ok(sign_nonce(&key, &nonce)) }
            })
        }
        None => ConnectOptions::new(),
    };
    let mut options = options
        .name(format!("tributary {name}"))
        .ping_interval(PING_INTERVAL)
        .connection_timeout(REQUEST_TIMEOUT)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .reconnect_delay_callback(|attempts| Duration::from_millis((50 * attempts as u64).min(1000)))
        .event_callback(|event| async move { log(event) });
    if let Some(authority) = &settings.ca {
        // The client's own error would not name the file.
        std::fs::File::open(authority).map_err(|error| CarryError::Credentials {
            path: authority.clone(),
            why: format!("cannot be read: {error}; nats.ca must name the certificate of the server's authority"),
        })?;
        options = options.add_root_certificates(authority.clone()).require_tls(true);
    }
    if let Some(inbox) = &settings.inbox {
        options = options.custom_inbox_prefix(inbox);
    }
    if settings.nkey.is_some() {
        return Ok(options);
    }
    let password = find_password("nats.password", &settings.password, &settings.password_file)?;
    Ok(match (&settings.user, password) {
        (Some(user), Some(password)) => options.user_and_password(user.clone(), password.0),
        _ => options,
    })
}

/// The password from the settings, or from the file they name; `key` is the setting of the former. File permissions are
/// not checked: in a container, secrets are readable by everybody there.
fn find_password(key: &str, set: &Option<Secret>, file: &Option<PathBuf>) -> Result<Option<Secret>, CarryError> {
    let Some(path) = file else { return Ok(set.clone()) };
    let unusable = |why: String| CarryError::Credentials { path: path.clone(), why };
    if set.is_some() {
        return Err(unusable(format!("is named by {key}_file, but {key} is set too: remove one of the two settings")));
    }
    let unreadable = |error: std::io::Error| unusable(format!("({key}_file) cannot be read: {error}"));
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(unusable(format!("({key}_file) is not a regular file: name a file with the password")));
    }
    let mut text = String::new();
    let opened = std::fs::File::open(path).map_err(unreadable)?;
    opened.take(MAX_PASSWORD_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    // Editors and `echo` end a file with a line break, which is not part of the password.
    let password = text.trim_end_matches(['\r', '\n']);
    match password.len() as u64 {
        0 => Err(unusable(format!("({key}_file) is empty: write the password to it"))),
        size if size > MAX_PASSWORD_BYTES || password.contains('\n') => Err(unusable(format!(
            "({key}_file) holds more than a password: it must be one line of at most {MAX_PASSWORD_BYTES} bytes"
        ))),
        _ => Ok(Some(password.to_owned().into())),
    }
}

/// What a server is told by the holder of a key, having asked for its nonce to be signed.
fn sign_nonce(key: &UserKey, nonce: &[u8]) -> Auth {
    let mut auth = Auth::new();
    auth.nkey = Some(key.public_key());
    auth.signature = Some(key.sign(nonce));
    auth
}

/// The key whose seed is in a file that nobody else may read.
fn read_nkey(path: &Path) -> Result<UserKey, CarryError> {
    let unusable = |why: String| CarryError::Credentials { path: path.into(), why };
    let metadata = std::fs::metadata(path).map_err(|error| unusable(format!("cannot be read: {error}")))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o027 != 0 {
        return Err(unusable(format!("has mode {mode:o}, so other users can read it: run `chmod 600` on it")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unusable(format!("cannot be read: {error}")))?;
    UserKey::from_seed(text.trim()).map_err(|error| unusable(error.to_string()))
}

/// Whether this process is stopping its own servers.
static IS_ENDING: AtomicBool = AtomicBool::new(false);

/// Sets whether this process is stopping its own servers, so that disconnects are expected.
pub fn expect_end(is_ending: bool) {
    IS_ENDING.store(is_ending, Ordering::Relaxed);
}

fn log(event: Event) {
    match event {
        Event::Disconnected if IS_ENDING.load(Ordering::Relaxed) => tracing::debug!("disconnected"),
        Event::Connected => tracing::info!("connected"),
        Event::Disconnected => tracing::warn!("disconnected; reconnecting"),
        Event::ServerError(error) => tracing::warn!(%error, "server rejected a request"),
        Event::SlowConsumer(id) => tracing::warn!(id, "slow consumer; dropped messages will be redelivered"),
        other => tracing::debug!(event = %other, "connection"),
    }
}

fn context(client: Client, domain: Option<&str>) -> jetstream::Context {
    let builder = ContextBuilder::new();
    match domain {
        Some(domain) => {
            builder.domain(domain).timeout(REQUEST_TIMEOUT).max_ack_inflight(UNACKED_PUBLISHES).build(client)
        }
        None => builder.timeout(REQUEST_TIMEOUT).max_ack_inflight(UNACKED_PUBLISHES).build(client),
    }
}

/// Major and minor of a version such as `2.15.1` or `2.12.0-beta`.
pub(crate) fn parse_version(text: &str) -> Option<(u64, u64)> {
    let mut numbers = text.trim_start_matches('v').split(['.', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The address without user and password.
pub fn without_credentials(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        (_, None) => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{ClientListener, Durability, LeafMode, Server, ServerSettings};

    #[test]
    fn credentials_are_not_shown() {
        assert_eq!(without_credentials("nats://a:b@host:1"), "nats://host:1");
        assert_eq!(without_credentials("nats://host:1"), "nats://host:1");
        let settings: NatsSettings = serde_json::from_str(r#"{"password":"hunter2"}"#).unwrap();
        let shown = format!("{settings:?} {}", serde_json::to_string(&settings).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
        let settings: NatsSettings = serde_json::from_str(r#"{"password":31337}"#).unwrap();
        assert_eq!(settings.password, Some(Secret("31337".into())));
        let refused = serde_json::from_str::<NatsSettings>(r#"{"password":["hunter2"]}"#).unwrap_err();
        assert!(!refused.to_string().contains("hunter2"), "{refused}");
    }

    #[test]
    fn a_password_comes_from_one_place_and_is_never_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let file = Some(path.clone());
        let find = |set: Option<Secret>| find_password("nats.password", &set, &file);
        let assert_refused = |set: Option<Secret>, words: &str| {
            let why = find(set).unwrap_err().to_string();
            assert!(why.contains(words) && why.contains("nats.password_file") && !why.contains("hunter2"), "{why}");
        };
        assert_eq!(find_password("nats.password", &None, &None).unwrap(), None);
        let set = Some(Secret::from("hunter2".to_owned()));
        assert_eq!(find_password("nats.password", &set, &None).unwrap(), set);
        assert_refused(None, "cannot be read");
        for text in ["hunter2", "hunter2\n", "hunter2\r\n"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(find(None).unwrap(), set, "{text:?}");
        }
        assert_refused(set, "remove one of the two settings");
        for (text, words) in
            [("\n", "is empty"), ("hunter2\nhunter2", "one line"), (&"hunter2".repeat(200), "one line")]
        {
            std::fs::write(&path, text).unwrap();
            assert_refused(None, words);
        }
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert_refused(None, "cannot be read");
        let folder = Some(folder.path().to_owned());
        assert!(find_password("nats.password", &None, &folder).unwrap_err().to_string().contains("not a regular file"));
    }

    #[tokio::test]
    async fn an_ended_client_is_gone_and_one_without_a_server_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let settings = ServerSettings {
            encryption_key: None,
            program: None,
            store: folder.path().into(),
            name: "site".into(),
            domain: None,
            port: 0,
            mqtt: None,
            mappings: Vec::new(),
            durability: Durability::Fast,
            max_store_bytes: 1 << 30,
            leaf: LeafMode::Alone,
            site: None,
            entry: ClientListener::default(),
        };
        let server = tokio::task::spawn_blocking(move || Server::start(&settings)).await.unwrap().unwrap();
        let settings = NatsSettings { url: server.url(), ..NatsSettings::default() };
        let (ended, waiting) =
            (Bus::connect(&settings, "test").await.unwrap(), Bus::connect(&settings, "test").await.unwrap());
        assert!(!ended.is_gone().await);
        ended.nats().unwrap().client.drain().await.unwrap();
        for _ in 0..100 {
            if ended.is_gone().await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(ended.is_gone().await, "the worker would keep running and do nothing");
        tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
        assert!(!waiting.is_gone().await, "the worker would end whenever its server restarts");
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(parse_version("2.9.10") < Some(OLDEST_SERVER));
        assert!(parse_version("v2.15.1") >= Some(OLDEST_SERVER));
        assert_eq!(parse_version("latest"), None);
    }
}

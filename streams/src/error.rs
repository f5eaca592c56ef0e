//! What can go wrong while carrying, told apart by what helps.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::{self, ErrorCode};

/// A carrying failure. Every variant says what to do about it through its text.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// Others decided first, again and again.
    #[error(
        "nothing was decided about {what}: others were faster each time; `tributary audit --cloud` shows who decides"
    )]
    Outrun {
        /// What was to be decided about.
        what: String,
    },
    /// No server answers at the address.
    #[error("no nats-server at {url}: start one with `tributary up`, or name yours with --nats or TRIBUTARY_NATS__URL")]
    Unreachable {
        /// The address, without credentials.
        url: String,
        /// The client's own words.
        #[source]
        source: async_nats::Error,
    },
    /// What was named to show who we are is of no use.
    #[error("credentials {path} cannot be used: the file {why}", path = path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The server is too old: older ones ignore settings they do not know.
    #[error(
        "nats-server at {url} is version {found}, at least {needed} is needed: upgrade it, or use the one that `make setup` fetches"
    )]
    OldServer {
        /// The address, without credentials.
        url: String,
        /// Its version.
        found: String,
        /// The oldest accepted.
        needed: String,
    },
    /// The server has no such stream, consumer or bucket.
    #[error("{what} does not exist: create it with `tributary setup`")]
    Missing {
        /// What was looked up.
        what: String,
    },
    /// The stream takes no more, by its limits or for want of disk.
    #[error(
        "{subject} is full ({why}): nothing was stored; make room (answered images are purged as limits demand) or raise the limit with `tributary setup --apply`"
    )]
    Full {
        /// The subject published to.
        subject: String,
        /// The server's own words.
        why: String,
    },
    /// The server's disk is too small for all limits together.
    #[error(
        "{what} cannot be created: it may hold {wanted_mib} MiB, and with all others that is more than the server may store (max_file_store, the account's limit, or what was free on the disk when it started): raise that, or lower streams.images_max_mib and its like (`tributary config --show`)"
    )]
    NoRoom {
        /// The stream.
        what: String,
        /// What it may hold, MiB.
        wanted_mib: u64,
    },
    /// Nobody stores this subject here.
    #[error("no stream takes {subject}: check the site's name, and run `tributary setup`")]
    NoStream {
        /// The subject published to.
        subject: String,
    },
    /// More than a message may hold.
    #[error(
        "message for {subject} has {size_bytes} bytes, more than the server takes: send large images with `tributary publish`, which refers to a blob"
    )]
    TooLarge {
        /// The subject published to.
        subject: String,
        /// Size of the payload, bytes.
        size_bytes: usize,
    },
    /// No acknowledgement within the patience given.
    #[error("no acknowledgement for {subject} within {}s: is the server up and the link alive?", patience.as_secs())]
    NoAck {
        /// The subject published to.
        subject: String,
        /// How long it was tried.
        patience: Duration,
    },
    /// A blob that is gone, cut or altered. Nothing of it is used.
    #[error("blob {key} {what}: publish the image again")]
    BadBlob {
        /// Its key.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// The release store did not answer in time, or failed a request.
    #[error("{what} in store {store} failed: check that the store is up and its address right, then try again")]
    Store {
        /// The store, without credentials.
        store: String,
        /// What was asked of it.
        what: String,
        /// Its own words.
        #[source]
        source: async_nats::Error,
    },
    /// An address that leads to no release store.
    #[error("store {url} cannot be used: {why}")]
    StoreUrl {
        /// The address, without credentials.
        url: String,
        /// Why not, and what to write instead.
        why: String,
    },
    /// The release store does not let us.
    #[error(
        "{what} in store {store} was denied ({why}): make the folder writable for this user, or check the keys in the environment (AWS_*, GOOGLE_* or AZURE_*) and that they may read, write and list there"
    )]
    StoreDenied {
        /// The store, without credentials.
        store: String,
        /// What was asked of it.
        what: String,
        /// Its own words, without credentials.
        why: String,
    },
    /// The release store takes no more.
    #[error("store {store} is full ({why}): nothing was stored; make room there, then try again")]
    StoreFull {
        /// The store, without credentials.
        store: String,
        /// The system's words.
        why: String,
    },
    /// A name that not every kind of store can hold, or one that leads out of it.
    #[error(
        "path {path:?} is refused by the store: name it with letters, digits, '.', '_' and '-', parts joined by '/'"
    )]
    StorePath {
        /// The name, cut to a printable length.
        path: String,
    },
    /// An object of the store that is gone, cut or altered. Nothing of it is used.
    #[error("{path} in store {store} {what}: store it again from an intact copy")]
    BadObject {
        /// The store, without credentials.
        store: String,
        /// Its path there.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// A file of ours, on its way to the store or from it, that cannot be read or written.
    #[error("{path} cannot be read or written", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// The broker refused or failed a request.
    #[error("{what} failed")]
    Broker {
        /// What was asked of it.
        what: String,
        /// Its own words.
        #[source]
        source: async_nats::Error,
    },
    /// A message that is not what its subject promises.
    #[error("message cannot be read")]
    Codec(#[from] schemas::CodecError),
    /// A subject that is not of the expected form.
    #[error("subject {subject:?} is not {expected}")]
    Subject {
        /// The subject, cut to a printable length.
        subject: String,
        /// The form expected.
        expected: &'static str,
    },
}

impl CarryError {
    /// Whether trying again later can help without anybody doing something.
    pub fn is_transient(&self) -> bool {
        !matches!(
            self,
            Self::OldServer { .. }
                | Self::TooLarge { .. }
                | Self::Codec(_)
                | Self::Subject { .. }
                | Self::BadBlob { .. }
                | Self::StoreUrl { .. }
                | Self::StoreDenied { .. }
                | Self::StorePath { .. }
                | Self::BadObject { .. }
        )
    }

    /// The system has no random numbers.
    pub fn no_random(source: std::io::Error) -> Self {
        Self::broker("making a secret")(source)
    }

    pub(crate) fn broker<E>(what: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<async_nats::Error>,
    {
        let what = what.into();
        move |source| Self::Broker { what, source: source.into() }
    }
}

/// The server's own error inside a publishing failure, if it is one.
pub(crate) fn server_code(error: &PublishError) -> Option<(ErrorCode, String)> {
    let source = std::error::Error::source(error)?;
    let inner = source.downcast_ref::<jetstream::Error>()?;
    Some((inner.error_code(), inner.to_string()))
}

/// Server error codes that mean "no room": stream limits, account limits, disk.
pub(crate) fn is_full(code: ErrorCode, text: &str) -> bool {
    // 10077: maximum messages or bytes exceeded; 10023 and 10047: insufficient resources;
    // 10122: server out of storage. The disk's own error comes as 10074 with the text of the system.
    matches!(code.0, 10023 | 10047 | 10077 | 10122) || text.contains("no space left")
}

pub(crate) fn is_taken(error: &PublishError) -> bool {
    error.kind() == PublishErrorKind::WrongLastSequence
}

/// The server's words, if somewhere among an error's causes it says that there is no room.
pub(crate) fn full_disk_reason(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(server) = error.downcast_ref::<jetstream::Error>()
            && is_full(server.error_code(), &server.to_string())
        {
            return Some(server.to_string());
        }
        cause = error.source();
    }
    None
}

/// An error with its causes, in one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        // Many wrap their source's text into their own.
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

/// A failed look-up: missing when the server says so, its own failure otherwise.
pub(crate) fn missing_or_failed<E>(error: E, what: String) -> CarryError
where
    E: std::error::Error + Send + Sync + 'static,
{
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if inner.to_string().contains("not found") {
            return CarryError::Missing { what };
        }
        cause = inner.source();
    }
    CarryError::Broker { what: format!("looking up {what}"), source: Box::new(error) }
}

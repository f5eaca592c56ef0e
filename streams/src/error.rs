//! Transport errors, one variant for each remedy.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream::context::{
    ConsumerInfoError, ConsumerInfoErrorKind, GetStreamError, GetStreamErrorKind, PublishError, PublishErrorKind,
};
use async_nats::jetstream::stream::{ConsumerError, ConsumerErrorKind};
use async_nats::jetstream::{self, ErrorCode};

/// A failure of the broker or a store. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// Every attempt at a decision lost its slot to another decider.
    #[error(
        "no decision about {what} was written: another process took its slot every time; `tributary audit --cloud` shows who decides"
    )]
    Outrun {
        /// Subject of the decision, such as the model.
        what: String,
    },
    /// No server answers at the address.
    #[error("no nats-server at {url}; start one with `tributary up`, or name yours with --nats or TRIBUTARY_NATS__URL")]
    Unreachable {
        /// Address without credentials.
        url: String,
        /// Error of the client.
        #[source]
        source: async_nats::Error,
    },
    /// The credentials file is unusable.
    #[error("credentials {path} cannot be used: the file {why}", path = path.display())]
    Credentials {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong with the file; continues the sentence "the file ...".
        why: String,
    },
    /// The server is too old; older ones ignore settings that they do not know.
    #[error(
        "nats-server at {url} has version {found}; at least {needed} is needed: upgrade it, or use the one that `make setup` fetches"
    )]
    OldServer {
        /// Address without credentials.
        url: String,
        /// Version of the server.
        found: String,
        /// Oldest version accepted.
        needed: String,
    },
    /// The server has no such stream, consumer or bucket.
    #[error("{what} does not exist; create it with `tributary setup`")]
    Missing {
        /// The missing stream, consumer or bucket.
        what: String,
    },
    /// The stream is at its limits, or the disk is full.
    #[error(
        "{subject} is full ({why}) and nothing was stored; free space (the janitor purges answered images) or raise the limit with `tributary setup --apply`"
    )]
    Full {
        /// Subject of the message.
        subject: String,
        /// Reason given by the server or the janitor.
        why: String,
    },
    /// The server's storage limit is too small for the stream.
    #[error(
        "{what} cannot be created: with its {wanted_mib} MiB all streams exceed the server's storage limit (max_file_store, the account's limit, or the free disk space when it started); raise that limit, or lower streams.images_max_mib and similar settings (`tributary config --show`)"
    )]
    NoRoom {
        /// The stream.
        what: String,
        /// Planned size of the stream, MiB.
        wanted_mib: u64,
    },
    /// No stream stores this subject.
    #[error("no stream stores {subject}; check the site's name and run `tributary setup`")]
    NoStream {
        /// Subject of the message.
        subject: String,
    },
    /// The message exceeds the server's limit.
    #[error(
        "message for {subject} has {size_bytes} bytes, more than the server accepts; send large images with `tributary publish`, which stores them as blobs"
    )]
    TooLarge {
        /// Subject of the message.
        subject: String,
        /// Size of the payload, bytes.
        size_bytes: usize,
    },
    /// No acknowledgement before the timeout.
    #[error("no acknowledgement for {subject} within {} s; check that the server and the link are up", timeout.as_secs())]
    NoAck {
        /// Subject of the message.
        subject: String,
        /// How long it was retried.
        timeout: Duration,
    },
    /// A blob that is missing, truncated or altered. Nothing of it is used.
    #[error("blob {key} {what}; publish the image again")]
    BadBlob {
        /// Key of the blob.
        key: String,
        /// What is wrong with the blob; continues the sentence "blob ...".
        what: String,
    },
    /// The release store timed out or failed a request.
    #[error("{what} in store {store} failed; check that the store is up and its address is right, then retry")]
    Store {
        /// Address of the store, without credentials.
        store: String,
        /// The request.
        what: String,
        /// Error of the store.
        #[source]
        source: async_nats::Error,
    },
    /// An address that names no release store.
    #[error("store {url} cannot be used: {why}")]
    StoreUrl {
        /// Address without credentials.
        url: String,
        /// Why, and what to write instead.
        why: String,
    },
    /// The release store denied access.
    #[error("{what} in store {store} was denied ({why}); {remedy}", remedy = denied_remedy(store))]
    StoreDenied {
        /// Address of the store, without credentials.
        store: String,
        /// The request.
        what: String,
        /// Reason given by the store, without credentials.
        why: String,
    },
    /// The release store is full.
    #[error("store {store} is full ({why}) and nothing was stored; free space there, then retry")]
    StoreFull {
        /// Address of the store, without credentials.
        store: String,
        /// Reason given by the system.
        why: String,
    },
    /// A name that not every kind of store can hold, or that leads out of the store.
    #[error("path {path:?} is not a valid store path; use letters, digits, '.', '_' and '-' in parts joined by '/'")]
    StorePath {
        /// The name, cut to a printable length.
        path: String,
    },
    /// A stored object that is missing, truncated or altered. Nothing of it is used.
    #[error("{path} in store {store} {what}; store it again from an intact copy")]
    BadObject {
        /// Address of the store, without credentials.
        store: String,
        /// Path of the object.
        path: String,
        /// What is wrong with the object; continues the sentence.
        what: String,
    },
    /// A local file on its way to or from the store could not be read or written.
    #[error("{path} could not be read or written", path = path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        #[source]
        source: std::io::Error,
    },
    /// The broker refused or failed a request.
    #[error("{what} failed")]
    Broker {
        /// The request.
        what: String,
        /// Error of the broker.
        #[source]
        source: async_nats::Error,
    },
    /// A message that is not what its subject promises.
    #[error("message could not be decoded")]
    Codec(#[from] schemas::CodecError),
    /// A subject of another form than expected.
    #[error("subject {subject:?} is not {expected}")]
    Subject {
        /// The subject, cut to a printable length.
        subject: String,
        /// The expected form.
        expected: &'static str,
    },
}

/// What to do about a store that denies access: a folder has an owner, a bucket has keys.
fn denied_remedy(store: &str) -> &'static str {
    match store.contains("://") && !store.starts_with("file://") {
        true => {
            "set or correct the keys in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_* or AZURE_*): they must be allowed to read, write and list there"
        }
        false => "make the folder writable for this user",
    }
}

impl CarryError {
    /// Whether a later retry can succeed without anybody's help.
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

    /// The system provides no random numbers.
    pub fn no_random(source: std::io::Error) -> Self {
        Self::broker("generating a secret")(source)
    }

    pub(crate) fn broker<E>(what: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<async_nats::Error>,
    {
        let what = what.into();
        move |source| Self::Broker { what, source: source.into() }
    }
}

/// The server's error code and text inside a publish error, if there is one.
pub(crate) fn server_error(error: &PublishError) -> Option<jetstream::Error> {
    std::error::Error::source(error)?.downcast_ref::<jetstream::Error>().cloned()
}

/// Whether a server error means that there is no space: stream limits, account limits, disk.
pub(crate) fn is_full(error: &jetstream::Error) -> bool {
    matches!(
        error.error_code(),
        ErrorCode::INSUFFICIENT_RESOURCES
            | ErrorCode::STORAGE_RESOURCES_EXCEEDED
            | ErrorCode::STREAM_STORE_FAILED
            | ErrorCode::STREAM_MAX_STREAM_BYTES_EXCEEDED
    ) || names_full_disk(error)
}

/// A full disk has no code of its own: the error of the operating system stands in the text of whatever failed.
fn names_full_disk(error: &jetstream::Error) -> bool {
    error.to_string().contains("no space left on device")
}

/// Whether a message that was to be deleted is not there any more.
pub(crate) fn is_message_gone(error: &jetstream::Error) -> bool {
    match error.error_code() {
        ErrorCode::NO_MESSAGE_FOUND | ErrorCode::SEQUENCE_NOT_FOUND => true,
        // Before the first message of its stream, only the text tells it from a deletion that failed.
        ErrorCode::STREAM_MESSAGE_DELETE_FAILED => error.to_string().contains("no message found"),
        _ => false,
    }
}

/// The server's code in an error, not in its causes. The client hides some codes in kinds of its own.
fn code_in(error: &(dyn std::error::Error + 'static)) -> Option<ErrorCode> {
    if let Some(error) = error.downcast_ref::<jetstream::Error>() {
        return Some(error.error_code());
    }
    if let Some(error) = error.downcast_ref::<GetStreamError>() {
        return match error.kind() {
            GetStreamErrorKind::JetStream(inner) => Some(inner.error_code()),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<ConsumerError>() {
        return match error.kind() {
            ConsumerErrorKind::JetStream(inner) => Some(inner.error_code()),
            _ => None,
        };
    }
    match error.downcast_ref::<ConsumerInfoError>()?.kind() {
        ConsumerInfoErrorKind::NotFound => Some(ErrorCode::CONSUMER_NOT_FOUND),
        ConsumerInfoErrorKind::StreamNotFound => Some(ErrorCode::STREAM_NOT_FOUND),
        ConsumerInfoErrorKind::JetStream(inner) => Some(inner.error_code()),
        _ => None,
    }
}

/// An error and its causes.
fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// Whether the server says that there is no such stream, consumer or bucket, which is a stream too.
pub(crate) fn is_missing(error: &(dyn std::error::Error + 'static)) -> bool {
    let absent = [ErrorCode::STREAM_NOT_FOUND, ErrorCode::CONSUMER_NOT_FOUND];
    causes(error).filter_map(code_in).any(|code| absent.contains(&code))
}

pub(crate) fn is_taken(error: &PublishError) -> bool {
    error.kind() == PublishErrorKind::WrongLastSequence
}

/// The server's message, if any cause of the error says that there is no space.
pub(crate) fn full_disk_reason(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let refused = causes(error).filter_map(|error| error.downcast_ref::<jetstream::Error>());
    refused.filter(|error| is_full(error)).map(ToString::to_string).next()
}

/// An error with its causes, on one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        // Many errors include their source's text in their own.
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

/// The error of a failed lookup: `Missing` when the server says so, `Broker` otherwise.
pub(crate) fn missing_or_failed<E>(error: E, what: String) -> CarryError
where
    E: std::error::Error + Send + Sync + 'static,
{
    if is_missing(&error) {
        return CarryError::Missing { what };
    }
    CarryError::Broker { what: format!("looking up {what}"), source: Box::new(error) }
}

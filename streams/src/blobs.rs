//! Bytes too large for a message, in the broker's object store under the digest of their content.
//! Hashed on the way in and on the way out: no unchecked byte leaves this file (invariant 4).
//!
//! What may be large goes from file to file or from bucket to bucket, a few pieces at a time: [`Blobs::store_file`],
//! [`Blobs::fetch_to_file`], [`Blobs::copy_to`]. What is used whole, an image or a piece of a package, is held in memory up
//! to [`MAX_HELD_BYTES`].
//!
//! Written by the client's object store, and read by requests of our own: the client's reader follows links without
//! limit, waits for missing pieces, and needs permission to create consumers.

use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::object_store::{DeleteErrorKind, ObjectInfo, ObjectStore};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use futures::Stream;
use schemas::limits::MAX_IMAGE_BYTES;
use schemas::{BlobRef, SiteName};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use crate::backoff::Backoff;
use crate::connect::Bus;
use crate::direct_get;
use crate::error::{CarryError, full_disk_reason, missing_or_failed};
use crate::partial_file::{PartialFile, file_error};
use crate::reader;
use crate::topology::{BLOBS, CLOUD_BLOBS, PINNED_BLOBS, sent_blobs};

/// Why a referenced blob cannot be fetched.
const NOT_THERE: &str = "is not in the bucket (it expired, or was never stored)";
/// Most pieces and bytes per request; the client writes pieces of 128 KiB. What a transfer holds in memory is some times this.
const PIECES: usize = 16;
const PIECES_BYTES: usize = 2 * 1024 * 1024;
/// Most bytes that [`Blobs::fetch_blob`] holds in memory, whatever limit its caller names.
pub(crate) const MAX_HELD_BYTES: u64 = MAX_IMAGE_BYTES;
/// Bytes of a file that are read at a time.
const FILE_PART_BYTES: usize = 256 * 1024;
/// How often in a row a reply may fail to come before a transfer ends, and the pauses before it is asked for again.
const RESUMES: u32 = 5;
const FIRST_RESUME: Duration = Duration::from_millis(200);
const LAST_RESUME: Duration = Duration::from_secs(3);

/// A bucket of blobs in one JetStream domain.
#[derive(Clone)]
pub struct Blobs {
    bus: Bus,
    name: String,
}

/// A bucket's description of one object.
#[derive(Deserialize)]
struct ObjectDescription {
    #[serde(default)]
    size: u64,
    #[serde(default)]
    nuid: String,
    #[serde(default)]
    deleted: bool,
    #[serde(default)]
    options: Option<ObjectOptions>,
}

#[derive(Deserialize)]
struct ObjectOptions {
    #[serde(default)]
    link: Option<serde::de::IgnoredAny>,
}

impl Blobs {
    /// Looks up the site's bucket; creates nothing.
    pub async fn open(bus: &Bus) -> Result<Self, CarryError> {
        Self::named(bus, BLOBS).looked_up().await
    }

    /// Looks up the cloud's bucket of packages and weights; creates nothing.
    pub async fn open_in_cloud(bus: &Bus) -> Result<Self, CarryError> {
        Self::named(bus, CLOUD_BLOBS).looked_up().await
    }

    /// Looks up the site's bucket of pinned images; creates nothing.
    pub async fn open_pinned(bus: &Bus) -> Result<Self, CarryError> {
        Self::named(bus, PINNED_BLOBS).looked_up().await
    }

    /// The cloud's bucket, for a site to read. Not looked up: a site may only read blobs it knows by name.
    pub fn open_offered(bus: &Bus) -> Self {
        Self::named(bus, CLOUD_BLOBS)
    }

    /// The bucket of what a site sent up; not looked up.
    pub fn open_sent_by(bus: &Bus, site: &SiteName) -> Self {
        Self::named(bus, &sent_blobs(site))
    }

    fn named(bus: &Bus, name: &str) -> Self {
        Self { bus: bus.clone(), name: name.into() }
    }

    /// Whether the bucket exists.
    pub async fn bucket_exists(&self) -> Result<bool, CarryError> {
        in_memory!(self.bus, link => link.has_bucket(&self.stream()).await);
        match self.store_of_client().await {
            Ok(_) => Ok(true),
            Err(CarryError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn looked_up(self) -> Result<Self, CarryError> {
        match self.bucket_exists().await? {
            true => Ok(self),
            false => Err(CarryError::Missing { what: format!("object bucket {}", self.name) }),
        }
    }

    async fn store_of_client(&self) -> Result<ObjectStore, CarryError> {
        let store = self.bus.nats()?.js.get_object_store(&self.name).await;
        store.map_err(|error| missing_or_failed(error, format!("object bucket {}", self.name)))
    }

    fn stream(&self) -> String {
        format!("OBJ_{}", self.name)
    }

    /// The description of a blob; `None` if it never existed or was removed.
    async fn describe(&self, blob: &BlobRef) -> Result<Option<ObjectDescription>, CarryError> {
        let subject = format!("$O.{}.M.{}", self.name, encode_key(&blob.key));
        let Some(record) = reader::last_message(&self.bus, &self.stream(), &subject).await? else { return Ok(None) };
        let described: ObjectDescription = serde_json::from_slice(&record.payload)
            .map_err(|_| CarryError::BadBlob { key: blob.key.clone(), what: "has an unreadable description".into() })?;
        Ok(Some(described).filter(|described| !described.deleted))
    }

    /// Whether there is a blob of this name and size. Its content is only checked when it is fetched.
    pub async fn has_blob(&self, blob: &BlobRef) -> Result<bool, CarryError> {
        Ok(self.describe(blob).await?.is_some_and(|described| described.size == blob.size_bytes))
    }

    /// Stores bytes once, under their digest.
    pub async fn store_blob(&self, bytes: &[u8]) -> Result<BlobRef, CarryError> {
        let blob = BlobRef::new(Sha256::digest(bytes).into(), bytes.len() as u64);
        if self.has_blob(&blob).await.unwrap_or(false) {
            return Ok(blob);
        }
        in_memory!(self.bus, link => match link.put_object(&self.name, &blob.key, &encode_key(&blob.key), bytes).await {
            Ok(_) => Ok(blob),
            Err(failure) => Err(failure.unwritten(format!("bucket {}", self.name))),
        });
        self.put(&blob, bytes).await.map(|_| blob)
    }

    /// Stores a file once, under its digest. Reads it twice, a little at a time.
    ///
    /// # Errors
    /// Also that the file changed while it was stored, in which case nothing of it stays.
    pub async fn store_file(&self, file: &Path) -> Result<BlobRef, CarryError> {
        let blob = hash_file(file).await?;
        if self.has_blob(&blob).await.unwrap_or(false) {
            return Ok(blob);
        }
        in_memory!(self.bus, _link => {
            let bytes = tokio::fs::read(file).await.map_err(file_error(file))?;
            self.store_blob(&bytes).await
        });
        let opened = tokio::fs::File::open(file).await.map_err(file_error(file))?;
        // One byte more than it had: a file that grew meanwhile is found out, and not stored to its end.
        let stored = self.put(&blob, opened.take(blob.size_bytes.saturating_add(1))).await?;
        if reference_of(&stored).is_some_and(|stored| stored == blob) {
            return Ok(blob);
        }
        self.remove_upload(&blob, &stored.nuid).await;
        Err(file_error(file)(std::io::Error::other("it changed while it was being stored; store it again")))
    }

    /// Writes a blob through the client's object store, which holds one piece at a time.
    async fn put(&self, blob: &BlobRef, mut from: impl AsyncRead + Unpin) -> Result<ObjectInfo, CarryError> {
        let stored = self.store_of_client().await?.put(blob.key.as_str(), &mut from).await;
        stored.map_err(|error| match full_disk_reason(&error) {
            Some(why) => CarryError::Full { subject: format!("bucket {}", self.name), why },
            None => CarryError::broker(format!("storing blob {}", blob.key))(error),
        })
    }

    /// Removes what an upload wrote that turned out to be something else; another's description of the same key stays.
    async fn remove_upload(&self, blob: &BlobRef, nuid: &str) {
        let is_ours = self.describe(blob).await.is_ok_and(|kept| kept.is_some_and(|kept| kept.nuid == nuid));
        if is_ours && let Err(error) = self.remove_blob(&blob.key).await {
            tracing::debug!(%error, key = blob.key, "mismatched upload not removed");
        }
    }

    /// Removes the blob under a key; succeeds if there is none.
    pub async fn remove_blob(&self, key: &str) -> Result<(), CarryError> {
        in_memory!(self.bus, link => {
            let removed = link.remove_object(&self.name, key, &encode_key(key)).await;
            removed.map_err(CarryError::broker(format!("removing blob {key}")))
        });
        match self.store_of_client().await?.delete(key).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == DeleteErrorKind::NotFound => Ok(()),
            Err(error) => Err(CarryError::broker(format!("removing blob {key}"))(error)),
        }
    }

    /// The bytes of a reference: of exactly its size and digest, or an error. The size is checked before anything is
    /// allocated, against `limit_bytes` and [`MAX_HELD_BYTES`]; what may be larger is fetched with
    /// [`Blobs::fetch_to_file`].
    pub async fn fetch_blob(&self, blob: &BlobRef, limit_bytes: u64) -> Result<Bytes, CarryError> {
        let mut pieces = self.pieces(blob, limit_bytes.min(MAX_HELD_BYTES)).await?;
        // Grown as pieces arrive: a description alone is no reason to allocate.
        let mut bytes = Vec::new();
        while let Some(some) = pieces.next().await? {
            some.iter().for_each(|piece| bytes.extend_from_slice(piece));
        }
        Ok(bytes.into())
    }

    /// Writes a blob to a file, which appears when all of it has arrived with exactly the size and digest of its
    /// reference; otherwise there is an error, and the file stays as it was. Holds a few pieces at a time, whatever the
    /// size, and asks again for those whose reply was lost. The file's folder must exist.
    pub async fn fetch_to_file(&self, blob: &BlobRef, limit_bytes: u64, into: &Path) -> Result<(), CarryError> {
        let mut pieces = self.pieces(blob, limit_bytes).await?;
        let mut file = PartialFile::create(into)?;
        while let Some(some) = pieces.next_resumed().await? {
            file = file.append(some).await?;
        }
        file.finish().await
    }

    /// Copies a blob into another bucket unless it is there already; holds only a few pieces at a time, whatever its
    /// size, and asks again for those whose reply was lost. A copy with the wrong digest is removed again.
    pub async fn copy_to(&self, other: &Self, blob: &BlobRef, limit_bytes: u64) -> Result<(), CarryError> {
        if other.has_blob(blob).await? {
            return Ok(());
        }
        in_memory!(other.bus, _link => {
            let bytes = self.fetch_blob(blob, limit_bytes).await?;
            other.store_blob(&bytes).await.map(|_| ())
        });
        let mut pieces = self.pieces(blob, limit_bytes).await?;
        let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(2);
        let reading = async move {
            loop {
                match pieces.next_resumed().await {
                    Ok(None) => return Ok(()),
                    Ok(Some(some)) => {
                        for piece in some {
                            // The writer failed, and reports why.
                            if sender.send(Ok(piece)).await.is_err() {
                                return Ok(());
                            }
                        }
                    }
                    Err(error) => {
                        // Otherwise the part that arrived would pass for the whole.
                        let _failed_itself = sender.send(Err(std::io::Error::other("the source failed"))).await;
                        return Err(error);
                    }
                }
            }
        };
        let writing = other.put(blob, StreamReader::new(into_stream(receiver)));
        let (read, written): (Result<(), CarryError>, Result<_, CarryError>) = tokio::join!(reading, writing);
        // The digest is known only at the end, and the copy may be described already.
        if let (Err(_), Ok(stored)) = (&read, &written) {
            other.remove_upload(blob, &stored.nuid).await;
        }
        read?;
        written.map(|_| ())
    }

    /// A reader of the pieces of a blob, if its description is valid.
    async fn pieces(&self, blob: &BlobRef, limit_bytes: u64) -> Result<BlobChunks, CarryError> {
        let bad = |what: String| CarryError::BadBlob { key: blob.key.clone(), what };
        if blob.size_bytes > limit_bytes {
            return Err(bad(format!("has {} bytes; at most {limit_bytes} are accepted", blob.size_bytes)));
        }
        let described = self.describe(blob).await?.ok_or_else(|| bad(NOT_THERE.into()))?;
        let nuid = chunk_token(described, blob)?;
        Ok(BlobChunks {
            bus: self.bus.clone(),
            stream: self.stream(),
            subject: format!("$O.{}.C.{nuid}", self.name),
            blob: blob.clone(),
            next: 1,
            bytes: 0,
            hash: Sha256::new(),
        })
    }
}

/// The subject token of a blob's key. Pure.
fn encode_key(key: &str) -> String {
    URL_SAFE.encode(key)
}

/// The reference of what the client stored, by the size and digest that it found on the way.
fn reference_of(stored: &ObjectInfo) -> Option<BlobRef> {
    let digest = URL_SAFE.decode(stored.digest.as_deref()?.strip_prefix("SHA-256=")?).ok()?;
    Some(BlobRef::new(digest.try_into().ok()?, stored.size as u64))
}

/// The reference of a file's content; reads it a little at a time, off the async threads.
async fn hash_file(file: &Path) -> Result<BlobRef, CarryError> {
    use std::io::Read;
    let path = file.to_owned();
    let hash = move || {
        let (mut opened, mut hash, mut size_bytes) = (std::fs::File::open(path)?, Sha256::new(), 0u64);
        let mut part = vec![0; FILE_PART_BYTES];
        loop {
            match opened.read(&mut part) {
                Ok(0) => return Ok(BlobRef::new(hash.finalize().into(), size_bytes)),
                Ok(count) => {
                    hash.update(part.get(..count).unwrap_or_default());
                    size_bytes = size_bytes.saturating_add(count as u64);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    };
    let hashed = tokio::task::spawn_blocking(hash).await;
    hashed.map_err(std::io::Error::other).and_then(|hashed| hashed).map_err(file_error(file))
}

/// The subject token of a blob's pieces, if its description is valid. Pure.
fn chunk_token(described: ObjectDescription, blob: &BlobRef) -> Result<String, CarryError> {
    let bad = |what: String| CarryError::BadBlob { key: blob.key.clone(), what };
    if described.options.is_some_and(|options| options.link.is_some()) {
        return Err(bad("is a link; links are not followed".into()));
    }
    if described.size != blob.size_bytes {
        return Err(bad(format!("has {} bytes, but its reference says {}", described.size, blob.size_bytes)));
    }
    match described.nuid {
        nuid if !nuid.is_empty() && nuid.bytes().all(|byte| byte.is_ascii_alphanumeric()) => Ok(nuid),
        _ => Err(bad("has a description without a valid id of its pieces".into())),
    }
}

/// A channel's items as a stream.
fn into_stream(receiver: mpsc::Receiver<std::io::Result<Bytes>>) -> impl Stream<Item = std::io::Result<Bytes>> + Unpin {
    Box::pin(futures::stream::unfold(receiver, async |mut receiver| {
        let next = receiver.recv().await?;
        Some((next, receiver))
    }))
}

/// A blob that is being read, piece by piece.
struct BlobChunks {
    bus: Bus,
    stream: String,
    subject: String,
    blob: BlobRef,
    /// Sequence from which the next pieces are requested.
    next: u64,
    /// Bytes received.
    bytes: u64,
    hash: Sha256,
}

impl BlobChunks {
    /// The next pieces, as [`BlobChunks::next`] gives them; where a reply does not come, it is asked for again from where
    /// the last one ended.
    async fn next_resumed(&mut self) -> Result<Option<Vec<Bytes>>, CarryError> {
        let mut backoff = Backoff::new(FIRST_RESUME, LAST_RESUME);
        loop {
            match self.next().await {
                Err(error @ CarryError::Broker { .. }) if backoff.failures() < RESUMES => {
                    tracing::debug!(%error, key = self.blob.key, bytes = self.bytes, "transfer of a blob resumed");
                    backoff.pause().await;
                }
                other => return other,
            }
        }
    }

    /// The next pieces; `None` when all have arrived and match the reference.
    async fn next(&mut self) -> Result<Option<Vec<Bytes>>, CarryError> {
        let size = self.blob.size_bytes;
        let key = self.blob.key.clone();
        let bad = |what: String| CarryError::BadBlob { key, what };
        if self.bytes == size {
            let found = BlobRef::new(std::mem::take(&mut self.hash).finalize().into(), size);
            return match found.sha256 == self.blob.sha256 {
                true => Ok(None),
                false => Err(bad("does not have the SHA-256 of its reference".into())),
            };
        }
        let question =
            json!({ "next_by_subj": self.subject, "seq": self.next, "batch": PIECES, "max_bytes": PIECES_BYTES });
        let records = direct_get::request_messages(&self.bus, &self.stream, &question, PIECES).await?;
        let Some(last) = records.last() else {
            return Err(bad(format!("has only {} of the {size} bytes that its reference says", self.bytes)));
        };
        self.next = last.sequence.saturating_add(1);
        let mut pieces = Vec::with_capacity(records.len());
        for piece in records {
            self.bytes = self.bytes.saturating_add(piece.payload.len() as u64);
            if self.bytes > size {
                return Err(bad(format!("has more than the {size} bytes that its reference says")));
            }
            self.hash.update(&piece.payload);
            pieces.push(piece.payload);
        }
        Ok(Some(pieces))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_blob_descriptions_lead_to_a_valid_token_or_an_error() {
        let blob = BlobRef::new([7; 32], 700);
        let descriptions = bend::texts([
            "{\"name\":\"07\",\"size\":700,\"nuid\":\"AbC123\",\"chunks\":1,\"deleted\":false}",
            "{\"size\":700,\"nuid\":\"AbC123\",\"options\":{\"link\":{\"bucket\":\"blobs\",\"name\":\"07\"}}}",
        ]);
        bend::bend_all("descriptions of blobs", &descriptions, bend::turns(), |bytes| {
            if let Ok(described) = serde_json::from_slice::<ObjectDescription>(bytes)
                && let Ok(token) = chunk_token(described, &blob)
            {
                assert!(!token.contains(['.', '*', '>', ' ']), "{token} is not a subject token");
            }
            1
        });
    }
}

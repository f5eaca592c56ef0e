//! Bytes too large for a message, in the broker's object store, by the digest of their content.
//! Hashed on the way in and on the way out: no unchecked byte leaves this file (invariant 4).
//!
//! They are written by the client's object store and read by questions of our own: the client's reader follows links without
//! end and waits for pieces that are not there, and needs the right to make consumers.

use async_nats::jetstream::object_store::{DeleteErrorKind, ObjectStore};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use futures::Stream;
use schemas::{BlobRef, SiteName};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use crate::connect::Bus;
use crate::direct_get;
use crate::error::{CarryError, full_disk_reason, missing_or_failed};
use crate::reader;
use crate::topology::{BLOBS, CLOUD_BLOBS, PINNED_BLOBS, sent_blobs};

/// Why a blob cannot be had that somebody refers to.
const NOT_THERE: &str = "is not in the bucket (its time there is up, or it was never stored)";
/// Pieces asked for at a time, and their bytes; the client writes pieces of 128 KiB.
const PIECES: usize = 64;
const PIECES_BYTES: usize = 8 * 1024 * 1024;

/// The blob bucket of one domain.
#[derive(Clone)]
pub struct Blobs {
    bus: Bus,
    name: String,
}

/// What a bucket says of one object.
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
    /// Looks the site's bucket up; creates nothing.
    pub async fn open(bus: &Bus) -> Result<Self, CarryError> {
        Self::named(bus, BLOBS).looked_up().await
    }

    /// Looks up the bucket of what the cloud offers; creates nothing.
    pub async fn open_in_cloud(bus: &Bus) -> Result<Self, CarryError> {
        Self::named(bus, CLOUD_BLOBS).looked_up().await
    }

    /// Looks up the site's bucket for what is pinned; creates nothing.
    pub async fn open_pinned(bus: &Bus) -> Result<Self, CarryError> {
        Self::named(bus, PINNED_BLOBS).looked_up().await
    }

    /// What the cloud offers, for a site to read; not looked up, for a site may only read what it knows by name.
    pub fn open_offered(bus: &Bus) -> Self {
        Self::named(bus, CLOUD_BLOBS)
    }

    /// What a site sent up; not looked up.
    pub fn open_sent_by(bus: &Bus, site: &SiteName) -> Self {
        Self::named(bus, &sent_blobs(site))
    }

    fn named(bus: &Bus, name: &str) -> Self {
        Self { bus: bus.clone(), name: name.into() }
    }

    /// Whether there is such a bucket.
    pub async fn bucket_exists(&self) -> Result<bool, CarryError> {
        match self.store_of_client().await {
            Ok(_) => Ok(true),
            Err(CarryError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn looked_up(self) -> Result<Self, CarryError> {
        self.store_of_client().await?;
        Ok(self)
    }

    async fn store_of_client(&self) -> Result<ObjectStore, CarryError> {
        let found = self.bus.js.get_object_store(&self.name).await;
        found.map_err(|error| missing_or_failed(error, format!("object bucket {}", self.name)))
    }

    fn stream(&self) -> String {
        format!("OBJ_{}", self.name)
    }

    /// What the bucket says of a blob; absent where it was never there or was removed.
    async fn described(&self, blob: &BlobRef) -> Result<Option<ObjectDescription>, CarryError> {
        let subject = format!("$O.{}.M.{}", self.name, URL_SAFE.encode(&blob.key));
        let Some(record) = reader::last_message(&self.bus, &self.stream(), &subject).await? else { return Ok(None) };
        let described: ObjectDescription = serde_json::from_slice(&record.payload)
            .map_err(|_| CarryError::BadBlob { key: blob.key.clone(), what: "is not described as a blob is".into() })?;
        Ok(Some(described).filter(|described| !described.deleted))
    }

    /// Whether there is something of this name and size. What it is shows when it is fetched.
    pub async fn has_blob(&self, blob: &BlobRef) -> Result<bool, CarryError> {
        Ok(self.described(blob).await?.is_some_and(|described| described.size == blob.size_bytes))
    }

    /// Stores bytes once, under their digest.
    pub async fn store_blob(&self, bytes: &[u8]) -> Result<BlobRef, CarryError> {
        let blob = BlobRef::new(Sha256::digest(bytes).into(), bytes.len() as u64);
        if self.has_blob(&blob).await.unwrap_or(false) {
            return Ok(blob);
        }
        let mut reader = bytes;
        let stored = self.store_of_client().await?.put(blob.key.as_str(), &mut reader).await;
        match stored {
            Ok(_) => Ok(blob),
            Err(error) => Err(self.unwritten(&blob, error)),
        }
    }

    /// Lets what is stored under a key go; what is not there is gone already.
    pub async fn remove_blob(&self, key: &str) -> Result<(), CarryError> {
        match self.store_of_client().await?.delete(key).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == DeleteErrorKind::NotFound => Ok(()),
            Err(error) => Err(CarryError::broker(format!("removing blob {key}"))(error)),
        }
    }

    /// The bytes of a reference: of exactly its size and hash, or an error. The size is bounded
    /// before anything is allocated.
    pub async fn fetch_blob(&self, blob: &BlobRef, limit_bytes: u64) -> Result<Bytes, CarryError> {
        let mut pieces = self.pieces(blob, limit_bytes).await?;
        // Grown as pieces come: what a description says is no reason to allocate.
        let mut bytes = Vec::new();
        while let Some(some) = pieces.next().await? {
            some.iter().for_each(|piece| bytes.extend_from_slice(piece));
        }
        Ok(bytes.into())
    }

    /// Copies a blob into another bucket, where it is not there already; no more than some pieces are held at a time,
    /// however large it is. One that turns out to be something else is taken away again.
    pub async fn copy_to(&self, other: &Self, blob: &BlobRef, limit_bytes: u64) -> Result<(), CarryError> {
        if other.has_blob(blob).await? {
            return Ok(());
        }
        let mut pieces = self.pieces(blob, limit_bytes).await?;
        let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(2);
        let reading = async move {
            loop {
                match pieces.next().await {
                    Ok(None) => return Ok(()),
                    Ok(Some(some)) => {
                        for piece in some {
                            // Whoever writes has failed, and says why.
                            if sender.send(Ok(piece)).await.is_err() {
                                return Ok(());
                            }
                        }
                    }
                    Err(error) => {
                        // Or else what came so far would pass for the whole.
                        let _failed_itself = sender.send(Err(std::io::Error::other("the source failed"))).await;
                        return Err(error);
                    }
                }
            }
        };
        let store = other.store_of_client().await?;
        let mut reader = StreamReader::new(received(receiver));
        let writing = async { Ok(store.put(blob.key.as_str(), &mut reader).await) };
        let (read, written): (Result<(), CarryError>, Result<_, CarryError>) = tokio::join!(reading, writing);
        // The hash is known only at the end, and the description may stand already; another's is left alone.
        if let (Err(_), Ok(Ok(stored))) = (&read, &written)
            && other.described(blob).await.is_ok_and(|found| found.is_some_and(|found| found.nuid == stored.nuid))
            && let Err(error) = other.remove_blob(&blob.key).await
        {
            tracing::debug!(%error, key = blob.key, "what was copied and is something else is left");
        }
        read?;
        match written? {
            Ok(_) => Ok(()),
            Err(error) => Err(other.unwritten(blob, error)),
        }
    }

    fn unwritten(&self, blob: &BlobRef, error: async_nats::jetstream::object_store::PutError) -> CarryError {
        match full_disk_reason(&error) {
            Some(why) => CarryError::Full { subject: format!("bucket {}", self.name), why },
            None => CarryError::broker(format!("storing blob {}", blob.key))(error),
        }
    }

    /// Where the pieces of a blob are, if what the bucket says of it can be.
    async fn pieces(&self, blob: &BlobRef, limit_bytes: u64) -> Result<BlobChunks, CarryError> {
        let bad = |what: String| CarryError::BadBlob { key: blob.key.clone(), what };
        if blob.size_bytes > limit_bytes {
            return Err(bad(format!("has {} bytes, at most {limit_bytes} are accepted", blob.size_bytes)));
        }
        let described = self.described(blob).await?.ok_or_else(|| bad(NOT_THERE.into()))?;
        let nuid = place_of(described, blob)?;
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

/// Where the pieces of a blob are, if what a bucket says of it can be. Pure.
fn place_of(described: ObjectDescription, blob: &BlobRef) -> Result<String, CarryError> {
    let bad = |what: String| CarryError::BadBlob { key: blob.key.clone(), what };
    if described.options.is_some_and(|options| options.link.is_some()) {
        return Err(bad("is a link, and must be the bytes themselves".into()));
    }
    if described.size != blob.size_bytes {
        return Err(bad(format!("has {} bytes, its reference says {}", described.size, blob.size_bytes)));
    }
    match described.nuid {
        nuid if !nuid.is_empty() && nuid.bytes().all(|byte| byte.is_ascii_alphanumeric()) => Ok(nuid),
        _ => Err(bad("does not say where its pieces are".into())),
    }
}

/// What comes through a channel, as a stream.
fn received(receiver: mpsc::Receiver<std::io::Result<Bytes>>) -> impl Stream<Item = std::io::Result<Bytes>> + Unpin {
    Box::pin(futures::stream::unfold(receiver, async |mut receiver| {
        let next = receiver.recv().await?;
        Some((next, receiver))
    }))
}

/// A blob on its way, piece by piece.
struct BlobChunks {
    bus: Bus,
    stream: String,
    subject: String,
    blob: BlobRef,
    /// Sequence from which the next pieces are asked for.
    next: u64,
    /// Bytes that came.
    bytes: u64,
    hash: Sha256,
}

impl BlobChunks {
    /// The next pieces; `None` when all came, and are what the reference says.
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
            return Err(bad(format!("has {} bytes of the {size} that its reference says", self.bytes)));
        };
        self.next = last.sequence.saturating_add(1);
        let mut pieces = Vec::with_capacity(records.len());
        for piece in records {
            self.bytes = self.bytes.saturating_add(piece.payload.len() as u64);
            if self.bytes > size {
                return Err(bad(format!("has more bytes than its reference says ({size})")));
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
    fn descriptions_of_blobs_that_were_bent_lead_to_pieces_or_nowhere() {
        let blob = BlobRef::new([7; 32], 700);
        let said = bend::texts([
            "{\"name\":\"07\",\"size\":700,\"nuid\":\"AbC123\",\"chunks\":1,\"deleted\":false}",
            "{\"size\":700,\"nuid\":\"AbC123\",\"options\":{\"link\":{\"bucket\":\"blobs\",\"name\":\"07\"}}}",
        ]);
        bend::bend_all("descriptions of blobs", &said, bend::turns(), |bytes| {
            if let Ok(described) = serde_json::from_slice::<ObjectDescription>(bytes)
                && let Ok(place) = place_of(described, &blob)
            {
                assert!(!place.contains(['.', '*', '>', ' ']), "{place} is no token of a subject");
            }
            1
        });
    }
}
